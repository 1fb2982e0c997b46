"""sparsify against HiGHS, its own definition, and bad input"""
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from layerwise_knowledge.interactions import and_interactions, or_interactions, reconstruct
from layerwise_knowledge.sparsify import _HELD, _certificate, sparsify

FILE = Path(__file__).parent.parent/"data"/"sparsify_tables.npz"
REAL = {int(k[1:]): t.astype(float) for k, t in np.load(FILE).items()}


def program(n):
    "Columns: x and y, their positive and negative parts, and c; |S| - 1 of each"
    Z, one = sp.csr_matrix([[1.]]), sp.csr_matrix([[1., 0], [1, 1]])
    for _ in range(n):
        Z = sp.kron(one, Z, format="csr")
    e = np.ones((2**n, 1))
    A = sp.hstack([Z[:, 1:], -Z[:, 1:], -Z[::-1][:, 1:], Z[::-1][:, 1:], e, -e]).tocsr()
    level = np.r_[np.tile([S.bit_count() - 1. for S in range(1, 2**n)], 4), 0, 0]
    return sp.vstack([A, -A]), level, np.r_[np.ones(len(level) - 2), 0, 0]


def highs(v, kappa, towards=0, cap=None):
    "The least Σ|I|; or the least (towards=1) or largest (-1) Σ(|S|-1)|I| with Σ|I| <= cap"
    A, level, cost = program(len(v).bit_length() - 1)
    b = np.r_[v + kappa, kappa - v]
    if cap is not None:
        A, b = sp.vstack([A, cost]), np.r_[b, cap]
    exact = dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10)
    r = linprog(towards*level if towards else cost, A_ub=A, b_ub=b, method="highs", options=exact)
    assert r.status == 0
    return r.fun*(towards or 1)


def strengths(r):
    "|I| of every coalition, AND and OR together, ∅ left out"
    i = np.abs(r.i_and) + np.abs(r.i_or)
    i[..., 0] = 0
    return i

def order_sum(r): return strengths(r) @ np.maximum(sizes(r.i_and) - 1, 0)
def sizes(v): return np.array([T.bit_count() for T in range(v.shape[-1])])


def table(kind, n, seed):
    rng, T = np.random.default_rng(seed), np.arange(2**n)
    size = np.array([t.bit_count() for t in T])
    if kind == "noise":
        return rng.normal(size=2**n)
    if kind == "parity":
        return (-1.)**size
    if kind == "threshold":
        return (size > n/2).astype(float)
    if kind == "one and":
        return ((T & 3) == 3).astype(float)
    if kind == "one or":
        return ((T & 3) != 0).astype(float)
    if kind == "additive":
        return ((T[:, None] >> np.arange(n)) & 1) @ rng.normal(size=n)
    if kind == "heavy tail":
        return rng.standard_cauchy(size=2**n)
    if kind == "mixture":
        i_and, i_or = (rng.normal(size=2**n)*(rng.random(2**n) < 4/2**n) for _ in range(2))
        i_or[0] = 0
        return reconstruct(i_and, i_or) + .01*rng.normal(size=2**n)
    return REAL[8][seed][:2**n] if n <= 8 else REAL[10][seed][:2**n]

KINDS = ["noise", "parity", "threshold", "one and", "one or", "additive", "heavy tail", "mixture",
         "real"]


def check(v, r):
    "Everything the result promises, from the definitions"
    scale = max(np.ptp(v), 1e-300)
    clean = v - r.delta
    np.testing.assert_allclose(reconstruct(r.i_and, r.i_or), clean, atol=1e-8*scale)
    np.testing.assert_allclose(and_interactions(clean/2 + r.gamma), r.i_and, atol=1e-8*scale)
    np.testing.assert_allclose(or_interactions(clean/2 - r.gamma), r.i_or, atol=1e-8*scale)
    assert np.abs(r.delta).max() <= r.kappa
    assert r.i_or[0] == 0 and r.i_and[0] == clean[0]
    total = np.abs(r.i_and[1:]).sum() + np.abs(r.i_or[1:]).sum()
    np.testing.assert_allclose(total, r.objective, rtol=1e-9, atol=1e-12*scale)


