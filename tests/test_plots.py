"""Figures: same data, same bytes; nothing half-written stays; what they show was computed."""
import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from layerwise_knowledge import metrics as M
from layerwise_knowledge import plots as P

LAYERS = ["conv1", "conv2", "fc", "output"]
OWNER = np.arange(16).reshape(4, 4) // 4  # four players, each a row of four pixels


def table(seed=0, samples=6, n=4, layers=LAYERS):
    rng = np.random.default_rng(seed)
    shape = samples, len(layers), 2**n
    draw = lambda: rng.standard_t(2, shape) * (rng.random(shape) < .5)
    a, o = draw(), draw()
    a[:, :-1] += a[:, -1:]
    o[..., 0] = 0
    with warnings.catch_warnings(action="ignore"):
        return M.normalise(M.interaction_table(a, o, layers))


I, J = table(0), table(1)
SAMPLES = M.sample_metrics(I)
ONE, TAU = I.isel(sample=0), M.threshold(I)
IOU = M.iou(I, J, per_sample=True)
STABLE = M.stability(xr.concat([I + .1 * table(s) for s in range(4)], "draw"), I, per_sample=True)
PHI = np.random.default_rng(0).normal(size=(4, 4))
GAP = np.abs(np.random.default_rng(0).normal(0, 1e-3, (6, 4)))
GAP = xr.DataArray(GAP, dims=("sample", "layer"), coords=dict(layer=LAYERS))
NOISE = M.noise_ratio(np.random.default_rng(0).random((6, 4, 4)),
                      np.random.default_rng(1).normal(size=(6, 4, 4)), OWNER)
CHANCE = M.iou_by_chance(I, J, per_sample=True)


def pairs(x):
    return {l: {f"pair {k}": x.sel(layer=l) for k in range(6)} for l in ("conv2", "output")}


FIGURES = dict(
    strengths=lambda: P.strengths({"MLP-7": I, "ResNet-20": J.sel(layer="output")}, paper=21.8),
    layer_changes=lambda: P.layer_changes(
        SAMPLES, "and", {"conv1": 0.5, "output": 0.9}, title="net on data"
    ),
    layer_changes_or=lambda: P.layer_changes(SAMPLES, "or", orders=2),
    layer_changes_means=lambda: P.layer_changes(M.layer_metrics(I)),
    layer_changes_next=lambda: P.layer_changes(
        M.sample_metrics(I, reference="next"), orders=[1, 2]
    ),
    by_order=lambda: P.by_order(pairs(IOU), "IoU", chance=pairs(CHANCE)),
    by_order_log=lambda: P.by_order({"final layer": {"net": STABLE.sel(layer="output")}},
                                    "stability", kind="or", logy=True, orders=3),
    boxes_by_order=lambda: P.boxes_by_order(NOISE),
    interaction_map=lambda: P.interaction_map(
        np.random.default_rng(0).random((3, 4, 4)), ONE, np.stack([OWNER] * 3), TAU
    ),
    kappa_sensitivity=lambda: P.kappa_sensitivity({0.03: I, 0.04: J}),
    attributions=lambda: P.attributions(
        ONE.sel(layer=["conv2", "output"]),
        {"Shapley value": PHI[:2], "Integrated Gradients": PHI[2:]},
        names=["age", "hours per week", "sex", "country"],
    ),
    overview=lambda: P.overview(SAMPLES, LAYERS, accuracy={"output": .9}, orders=2, title="net"),
    sentence=lambda: P.sentence(ONE.sel(layer=["conv2", "output"]), ["a", "bad", "film", "."],
                                values={"Shapley value": PHI[:2]}),
    attributions_image=lambda: P.attributions(
        ONE.sel(layer=["output"]), {"Shapley value": PHI[:1]}, image=PHI, owner=OWNER
    ),
    certificates=lambda: P.certificates(
        GAP, delta=I.sel(kind="and", drop=True), gamma=I.sel(kind="or", drop=True)
    ),
)


def digest(paths): return [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths]


@pytest.mark.parametrize("name", FIGURES)
def test_figure_fits_the_page_and_leaves_nothing_open(name):
    plt.close("all")                                       # what other tests have left open
    before = dict(plt.rcParams)
    fig = FIGURES[name]()
    assert isinstance(fig, Figure) and not plt.get_fignums()
    assert fig.get_figwidth() <= P.PAGE + 1e-9 and fig.get_figheight() <= 9
    assert dict(plt.rcParams) == before, "a figure must not change the reader's own settings"
    fig.draw_without_rendering()
    texts = [t for t in fig.findobj(matplotlib.text.Text) if t.get_text().strip()]
    small = [t.get_text() for t in texts if t.get_fontsize() < 6]
    assert not small, "no letter below 6 points"


@pytest.mark.parametrize("name", ["strengths", "layer_changes", "by_order", "interaction_map",
                                  "attributions_image", "overview", "sentence"])
def test_same_data_same_bytes(name, tmp_path):
    first = digest(P.save(FIGURES[name](), tmp_path / "a"))
    reader = {"font.size": 20, "svg.hashsalt": "other", "axes.grid": True, "lines.linewidth": 9}
    with matplotlib.rc_context(reader):             # whatever the reader has set
        assert digest(P.save(FIGURES[name](), tmp_path / "b")) == first
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()


def test_same_bytes_in_another_process(tmp_path):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import test_plots as t; "
            "print(*t.digest(t.P.save(t.FIGURES['layer_changes'](), sys.argv[2])))")
    here = Path(__file__).parent
    out = []
    for s in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": s, "PYTHONPATH": str(here.parent)}
        command = [sys.executable, "-c", code, str(here), str(tmp_path / s)]
        out.append(subprocess.run(command, capture_output=True, text=True, check=True,
                                  cwd=tmp_path, env=env).stdout)
    assert out[0] == out[1] and len(out[0].split()) == 2


