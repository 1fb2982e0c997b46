"""The book: `make docs` turns the notebooks, as they are committed, into a web site in _docs."""
import shutil
from pathlib import Path

import nbformat

project, author = "layerwise-knowledge", "layerwise-knowledge contributors"
extensions = ["myst_nb", "sphinx-mathjax-offline"]      # formulas without a network
html_theme = "sphinx_book_theme"
html_theme_options = {"home_page_in_toc": True, "show_toc_level": 2}
html_title = project
html_static_path, html_css_files = ["static"], ["book.css"]
html_copy_source = False
nb_execution_mode = "off"
nb_render_markdown_format = "myst"      # tables and links in outputs, as in text
nb_custom_formats = {".ipynb": ["conf.read", {}, False]}
myst_enable_extensions = ["dollarmath", "amsmath"]
exclude_patterns = ["**/.ipynb_checkpoints", ".out"]
linkcheck_ignore = ["https?://"]        # links within the book; the web is not asked
linkcheck_anchors = False

CHAPTERS = sorted(p.stem for p in (Path(__file__).parent.parent/"nbs").glob("[0-9][0-9]_*.ipynb"))
TOC = """```{{toctree}}
:hidden:
:caption: {caption}
{glob}
{entries}
```
"""
EXPLORER = """```{raw} html
<iframe src="explorer.html" title="Interactions, layer by layer" class="explorer"></iframe>
<p><a href="explorer.html">The same, on a page of its own</a></p>
```
"""


def read(text):
    "A notebook without what is only for nbdev: `#|` lines and hidden cells"
    nb = nbformat.reads(text, 4)
    nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and "#| hide" in c.source)]
    for c in nb.cells:
        if c.cell_type == "code":
            c.source = "\n".join(l for l in c.source.split("\n") if not l.startswith("#|"))
    nb.cells = [c for c in nb.cells if c.source.strip()]
    if any(c.source.startswith("# Layerwise change of knowledge") for c in nb.cells):
        tocs = [
            ("Chapters", "", "\n".join(CHAPTERS + ["report"])),
            ("Examples", ":glob:", "examples/*"),
            ("Figures", ":glob:", "figures/*"),
            ("Appendix", ":glob:", "appendix/*"),
            ("Reference", "", "api\nchangelog"),
        ]
        nb.cells += [
            nbformat.v4.new_markdown_cell(TOC.format(caption=c, glob=g, entries=e))
            for c, g, e in tocs
        ]
    if any(c.source.startswith("# Explore\n") for c in nb.cells):
        nb.cells.insert(1, nbformat.v4.new_markdown_cell(EXPLORER))
    return nb


def only_what_is_used(app, error):
    "MathJax comes with speech and other formats, 20 MB that no page of ours asks for"
    folder = Path(app.outdir)/"_static"/"mathjax"
    for path in () if error else folder.glob("*"):
        if path.name in ("a11y", "adaptors", "sre"):
            shutil.rmtree(path)
        elif path.suffix == ".js" and path.name != "tex-chtml.js":
            path.unlink()


def setup(app):
    app.connect("build-finished", only_what_is_used)
