"""Killed, flipped, full, replaced, two at a time: nothing of it may turn into a number."""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from layerwise_knowledge import experiments as ex
from layerwise_knowledge import files, models, plots, results, scores, training
from layerwise_knowledge.probe_files import _tensors
from layerwise_knowledge.probes import Probes

ROOT = Path(__file__).parent.parent
SMALL = dict(noise_samples=2, draws=2, attributed=2)
STEPS = ("network", "probes", "scores", "interactions", "noise", "attributions")


def small(**changed):
    return ex.settings("smoke", "mnist", "mlp7", **(SMALL | changed))


def everything(s):
    "All six steps; the interactions"
    ex.get_noise(s, progress=False), ex.get_attributions(s, progress=False)
    return ex.get_interactions(s, progress=False)


def file_of(step, s=None):
    "Where a step lies in the cache of this test"
    weights = step in ("network", "probes")
    return ex.step_file(s or small(), step, ".safetensors" if weights else ".nc")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A cache with all six steps of a small experiment"
    cache = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERWISE_CACHE", str(cache))
        patch.setenv("LAYERWISE_HOME", str(ROOT))
        everything(small())
    return cache


@pytest.fixture
def cache(made, tmp_path, monkeypatch):
    "A copy of it for one test"
    shutil.copytree(made, tmp_path/"cache")
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("LAYERWISE_HOME", str(ROOT))
    return tmp_path/"cache"


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".locks")


# ---- a step knows the bytes that it was made from ------------------------------------------------

def another_network():
    "What training again gives: the same settings and accuracies, a last bit that differs"
    path = file_of("network")
    model, story = models.load_model(path)
    with torch.no_grad():
        model.output.weight += 1e-6
    del story["weights_sha256"], story["spec"]
    models.save_weights(model, path, **story)
    return path


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_network_that_was_trained_again_is_named_by_every_step(cache, step):
    network = another_network()
    with pytest.raises(ValueError) as e:
        getattr(ex, f"get_{step}")(small(), progress=False)
    assert "was made from another network" in str(e.value) and str(network) in str(e.value)
    assert "delete" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("step", STEPS[2:])
def test_nothing_is_made_with_probes_of_another_network(cache, step):
    another_network()
    for later in STEPS[2:]:
        file_of(later).unlink()
    with pytest.raises(ValueError, match="probes.* was made from another network"):
        getattr(ex, f"get_{step}")(small(), progress=False)


def test_other_probes_are_named(cache):
    path = file_of("probes")
    probes = Probes.load(path)
    probes["linear4"].bias += 1
    probes.save(path)
    for step in STEPS[2:]:
        with pytest.raises(ValueError, match="was made from another probes"):
            getattr(ex, f"get_{step}")(small(), progress=False)