def judged(v, kappa):
    "Both ends against HiGHS: Σ|I|, then Σ(|S|-1)|I| with Σ|I| at most its optimum times 1 + 1e-5"
    eps = 1e-7*np.ptp(v)
    results = {prefer: sparsify(v, kappa, prefer=prefer) for prefer in ("low", "high", "even")}
    best = highs(v, float(results["low"].kappa))
    for prefer, r in results.items():
        check(v, r)
        assert r.converged and r.lower_bound - eps <= best <= r.objective + eps, prefer
        assert r.objective <= best*(1 + 1e-3) + eps, prefer
    cap = best*(1 + 1e-5) + 1e-9*np.ptp(v)
    least, most = (highs(v, float(results["low"].kappa), s, cap) for s in (1, -1))
    low, even, high = (float(order_sum(results[p])) for p in ("low", "even", "high"))
    assert abs(low - least) <= .01*least + 1e-5*best + eps, (low, least)
    assert abs(high - most) <= .01*most + 1e-5*best + eps, (high, most)
    assert low - 1e-3*best - eps <= even <= high + 1e-3*best + eps
    assert max(results["low"].order_gap, results["high"].order_gap) <= .01
    assert np.isnan(results["even"].order_gap)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_both_ends_are_where_highs_finds_them(kind, n):
    for seed in range(3):
        for kappa in (.04, ("robust", .04), 0.):
            judged(table(kind, n, seed), kappa)


@pytest.mark.parametrize("part", range(8))
def test_both_ends_of_real_tables_of_eight_players(part):
    for v in REAL[8][3 + 32*part::8][:4]:
        judged(v, .04)


@pytest.mark.parametrize("part", range(6))
def test_low_end_of_thirty_real_tables_of_ten_players(part):
    vs = REAL[10][::8][5*part:5*part + 5]
    r = sparsify(vs)
    assert r.converged.all() and (r.order_gap <= .01).all()
    for v, low, up, k, ours in zip(vs, r.lower_bound, r.objective, r.kappa, order_sum(r)):
        best = highs(v, k)
        assert low - 1e-7*np.ptp(v) <= best <= up + 1e-7*np.ptp(v)
        least = highs(v, k, 1, best*(1 + 1e-6))    # 1e-5 already buys up to 1.7 % lower orders here
        assert abs(ours - least) <= .01*least + 1e-5*best and up <= best*(1 + 1e-6)


@pytest.mark.parametrize("kappa", [0., .04])
@pytest.mark.parametrize("n", range(1, 13))
def test_an_additive_table_has_no_interaction(n, kappa):
    rng, T = np.random.default_rng(n), np.arange(2**n)
    coefficients = rng.normal(size=n)*10.**rng.integers(-3, 2, n)
    v = ((T[:, None] >> np.arange(n)) & 1) @ coefficients + rng.normal()
    r = sparsify(v, kappa)
    check(v, r)
    assert r.converged and r.order_gap <= 1e-2 and (r.i_or == 0).all()
    assert strengths(r)[sizes(v) > 1].sum() <= 1e-6*np.ptp(v)
    if kappa == 0:
        np.testing.assert_allclose(r.i_and[1 << np.arange(n)], coefficients, atol=1e-6*np.ptp(v))


