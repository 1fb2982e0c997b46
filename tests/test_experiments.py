"""Settings, files that know what made them, interruption, damage."""
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

from layerwise_knowledge import experiments as ex
from layerwise_knowledge import files, results, scores
from layerwise_knowledge.sparsify import sparsify


@pytest.fixture
def cache(tmp_path, monkeypatch, root):
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("LAYERWISE_HOME", str(root))
    return tmp_path/"cache"


@pytest.mark.parametrize("profile", ex.profiles())
def test_every_experiment_of_every_profile_has_whole_settings(profile):
    for dataset, network in ex.experiments(profile):
        s = ex.settings(profile, dataset, network)
        wanted = {k for keys in [*ex.STEPS.values(), *ex.PROBES.values()] for k in keys}
        of_sentences = {"optimiser", "pretrained", "read"}
        unasked = {"columns": {"players", "patch"} | of_sentences, "words": {"patch"}}
        wanted -= {"labels"} | unasked.get(s["choice"], of_sentences)
        assert wanted <= s.keys(), f"{profile} {dataset} {network} lacks {wanted - s.keys()}"
        assert s["layers"][-1] == "output" and len(ex.variants(s)) == 1 + len(s["variants"])


@pytest.mark.parametrize("step", ex.STEPS)
def test_a_file_name_changes_with_what_determines_it_and_nothing_else(step):
    s = ex.settings("quick", "mnist", "mlp7")
    mine = ex.determines(s, step).keys()
    for key in s:
        other = s | {key: "sgd" if key == "probe" else "something else"}
        one, two = (ex.step_file(z, step, "").name.split("-")[-1] for z in (s, other))
        same = one == two
        assert same == (key not in mine), f"{step}: {key}"


def test_shuffled_labels_and_other_probes_are_other_files():
    s = ex.settings("quick", "mnist", "mlp7")
    others = [s, s | dict(labels="shuffled"), s | dict(probe="sgd"), s | dict(bootstrap=1),
              s | dict(pool=16)]
    assert len({ex.step_file(o, "scores", "") for o in others}) == 5
    network = ex.step_file(s, "network", "")
    same = [ex.step_file(o, "network", "") == network for o in others]
    assert same == [True, False, True, True, True]
    sgd = s | dict(probe="sgd")
    other = sgd | dict(probe_tol=.5, bootstrap=2)
    assert ex.step_file(sgd, "probes", "") == ex.step_file(other, "probes", "")


@pytest.mark.parametrize("arguments, words", [
    (("fast", "mnist", "mlp7"), "no profile 'fast'; settings.ini has"),
    (("quick", "mnist", "mlp8"), "no experiment 'mnist mlp8'; it has mnist mlp7"),
])
def test_unknown_names_are_answered_with_the_known_ones(arguments, words):
    with pytest.raises(ValueError, match=words):
        ex.settings(*arguments)


def test_a_rule_for_patches_is_registered_in_one_place(cache, monkeypatch):
    def corner(image, n, size, seed=0):
        return [(row, column) for row in range(n) for column in range(n)][:n]
    with pytest.raises(ValueError, match="choice must be foreground | central | columns | words"):
        ex.settings("smoke", "mnist", "mlp7", choice="corner")
    monkeypatch.setitem(ex.PATCHES, "corner", corner)
    s = ex.settings("smoke", "mnist", "mlp7", choice="corner")
    _, x, _, players = ex.get_samples(s)
    assert [p.patches for p in players] == [[(0, c) for c in range(6)]]*len(x)


def test_settings_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no settings.ini.*set LAYERWISE_HOME"):
        ex.read_settings()


def test_same_settings_same_numbers_and_damage_is_named(cache, monkeypatch, tmp_path):
    run = lambda: ex.run("smoke", "mnist", "mlp7", progress=False)
    first = run()
    assert (first.gap <= 0.01).all()
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"second"))
    xr.testing.assert_identical(first, run())
    names = lambda folder: sorted(p.name for p in folder.iterdir() if p.name != ".locks")
    assert names(cache) == names(tmp_path/"second"), "nothing but whole results is left"
    for path in (p for p in (tmp_path/"second").iterdir() if p.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole)//2])
        s = ex.settings("smoke", "mnist", "mlp7")
        step = next(k for k in ex.STEPS if f"-{k}-" in path.name)
        with pytest.raises(ValueError, match=f"{path.name}.*delete it and"):
            getattr(ex, f"get_{step}")(s, progress=False)
        path.write_bytes(whole)


def test_a_run_killed_in_the_middle_of_its_scores_goes_on(cache, monkeypatch, root, tmp_path):
    "A real kill: the process ends without a chance to tidy up"
    code = ("import os, sys; from layerwise_knowledge import experiments as ex, scores\n"
            "real, calls = scores.score_table, []\n"
            "def table(*a, **k):\n    calls.append(1)\n"
            "    return real(*a, **k) if len(calls) < 3 else os._exit(9)\n"
            "scores.score_table = table\n"
            "ex.run('smoke', 'mnist', 'mlp7', progress=False)")
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.returncode == 9, out.stderr
    assert len(list(cache.rglob("*.parts/*.nc"))) == 2
    calls, real = [], scores.score_table
    monkeypatch.setattr(scores, "score_table", lambda *a, **k: calls.append(1) or real(*a, **k))
    resumed = ex.run("smoke", "mnist", "mlp7", progress=False)
    assert len(calls) == 1, "two of three samples were kept"
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"whole"))
    xr.testing.assert_identical(resumed, ex.run("smoke", "mnist", "mlp7", progress=False))