def parts_of_an_interrupted_run(cache, monkeypatch):
    "Two of three samples are scored, then the process dies"
    for step in STEPS[2:]:
        file_of(step).unlink()
    real, calls = scores.score_table, []
    def table(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(scores, "score_table", table)
    with pytest.raises(KeyboardInterrupt):
        ex.get_scores(small(), progress=False)
    monkeypatch.setattr(scores, "score_table", real)
    return file_of("scores").with_suffix(".parts")


def test_a_part_of_another_network_is_not_mixed_in(cache, monkeypatch):
    parts = parts_of_an_interrupted_run(cache, monkeypatch)
    assert names(parts) == ["0000.nc", "0001.nc"]
    another_network()
    file_of("probes").unlink()
    with pytest.raises(ValueError, match="0000.nc was made from another network"):
        ex.get_scores(small(), progress=False)


def test_a_part_of_another_sample_is_not_mixed_in(cache, monkeypatch):
    parts = parts_of_an_interrupted_run(cache, monkeypatch)
    found = files.load_table(parts/"0001.nc")
    told = json.loads(found.attrs["made_from"])
    told["sample 0"] = told.pop("sample 1")
    files.save_table(found.assign_attrs(made_from=json.dumps(told)), parts/"0000.nc")
    with pytest.raises(ValueError, match="0000.nc was made from another sample 0"):
        ex.get_scores(small(), progress=False)


@pytest.mark.parametrize("step", ("probes", "scores", "noise", "attributions"))
def test_other_data_under_the_same_name_are_named(cache, monkeypatch, step):
    for later in STEPS[STEPS.index(step):]:
        file_of(later).unlink()
    real = ex.datasets.load
    monkeypatch.setattr(ex.datasets, "load", lambda name: changed(real(name)))
    def changed(data):
        from dataclasses import replace
        return replace(data, sha256="0"*64)
    with pytest.raises(ValueError, match="was made from another data .* data set mnist-embedded"):
        getattr(ex, f"get_{step}")(small(), progress=False)


def test_noise_of_other_interactions_is_named(cache):
    path = file_of("interactions")
    found = results.load_sparse(path)
    found["interaction"] *= 1 + 1e-6
    results.save_sparse(found, path)
    with pytest.raises(ValueError, match="noise.* was made from another interactions"):
        ex.get_noise(small(), progress=False)


# ---- a payload is checked against its certificate ------------------------------------------------

def raised_by_a_thousand(found):
    found["interaction"][0, 0, 0, 3] += 1000

def twice_the_noise(found):
    found["kappa"] /= 2

def a_better_bound(found):
    found["gap"] /= 2

def not_a_number(found):
    found["lower_bound"][0, 0] = np.nan


@pytest.mark.parametrize("change", [raised_by_a_thousand, twice_the_noise, a_better_bound,
                                    not_a_number])
def test_a_file_that_contradicts_its_certificate_is_refused(cache, change):
    path = file_of("interactions")
    found = results.load_sparse(path)
    change(found)
    results.save_sparse(found, path)                                    # with a new seal
    with pytest.raises(ValueError, match="contradicts its certificate at sample .*, layer "):
        ex.get_interactions(small(), progress=False)


def test_every_shipped_file_is_the_one_in_the_list():
    lines = (ROOT/"data"/"checksums").read_text().splitlines()
    listed = dict(reversed(line.split()) for line in lines if "results/" in line)
    here = {f"results/{p.name}": ex.datasets.sha256(p) for p in (ROOT/"data"/"results").iterdir()}
    assert here == listed


# ---- flipped bits --------------------------------------------------------------------------------

def loaded(step, path):
    "Everything of a file that may become a number"
    if step == "network":
        model, story = models.load_model(path)
        return [t.numpy() for t in model.state_dict().values()] + [json.dumps(story)]
    if step == "probes":
        probes = Probes.load(path)
        return [t.numpy() for t in _tensors(probes).values()] + [str(probes)]
    if step == "checkpoint":
        state = training._load_checkpoint(path, {})
        return [t.numpy() for t in state["model"].values()]
    found = results.load_sparse(path) if step == "interactions" else files.load_table(path)
    return [a.values for a in found.variables.values()] + [json.dumps(found.attrs)]


@pytest.fixture(scope="module")
def every_kind(made, tmp_path_factory):
    "One file of every kind, small where a small one says the same"
    folder = tmp_path_factory.mktemp("kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERWISE_CACHE", str(made))
        patch.setenv("LAYERWISE_HOME", str(ROOT))
        out = {step: shutil.copy(file_of(step), folder) for step in STEPS if step != "network"}
        part = files.load_table(file_of("scores")).isel(sample=[0])
    files.save_table(part, folder/"0000.nc")
    model = models.create("resnet20", (1, 28, 28), 10)
    models.save_weights(model, folder/"network.safetensors", made_from=dict(data="0"*64))
    training._save_checkpoint(folder/"run.checkpoint", model=model.state_dict(), optimiser={},
                            history=[], recipe={})
    return {step: Path(p) for step, p in out.items()} | dict(
        network=folder/"network.safetensors", part=folder/"0000.nc",
        checkpoint=folder/"run.checkpoint")


@pytest.mark.parametrize("step", [*STEPS, "part", "checkpoint"])
def test_a_flipped_bit_changes_no_number(every_kind, step, tmp_path):
    "25 bits of each of the eight kinds: the header, the end, and anywhere; 200 in all"
    whole = every_kind[step].read_bytes()
    good = loaded(step, every_kind[step])
    rng = np.random.default_rng(list(step.encode()))
    places = [*rng.integers(0, 256, 8), *rng.integers(len(whole) - 80, len(whole), 5),
              *rng.integers(0, len(whole), 12)]
    path, refused = tmp_path/every_kind[step].name, 0
    for place in places:
        bit = 1 << int(rng.integers(8))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1:])
        try:
            for a, b in zip(loaded(step, path), good, strict=True):
                np.testing.assert_array_equal(a, b)
        except ValueError as e:
            assert str(path) in str(e) and "delete it" in str(e), e
            refused += 1
    assert refused >= 24, f"{refused} of {len(places)}"


def test_the_header_that_once_hung_is_refused_before_it_is_opened(every_kind, tmp_path):
    "Any of the first 100 bytes of a netCDF file, from 0 to 1"
    whole = every_kind["scores"].read_bytes()
    for place in (k for k in range(100) if whole[k] == 0):
        (tmp_path/"v.nc").write_bytes(whole[:place] + b"\1" + whole[place + 1:])
        with pytest.raises(ValueError, match="v.nc is damaged"):
            files.load_table(tmp_path/"v.nc")


# ---- killed --------------------------------------------------------------------------------------

