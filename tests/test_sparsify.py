"""sparsify against HiGHS, its own definition, and bad input"""
import math, warnings
from pathlib import Path
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog
from layerwise_knowledge.interactions import and_interactions, or_interactions, reconstruct
from layerwise_knowledge.sparsify import sparsify

REAL = {int(k[1:]): t.astype(float) for k, t in np.load(Path(__file__).parent.parent/"data"/"sparsify_tables.npz").items()}


def highs(v, kappa):
    Z, one = sp.csr_matrix([[1.]]), sp.csr_matrix([[1., 0], [1, 1]])
    for _ in range(len(v).bit_length() - 1): Z = sp.kron(one, Z, format="csr")
    e = np.ones((len(v), 1))
    A = sp.hstack([Z[:, 1:], -Z[:, 1:], -Z[::-1][:, 1:], Z[::-1][:, 1:], e, -e]).tocsr()
    r = linprog(np.r_[np.ones(A.shape[1] - 2), 0, 0], A_ub=sp.vstack([A, -A]), b_ub=np.r_[v + kappa, kappa - v], method="highs",
                options=dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10))
    assert r.status == 0
    return r.fun


def table(kind, n, seed):
    rng, T = np.random.default_rng(seed), np.arange(2**n)
    size = np.array([t.bit_count() for t in T])
    if kind == "noise": return rng.normal(size=2**n)
    if kind == "parity": return (-1.)**size
    if kind == "threshold": return (size > n/2).astype(float)
    if kind == "one and": return ((T & 3) == 3).astype(float)
    if kind == "one or": return ((T & 3) != 0).astype(float)
    if kind == "additive": return ((T[:, None] >> np.arange(n)) & 1) @ rng.normal(size=n)
    if kind == "heavy tail": return rng.standard_cauchy(size=2**n)
    if kind == "mixture":
        i_and, i_or = (rng.normal(size=2**n)*(rng.random(2**n) < 4/2**n) for _ in range(2))
        i_or[0] = 0
        return reconstruct(i_and, i_or) + .01*rng.normal(size=2**n)
    return REAL[8][seed][:2**n] if n <= 8 else REAL[10][seed][:2**n]

KINDS = ["noise", "parity", "threshold", "one and", "one or", "additive", "heavy tail", "mixture", "real"]