def test_the_log_odds_of_a_logistic_regression_have_no_interaction():
    "The twelve columns of census, one player each, masked by their means"
    from sklearn.linear_model import LogisticRegression

    from layerwise_knowledge import datasets
    data = datasets.load("census")
    x, y = data.x_train.numpy().reshape(len(data.x_train), -1), data.y_train.numpy()
    model = LogisticRegression(max_iter=300).fit(x[:4000], y[:4000])
    mean, owner = x.mean(0), np.zeros(x.shape[1], int)
    for player, (_, columns) in enumerate(data.columns):
        owner[columns] = player
    T = np.arange(2**len(data.columns))
    for one in x[:5]:
        present = (T[:, None] >> owner) & 1
        v = np.where(present, one, mean) @ model.coef_[0] + model.intercept_[0]
        r = sparsify(v)
        assert r.converged and strengths(r)[sizes(v) > 1].sum() <= 1e-6*np.ptp(v)


@pytest.mark.parametrize("seed", range(24))
def test_planted_interactions_come_back(seed):
    "Up to five ANDs and ORs whose plan is the two-stage optimum by HiGHS: exactly those sets"
    rng, n = np.random.default_rng(seed), 6
    i = np.zeros((2, 2**n))
    for _ in range(rng.integers(1, 6)):
        m = rng.integers(1, 6)
        S = sum(1 << int(p) for p in rng.choice(n, m, replace=False))
        i[rng.integers(2) if m > 1 else 0, S] = rng.choice([-1, 1])*rng.uniform(.3, 2)
    v, total = reconstruct(i[0], i[1]), np.abs(i).sum()
    plan = (np.abs(i).sum(0) @ np.maximum(sizes(v) - 1, 0))
    if highs(v, 0.) < total*(1 - 1e-6):
        pytest.skip("a sparser explanation exists")
    if highs(v, 0., 1, total*(1 + 1e-7)) < plan*(1 - 1e-4):
        pytest.skip("a simpler explanation exists")
    r = sparsify(v, kappa=0)
    np.testing.assert_allclose(np.stack([r.i_and, r.i_or])[:, 1:], i[:, 1:], atol=1e-6)
    np.testing.assert_array_equal(np.abs(np.stack([r.i_and, r.i_or])[:, 1:]) > 1e-6, i[:, 1:] != 0)


def test_the_segment_of_x1_plus_x2():
    v = np.array([0., 1, 1, 2])
    low, even, high = (sparsify(v, kappa=0, prefer=p) for p in ("low", "even", "high"))
    np.testing.assert_allclose([low.objective, even.objective, high.objective], 2, atol=1e-6)
    np.testing.assert_allclose(low.i_and[1:], [1, 1, 0], atol=1e-9)
    np.testing.assert_allclose([high.i_and[3], high.i_or[3]], 1, atol=1e-6)
    np.testing.assert_allclose([even.i_and, even.i_or], [[0, 1/3, 1/3, 1/3]]*2, atol=1e-3)
    assert order_sum(low) < order_sum(even) < order_sum(high)


@pytest.mark.parametrize("kind", ["noise", "parity", "mixture", "heavy tail"])
def test_adversarial_eight_players(kind):
    v = table(kind, 8, 1)
    for kappa in (.04, ("robust", .01), 0.):
        judged(v, kappa)


games = st.tuples(st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 30))
few = settings(max_examples=25, deadline=None)

def close(a, b, v, tol=2e-4): np.testing.assert_allclose(a, b, atol=tol*max(np.ptp(v), 1e-300))

@few
@given(games, st.randoms(use_true_random=False))
def test_relabelling_players_relabels_the_answer(game, random):
    v = table(*game)
    n = game[1]
    order = list(range(n))
    random.shuffle(order)
    T = np.arange(2**n)
    moved = sum(((T >> i) & 1) << j for i, j in enumerate(order))
    a, b = sparsify(v, ("robust", .04)), sparsify(v[moved], ("robust", .04))
    close(a.i_and[moved][1:], b.i_and[1:], v)
    close(a.i_or[moved], b.i_or, v)
    close(a.delta[moved], b.delta, v, 1e-3)

