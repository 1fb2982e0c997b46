"""Settings, files, data sets, networks: (name, what is done, the sentence or the answer)."""
import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import nn

from layerwise_knowledge import cli, datasets, files, models, plots, training
from layerwise_knowledge import experiments as ex
from layerwise_knowledge.probes import Probes

ROOT = Path(__file__).parent.parent
WHOLE = (ROOT/"settings.ini").read_text()
HOME = Path(tempfile.mkdtemp())


def home(text):
    "A project with these settings; text or bytes"
    folder = Path(tempfile.mkdtemp(dir=HOME))
    (folder/"settings.ini").write_bytes(text if isinstance(text, bytes) else text.encode())
    return mock.patch.dict(os.environ, LAYERWISE_HOME=str(folder))


def ini(text, read=lambda: ex.settings("quick", "mnist", "mlp7")["kappa"]):
    "Read the settings of a project with this settings.ini"
    def thunk():
        with home(text):
            return read()
    return thunk


def nowhere():
    "A folder without settings"
    with mock.patch.dict(os.environ, LAYERWISE_HOME=str(HOME)):
        return ex.project_folder()


def setting(**changed):
    return lambda: ex.settings("quick", "mnist", "mlp7", **changed)


def file(name, body=b""):
    "A file with this content"
    path = Path(tempfile.mkdtemp(dir=HOME))/name
    path.write_bytes(body)
    return path


def array_named_npz():
    path = file("mnist.npz")
    with open(path, "wb") as f:
        np.save(f, np.zeros(3))
    return datasets.read_npz(path, "mnist")


def lk(words):
    "What the command says: its one line on stderr as an error"
    import contextlib
    import io
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.main(words.split()) == 2
    raise ValueError(said.getvalue().strip())


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


IMAGES, LABELS = torch.zeros(6, 1, 2, 2), torch.tensor([0, 1]*3)


def train(x=IMAGES, y=LABELS, **recipe):
    return lambda: models.train(network(), x, y, progress=False, **recipe)


def checkpoint(**state):
    "A run that finds this checkpoint"
    path = file("run.checkpoint")
    training._save_checkpoint(path, **state)
    return train(checkpoint=path)


