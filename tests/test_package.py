"""The package as others get it: installed, run from another folder, without notebook packages."""
import subprocess
import sys

import pytest

EXTRAS = ["nbdev", "fastcore", "papermill", "jupyterlab", "IPython", "ipywidgets", "captum",
          "shapiq", "dask", "mlxtend", "foolbox", "hypothesis", "pytest", "numba", "transformers",
          "tokenizers", "bokeh", "playwright"]
USE = """
import sys
from importlib.machinery import PathFinder
real = PathFinder.find_spec           # the extras are not found, as if they were not installed
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {extras} else real(name, path, target)
PathFinder.find_spec = find_spec
sys.path.insert(0, {site!r})

import layerwise_knowledge, pkgutil, importlib
assert layerwise_knowledge.__file__.startswith({site!r}), layerwise_knowledge.__file__
for m in pkgutil.iter_modules(layerwise_knowledge.__path__):
    if m.name not in ("_modidx", "pricing"):
        importlib.import_module(f"layerwise_knowledge.{{m.name}}")

try: importlib.import_module("layerwise_knowledge.pricing")
except ImportError as e: assert "layerwise-knowledge[sampled]" in str(e), e
else: assert False, "pricing needs numba"

import torch, torchvision
from layerwise_knowledge.players import PatchPlayers, mean_baseline
from layerwise_knowledge.probes import train_probes
from layerwise_knowledge.scores import score_table
from layerwise_knowledge.sparsify import sparsify
from layerwise_knowledge.metrics import interaction_table, layer_metrics, normalise
torch.manual_seed(0)
model = torchvision.models.resnet18(num_classes=10).eval()
x, y = torch.rand(24, 3, 32, 32), torch.arange(24) % 10
layers = ["layer1.1", "layer3.0", "output"]
players = PatchPlayers([(2, 2), (2, 5), (5, 2), (5, 5)], x[0].shape, patch=4)
probes = train_probes(model, layers, x, y, x, y, progress=False)
v = score_table(model, x[:2], y[:2], players, layers, probes=probes, baseline=mean_baseline(x),
                progress=False)
r = sparsify(v.values)
i = interaction_table(r.i_and, r.i_or, layers)
print(layer_metrics(normalise(i, v)).completeness.dims, r.converged.all())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory, request):
    "The package alone, installed beside nothing else"
    root, site = request.config.rootpath, tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    out = subprocess.run([*pip, "--no-deps", "--target", site, root], capture_output=True,
                         text=True)
    assert out.returncode == 0, out.stderr
    return site


def test_works_on_a_torchvision_network_from_another_folder(site, tmp_path):
    code = USE.format(extras=set(EXTRAS), site=str(site))
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path,
                         capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split("\n")[0] == "('layer', 'kind', 'order') True"


def test_installs_nothing_but_the_package(site):
    names = sorted(p.name for p in site.iterdir() if not p.name.endswith(".dist-info"))
    assert names in (["bin", "layerwise_knowledge"], ["layerwise_knowledge"])


@pytest.mark.parametrize("folder", ["nbs", "tests", "layerwise_knowledge", "benchmarks", "docs"])
def test_lines_are_clean(root, folder):
    "At most 100 characters, one statement a line, no name that is unknown or never used"
    pytest.importorskip("ruff")
    out = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", folder], cwd=root,
                         capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr


def test_versions_that_were_tested_are_named_without_addresses(root):
    text = (root/"constraints.txt").read_text()
    lines = [l for l in text.splitlines() if l and not l.startswith("#")]
    assert all(l.count("==") == 1 and "/" not in l for l in lines)
