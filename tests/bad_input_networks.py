"""Players and scores: (name, what is done, the sentence or the answer)."""
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

from layerwise_knowledge.players import (
    FeaturePlayers,
    PatchPlayers,
    Players,
    central_patches,
    check_size,
    foreground_patches,
    grid_size,
    masked,
    masked_batches,
    mean_baseline,
    pixel_hash,
)
from layerwise_knowledge.probes import sgd_probes, train_probes
from layerwise_knowledge.scores import features, log_odds, score_table

GEN = torch.Generator().manual_seed(0)
Z, Y = torch.randn(4, 3, generator=GEN), torch.tensor([0, 2, 1, 1])
ODDS = [float(z[y] - z[[k for k in range(3) if k != y]].logsumexp(0)) for z, y in zip(Z, Y)]
X = torch.randn(8, 4, generator=GEN)                         # eight rows of a table, four players
LABELS = torch.arange(8) % 3
GAME, MEAN = FeaturePlayers(range(4)), X.mean(0)
IMAGE = torch.rand(1, 12, 12, generator=GEN)
CELLS = foreground_patches(IMAGE, n=3)
HASH = pixel_hash(IMAGE)


def net():
    "A fresh network of two named layers, in training mode, with dropout and a BatchNorm"
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout())
    return nn.Sequential(body, nn.Linear(5, 3)).train()


class Dice(nn.Module):
    "Dropout in every mode"
    def forward(self, f): return F.dropout(f, .5)


def probe(inputs=5, classes=3):
    torch.manual_seed(1)
    return nn.Linear(inputs, classes)


def table(**changed):
    "The score table of a request in which something is changed"
    request = dict(model=net(), x=X[:2], y=LABELS[:2], players=GAME, layers=["0", "output"],
                   probes={"0": probe()}, baseline=MEAN, progress=False)
    return lambda: score_table(**request | changed).values


def by_hand():
    "The same table, one masked input at a time"
    model, v = net().eval(), np.empty((2, 2, 16))
    with torch.no_grad():
        for i, T in np.ndindex(2, 16):
            shown = torch.tensor([bool(T >> p & 1) for p in range(4)])
            f = model[0](torch.where(shown, X[i], MEAN)[None])
            v[i, :, T] = [log_odds(z[0], LABELS[i]) for z in (probe()(f), model[1](f))]
    return v


def trained(**changed):
    "The weights of a probe, trained with something changed"
    request = dict(model=net(), layers=["0"], x_train=X, y_train=LABELS, x_test=X, y_test=LABELS,
                   progress=False)
    return lambda: train_probes(**request | changed)["0"].weight.numpy()


def sgd(**changed):
    return lambda: sgd_probes(net(), ["0"], X, LABELS, X, LABELS, progress=False, **changed)


def inside(mode, thunk):
    def run():
        with mode():
            return thunk()
    return run


def heard(model, layers=("0",), x=X):
    "The features of the last layer named"
    def run():
        with torch.no_grad(), features(model, layers) as f:
            model(x)
        return f[layers[-1]]
    return run


def hidden(x=X[0], baseline=MEAN, owner=GAME.owner, subsets=(5,)):
    return lambda: masked(x, baseline, owner, subsets)


def answer(value): return lambda: value


SHOWN = answer(torch.stack([X[0, 0], MEAN[1], X[0, 2], MEAN[3]])[None])
ONE_HOT, RELU = F.one_hot(LABELS), nn.ReLU()
READ_ONLY = X.numpy().copy()
READ_ONLY.flags.writeable = False

