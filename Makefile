# Every target sets itself up: a virtual environment in .venv with the tested versions, from PyPI alone.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.installed

.PHONY: figures test lab docs bench wheel reproduce check clean

figures: $(READY)          ## all figures: from the tables in data/results, and the first ones once more from raw pixels, into figures/quick
	$(BIN)/lk figures
	$(BIN)/lk figures fig02 fig03 fig07 --profile quick

reproduce: $(READY)        ## compute what data/results lacks (empty it, and every network is trained again): hours on a CPU; stop and go on as you like
	$(BIN)/lk reproduce --profile paper
	$(BIN)/lk figures
	$(BIN)/lk report

test: $(READY)             ## run every notebook and every test, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal

lab: $(READY)              ## open the notebooks
	$(BIN)/jupyter lab nbs

docs: $(READY)             ## the book as a web site, in _docs
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	rm -rf _book _docs && cp -r nbs _book && $(BIN)/python docs/pages.py _book
	PYTHONPATH=docs $(BIN)/sphinx-build -q -W --keep-going -c docs -d _book/.out/read _book _book/.out/site
	PYTHONPATH=docs $(BIN)/sphinx-build -q -W -b linkcheck -c docs -d _book/.out/read _book _book/.out/links
	$(BIN)/python docs/pages.py --explorer _book/.out/site/explorer.html
	mv _book/.out/site _docs
	@echo "open _docs/index.html"

bench: $(READY)            ## time ours beside its peers, in one run
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/one_pass.py

wheel:                     ## the built wheel in an empty environment of PYTHON: README's ten lines and lk must run, from another folder
	rm -rf build/wheel && mkdir -p build/wheel
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip wheel -q --disable-pip-version-check --no-deps -w build/wheel .
	build/wheel/env/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(ls build/wheel/*.whl)[data]"
	sed -n '/^```python/,/^```/p' README.md | grep -v '^```' > build/wheel/ten_lines.py
	cd build/wheel && env/bin/python ten_lines.py && env/bin/lk --help > /dev/null && env/bin/python --version
	rm -rf build/wheel/env

check: $(READY)            ## lines are clean; notebooks, package and git agree
	$(BIN)/ruff check nbs tests layerwise_knowledge benchmarks docs
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	git diff --exit-code -- nbs layerwise_knowledge

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[data,notebooks,test]'
	@touch $@

clean:                     ## remove what can be made again
	rm -rf .venv build data/cache figures/quick _docs _book _proc
