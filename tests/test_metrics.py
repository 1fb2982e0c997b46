"""Metrics against loops written from the formulas, by properties, and against other libraries."""
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import jaccard_score

from layerwise_knowledge import metrics as M
from layerwise_knowledge.interactions import and_interactions, or_interactions

SETTINGS = dict(max_examples=12, deadline=None)
LAYERS = ["conv1", "conv2", "output"]
sizes = st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))  # seed, samples, n


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="these layers do not share a scale")
        yield


def sparse(seed, samples, n, layers=LAYERS):
    "Heavy-tailed interactions, three quarters of them zero, some equal in several layers"
    rng = np.random.default_rng(seed)
    shape = samples, len(layers), 2**n
    draw = lambda: rng.standard_t(2, shape) * (rng.random(shape) < .4)
    a, o = draw(), draw()
    a[:, 0] = np.where(rng.random(a[:, 0].shape) < .5, a[:, -1], a[:, 0])
    o[..., 0] = 0
    return M.interaction_table(a, o, layers)


def table_of(i):
    "Axes, and the strengths (x, l, k, S) as a dict, OR of order 1 added to AND"
    X, L, K, S = axes = [i[d].values.tolist() for d in ("sample", "layer", "kind", "subset")]
    I = dict(zip(itertools.product(*axes), i.values.ravel().tolist()))
    for x, l, s in itertools.product(X, L, S):
        if s.bit_count() == 1:
            I[x, l, "and", s], I[x, l, "or", s] = I[x, l, "and", s] + I[x, l, "or", s], 0.
    return axes, I


def by_sets(a, b, omega_a, omega_b, literal):
    "Every metric from the strengths {S: I(S)} of layer and output, and from their salient sets"
    both = omega_a & omega_b
    def shared(s):
        if a[s] * b[s] <= 0 or not literal and s not in both:
            return 0.
        return math.copysign(min(abs(a[s]), abs(b[s])), a[s])
    v = dict(all=sum(abs(a[s]) for s in omega_a), all_L=sum(abs(b[s]) for s in omega_b),
             overlap=sum(abs(shared(s)) for s in both),
             forget=sum(abs(a[s] - shared(s)) for s in omega_a),
             new=sum(abs(b[s] - shared(s)) for s in omega_b), count=len(omega_a))
    v["completeness"] = v["overlap"] / v["all_L"] if v["all_L"] else math.nan
    v["redundancy"] = v["forget"] / v["all"] if v["all"] else math.nan
    return v


def by_loops(i, literal=False, fraction=.05, per_sample=False):
    "Every metric of every sample, from the formulas: dicts, sets and loops"
    (X, L, K, S), I = table_of(i)
    def tau(x, l):
        seen = itertools.product([x] if per_sample else X, K, S)
        return fraction * max(abs(I[y, l, k, s]) for y, k, s in seen if s)
    tau = {(x, l): tau(x, l) for x in X for l in L}
    out = {}
    for x, l, k, m in itertools.product(X, L, K, range(1, len(S).bit_length())):
        a, b = ({s: I[x, q, k, s] for s in S if s.bit_count() == m} for q in (l, L[-1]))
        omega_a = {s for s in a if abs(a[s]) > tau[x, l]}
        omega_b = {s for s in b if abs(b[s]) > tau[x, L[-1]]}
        out[x, l, k, m] = by_sets(a, b, omega_a, omega_b, literal)
    return out


@given(sizes, st.booleans(), st.booleans())
@settings(**SETTINGS)
def test_metrics_are_the_formulas(size, literal, per_sample):
    i = sparse(*size)
    m = M.sample_metrics(i, M.threshold(i, per_sample=per_sample), literal=literal)
    want = by_loops(i, literal, per_sample=per_sample)  # keys run like the axes
    for name in m.data_vars:
        np.testing.assert_allclose(
            m[name].values.ravel(), [z[name] for z in want.values()], atol=1e-12, err_msg=name
        )


@given(sizes)
@settings(**SETTINGS)
def test_identities_and_ranges(size):
    m = M.sample_metrics(sparse(*size))
    np.testing.assert_allclose(m["all"], m.overlap + m.forget, atol=1e-12)
    np.testing.assert_allclose(m.all_L, m.overlap + m.new, atol=1e-12)
    for ratio in (m.completeness, m.redundancy):
        assert ((ratio.isnull()) | ((ratio > -1e-12) & (ratio < 1 + 1e-12))).all()
    last = m.sel(layer="output")
    assert (last.forget == 0).all() and (last.new == 0).all()
    assert ((last.completeness == 1) | (last.all_L == 0)).all()
    assert m["all"].dims == ("sample", "layer", "kind", "order")
    assert m.order.values.tolist() == list(range(1, size[2] + 1))