def test_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch):
    fig = FIGURES["boxes_by_order"]()
    paths = P.save(fig, tmp_path / "fig12.svg")  # an ending is taken off
    old = digest(paths)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fig12.png", "fig12.svg"]
    def killed(path, body):
        with open(path, "wb") as f:
            f.write(body[:9])
        raise KeyboardInterrupt
    monkeypatch.setattr("pathlib.Path.write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        P.save(fig, tmp_path / "fig12")
    assert digest(paths) == old and len(list(tmp_path.iterdir())) == 2, "nothing half-written"


def test_names_with_dots_keep_them(tmp_path):
    paths = P.save(FIGURES["boxes_by_order"](), tmp_path / "fig12_kappa0.04")
    assert [p.name for p in paths] == ["fig12_kappa0.04.png", "fig12_kappa0.04.svg"]


def test_bars_are_the_metrics():
    fig = P.layer_changes(SAMPLES, "and")
    panels = [ax for ax in fig.findobj(matplotlib.axes.Axes) if ax.patches]
    assert len(panels) == len(LAYERS)
    mean = SAMPLES.mean("sample").sel(kind="and")
    for ax, l in zip(panels, LAYERS):
        heights = np.array([p.get_height() for p in ax.patches])
        heights = heights.reshape(4, -1)                            # overlap, forget, overlap, new
        q = mean.sel(layer=l)
        np.testing.assert_allclose(heights, [q.overlap, q.forget, -q.overlap, -q.new])
        assert ax.get_title().startswith(l)


def test_what_is_left_out_is_said():
    words = lambda fig: " ".join(t.get_text() for t in fig.findobj(matplotlib.text.Text))
    every = SAMPLES["all"].sel(kind="and")
    share = 100 * float(every.sel(order=[3, 4]).sum() / every.sum())
    two, whole = (words(P.layer_changes(SAMPLES, orders=orders)) for orders in (2, None))
    assert f"orders 3, 4 not shown ({share:.1f} % of all strength)" in two
    assert "not shown" not in whole and "6 samples" in whole
    strengths, count = words(FIGURES["strengths"]()), M.salient(I).isel(layer=-1)
    assert "paper: 21.8" in strengths
    assert f"{float(count.sum(['kind', 'subset']).mean()):.1f}" in strengths


def test_destinies_are_what_they_say():
    omega = M.salient(ONE, TAU)
    for destiny, kind, S in P.destinies(ONE, TAU, each=5):
        on = omega.sel(kind=kind, subset=S).values
        what = {"kept": on[0] and on[-1], "forgotten": on[:-1].any() and not on[-1],
                "learned late": not on[0] and on[-1]}
        assert what[destiny]
        assert S.bit_count() >= 2


BAD = [
    (lambda: P.layer_changes(SAMPLES, "nor"), ValueError, "kind must be one of"),
    (lambda: P.layer_changes(SAMPLES, orders=[7]),
     ValueError, r"orders must be among \[1, 2, 3, 4\]"),
    (lambda: P.layer_changes(SAMPLES, orders=0), ValueError, "orders must be among"),
    (lambda: P.layer_changes({}), TypeError, "labelled table"),
    (lambda: P.strengths({"a": [1, 2]}), TypeError, "labelled table"),
    (lambda: P.strengths({}), ValueError, "nothing to draw"),
    (lambda: P.by_order({}, "IoU"), ValueError, "nothing to draw"),
    (lambda: P.kappa_sensitivity({}), ValueError, "nothing to draw"),
    (lambda: P.interaction_map(PHI, I, OWNER), ValueError, "choose it with"),
    (lambda: P.interaction_map(PHI, ONE * 0, OWNER), ValueError, "no interaction of order 2"),
    (lambda: P.interaction_map(PHI, ONE, OWNER[:2]), ValueError, "owner"),
    (lambda: P.attributions(ONE, {}, names=["age"]), ValueError, "one name"),
    (lambda: P.attributions(ONE, {}, image=PHI), ValueError, "owner"),
]


@pytest.mark.parametrize("call,error,words", BAD)
def test_bad_input_is_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as e:
        call()
    assert "\n" not in str(e.value) and len(str(e.value)) < 320


def test_one_colour_has_one_meaning():
    "Colours come from one table; greys and black are free"
    for path in (Path(__file__).parent.parent/"nbs").rglob("*.ipynb"):
        if path.stem == "look" or ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text())["cells"]
        source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for word in re.findall(r"tab:\w+|RdBu|coolwarm|vlag|[\"']colorblind[\"']", source):
            raise AssertionError(f"{path.name} says {word}: colours come from look")
        for red, green, blue in re.findall(r"#(\w\w)(\w\w)(\w\w)\b[\"']", source):
            assert red == green == blue, f"{path.name}: #{red}{green}{blue} is not in look"


def test_signs_and_fates_share_no_colour():
    colours = P.COLOURS
    assert len({c.lower() for c in [*colours.values(), *P.CYCLE]}) == len(colours) + len(P.CYCLE)
    assert P.side(.1) == colours["for"] and P.side(-.1) == colours["against"]
    fig = P.layer_changes(SAMPLES, "and")
    bars = [p for ax in fig.findobj(matplotlib.axes.Axes) for p in ax.patches]
    shown = {matplotlib.colors.to_hex(p.get_facecolor()).upper() for p in bars}
    assert shown == {colours[name] for name in ("overlap", "forget", "new")}
    fig = FIGURES["attributions"]()
    bars = [p for ax in fig.axes for p in ax.patches]
    shown = {matplotlib.colors.to_hex(p.get_facecolor()).upper() for p in bars}
    assert shown == {colours["for"], colours["against"]}
