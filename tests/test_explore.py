"""The page that needs no Python, in a real browser: what it shows is what Python says"""
import shutil
from dataclasses import replace

import pytest

from layerwise_knowledge import experiments as ex
from layerwise_knowledge import metrics
from layerwise_knowledge.explore import explorer, fit, from_strongest, strongest_sets

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FIRST = ("paper", "mnist", "resnet20")
SENTENCES = ("paper", "sst2", "minilm")


@pytest.fixture(scope="module")
def networks():
    return {"digits": ex.get_knowledge(ex.settings(*FIRST)),
            "reviews": ex.get_knowledge(ex.settings(*SENTENCES))}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(networks, tmp_path_factory):
    return explorer(networks, tmp_path_factory.mktemp("page")/"explorer.html", samples=3)


@pytest.fixture
def page(browser, path):
    "The page as a reader finds it"
    page, errors = browser.new_page(viewport=dict(width=1100, height=1000)), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(path.as_uri())
    page.wait_for_selector("table >> text=players")
    yield page
    page.close()
    assert not errors


def rows(page):
    "The sets that the page lists: (kind, players, I)"
    cells = [row.locator("td").all_inner_texts() for row in page.locator("table tr").all()[1:]]
    return [(kind, players, value) for _, kind, players, value, _ in cells]


def expected(k, sample, layer, kind="AND and OR", tau=.05):
    "The same, by Python"
    i = metrics.merge_first_order(k.interactions)
    names = k.players[sample].names
    found = strongest_sets(i.isel(sample=sample), metrics.threshold(i, tau), layer, kind)
    return [(kind.upper(), ", ".join(name for p, name in enumerate(names) if S >> p & 1),
             f"{value:.2f}") for kind, S, value in found]


def choose(page, number, label):
    "What a reader does with one of the four lists"
    page.locator("select").nth(number).select_option(label=label)


def press(page, number, key, times):
    "What a reader does with one of the two sliders"
    for _ in range(times):
        page.locator(".noUi-handle").nth(number).press(key)


def test_the_page_opens_with_the_first_sample_at_the_output(page, networks):
    assert rows(page) == expected(networks["digits"], 0, "output")[:6]


def test_layer_kind_and_sample_choose_the_sets(page, networks):
    choose(page, 1, "sample 2")
    choose(page, 2, "block5")
    assert rows(page) == expected(networks["digits"], 2, "block5")[:6]
    choose(page, 3, "OR")
    assert rows(page) == expected(networks["digits"], 2, "block5", "OR")[:6]


def test_a_higher_threshold_leaves_fewer_sets(page, networks):
    choose(page, 1, "sample 2")
    choose(page, 2, "block5")
    before = rows(page)
    press(page, 0, "ArrowRight", 15)                                   # τ from .05 to .20
    after = rows(page)
    assert len(after) < len(before)
    assert after == expected(networks["digits"], 2, "block5", tau=.2)[:6]
    drawn = page.evaluate("Bokeh.documents[0].get_model_by_name('curves').data.ys.length")
    assert drawn == len(after)                                         # the picture follows


def test_more_sets_explain_more_of_the_scores(page, networks):
    k = networks["digits"]
    v = k.scores.isel(sample=2).sel(layer="block5")
    i = metrics.merge_first_order(k.interactions).isel(sample=2).sel(layer="block5")
    choose(page, 1, "sample 2")
    choose(page, 2, "block5")
    for count, steps in ((20, 0), (35, 15)):
        press(page, 1, "ArrowRight", steps)
        r2, error = fit(v, from_strongest(i, count))
        words = page.locator("text=strongest explain the 1024").inner_text()
        assert f"The {count} strongest explain the 1024 scores with R² {r2:.3f}" in words
        assert f"largest error {error:.2f} log-odds" in words


def test_a_sentence_has_words_instead_of_pixels(page, networks):
    choose(page, 0, "reviews")
    assert rows(page) == expected(networks["reviews"], 0, "output")[:6]
    drawn = page.evaluate("Bokeh.documents[0].get_model_by_name('word_source').data.text")
    assert drawn[:10] == networks["reviews"].players[0].names
    choose(page, 0, "digits")
    assert rows(page) == expected(networks["digits"], 0, "output")[:6]


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one title"):
        explorer({}, tmp_path/"x.html")


def test_the_widgets_of_a_notebook_ask_for_what_is_chosen(networks, capsys):
    pytest.importorskip("ipywidgets")
    controls = networks["digits"].explore()
    sample, layer, kind, tau, strongest = controls.children[:5]
    assert [w.value for w in (layer, kind, tau, strongest)] == ["output", "AND and OR", .05, 20]
    controls.update()
    layer.value, sample.value = "block1", 7                            # what a click does
    assert controls.kwargs == dict(sample=7, layer="block1", kind="AND and OR", tau=.05,
                                   strongest=20)
    assert sample.max == 99 and "Traceback" not in capsys.readouterr().out


def test_sampled_masks_are_sent_elsewhere(networks):
    k = networks["digits"]
    masks = replace(k, data=k.data.rename(subset="mask"))
    with pytest.raises(ValueError, match="these are sampled masks"):
        masks.explore()
    with pytest.raises(ValueError, match="these are sampled masks"):
        explorer({"masks": masks}, "nowhere.html")
