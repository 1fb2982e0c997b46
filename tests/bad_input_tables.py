"""Interactions, sparsify, metrics: (name, what is done, the sentence or the answer)."""
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import xarray as xr

from layerwise_knowledge import interactions as I
from layerwise_knowledge import metrics as M
from layerwise_knowledge.sparsify import sparsify

V = np.array([0., 1, 2, 4, -1, 0, 3, 9])
AND, OR = I.and_interactions(V), I.or_interactions(V - V[0])
MANY = np.random.default_rng(0).normal(size=(2, 3, 8))
BRIEF = torch.from_numpy(MANY).bfloat16()
HALF = torch.tensor([0, -4e4, 4e4, 4e4])                    # 4e4 + 4e4 is no float16
MASKED = np.ma.masked_equal(V, 4)
MIXED = np.array([0, 1, None, 2])
DATES = np.array(["2024-07-21"]*4, dtype="datetime64[D]")
TABLE = M.interaction_table(MANY, MANY[::-1], ["conv", "mid", "output"])
SCORES = xr.DataArray(MANY, dict(sample=[0, 1], layer=TABLE.layer), ("sample", "layer", "subset"))
ONE = TABLE.sel(layer="output")
OMEGA = M.salient(ONE)
FOUR = TABLE.isel(subset=slice(4))                           # two players
DRAWS = xr.concat([TABLE, 1.1*TABLE, 1.3*TABLE], "draw")
MEAN, STD = (getattr(M.merge_first_order(DRAWS), f)("draw") for f in ("mean", "std"))
VALUES = xr.DataArray([1., 2, 4], dims="sample")
X, NOISE, OWNER = np.ones((2, 4)), np.full((2, 4), .5), np.array([0, 0, 1, -1])

REAL, KAPPA, TAU = "real numbers of at most 64 bits", "kappa must be a number >= 0", "tau must be"
FIT, SHAPES = "beyond the largest number of", "must have one shape, the same players"
LAST, MASK = "last axis of a labelled table must be `subset`", "masked in places: fill"
ALIKE, FINITE, PIXELS = "same samples and subsets", "must be finite", "x and noise must be finite"
WANTED = "a labelled table of interactions"


def labelled(v, *axes):
    return xr.DataArray(v, dims=axes)


def short_of_memory(free=10**9):
    "What sparsify says of two million tables when so many bytes are free"
    with mock.patch("psutil.virtual_memory", lambda: SimpleNamespace(available=free)):
        return sparsify(np.broadcast_to(V, (10**6, 2, 8)))


def hopeless():
    "Two tables of three players, the second with too many rows to solve"
    with mock.patch("layerwise_knowledge.solver._MOST", 7):
        return sparsify(np.stack([0*V, V])[:, None], kappa=0)


def noisy(mean=MEAN, std=STD, clean=TABLE):
    return M.stability_from_moments(mean, std, clean)