@few
@given(games, st.floats(-1e4, 1e4).filter(lambda s: abs(s) > 1e-3), st.floats(-1e3, 1e3))
def test_scale_and_constant(game, scale, constant):
    v = table(*game)
    assume(np.ptp(v) > 0 and abs(constant) <= 1e3*abs(scale)*np.ptp(v))
    a, b = sparsify(v, ("robust", .04)), sparsify(scale*v + constant, ("robust", .04))
    close(scale*a.i_and[1:], b.i_and[1:], scale*v)
    close(scale*a.i_or, b.i_or, scale*v)

@few
@given(games, games)
def test_company_and_precision_do_not_matter(one, two):
    v, w = table(*one).astype(np.float32), table(two[0], one[1], two[2]).astype(np.float32)
    a, b, c = sparsify(np.stack([w, v, w])), sparsify(v), sparsify(v.astype(float))
    assert (a.i_and[1] == b.i_and).all() and (a.i_or[1] == b.i_or).all()
    assert b.i_and.dtype == np.float32
    close(b.i_and, c.i_and, v)
    close(b.i_or, c.i_or, v)

def test_company_does_not_matter_where_rows_are_chosen():
    "Eight players: the solver looks at some rows only"
    vs = REAL[8][::23]
    together = sparsify(vs)
    for k, v in enumerate(vs):
        alone = sparsify(v)
        for name in ("i_and", "i_or", "gap", "order_gap"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[k])


def test_the_order_gap_says_how_far_another_optimum_is():
    "The high end, held against the bounds of the low end, and the other way round"
    from layerwise_knowledge.solver import solve
    from layerwise_knowledge.sparsify import _rule
    for v in REAL[8][:60:12]:
        v = (v - v.min())/np.ptp(v)
        kappa, guess = .04*abs(v[-1] - v[0]), np.ones(256, bool)
        z, bounds = {}, {}
        for prefer in ("low", "high"):
            z[prefer], *bounds[prefer] = solve(v, kappa, guess, _rule(prefer, 8))
        sums = {p: (np.abs(x).sum(0) @ np.maximum(sizes(v) - 1, 0)) for p, x in z.items()}
        for mine, other in (("low", "high"), ("high", "low")):
            gap = _certificate(z[other][None], *(np.array([b]) for b in bounds[mine]), mine)[3][0]
            np.testing.assert_allclose(gap, abs(sums["high"] - sums["low"])/sums[other], rtol=.05)


def test_a_table_too_wide_for_floats_is_refused():
    with pytest.raises(ValueError, match="too far for float64"):
        sparsify(np.array([0, 1e308, -1e308, 5]))


def test_absolute_kappa_scales_with_the_table():
    v = REAL[8][5]
    a, b = sparsify(v, ("absolute", .1)), sparsify(10*v, ("absolute", 1.))
    close(10*a.i_and[1:], b.i_and[1:], 10*v), close(10*a.i_or, b.i_or, 10*v)


def test_processes_do_not_matter():
    v = np.random.default_rng(3).normal(size=(64, 256))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = sparsify(v)
        torch.set_num_threads(2)
        beside = sparsify(v)
    finally:
        torch.set_num_threads(threads)
    for name in ("i_and", "i_or", "gap"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(beside, name))


def salient(r):
    i = np.stack([r.i_and, r.i_or], -2)[..., 1:]
    return np.abs(i) > .05*np.abs(i).max((-1, -2), keepdims=True)

@pytest.mark.parametrize("n, every", [(8, 16), (10, 16), (12, 30)])
def test_salient_sets_of_real_tables_are_unique(n, every):
    vs = REAL[n][::every]
    sets = [salient(sparsify(vs)), salient(sparsify(vs.astype(np.float32))),
            salient(sparsify(vs[::-1]))[::-1]]
    for s in sets[1:]:
        assert ((s & sets[0]).sum((1, 2))/(s | sets[0]).sum((1, 2))).mean() >= .99

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same():
    v = torch.from_numpy(REAL[8][:4])
    a, b = sparsify(v), sparsify(v.cuda())
    assert b.i_and.is_cuda
    assert torch.allclose(a.i_and, b.i_and.cpu(), atol=1e-4*float(v.max() - v.min()))