KILLED = """
import os, signal
from pathlib import Path
from layerwise_knowledge import experiments as ex
real, calls = Path.write_bytes, []
def half(path, body):
    calls.append(path)
    if len(calls) < 4:
        return real(path, body)
    real(path, body[:len(body)//2])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = half
ex.get_noise(ex.settings("smoke", "mnist", "mlp7", noise_samples=2, draws=2), progress=False)
"""

def test_killed_in_the_middle_of_every_fourth_write(made, tmp_path):
    "Each run gets three writes further and dies in the next; at the end nothing tells of it"
    env = os.environ | dict(LAYERWISE_CACHE=str(tmp_path/"cache"), LAYERWISE_HOME=str(ROOT))
    command = [sys.executable, "-c", KILLED]
    for kills in range(12):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert kills >= 3, "the runs were killed"
    wanted = [n for n in names(made) if "attributions" not in n]
    assert names(tmp_path/"cache") == wanted, "no partial and no part is left"
    for name in (n for n in wanted if n.endswith(".nc")):
        a, b = (files.load_table(folder/name) for folder in (made, tmp_path/"cache"))
        xr.testing.assert_equal(a, b)


def test_partials_of_the_dead_go_and_those_of_the_living_stay(cache, tmp_path):
    host = files.platform.node()
    dead, living = (cache/f"x.nc.{host}-{pid}.partial" for pid in (2**30, os.getpid()))
    for path in (dead, living):
        path.write_bytes(b"half")
    file_of("interactions").unlink()
    ex.get_interactions(small(), progress=False)
    assert not dead.exists() and living.exists()
    (tmp_path/"figures").mkdir()
    dead = tmp_path/"figures"/f"fig.png.{host}-{2**30}.partial"
    dead.write_bytes(b"half")
    import matplotlib.pyplot as plt
    plots.save(plt.figure(), tmp_path/"figures"/"fig")
    assert names(tmp_path/"figures") == ["fig.png", "fig.svg"]


# ---- a full disk ---------------------------------------------------------------------------------

def limited():
    "A writer that fails: no file may grow beyond 20 kB"
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_ends_in_one_sentence(tmp_path):
    "The network of this run has 30 MB"
    env = os.environ | dict(LAYERWISE_CACHE=str(tmp_path/"cache"), LAYERWISE_HOME=str(ROOT))
    code = ("import sys; from layerwise_knowledge.cli import main\n"
            "sys.exit(main('train mnist/mlp7 --profile smoke --quiet'.split()))")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written: " in done.stderr and "MB free" in done.stderr, done.stderr
    assert names(tmp_path/"cache") == [], "no partial is left"


WRITERS = """
import numpy as np, torch, xarray as xr, matplotlib.pyplot as plt
from layerwise_knowledge import files, models, plots, training
from layerwise_knowledge.probes import Probes
model = models.create("resnet20", (1, 28, 28), 10)
noise = np.random.default_rng(0).normal(size=(200, 200))
figure, axes = plt.subplots()
axes.imshow(noise)
writers = dict(
    table=lambda: files.save_table(xr.Dataset(dict(v=(("a", "b"), noise))), "t.nc"),
    weights=lambda: models.save_weights(model, "w.safetensors"),
    probes=lambda: Probes(dict(a=torch.nn.Linear(9999, 2))).save("p.safetensors"),
    checkpoint=lambda: training._save_checkpoint("c.pt", model=model.state_dict()),
    picture=lambda: plots.save(figure, "fig"))
for name, writer in writers.items():
    try: writer()
    except OSError as e: print(name, str(e).count("cannot be written") == 1)
"""

def test_every_writer_fails_in_the_same_words_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITERS], cwd=tmp_path, preexec_fn=limited,
                          capture_output=True, text=True, env=os.environ | dict(MPLBACKEND="agg"))
    kinds = ("table", "weights", "probes", "checkpoint", "picture")
    assert done.stdout.splitlines() == [f"{kind} True" for kind in kinds], done.stderr
    assert names(tmp_path) == []


# ---- two at a time -------------------------------------------------------------------------------

def test_two_processes_in_one_cache(made, tmp_path):
    "Both end well, one of them has waited, and nothing was made twice"
    env = os.environ | dict(LAYERWISE_CACHE=str(tmp_path/"cache"), LAYERWISE_HOME=str(ROOT))
    code = ("from layerwise_knowledge import experiments as ex\n"
            "s = ex.settings('smoke', 'mnist', 'mlp7', noise_samples=2, draws=2)\n"
            "ex.get_noise(s, progress=False)")
    command = [sys.executable, "-c", code]
    two = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate()[1] for p in two]
    assert [p.returncode for p in two] == [0, 0], said
    assert any("waiting for the process that makes" in s for s in said), said
    assert names(tmp_path/"cache") == [n for n in names(made) if "attributions" not in n]
    a, b = (files.load_table(next(folder.glob("*noise*"))) for folder in (made, tmp_path/"cache"))
    xr.testing.assert_equal(a, b)