RANGE = "must be a whole number from"
ROWS = [
    # settings.ini
    ("settings.ini: byte-order mark", ini("\ufeff" + WHOLE), lambda: .04),
    ("settings.ini: a percent sign", ini(WHOLE + "\n[extra]\nnote = 5 % of it\n"), lambda: .04),
    ("settings.ini: a section twice", ini(WHOLE + "\n[all]\n"),
     "settings.ini cannot be read.*'all' already"),
    ("settings.ini: a setting twice", ini(WHOLE.replace("kappa  ", "tol = 1\nkappa  ")),
     "option 'tol'.*already"),
    ("settings.ini: no section", ini("kappa = 1\n"),
     "settings.ini cannot be read.*no section headers"),
    ("settings.ini: half a line", ini("[all]\nkappa\n"), "settings.ini cannot be read"),
    ("settings.ini: no [all]", ini(WHOLE.replace("[all]", "[any]")),
     "is not of layerwise-knowledge"),
    ("settings.ini: no profile", ini("[all]\nseed = 0\n"),
     "is not of layerwise-knowledge.*LAYERWISE_HOME"),
    ("settings.ini: another project's", ini("[DEFAULT]\nlib_name = x\n"),
     "is not of layerwise-knowledge"),
    ("settings.ini: another encoding", ini(WHOLE.encode("utf-16")),
     "settings.ini cannot be read.*codec"),
    ("settings.ini: bytes of no text", ini(b"[all]\n\xff\xfe = \x81\n"),
     "settings.ini cannot be read.*codec"),
    ("settings.ini: an experiment of one word", ini("[all]\n[quick]\nexperiments = mnist\n"),
     "must be pairs"),
    ("settings.ini: empty", ini(""), "is not of layerwise-knowledge"),
    ("settings.ini: nowhere", nowhere, "no settings.ini in .*LAYERWISE_HOME"),
    ("settings: epochs = -1", setting(epochs=-1), f"epochs {RANGE} 0 on; got -1"),
    ("settings: epochs = 1.5", setting(epochs=1.5), f"epochs {RANGE} 0 on"),
    ("settings: epochs = true", setting(epochs=True), f"epochs {RANGE} 0 on"),
    ("settings: samples = -1", setting(samples=-1), f"samples {RANGE} 1 on; got -1"),
    ("settings: draws = 1", setting(draws=1), f"draws {RANGE} 2 on"),
    ("settings: players as text", setting(players="ten"), f"players {RANGE} 1 on; got 'ten'"),
    ("settings: lr = NaN", setting(lr=float("nan")), "lr must be a positive number"),
    ("settings: tau = 0", setting(tau=0), "tau must be a positive number"),
    ("settings: target", setting(target="both"), "target must be label . predicted"),
    ("settings: prefer", setting(prefer="lowest"), "prefer must be low . high . even"),
    ("settings: choice", setting(choice="all"), "choice must be foreground . central . columns"),
    ("settings: augment", setting(augment="mixup"), "augment must be none . crop"),
    ("settings: variants", setting(variants={"seed": 1}), "variants must be a list of settings"),
    ("settings: no such setting", setting(kapa=1), "there is no setting kapa; there are"),
    ("settings: no such profile", lambda: ex.settings("fast"), "there is no profile 'fast'"),
    ("settings: no such experiment", lambda: ex.settings("quick", "mnist", "vgg"),
     "no experiment 'mnist vgg'"),
    ("determines: no such step", lambda: ex.determines({}, "train"), "there is no step 'train'"),
    ("get_noise: none asked for", lambda: ex.get_noise(setting()()),
     "draws no noise .* noise_samples"),
    ("get_attributions: none asked for", lambda: ex.get_attributions(setting()()),
     "computes no attributions"),
    # the command
    ("lk figures: --set profile=", lambda: lk("figures --set profile=quick --profile paper"),
     "given as --profile"),
    ("lk score: no such experiment", lambda: lk("score mnist/mlp8"),
     "^lk: .*no experiment 'mnist mlp8'"),
    ("lk data: no such set", lambda: lk("data imagenet"), "^lk: there is no data set 'imagenet'"),
    # files
    ("load_table: not there", lambda: files.load_table(HOME/"none.nc"), "none.nc"),
    ("load_table: empty", lambda: files.load_table(file("v.nc")), "v.nc has no seal.*delete it"),
    ("load_table: text", lambda: files.load_table(file("v.nc", b"v = 3"*99)), "v.nc has no seal"),
    ("load_table: half", lambda: files.load_table(file("v.nc", files.sealed(b"abc")[1:])),
     "v.nc is damaged"),
    ("write: a file for a folder", lambda: files.write(file("a")/"b.nc", b""),
     "cannot be written.*MB free"),
    ("load_model: empty", lambda: models.load_model(file("w.safetensors")),
     "w.safetensors is damaged"),
    ("load_model: a pickle", lambda: models.load_model(file("w.pt", b"\x80\x04.")),
     "w.pt is damaged or no file"),
    ("load_model: not there", lambda: models.load_model(HOME/"none.safetensors"),
     "none.safetensors"),
    ("Probes.load: a network", lambda: Probes.load(
        models.save_weights(network(), HOME/"n.safetensors")), "n.safetensors is no probe file"),
    ("load_model: a stranger's", lambda: models.load_model(
        models.save_weights(network(), HOME/"s.safetensors")),
     "does not say which network.*load_weights"),
    ("load_weights: another network", lambda: models.load_weights(
        nn.Linear(2, 2), models.save_weights(network(), HOME/"o.safetensors")),
     "does not fit this network"),
    ("train: a checkpoint without its recipe", checkpoint(model={}), "lacks the recipe.*delete it"),
    ("train: a checkpoint of another run",
     checkpoint(model={}, optimiser={}, history=[], recipe={}), "belongs to another run"),
    ("train: a checkpoint cut short", train(checkpoint=file("c.pt", b"PK\x03\x04")),
     "c.pt has no seal"),
    # data sets
    ("load: no such set", lambda: datasets.load("imagenet"),
     "there is no data set 'imagenet'; there are mnist"),
    ("read_npz: an array in a file named .npz", array_named_npz,
     "mnist.npz is truncated, damaged or not a"),
    ("read_npz: empty", lambda: datasets.read_npz(file("mnist.npz"), "mnist"),
     "mnist.npz is truncated"),
    ("read_npz: a folder", lambda: datasets.read_npz(HOME, "mnist"),
     "is truncated, damaged or not a plain"),
    ("read_adult: no archive", lambda: datasets.read_adult(file("adult.zip")),
     "adult.zip is damaged"),
    ("read_commercial: no archive", lambda: datasets.read_commercial(file("tv.zip")),
     "tv.zip is truncated"),
    ("parse_shots: a word for a number", lambda: datasets.parse_shots(["1 1:loud"], "BBC.txt"),
     "BBC.txt line 1"),
    ("choose_samples: too many", lambda: datasets.choose_samples(torch.zeros(3, 1, 2, 2), 2),
     "there are only 1"),
    ("choose_samples: none", lambda: datasets.choose_samples(torch.zeros(3, 1, 2, 2), -1),
     "k must be"),
    ("encode: constant",
     lambda: datasets.encode(pd.DataFrame(dict(a=[2., 2])), np.array([True, True]))[0],
     lambda: np.zeros((2, 1))),
    # networks
    ("create: no such network", lambda: models.create("vgg", (1, 28, 28), 10),
     "there is no network 'vgg'"),
    ("create: a table for a ResNet", lambda: models.create("resnet20", (12,), 2), "takes images"),
    ("create: too large for VGG", lambda: models.create("vgg11", (3, 64, 64), 10), "up to 32x32"),
    ("train: no epochs", train(epochs=0), "epochs must be a whole number from 1 on"),
    ("train: batches of none", train(batch_size=0), "batch_size must be a whole number from 1 on"),
    ("train: one-hot labels", train(y=torch.eye(6, 2)), "one per sample.*argmax"),
    ("train: labels of floats", train(y=torch.zeros(6)), "labels must be whole numbers"),
    ("train: labels out of range", train(y=torch.tensor([0, 2]*3)), "from 0 to 2 .* from 0 to 1"),
    ("train: fewer labels than inputs", train(y=torch.tensor([0, 1])), "2 labels .* for 6 inputs"),
    ("train: augmentation", train(augment="mixup"), "augment is 'mixup'"),
    ("save: a folder that is a file", lambda: plots.save(plots.plt.figure(), file("a")/"fig"),
     "cannot be written"),
]