@given(sizes, st.floats(1e-6, 1e6))
@settings(**SETTINGS)
def test_units_and_names_do_not_matter(size, scale):
    seed, samples, n = size
    i = sparse(*size)
    rng = np.random.default_rng(seed)
    m = M.sample_metrics(i)
    big = M.sample_metrics(i * scale)
    for name in ("count", "completeness", "redundancy"):
        np.testing.assert_allclose(big[name], m[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(big.forget, scale * m.forget, rtol=1e-9, atol=1e-12 * scale)
    turn = rng.permutation(samples)  # the order of samples
    xr.testing.assert_allclose(M.sample_metrics(i.isel(sample=turn)), m.isel(sample=turn))
    xr.testing.assert_allclose(M.layer_metrics(i.isel(sample=turn)), M.layer_metrics(i))
    new = rng.permutation(n)  # the names of players
    index = np.array([sum(1 << int(new[k]) for k in range(n) if s >> k & 1) for s in range(2**n)])
    renamed = i.copy(data=i.values[..., np.argsort(index)])
    xr.testing.assert_allclose(M.sample_metrics(renamed), m)


@given(sizes)
@settings(**SETTINGS)
def test_merge_normalise_threshold(size):
    i = sparse(*size)
    merged = M.merge_first_order(i)
    xr.testing.assert_identical(M.merge_first_order(merged), merged)
    xr.testing.assert_allclose(merged.sum("kind"), i.sum("kind"))
    assert (merged.sel(kind="or", subset=1) == 0).all()
    assert not M.salient(i).sel(subset=0).any()
    xr.testing.assert_equal(M.salient(i), M.salient(merged))
    xr.testing.assert_allclose(M.threshold(i, per_sample=True).max("sample"), M.threshold(i))
    if (M.span(i) > 1e-9).all():
        np.testing.assert_allclose(M.span(M.normalise(i)), 1)


def test_span_is_the_score_difference():
    v = np.random.default_rng(0).normal(size=(5, 3, 16))
    i = M.interaction_table(and_interactions(v / 2), or_interactions(v / 2), LAYERS)
    table = xr.DataArray(
        v, dims=("sample", "layer", "subset"), coords=dict(sample=range(5), layer=LAYERS)
    )
    np.testing.assert_allclose(M.span(i), M.span(i, table))
    np.testing.assert_allclose(M.span(i), abs(v[..., -1] - v[..., 0]).mean(0))


def test_tensors_float32_and_names():
    v = torch.randn(2, 2, 8)
    i = M.interaction_table(
        and_interactions(v / 2),
        or_interactions(v / 2),
        ["hidden", "output"],
        samples=["cat", "dog"],
    )
    assert i.sel(sample="dog", layer="output").sizes == dict(kind=2, subset=8)
    assert M.layer_metrics(i)["all"].dtype == np.float64
    xr.testing.assert_equal(
        M.layer_metrics(i), M.layer_metrics(xr.Dataset(dict(interaction=i, gap=1)))
    )


def test_nan_rules():
    a = np.zeros((2, 2, 4))
    a[0, :, 3] = 1  # sample 1 has no second-order interaction anywhere
    a[:, :, 1] = 1
    m = M.layer_metrics(M.interaction_table(a, np.zeros_like(a), ["hidden", "output"]))
    here = m.sel(layer="hidden", kind="and", order=2)
    assert here.completeness == 1 and here.completeness_left_out == 1 and here["all"] == .5
    nothing = m.sel(layer="hidden", kind="or", order=2)
    assert np.isnan(nothing.redundancy) and nothing.redundancy_left_out == 2 and nothing["all"] == 0
    assert m.attrs["samples"] == 2 and m.attrs["reference"] == "output"


def test_neighbours():
    i = sparse(3, 4, 3)
    flow = M.sample_metrics(i, reference="next")
    assert flow.layer.values.tolist() == LAYERS[:-1]
    pair = M.sample_metrics(i.sel(layer=["conv1", "conv2"]))
    xr.testing.assert_allclose(flow.sel(layer="conv1"), pair.sel(layer="conv1"))
    xr.testing.assert_allclose(flow.sel(layer="conv2"), M.sample_metrics(i).sel(layer="conv2"))
    xr.testing.assert_allclose(M.sample_metrics(i, reference="output"), M.sample_metrics(i))


@given(sizes)
@settings(**SETTINGS)
def test_iou(size):
    a, b = (sparse(size[0] + k, *size[1:]).sel(layer="output") for k in (0, 1))
    q = M.iou(a, b, per_sample=True)
    A, B = M.salient(a), M.salient(b)
    for x in range(size[1]):
        for k in ("and", "or"):
            for m in range(1, size[2] + 1):
                p, r = (z.sel(sample=x, kind=k).values[z.order.values == m] for z in (A, B))
                want = jaccard_score(p, r) if (p | r).any() else math.nan
                np.testing.assert_allclose(q.sel(sample=x, kind=k, order=m), want)
    xr.testing.assert_equal(q, M.iou(b, a, per_sample=True))
    same = M.iou(a, a)
    assert ((same == 1) | (same.left_out == size[1])).all()
    assert (M.iou(a, b).left_out == q.isnull().sum("sample")).all()
    chance, above = (f(a, b, per_sample=True) for f in (M.iou_by_chance, M.iou_above_chance))
    assert (chance.isnull() == q.isnull()).all()
    np.testing.assert_allclose(
        (above * (1 - chance) + chance).values[above.notnull()], q.values[above.notnull()]
    )


@pytest.mark.parametrize("a,b,c", [(3, 5, 10), (1, 1, 4), (45, 30, 45), (0, 3, 6), (6, 6, 6)])
def test_chance_is_hypergeometric(a, b, c):
    j = np.arange(0, min(a, b) + 1)
    np.testing.assert_allclose(
        M._chance(a, b, c), (stats.hypergeom(c, a, b).pmf(j) * j / (a + b - j)).sum()
    )


def test_bootstrap_against_scipy():
    x = xr.DataArray(np.random.default_rng(0).lognormal(size=(40, 3)), dims=("sample", "order"))
    b = M.bootstrap(x, draws=5000)
    want = stats.bootstrap(
        (x.values,), np.mean, axis=0, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    np.testing.assert_allclose(b.low, want.low, rtol=.03)
    np.testing.assert_allclose(b.high, want.high, rtol=.03)
    assert (b.low <= b["mean"]).all() and (b["mean"] <= b.high).all()
    xr.testing.assert_identical(b, M.bootstrap(x, draws=5000))
    assert (M.bootstrap(x, level=.5).high < M.bootstrap(x).high).all()


def test_bootstrap_leaves_nan_out():
    x = xr.DataArray(np.array([[1., np.nan, 3.], [np.nan] * 3]).T, dims=("sample", "order"))
    b = M.bootstrap(x)
    assert b["mean"].values[0] == 2 and b.low.values[0] == 1 and b.high.values[0] == 3
    assert np.isnan(b["mean"].values[1]) and np.isnan(b.low.values[1])
    both = M.bootstrap(xr.Dataset(dict(p=x, q=2 * x)))
    assert both.q.sel(bound="high", order=0) == 6
    one = M.bootstrap(xr.DataArray([2.], dims="sample"))
    assert one.low == one.high == 2


@given(sizes)
@settings(max_examples=5, deadline=None)
def test_stability_is_the_formula(size):
    seed, samples, n = size
    clean, rng = sparse(*size), np.random.default_rng(seed)
    moved = lambda: rng.normal(0, .1, clean.shape) * (rng.random(clean.shape) < .7)
    draws = xr.concat([clean + moved() for _ in range(5)], "draw")
    s, merged, omega = M.stability(draws, clean), M.merge_first_order(draws), M.salient(clean)
    D = merged.transpose("draw", "sample", "layer", "kind", "subset").values
    def ratios(x, l, k, m):
        z = {S: D[:, x, l, k, S] for S in range(2**n) if S.bit_count() == m}
        return [abs(d.mean()) / d.std() for S, d in z.items()
                if omega.values[x, l, k, S] and np.ptp(d) > 0]
    for l, k, m in itertools.product(range(3), range(2), range(1, n + 1)):
        means = [np.mean(z) for x in range(samples) if (z := ratios(x, l, k, m))]
        got = s.isel(layer=l, kind=k).sel(order=m)
        np.testing.assert_allclose(got, np.mean(means) if means else math.nan)
        assert got.left_out == samples - len(means)
    from_moments = M.stability_from_moments(merged.mean("draw"), merged.std("draw"), omega)
    xr.testing.assert_allclose(s, from_moments)


def test_equal_draws_have_no_variance():
    clean = sparse(0, 3, 3) + .1
    s = M.stability(xr.concat([clean] * 7, "draw"), clean)
    assert s.isnull().all() and s.frozen.sum() == M.salient(clean).sum()


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=5, deadline=None)
def test_noise_ratio_is_the_formula(seed, n):
    rng = np.random.default_rng(seed)
    x, noise = rng.random((2, 3, 4, 4)), rng.normal(size=(5, 2, 3, 4, 4))
    owner = np.stack([rng.integers(-1, n, (4, 4))] * 3)
    owner[:, 0, 0] = n - 1
    q = M.noise_ratio(torch.tensor(x), torch.tensor(noise), torch.tensor(owner))
    assert q.dims == ("draw", "sample", "subset")
    for d in range(5):
        for k in range(2):
            for S in range(2**n):
                mine = np.isin(owner, [i for i in range(n) if S >> i & 1])
                bottom = np.linalg.norm(x[k][mine])
                want = np.linalg.norm(noise[d, k][mine]) / bottom if bottom else math.nan
                np.testing.assert_allclose(q[d, k, S], want)
    each = M.noise_ratio(x, noise, np.stack([owner] * 2))
    xr.testing.assert_allclose(each, q)


GOOD = sparse(0, 3, 3)
BAD = [
    (lambda: M.layer_metrics(np.zeros((2, 2, 2, 8))), TypeError, "interaction_table"),
    (lambda: M.layer_metrics(GOOD.sel(kind="and")), ValueError, "no axis"),
    (lambda: M.layer_metrics(GOOD.isel(sample=0)), ValueError, "sample"),
    (lambda: M.layer_metrics(GOOD.isel(subset=slice(6))), ValueError, "power of two"),
    (lambda: M.layer_metrics(GOOD.isel(subset=slice(4, 8))), ValueError, "all bitmasks"),
    (lambda: M.layer_metrics(GOOD.where(GOOD.subset != 3)),
     ValueError, "18 NaN or infinite of 144"),
    (lambda: M.layer_metrics(GOOD / 0.), ValueError, "NaN or infinite"),
    (lambda: M.layer_metrics(GOOD.isel(layer=[2, 0])),
     ValueError, "last layer must be the network's own output"),
    (lambda: M.layer_metrics(GOOD, reference="fc"), ValueError, "conv1"),
    (lambda: M.layer_metrics(GOOD.sel(layer=["output"]), reference="next"),
     ValueError, "two layers"),
    (lambda: M.layer_metrics(GOOD.drop_vars("layer")), ValueError, "no names"),
    (lambda: M.layer_metrics(GOOD, tau=M.threshold(GOOD)[:2]),
     ValueError, "other samples or layers"),
    (lambda: M.layer_metrics(GOOD.assign_coords(kind=["and", "xor"])),
     ValueError, "'and' and 'or'"),
    (lambda: M.interaction_table(np.zeros((2, 2, 8)), np.zeros((2, 2, 4)), ["a", "b"]),
     ValueError, "same|both"),
    (lambda: M.interaction_table(np.zeros((2, 2, 8)), np.zeros((2, 2, 8)), ["a", "a"]),
     ValueError, "one name for each layer"),
    (lambda: M.interaction_table(np.zeros((2, 2, 8)), np.zeros((2, 2, 8)), ["a", "b"], [1]),
     ValueError, "2 samples, but 1"),
    (lambda: M.interaction_table(np.zeros((2, 2, 6)), np.zeros((2, 2, 6)), ["a", "b"]),
     ValueError, "power of two"),
    (lambda: M.threshold(GOOD, -1), ValueError, "between 0 and 1"),
    (lambda: M.normalise(GOOD * 0), ValueError, "cannot normalise"),
    (lambda: M.iou(GOOD, GOOD.assign_coords(layer=["x", "y", "z"])),
     ValueError, "choose one of each"),
    (lambda: M.iou(GOOD.sel(layer="output"), sparse(0, 2, 3).sel(layer="output")),
     ValueError, "same samples"),
    (lambda: M.iou(GOOD.sel(layer="output"), sparse(0, 3, 2).sel(layer="output")),
     ValueError, "players"),
    (lambda: M.stability(GOOD, GOOD), ValueError, "draw"),
    (lambda: M.stability(xr.concat([GOOD] * 2, "draw"), GOOD[:2]), ValueError, "same samples"),
    (lambda: M.bootstrap(M.layer_metrics(GOOD)), ValueError, "sample_metrics"),
    (lambda: M.noise_ratio(np.zeros((2, 4)), np.zeros((3, 4)), np.zeros(4, int)),
     ValueError, "shape of x"),
    (lambda: M.noise_ratio(np.zeros((2, 4)), np.zeros((2, 4)), np.zeros(3, int)),
     ValueError, "owner"),
]


@pytest.mark.parametrize("call,error,words", BAD)
def test_bad_input_is_one_clear_sentence(call, error, words):
    with pytest.raises(error, match=words) as e:
        call()
    assert "\n" not in str(e.value) and len(str(e.value)) < 320


def test_scales_that_differ_are_warned_about():
    i = M.normalise(GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M.layer_metrics(i)
    with pytest.warns(UserWarning, match="do not share a scale"):
        M.layer_metrics(i * xr.DataArray([1, 1, 9.], dims="layer"))
