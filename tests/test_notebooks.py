"""Every notebook runs top to bottom; chapters as they are, figures, report and its appendix through
papermill with the profile `smoke` (test_cli)."""
import ast
import json
import re
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_nb

NBS = Path(__file__).parent.parent / "nbs"
ALL = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
FIGURES = [p for p in ALL
           if p.parent.name == "figures" or p.stem in ("report", "claims", "choices")]
CHAPTERS = [p for p in ALL if p not in FIGURES]
name = lambda p: str(p.relative_to(NBS).with_suffix(""))


def words_of(cell):
    "What a cell prints, without numbers: last digits and times differ from machine to machine"
    parts = []
    for out in cell.get("outputs", []):
        if out["output_type"] == "stream" and out["name"] == "stdout":
            parts += out["text"]
        elif out["output_type"] in ("execute_result", "display_data"):
            parts += out["data"].get("text/html") or out["data"].get("text/plain", "")
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^<>]*>", " ", "".join(parts), flags=re.S)
    text = re.sub(r"\b[0-9a-f]{8,}\b|\b[nN]a[nN]\b|\d[\d.]*(e[-+]?\d+)?", "#", text)
    return re.sub(r"[\s─−,;+\[\]-]+|#[\s#.,]*", " ", text).split()


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_chapter_runs_and_prints_what_it_shows(path, monkeypatch):
    run = []
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr("nbdev.test.write_nb", lambda nb, _: run.append(nb))
    ok, seconds = run_nb(path, skip_flags=[], basepath=NBS, showerr=True, save=True)
    assert ok, f"{path.name} failed after {seconds:.0f} s; the trace is above"
    cells = json.loads(path.read_text())["cells"]
    for k, (shown, new) in enumerate(zip(cells, run[0].cells)):
        if "skipped:" in words_of(new):                  # weights or data that are not here
            return
        assert words_of(shown) == words_of(new), f"run it again: cell {k} of {path.name}"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_notebook_is_fit_to_print(path):
    raw = path.read_text()
    nb = json.loads(raw)
    sources = ["".join(c["source"]) for c in nb["cells"]]
    assert sources[0].startswith("# "), "the first cell is the title"
    assert len(nb["cells"]) <= 50, "a chapter has at most 50 cells"
    outputs = json.dumps([c.get("outputs", []) for c in nb["cells"]])
    for leak in ("/root/", "/home/", "/work/", "/tmp/", "Warning:", "Traceback", " at 0x"):
        assert leak not in outputs, f"{path.name} shows {leak!r} in an output"
    assert len(raw) < 1_500_000, "small outputs only"


def lines_of(source):
    "Lines of a cell; of a documented signature the first alone, no imports, no documented fields"
    lines = [line for line in source.split("\n") if not line.startswith("#|")]
    count = len(lines)
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            count -= max(0, node.body[0].lineno - node.lineno - 1)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            count -= node.end_lineno - node.lineno + 1
        if isinstance(node, ast.ClassDef):
            count -= sum(isinstance(s, ast.AnnAssign) for s in node.body)
    return count


@pytest.mark.parametrize("path", ALL, ids=name)
def test_cells_are_short(path):
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert lines_of(source) <= 25, f"cut this cell:\n{source[:200]}"


@pytest.mark.parametrize("path", FIGURES, ids=name)
def test_figure_declares_its_parameters(path):
    cells = json.loads(path.read_text())["cells"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1


@pytest.mark.parametrize("path", [p for p in CHAPTERS if p.parent == NBS], ids=name)
def test_most_cells_are_shorter(path):
    "The median cell of a chapter has at most 8 lines"
    sizes = [lines_of("".join(c["source"])) if c["cell_type"] == "code" else len(c["source"])
             for c in json.loads(path.read_text())["cells"]]
    assert sum(size <= 8 for size in sizes) >= len(sizes)/2