@pytest.mark.parametrize("target", ["label", "predicted"])
def test_what_is_explained(cache, target):
    s = ex.settings("smoke", "mnist", "mlp7", target=target)
    v = ex.get_scores(s, progress=False)
    (model, _), (_, x, y, _) = ex.get_network(s, progress=False), ex.get_samples(s)
    with torch.inference_mode():
        z = model(x)
    wanted = y if target == "label" else z.argmax(-1)
    np.testing.assert_array_equal(v.target, wanted)
    np.testing.assert_array_equal(v.y, y)
    assert v.attrs["data_sha256"] and "torch" in v.attrs["versions"]


@pytest.fixture
def home(cache, monkeypatch, root, tmp_path):
    "A project folder of its own, so that nothing is shipped into the real one"
    (tmp_path/"home").mkdir()
    shutil.copy(root/"settings.ini", tmp_path/"home")
    monkeypatch.setenv("LAYERWISE_HOME", str(tmp_path/"home"))
    return tmp_path/"home"


def test_what_is_shipped_needs_neither_data_nor_network(home, cache, monkeypatch):
    s = ex.settings("smoke", "mnist", "mlp7")
    first, (index, x, y, players) = ex.get_interactions(s, progress=False), ex.get_samples(s)
    names = {p.name for p in ex.ship(s, most=1e6)}
    assert names == {p.name for p in (home/"data"/"results").iterdir()}
    assert any("scores" in n for n in names)
    assert not any("network" in n for n in names), "MLP-7 is 30 MB"
    shutil.rmtree(cache)
    def missing(*_): raise FileNotFoundError("no data here")
    monkeypatch.setattr(ex.datasets, "load", missing)
    xr.testing.assert_identical(first, ex.get_interactions(s, progress=False))
    again = ex.get_samples(s)
    np.testing.assert_array_equal(again[0], index)
    assert torch.equal(again[1], x) and torch.equal(again[2], y)
    assert all(torch.equal(p.owner, q.owner) for p, q in zip(again[3], players))


def test_what_a_file_keeps_of_scores_and_interactions(cache):
    s = ex.settings("smoke", "mnist", "mlp7")
    out = ex.get_interactions(s, progress=False)
    np.testing.assert_array_equal(out.v*2**12, (out.v*2**12).round())
    r = sparsify(out.v.values.astype(float), s["kappa"], s["tol"], s["prefer"])
    i = ex.metrics.interaction_table(r.i_and, r.i_or, out.layer.values, out.sample.values)
    largest = abs(i).max(["kind", "subset"])
    ratio = float((abs(out.interaction - i)/largest).max())
    assert ratio <= 2**-24, ratio*2**24
    assert (out.interaction == 0).mean() > .1
    assert (abs(out.delta).max("subset") <= out.kappa + 1e-4*largest).all()
    flat = results.rounded(0*i)
    assert (flat == 0).all() and flat.dtype == "float32"


def test_an_extraction_of_other_scores_is_refused(cache):
    s = ex.settings("smoke", "mnist", "mlp7")
    ex.get_interactions(s, progress=False)
    path = ex.step_file(s, "scores", ".nc")
    found = files.load_table(path)
    found["v"][0, 0, 3] += 1
    files.save_table(found, path)
    with pytest.raises(ValueError, match="extracted from other scores than .*delete it"):
        ex.get_interactions(s, progress=False)


def test_noise_again_by_hand(cache):
    s = ex.settings("smoke", "mnist", "mlp7", noise_samples=1, draws=4)
    out, noisy = ex.get_interactions(s, progress=False), ex.get_noise(s, progress=False)
    (model, _), probes = ex.get_network(s, progress=False), ex.get_probes(s, progress=False)
    index, x, y, players = ex.get_samples(s)
    gen = torch.Generator().manual_seed(int(index[0]))
    noise = s["noise"]*torch.randn(4, *x[0].shape, generator=gen)
    baseline = ex.mean_baseline(ex.get_data(s).x_train)
    v = torch.stack([torch.from_numpy(scores.score_table(
        model, x[:1] + e, y[:1], players[0], ["output"], probes, baseline,
        progress=False).values[0, 0]) for e in noise])
    r = sparsify(v.double())
    i = ex.metrics.interaction_table(r.i_and[:, None], r.i_or[:, None], ["output"])
    moments = ex.metrics.merge_first_order(i).isel(layer=0).rename(sample="draw")
    omega = ex.metrics.salient(out.interaction).sel(layer="output").isel(sample=0)
    for name, one in (("mean", moments.mean("draw")), ("std", moments.std("draw"))):
        ours = noisy[name].sel(layer="output").isel(sample=0).values
        scale = abs(out.interaction).max().item()
        np.testing.assert_allclose(ours, one.where(omega).values, atol=2e-3*scale)
    with pytest.raises(ValueError, match="draws no noise"):
        ex.get_noise(s | {"noise_samples": 0})


def test_a_file_of_other_scores_does_not_belong():
    s = ex.settings("paper", "census", "mlp7")
    out = ex.get_interactions(s)
    assert ex.belongs_together(s, out)
    for other in ("interaction", "objective"):
        assert not ex.belongs_together(s, out.assign({other: out[other].roll(sample=1)}))