def check(v, r):
    "Everything the result promises, from the definitions"
    scale = max(np.ptp(v), 1e-300)
    clean = v - r.delta
    np.testing.assert_allclose(reconstruct(r.i_and, r.i_or), clean, atol=1e-8*scale)
    np.testing.assert_allclose(and_interactions(clean/2 + r.gamma), r.i_and, atol=1e-8*scale)
    np.testing.assert_allclose(or_interactions(clean/2 - r.gamma), r.i_or, atol=1e-8*scale)
    assert np.abs(r.delta).max() <= r.kappa
    assert r.i_or[0] == 0 and r.i_and[0] == clean[0]
    np.testing.assert_allclose(np.abs(r.i_and[1:]).sum() + np.abs(r.i_or[1:]).sum(), r.objective, rtol=1e-9, atol=1e-12*scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_optimum_is_inside_the_certificate(kind, n):
    for seed in range(3):
        v = table(kind, n, seed)
        for kappa in (.04, ("robust", .04), 0.):
            r = sparsify(v, kappa)
            check(v, r)
            assert r.converged, (kind, n, seed, kappa, float(r.gap))
            best, eps = highs(v, float(r.kappa)), 1e-7*np.ptp(v)
            assert r.lower_bound <= best + eps and best <= r.objective + eps, (kind, n, seed, kappa)


@pytest.mark.parametrize("n, how_many", [(8, 6), (10, 2)])
def test_optimum_is_inside_the_certificate_real(n, how_many):
    vs = REAL[n][::len(REAL[n])//how_many][:how_many]
    r = sparsify(vs)
    assert r.converged.all()
    for v, lo, up, k in zip(vs, r.lower_bound, r.objective, r.kappa):
        assert lo - 1e-7*np.ptp(v) <= highs(v, k) <= up + 1e-7*np.ptp(v)


@pytest.mark.parametrize("kind", ["noise", "parity", "mixture", "heavy tail"])
def test_adversarial_eight_players(kind):
    v = table(kind, 8, 1)
    for kappa in (.04, ("robust", .01), 0.):
        r = sparsify(v, kappa); check(v, r)
        assert r.converged and r.lower_bound - 1e-6*r.objective <= highs(v, float(r.kappa)) <= r.objective*(1 + 1e-6)


games = st.tuples(st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 30))
few = settings(max_examples=25, deadline=None)

def close(a, b, v, tol=2e-4): np.testing.assert_allclose(a, b, atol=tol*max(np.ptp(v), 1e-300))

@few
@given(games, st.randoms(use_true_random=False))
def test_relabelling_players_relabels_the_answer(game, random):
    v = table(*game); n = game[1]
    order = list(range(n)); random.shuffle(order)
    T = np.arange(2**n); moved = sum(((T >> i) & 1) << j for i, j in enumerate(order))
    a, b = sparsify(v, ("robust", .04)), sparsify(v[moved], ("robust", .04))
    close(a.i_and[moved][1:], b.i_and[1:], v); close(a.i_or[moved], b.i_or, v); close(a.delta[moved], b.delta, v, 1e-3)

@few
@given(games, st.floats(-1e4, 1e4).filter(lambda s: abs(s) > 1e-3), st.floats(-1e3, 1e3))
def test_scale_and_constant(game, scale, constant):
    v = table(*game)
    if np.ptp(v) == 0 or abs(constant) > 1e3*abs(scale)*np.ptp(v): return
    a, b = sparsify(v, ("robust", .04)), sparsify(scale*v + constant, ("robust", .04))
    close(scale*a.i_and[1:], b.i_and[1:], scale*v); close(scale*a.i_or, b.i_or, scale*v)

@few
@given(games, games)
def test_company_and_precision_do_not_matter(one, two):
    v, w = table(*one).astype(np.float32), table(two[0], one[1], two[2]).astype(np.float32)
    a, b, c = sparsify(np.stack([w, v, w])), sparsify(v), sparsify(v.astype(float))
    assert (a.i_and[1] == b.i_and).all() and (a.i_or[1] == b.i_or).all() and b.i_and.dtype == np.float32
    close(b.i_and, c.i_and, v); close(b.i_or, c.i_or, v)

def test_processes_do_not_matter():
    v = np.random.default_rng(3).normal(size=(64, 256))
    threads = torch.get_num_threads()
    try: torch.set_num_threads(1); alone = sparsify(v); torch.set_num_threads(2); beside = sparsify(v)
    finally: torch.set_num_threads(threads)
    for name in ("i_and", "i_or", "gap"): np.testing.assert_array_equal(getattr(alone, name), getattr(beside, name))


def salient(r): i = np.stack([r.i_and, r.i_or], -2)[..., 1:]; return np.abs(i) > .05*np.abs(i).max((-1, -2), keepdims=True)

@pytest.mark.parametrize("n, every", [(8, 16), (10, 16), (12, 30)])
def test_salient_sets_of_real_tables_are_unique(n, every):
    vs = REAL[n][::every]
    sets = [salient(sparsify(vs)), salient(sparsify(vs.astype(np.float32))), salient(sparsify(vs[::-1]))[::-1]]
    for s in sets[1:]:
        assert ((s & sets[0]).sum((1, 2))/(s | sets[0]).sum((1, 2))).mean() >= .99

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same():
    v = torch.from_numpy(REAL[8][:4])
    a, b = sparsify(v), sparsify(v.cuda())
    assert b.i_and.is_cuda and torch.allclose(a.i_and, b.i_and.cpu(), atol=1e-4*float(v.max() - v.min()))


def test_corner_cases():
    assert sparsify(np.full(16, 5.)).gap == 0 and sparsify(np.full(16, 5.)).converged
    r = sparsify(np.array([1., 3.])); check(np.array([1., 3.]), r); assert r.converged
    r = sparsify(np.array([2.])); assert r.objective == 0 and r.i_and[0] == 2
    v = table("noise", 4, 0); v[-1] = v[0]
    r = sparsify(v); assert r.kappa == 0 and (r.delta == 0).all() and r.converged
    assert sparsify(v, ("robust", .04)).kappa > 0
    assert sparsify(v, kappa=1e12).objective == 0 or sparsify(v, ("absolute", 1e12)).objective == 0
    np.testing.assert_allclose(sparsify(v, ("absolute", .1)).kappa, .1)
    np.testing.assert_allclose(sparsify(np.stack([v, v]), ("absolute", [.1, .2])).kappa, [.1, .2])
    big = 1e6*table("mixture", 6, 0); r = sparsify(big); check(big, r); assert r.converged
    assert sparsify(1e6 + table("mixture", 6, 0)).converged
    one = table("one and", 5, 0); r = sparsify(one, 0.)
    assert abs(r.objective - 1) < 1e-6
    half = torch.from_numpy(table("mixture", 5, 0)).half(); r = sparsify(half); assert r.i_and.dtype == torch.float32 and r.converged
    assert sparsify(np.zeros((0, 8))).gap.shape == (0,)
    assert sparsify(torch.zeros(2, 3, 8)).i_or.shape == (2, 3, 8)

@pytest.mark.parametrize("v, kappa, says", [(np.zeros(6), .04, "power of two"), ([0., math.nan], .04, "finite"), ([0., math.inf], .04, "finite"),
    (np.zeros(8), -1, "kappa must be"), (np.zeros(8), ("robst", .1), "kappa must be"), (np.zeros(8), math.nan, "kappa must be")])
def test_bad_input_is_refused_in_words(v, kappa, says):
    with pytest.raises(ValueError, match=says): sparsify(np.asarray(v), kappa)

def test_what_has_not_converged_says_so():
    with pytest.warns(UserWarning, match="1 of 2 tables"):
        r = sparsify(np.stack([np.zeros(256), REAL[8][0]]), tol=1e-9)
    assert r.converged.tolist() == [True, False]

def test_fourteen_players():
    v = REAL[14][0]
    r = sparsify(v); check(v, r)
    assert r.converged

def test_too_many_rows_are_refused_in_words():
    with pytest.raises(ValueError, match="over 8,192 subsets .* give a larger kappa"): sparsify(np.random.default_rng(0).normal(size=2**14), kappa=0)