TABLES = [
    ("n_players: a list", lambda: I.n_players([0, 1, 2, 3]), lambda: 2),
    ("n_players: nothing", lambda: I.n_players(None), REAL),
    ("n_players: subset is not last", lambda: I.n_players(labelled(MANY, "subset", "a", "b")),
     LAST),
    ("and: subset is last", lambda: I.and_interactions(labelled(MANY, "a", "b", "subset")),
     lambda: I.and_interactions(MANY)),
    ("and: subset is not last",
     lambda: I.and_interactions(labelled(MANY.T, "subset", "b", "sample")),
     LAST),
    ("or: no axis called subset", lambda: I.or_interactions(labelled(V, "T")), LAST),
    ("and: masked", lambda: I.and_interactions(MASKED), MASK),
    ("and: a list of masked arrays", lambda: I.and_interactions([MASKED, MASKED]), MASK),
    ("and: nothing masked", lambda: I.and_interactions(np.ma.array(V)), lambda: AND),
    ("and: a list", lambda: I.and_interactions(V.tolist()), lambda: AND),
    ("and: a file's byte order", lambda: I.and_interactions(V.astype(">f4")), lambda: AND),
    ("and: text", lambda: I.and_interactions("scores"), f"{REAL}.*got str"),
    ("or: a list of text", lambda: I.or_interactions(["1", "2"]), f"{REAL}.*got list of <U1"),
    ("or: objects", lambda: I.or_interactions(MIXED), f"{REAL}.*got ndarray of object"),
    ("subset_sum: dates", lambda: I.subset_sum(DATES), f"{REAL}.*got ndarray of datetime"),
    ("subset_sum: complex", lambda: I.subset_sum(torch.ones(4)*1j), f"{REAL}.*complex64"),
    ("superset_sum: rows of other lengths", lambda: I.superset_sum([[1, 2], [3]]), REAL),
    ("superset_sum: a sparse tensor", lambda: I.superset_sum(torch.eye(4).to_sparse()), REAL),
    ("subset_sum: float16 overflows on the way", lambda: I.subset_sum(HALF.half()).float(),
     lambda: I.subset_sum(HALF).half().float()),
    ("and: the result is no float16", lambda: I.and_interactions(HALF[1:3].half()),
     f"{FIT} float16"),
    ("or: the result is no float16", lambda: I.or_interactions(HALF[1:3].numpy().astype("f2")),
     FIT),
    ("and: bfloat16 is rounded once", lambda: I.and_interactions(BRIEF).double(),
     lambda: I.and_interactions(BRIEF.float()).bfloat16().double()),
    ("and: 1e308", lambda: I.and_interactions([1e308, 0, 0, 1e308]), f"{FIT} float64"),
    ("shapley_values: 1e308", lambda: I.shapley_values([1e308]*4, [1e308]*4), f"{FIT} float64"),
    ("reconstruct: 1e308", lambda: I.reconstruct([1e308]*4, [1e308]*4), f"{FIT} float64"),
    ("shapley_values: OR of another shape", lambda: I.shapley_values(MANY, MANY[:, :1]), SHAPES),
    ("reconstruct: OR of another shape", lambda: I.reconstruct(MANY, MANY[0, 0]), SHAPES),
    ("orders: negative", lambda: I.orders(-1), "whole number from 0 to 30; got -1"),
    ("orders: half a player", lambda: I.orders(2.5), "whole number from 0 to 30; got 2.5"),
    ("orders: huge", lambda: I.orders(400), "whole number from 0 to 30; got 400"),
]

SPARSIFY = [
    ("sparsify: masked", lambda: sparsify(MASKED), MASK),
    ("sparsify: None", lambda: sparsify(None), REAL),
    ("sparsify: subset is not last", lambda: sparsify(labelled(MANY[:, :2], "subset", "a", "b")),
     LAST),
    ("sparsify: subset is last", lambda: sparsify(labelled(V, "subset")).i_and,
     lambda: sparsify(V).i_and),
    ("sparsify: with gradients", lambda: sparsify(torch.tensor(V, requires_grad=True)).i_and,
     lambda: sparsify(V).i_and),
    ("sparsify: no table", lambda: sparsify(np.zeros((0, 3, 8))).gap, lambda: np.zeros((0, 3))),
    ("sparsify: no subset", lambda: sparsify([]), "power of two"),
    ("sparsify: 1.7e308", lambda: sparsify([0, 1.7e308, 1.7e308, 0]), f"{FIT} float64: scale it"),
    ("sparsify: 3e38 in float32", lambda: sparsify(np.float32([0, -3, 2, 3])*1e38),
     f"{FIT} float32"),
    ("sparsify: κ by sample for samples and layers", lambda: sparsify(MANY, [.1, .2]), KAPPA),
    ("sparsify: κ flat", lambda: sparsify(MANY, ("absolute", np.ones(6))),
     f"{KAPPA}.*shape .2, 3.*"),
    ("sparsify: κ turned round", lambda: sparsify(MANY, ("robust", np.ones((3, 2)))), KAPPA),
    ("sparsify: one κ for each table", lambda: sparsify(MANY, ("absolute", MANY[..., 1]**2)).kappa,
     lambda: MANY[..., 1]**2),
    ("sparsify: κ NaN", lambda: sparsify(V, np.nan), f"{KAPPA}.*got nan"),
    ("sparsify: κ as text", lambda: sparsify(V, "0.04"), f"{KAPPA}.*got '0.04'"),
    ("sparsify: κ True", lambda: sparsify(V, True), f"{KAPPA}.*got True"),
    ("sparsify: κ masked", lambda: sparsify(MANY[0], MASKED[3:6]), KAPPA),
    ("sparsify: κ far beyond the range", lambda: sparsify(V*1e-9, ("absolute", 1e308)).objective,
     lambda: 0),
    ("sparsify: tol True", lambda: sparsify(V, tol=True),
     "tol must be a positive number.*got True"),
    ("sparsify: tol infinite", lambda: sparsify(V, tol=np.inf), "tol must be a positive number"),
    ("sparsify: little memory", short_of_memory, "2,000,000 tables .* 1.7 GB and 1.0 GB are free"),
    ("sparsify: more than any memory", lambda: sparsify(np.broadcast_to(V, (2**50, 8))),
     "GB are free"),
    ("sparsify: one table of many", hopeless, r"^v\[1, 0\]: with κ = .* give a larger kappa"),
]

