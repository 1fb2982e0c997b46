"""Settings, files that know what made them, interruption, damage."""
import subprocess, sys

import numpy as np, pytest, torch, xarray as xr

from layerwise_knowledge import experiments as ex, scores


@pytest.fixture
def cache(tmp_path, monkeypatch, root):
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("LAYERWISE_HOME", str(root))
    return tmp_path/"cache"


@pytest.mark.parametrize("profile", ex.profiles())
def test_every_experiment_of_every_profile_has_whole_settings(profile):
    for dataset, network in ex.experiments(profile):
        s = ex.settings(profile, dataset, network)
        wanted = {k for keys in ex.STEPS.values() for k in keys} - {"layers"} - ({"players", "patch"} if s["choice"] == "columns" else set())
        assert wanted <= s.keys(), f"{profile} {dataset} {network} lacks {wanted - s.keys()}"
        assert ex.probed_layers(s)[-1] == "output"


@pytest.mark.parametrize("step", ex.STEPS)
def test_a_file_name_changes_with_what_determines_it_and_nothing_else(step):
    s = ex.settings("quick", "mnist", "mlp7")
    mine = ex.determines(s, step).keys()
    for key in s:
        other = s | {key: "something else"}
        same = ex.step_file(s, step, "").name.split("-")[-1] == ex.step_file(other, step, "").name.split("-")[-1]
        assert same == (key not in mine), f"{step}: {key}"


@pytest.mark.parametrize("arguments, words", [
    (("fast", "mnist", "mlp7"), "no profile 'fast'; settings.ini has"),
    (("quick", "mnist", "mlp8"), "no experiment 'mnist mlp8'; it has mnist mlp7"),
])
def test_unknown_names_are_answered_with_the_known_ones(arguments, words):
    with pytest.raises(ValueError, match=words): ex.settings(*arguments)


def test_settings_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no settings.ini.*set LAYERWISE_HOME"): ex.read_settings()


def test_same_settings_same_numbers_and_damage_is_named(cache, monkeypatch, tmp_path):
    run = lambda: ex.run("smoke", "mnist", "mlp7", progress=False)
    first = run()
    assert (first.gap <= 0.01).all()
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"second"))
    xr.testing.assert_identical(first, run())
    names = lambda folder: sorted(p.name for p in folder.rglob("*"))
    assert names(cache) == names(tmp_path/"second"), "nothing but whole results is left"
    for path in (tmp_path/"second").iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole)//2])
        s = ex.settings("smoke", "mnist", "mlp7")
        step = next(k for k in ex.STEPS if f"-{k}-" in path.name)
        with pytest.raises(ValueError, match=f"{path.name}.*delete it and run again"): getattr(ex, f"get_{step}")(s, progress=False)
        path.write_bytes(whole)


def test_a_run_killed_in_the_middle_of_its_scores_goes_on(cache, monkeypatch, root, tmp_path):
    "A real kill: the process ends without a chance to tidy up"
    code = ("import os, sys; from layerwise_knowledge import experiments as ex, scores\n"
            "real, calls = scores.score_table, []\n"
            "def table(*a, **k):\n    calls.append(1)\n    return real(*a, **k) if len(calls) < 3 else os._exit(9)\n"
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


def test_killed_in_the_middle_of_a_write(tmp_path):
    def save(x, path): path.write_bytes(b"half"); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ex.kept(tmp_path/"a.npy", lambda: 1, save, np.load)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["label", "predicted"])
def test_what_is_explained(cache, target):
    s = ex.settings("smoke", "mnist", "mlp7", target=target)
    v = ex.get_scores(s, progress=False)
    (model, _), (_, x, y, _) = ex.get_network(s, progress=False), ex.get_samples(s)
    with torch.inference_mode(): z = model(x)
    wanted = y if target == "label" else z.argmax(-1)
    np.testing.assert_array_equal(v.target, wanted)
    np.testing.assert_array_equal(v.y, y)
    assert v.attrs["data_sha256"] and "torch" in v.attrs["versions"]
    with pytest.raises(ValueError, match="target must be label or predicted"): ex.explained_class(s | {"target": "both"}, model, x, y)