def test_corner_cases():
    assert sparsify(np.full(16, 5.)).gap == 0 and sparsify(np.full(16, 5.)).converged
    r = sparsify(np.array([1., 3.]))
    check(np.array([1., 3.]), r)
    assert r.converged
    r = sparsify(np.array([2.]))
    assert r.objective == 0 and r.i_and[0] == 2
    v = table("noise", 4, 0)
    v[-1] = v[0]
    r = sparsify(v)
    assert r.kappa == 0 and (r.delta == 0).all() and r.converged
    assert sparsify(v, ("robust", .04)).kappa > 0
    assert sparsify(v, ("absolute", 1e12)).objective == 0
    np.testing.assert_allclose(sparsify(v, ("absolute", .1)).kappa, .1)
    np.testing.assert_allclose(sparsify(np.stack([v, v]), ("absolute", [.1, .2])).kappa, [.1, .2])
    big = 1e6*table("mixture", 6, 0)
    r = sparsify(big)
    check(big, r)
    assert r.converged
    assert sparsify(1e6 + table("mixture", 6, 0)).converged
    one = table("one and", 5, 0)
    r = sparsify(one, 0.)
    assert abs(r.objective - 1) < 1e-6
    half = torch.from_numpy(table("mixture", 5, 0)).half()
    r = sparsify(half)
    assert r.i_and.dtype == torch.float32 and r.converged
    assert sparsify(np.zeros((0, 8))).gap.shape == (0,)
    assert sparsify(torch.zeros(2, 3, 8)).i_or.shape == (2, 3, 8)

@pytest.mark.parametrize("v, kappa, says", [
    (np.zeros(6), .04, "power of two"), ([0., math.nan], .04, "finite"),
    ([0., math.inf], .04, "finite"), (np.zeros(8), -1, "kappa must be"),
    (np.zeros(8), ("robst", .1), "kappa must be"), (np.zeros(8), math.nan, "kappa must be")])
def test_bad_input_is_refused_in_words(v, kappa, says):
    with pytest.raises(ValueError, match=says):
        sparsify(np.asarray(v), kappa)

@pytest.mark.parametrize("tol", [0, -1, None, math.nan, "small"])
def test_another_tol_is_refused(tol):
    with pytest.raises(ValueError, match="tol must be a positive number"):
        sparsify(np.zeros(8), tol=tol)

@pytest.mark.parametrize("prefer", ["Low", "lowest", "", None, 1, ["low"]])
def test_another_word_for_prefer_is_refused(prefer):
    with pytest.raises(ValueError, match="low, high or even; got"):
        sparsify(np.zeros(8), prefer=prefer)

def test_what_has_not_converged_says_so():
    with pytest.warns(UserWarning, match="1 of 2 tables"):
        r = sparsify(np.stack([np.zeros(256), REAL[8][0]]), tol=1e-300)
    assert r.converged.tolist() == [True, False]

def test_fourteen_players():
    v = REAL[14][0]
    r = sparsify(v)
    check(v, r)
    assert r.converged

def test_too_many_rows_are_refused_in_words():
    noise = np.random.default_rng(0).normal(size=2**14)
    with pytest.raises(ValueError, match=r"^v\[1\]: .* over 8,192 subsets .* give a larger kappa"):
        sparsify(np.stack([0*noise, noise]), kappa=0)

def test_what_is_held_is_counted():
    v = np.random.default_rng(0).normal(size=(2000, 256))
    tracemalloc.start()
    sparsify(v, ("absolute", 1e9))
    held = tracemalloc.get_traced_memory()[1]/v.nbytes
    tracemalloc.stop()
    assert _HELD - 2 < held < _HELD


def test_a_table_whose_first_solve_stalls_is_solved():
    "Rows that join late leave this one outside its box; a cold start with the same rows does not"
    r = sparsify(REAL[10][222])
    assert r.gap <= 1e-3 and r.order_gap <= 1e-2
