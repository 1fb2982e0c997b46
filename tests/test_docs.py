"""Pages of the site that no notebook holds"""
import inspect
import sys
from pathlib import Path

import pytest

import layerwise_knowledge as lk


@pytest.fixture(scope="module")
def pages():
    folder = str(Path(__file__).parent.parent/"docs")
    sys.path.insert(0, folder)
    import pages
    yield pages
    sys.path.remove(folder)


def test_the_api_page_has_every_public_name(pages):
    text = pages.api()
    for name in lk.__all__:
        assert f"### `lk.{name}`" in text, name
    for module in pages.MODULES:
        assert f"## {module}\n" in text, module


@pytest.mark.parametrize("name", ["track", "sparsify", "masks", "words", "score_table", "open"])
def test_every_argument_is_told_with_its_default(pages, name):
    function = getattr(lk, name)
    rows = pages.arguments(function).split("\n")
    for argument, p in inspect.signature(function).parameters.items():
        row, = [r for r in rows if r.startswith(f"| `{argument}` |")]
        _, _, default, told, _ = row.replace("\\|", "/").split("|")
        assert told.strip(), f"{name}: nothing is said of {argument}"
        assert (default.strip() == "") == (p.default is p.empty)


def test_comments_that_go_on_are_joined(pages):
    told = pages.comments(lk.track)
    assert told["test"].endswith("held out of the probes (but the network has seen it)")