METRICS = [
    ("interaction_table: other shapes", lambda: M.interaction_table(MANY, MANY[:1], "ab"), SHAPES),
    ("interaction_table: no samples' axis", lambda: M.interaction_table(V, V, ["a"]),
     "have the axes"),
    ("interaction_table: masked", lambda: M.interaction_table(MASKED, V, ["a"]), MASK),
    ("interaction_table: layers first", lambda: M.interaction_table(
        labelled(MANY, "layer", "sample", "subset"), MANY, ["a", "b", "c"]), "have the axes"),
    ("interaction_table: a word for layers", lambda: M.interaction_table(MANY, MANY, "fc2"),
     "list of"),
    ("interaction_table: no layers", lambda: M.interaction_table(MANY, MANY, None),
     "list of names"),
    ("interaction_table: one name for all",
     lambda: M.interaction_table(MANY, MANY, ["a", "b", "c"], 5),
     "2 samples, but 1 names"),
    ("merge_first_order: an array", lambda: M.merge_first_order(TABLE.values),
     f"{WANTED}.*ndarray"),
    ("merge_first_order: no kind", lambda: M.merge_first_order(ONE.sel(kind="or")),
     "no axis .'kind'"),
    ("merge_first_order: no names",
     lambda: M.merge_first_order(labelled(TABLE.values, *TABLE.dims)),
     "`kind` must hold 'and' and 'or'; it holds no names"),
    ("merge_first_order: salient sets", lambda: M.merge_first_order(OMEGA),
     "real numbers; got bool"),
    ("merge_first_order: complex", lambda: M.merge_first_order(TABLE*1j),
     "real numbers; got complex"),
    ("merge_first_order: 1e308", lambda: M.merge_first_order(0*TABLE + 1e308), "and their sum too"),
    ("threshold: no sample", lambda: M.threshold(TABLE[:0]), "is empty: its sizes are"),
    ("threshold: fraction as text", lambda: M.threshold(TABLE, "5 %"),
     "between 0 and 1; got '5 %'"),
    ("threshold: fraction True", lambda: M.threshold(TABLE, True), "between 0 and 1; got True"),
    ("span: scores of other players", lambda: M.span(TABLE, SCORES[..., :4]), "the same players"),
    ("span: scores without labels", lambda: M.span(TABLE, MANY),
     "labelled score table.*got ndarray"),
    ("span: scores without layers", lambda: M.span(TABLE, SCORES[:, 0]), "must have the axes"),
    ("span: scores without coordinates", lambda: M.span(TABLE, labelled(MANY, *SCORES.dims)),
     lambda: M.span(TABLE, SCORES)),
    ("normalise: a score is NaN", lambda: M.normalise(TABLE, SCORES.where(SCORES < 1)), FINITE),
    ("normalise: scores of other players", lambda: M.normalise(FOUR, SCORES), "the same players"),
    ("salient: τ NaN", lambda: M.salient(TABLE, np.nan), f"{TAU} a number of at least 0"),
    ("salient: τ negative", lambda: M.salient(TABLE, -1), f"{TAU} a number of at least 0"),
    ("salient: τ infinite", lambda: M.salient(TABLE, np.inf), f"{TAU} a number of at least 0"),
    ("salient: τ as text", lambda: M.salient(TABLE, ".05"), f"{TAU} a number of at least 0"),
    ("salient: τ an array", lambda: M.salient(TABLE, np.ones(8)), f"{TAU} a number of at least 0"),
    ("salient: τ NaN in one layer", lambda: M.salient(TABLE, M.threshold(TABLE).where(
        TABLE.layer != "mid")), f"{TAU} a number of at least 0"),
    ("salient: τ of other samples",
     lambda: M.salient(TABLE[:1], M.threshold(TABLE, per_sample=True)),
     "tau was made for other samples or layers"),
    ("salient: τ of another layer", lambda: M.salient(ONE, M.threshold(TABLE).sel(layer="conv")),
     "tau was made for other samples or layers"),
    ("salient: τ by layer for one layer", lambda: M.salient(ONE, M.threshold(TABLE)), TAU),
    ("shared: other shapes", lambda: M.shared(MANY, MANY[0]), ALIKE),
    ("shared: other samples", lambda: M.shared(TABLE[:, 0], TABLE[:1, 2]), ALIKE),
    ("shared: NaN", lambda: M.shared([1, np.nan], [1, 2]), FINITE),
    ("shared: masked", lambda: M.shared(MASKED, V), MASK),
    ("shared: lists", lambda: M.shared([3, -3, 0], [5, -1, 4]), lambda: [3, -1, 0]),
    ("shared: both in numbers", lambda: M.shared(V, V, V), "must be bool; got float64"),
    ("sample_metrics: a layer twice", lambda: M.sample_metrics(TABLE[:, [0, 0, 2]]),
     "one name for each layer"),
    ("layer_metrics: τ NaN", lambda: M.layer_metrics(M.normalise(TABLE), np.nan), TAU),
    ("bootstrap: an array", lambda: M.bootstrap(V), "labelled values .* 'sample'; got ndarray"),
    ("bootstrap: no draws", lambda: M.bootstrap(VALUES, draws=0),
     "draws must be .* at least 1; got 0"),
    ("bootstrap: half a draw", lambda: M.bootstrap(VALUES, draws=.5),
     "draws must be a whole number"),
    ("bootstrap: level in per cent", lambda: M.bootstrap(VALUES, level=95),
     "between 0 and 1; got 95"),
    ("bootstrap: level NaN", lambda: M.bootstrap(VALUES, level=np.nan), "between 0 and 1; got nan"),
    ("bootstrap: no samples", lambda: M.bootstrap(VALUES[:0]), "of one sample or more"),
    ("bootstrap: infinite", lambda: M.bootstrap(VALUES + np.inf), "averages finite numbers"),
    ("bootstrap: text", lambda: M.bootstrap(VALUES.astype(str)), "averages finite numbers"),
    ("bootstrap: all NaN", lambda: M.bootstrap(VALUES*np.nan).to_array(), lambda: [np.nan]*3),
    ("iou: an array", lambda: M.iou(ONE.values, ONE), f"{WANTED}.*got ndarray"),
    ("iou: salient sets of other players",
     lambda: M.iou(OMEGA, M.salient(FOUR.sel(layer="output"))),
     "same samples and players"),
    ("iou: salient sets of one kind", lambda: M.iou(OMEGA.sel(kind="or"), OMEGA),
     "no axis .'kind'"),
    ("iou: salient sets without orders",
     lambda: M.iou(OMEGA.drop_vars("order"), OMEGA, None, None, True),
     lambda: M.iou(OMEGA, OMEGA, per_sample=True)),
    ("iou_by_chance: one sample", lambda: M.iou_by_chance(OMEGA[0], OMEGA[0]), "no axis .'sample'"),
    ("iou_above_chance: τ NaN", lambda: M.iou_above_chance(ONE, ONE, np.nan), TAU),
    ("stability: a draw is NaN", lambda: M.stability(DRAWS.where(DRAWS < 1), TABLE), FINITE),
    ("stability: moments in arrays", lambda: noisy(MEAN.values, STD.values),
     "must be labelled tables"),
    ("stability: moments of one layer", lambda: noisy(MEAN[:, 0], STD[:, 0]), "must hold the same"),
    ("stability: std negative", lambda: noisy(std=-STD), "std at least 0"),
    ("stability: NaN in the mean alone", lambda: noisy(MEAN*np.nan), "NaN at the same sets"),
    ("stability: what was not followed is not frozen",
     lambda: noisy(MEAN*np.nan, STD*np.nan).frozen,
     lambda: np.zeros((3, 2, 3))),
    ("noise_ratio: a pixel is NaN", lambda: M.noise_ratio(X*np.nan, NOISE, OWNER), PIXELS),
    ("noise_ratio: noise is infinite", lambda: M.noise_ratio(X, NOISE + np.inf, OWNER), PIXELS),
    ("noise_ratio: one number a sample", lambda: M.noise_ratio(X[0], NOISE[0], OWNER), "one input"),
    ("noise_ratio: half an owner", lambda: M.noise_ratio(X, NOISE, OWNER + .5), "whole numbers"),
    ("noise_ratio: owners NaN", lambda: M.noise_ratio(X, NOISE, OWNER*np.nan), "whole numbers"),
    ("noise_ratio: a thousand players", lambda: M.noise_ratio(X, NOISE, OWNER*999),
     "whole numbers"),
    ("noise_ratio: nobody's pixels", lambda: M.noise_ratio(X, NOISE, 0*OWNER - 1),
     "belong to nobody"),
    ("noise_ratio: masked", lambda: M.noise_ratio(np.ma.masked_equal(X, 1), NOISE, OWNER), MASK),
]

ROWS = TABLES + SPARSIFY + METRICS