ROWS = [
    ("log_odds: labels in int8", lambda: log_odds(Z, Y.to(torch.int8)), answer(ODDS)),
    ("log_odds: labels in uint8", lambda: log_odds(Z, Y.byte()), answer(ODDS)),
    ("log_odds: arrays", lambda: log_odds(Z.numpy(), Y.numpy()), answer(ODDS)),
    ("log_odds: labelled arrays", lambda: log_odds(xr.DataArray(Z), xr.DataArray(Y)), answer(ODDS)),
    ("log_odds: lists", lambda: log_odds(Z.tolist(), Y.tolist()), answer(ODDS)),
    ("log_odds: float16 at its largest", lambda: log_odds(torch.tensor([6e4, -6e4]).half(), 0),
     answer(float(torch.tensor(6e4).half()) * 2)),
    ("log_odds: a reversed array", lambda: log_odds(Z.numpy()[::-1], Y.numpy()[::-1]),
     answer(ODDS[::-1])),
    ("log_odds: no rows", lambda: log_odds(Z[:0], Y[:0]), answer(np.zeros(0))),
    ("log_odds: one-hot labels", lambda: log_odds(Z, F.one_hot(Y)), r"one-hot.*y\.argmax"),
    ("log_odds: float labels", lambda: log_odds(Z, Y.float()), "labels must be whole numbers"),
    ("log_odds: bool labels", lambda: log_odds(Z, Y > 0), "must be whole numbers, got .*bool"),
    ("log_odds: a column of labels", lambda: log_odds(Z, Y[:, None]), r"have shape \(4, 1\)"),
    ("log_odds: too few labels", lambda: log_odds(Z, Y[:3]), "4 inputs but 3 labels"),
    ("log_odds: labels along the wrong axis", lambda: log_odds(torch.zeros(2, 3, 5), Y[:3]),
     r"labels have shape \(3,\), but one for each input makes \(2, 3\)"),
    ("log_odds: masked logits", lambda: log_odds(np.ma.masked_less(Z.numpy(), 0), Y),
     "logits must have no masked values"),
    ("log_odds: masked labels", lambda: log_odds(Z, np.ma.masked_equal(Y.numpy(), 1)),
     "labels must have no masked values"),
    ("log_odds: complex logits", lambda: log_odds(Z + 0j, Y), "logits must hold real numbers"),
    ("log_odds: text", lambda: log_odds("logits", 0), "an array of numbers, got 'logits'"),
    ("log_odds: None", lambda: log_odds(Z, None), "labels must be a tensor .* got None"),
    ("log_odds: NaN", lambda: log_odds(Z * torch.nan, Y), "the logits hold NaN or infinity"),
    ("log_odds: one number", lambda: log_odds(3., 0), "at least two classes on the last axis"),

    ("mean_baseline: bytes", lambda: mean_baseline((X.abs() * 9).byte()),
     lambda: (X.abs() * 9).byte().double().mean(0)),
    ("mean_baseline: a data frame", lambda: mean_baseline(pd.DataFrame(X.numpy())), answer(MEAN)),
    ("mean_baseline: another byte order", lambda: mean_baseline(X.numpy().astype(">f4")),
     answer(MEAN)),
    ("mean_baseline: a read-only array", lambda: mean_baseline(READ_ONLY), answer(MEAN)),
    ("mean_baseline: a sum beyond float16", lambda: mean_baseline(torch.full((9, 1), 6e4).half()),
     answer([float(torch.tensor(6e4).half())])),
    ("mean_baseline: a list of tensors", lambda: mean_baseline(list(X)), "with torch.stack"),
    ("mean_baseline: one number", lambda: mean_baseline(3.), "at least one training input"),
    ("mean_baseline: chunk 0", lambda: mean_baseline(X, 0), "chunk must be at least 1, got 0"),
    ("mean_baseline: beyond float32", lambda: mean_baseline(X.double() * 1e300), "beyond float32"),

    ("Players: fractions", lambda: Players([0., .5]), "owner must hold whole numbers"),
    ("Players: one text for names", lambda: Players([0, 1], "ab"), "names must be a list"),
    ("Players: players", lambda: Players(GAME), "got FeaturePlayers; pass its .owner"),
    ("PatchPlayers: image for its size", lambda: PatchPlayers(CELLS, IMAGE, 3), "pass its .shape"),
    ("PatchPlayers: an array of cells", lambda: PatchPlayers(np.array(CELLS), 12, 3).owner,
     lambda: PatchPlayers(CELLS, 12, 3).owner),
    ("PatchPlayers: half cells", lambda: PatchPlayers([(.5, 1)], 12, 3), r"cells \(row, column\)"),
    ("PatchPlayers: one cell", lambda: PatchPlayers((2, 3), 12, 3), r"cells \(row, column\)"),
    ("FeaturePlayers: a number", lambda: FeaturePlayers(5), r"for example range\(5\), got 5"),
    ("FeaturePlayers: a column's name", lambda: FeaturePlayers({"a": "b"}), "player 'a' must own"),
    ("FeaturePlayers: an array", lambda: FeaturePlayers(np.arange(3)).owner, answer([0, 1, 2])),
    ("grid_size: a numpy integer", lambda: grid_size(np.int64(12), 3), answer((4, 4))),
    ("grid_size: a fractional patch", lambda: grid_size(12, 3.), "patch must be a whole number"),
    ("pixel_hash: an array", lambda: float(pixel_hash(IMAGE.numpy()) == HASH), answer(1.)),
    ("pixel_hash: a batch", lambda: pixel_hash(IMAGE[None]), "give one input"),
    ("pixel_hash: whole numbers to 255", lambda: pixel_hash((IMAGE * 255).int()), "or be uint8"),
    ("foreground_patches: a list", lambda: foreground_patches(IMAGE.tolist(), n=3), answer(CELLS)),
    ("foreground_patches: n is None", lambda: foreground_patches(IMAGE, n=None), "n must be a"),
    ("foreground_patches: n = -1", lambda: foreground_patches(IMAGE, n=-1), "cannot choose -1"),
    ("central_patches: 1.5 cells", lambda: central_patches(IMAGE, 3, 3, 1.5), "central must be a"),
    ("central_patches: a table row", lambda: central_patches(X[0], 3), "an image has shape"),

    ("masked: arrays", hidden(X[0].numpy(), MEAN.numpy(), np.arange(4), np.array([5])), SHOWN),
    ("masked: one subset", hidden(subsets=5), SHOWN),
    ("masked: no subsets", hidden(subsets=[]), answer(np.zeros((0, 4)))),
    ("masked: players for their map", hidden(owner=GAME), "pass its .owner"),
    ("masked: a table of bits", hidden(subsets=torch.ones(2, 4, dtype=int)), "a list of indices"),
    ("masked: fractional subsets", hidden(subsets=[.5]), "a list of indices"),
    ("masked: an unknown owner", hidden(owner=[0, 1, -3, 2]), "owner -3 is not known"),
    ("masked: bytes, mean of -5", hidden(X[0].byte(), MEAN * 0 - 5), "turn the input to float"),
    ("masked: a baseline in another integer", hidden(X[0].int(), MEAN.long()), "the same type"),
    ("masked: a baseline of NaN", hidden(baseline=MEAN * torch.nan), "baseline holds NaN"),
    ("masked_batches: half a batch", lambda: masked_batches(X[0], GAME, MEAN, .5), "whole number"),
    ("masked_batches: cells for players", lambda: masked_batches(X[0], CELLS, MEAN), "with .n and"),
    ("check_size: n = -1", lambda: check_size(-1, X[0]), "n must be at least 0, got -1"),
    ("check_size: 2.5 players", lambda: check_size(2.5, X[0]), "n must be a whole number, got 2.5"),
    ("check_size: 3072 players", lambda: check_size(3072, X[0]), r"have 2\^3072 subsets"),

    ("features: a function", heard(lambda x: x), "model must be a torch.nn.Module, got function"),
    ("features: None for layers", lambda: features(net(), None).__enter__(), "of names, got None"),
    ("features: a number for a name", heard(net(), [0]), "given by its name, such as '0', got 0"),
    ("features: a shared ReLU", heard(nn.Sequential(RELU, nn.Linear(4, 4), RELU)), "called twice"),
    ("features: names in an array", heard(net().eval(), np.array(["0"])),
     lambda: net()[0].eval()(X).detach()),

    ("train_probes: arrays", trained(x_train=X.numpy(), y_train=LABELS.numpy()), trained()),
    ("train_probes: labels in int8", trained(y_train=LABELS.char()), trained()),
    ("train_probes: under no_grad", inside(torch.no_grad, trained()), trained()),
    ("train_probes: under inference_mode", inside(torch.inference_mode, trained()), trained()),
    ("train_probes: one-hot labels", trained(y_train=ONE_HOT), r"one-hot.*y\.argmax"),
    ("train_probes: float labels", trained(y_test=LABELS.float()), "labels must be whole numbers"),
    ("train_probes: NaN", trained(x_train=X / 0 * 0), "x_train holds NaN or infinity"),
    ("train_probes: no tolerance", trained(tol=0), "tol must be a number between 0 and 1, got 0"),
    ("train_probes: half a feature", trained(pool=2.5), "pool must be a whole number"),
    ("train_probes: one input", trained(x_train=X[:1], y_train=LABELS[:1]), "all the same"),
    ("sgd_probes: no epochs", sgd(epochs=0), "epochs must be at least 1, got 0"),
    ("sgd_probes: half a batch", sgd(batch_size=2.5), "batch_size must be a whole number"),
    ("train_probes: other test inputs", trained(x_test=X[:, :3]), r"one input of shape \(3,\)"),
    ("train_probes: one logit", trained(model=nn.Sequential(probe(4, 1))), "at least two classes"),
    ("train_probes: dropout for ever", trained(model=nn.Sequential(nn.Linear(4, 3), Dice())),
     "layer 'output': .* random numbers"),

    ("score_table: in training mode", table(), by_hand),
    ("score_table: arrays", table(x=X[:2].numpy(), y=LABELS[:2].numpy(), baseline=MEAN.numpy()),
     by_hand),
    ("score_table: labels in int8", table(y=LABELS[:2].to(torch.int8)), by_hand),
    ("score_table: one-hot labels", table(y=ONE_HOT[:2]), r"one-hot.*y\.argmax"),
    ("score_table: one input without its axis", table(x=X[0], y=0), r"a single input is x\[None\]"),
    ("score_table: bytes for a float network", table(x=X[:2].byte()), "cannot run one .*uint8"),
    ("score_table: a function", table(model=lambda x: x), "must be a torch.nn.Module"),
    ("score_table: cells for players", table(players=CELLS[:2]), "with .n and .owner"),
    ("score_table: None for players", table(players=None), "with .n and .owner, .* got None"),
    ("score_table: one classifier for all", table(probes=probe()), "must be what train_probes"),
    ("score_table: a probe of no network", table(probes={"0": len}), "must be a torch.nn.Module"),
    ("score_table: other features", table(probes={"0": probe(7)}), "gave other features than its"),
    ("score_table: other classes", table(probes={"0": probe(5, 4)}), "must know the same classes"),
    ("score_table: a probe elsewhere", table(probes={"0": probe().to("meta")}), "is on meta, the"),
    ("score_table: a baseline of NaN", table(baseline=MEAN * torch.nan), "baseline holds NaN"),
    ("score_table: a batch of -1", table(batch_size=-1), "batch_size must be at least 1, got -1"),
    ("score_table: a probe with dropout", table(probes={"0": nn.Sequential(probe(), Dice())}),
     "sample 0: .* random numbers"),
    ("score_table: BatchNorm of its batch",
     table(model=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
           layers=["output"]), "cannot run alone: .*'1': BatchNorm without running statistics"),
]
