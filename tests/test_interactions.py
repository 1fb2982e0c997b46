"""Transforms against brute force from the definitions, against shapiq, and by their properties."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapiq.game_theory.exact import ExactComputer

from layerwise_knowledge.interactions import (
    and_interactions,
    n_players,
    or_interactions,
    orders,
    reconstruct,
    shapley_values,
    subset_sum,
    superset_sum,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
finite = st.floats(-1e3, 1e3, allow_subnormal=False)
tables = st.integers(0, 7).flatmap(lambda n: arrays(np.float64, 2**n, elements=finite))
batches = st.integers(1, 5).flatmap(lambda n: arrays(np.float64, (2, 3, 2**n), elements=finite))
subsets = lambda S: [T for T in range(S + 1) if S & T == T]


def close(a, b):
    atol = 1e-10 * max(1, np.abs(b).max()) * len(np.atleast_1d(a))
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def relabel(v, perm):
    "The table of the same game when player i is called perm[i]"
    out = np.empty_like(v)
    for T in range(v.shape[-1]):
        out[..., sum(1 << perm[i] for i in range(len(perm)) if T >> i & 1)] = v[..., T]
    return out


@given(tables)
def test_and_is_its_definition(v):
    want = [sum((-1)**(S ^ T).bit_count() * v[T] for T in subsets(S)) for S in range(len(v))]
    close(and_interactions(v), want)


@given(tables)
def test_or_is_its_definition(v):
    full = len(v) - 1
    want = [-sum((-1)**(S ^ T).bit_count() * v[full ^ T] for T in subsets(S))
            for S in range(len(v))]
    want[0] = 0
    close(or_interactions(v), want)


@pytest.mark.parametrize("n", [1, 4, 10])
def test_shapiq_agrees(n):
    v = np.random.default_rng(n).normal(size=2**n)
    v -= v[0]
    computer = ExactComputer(lambda c: v[c @ (1 << np.arange(n))], n)
    moebius, shapley = computer("Moebius", order=n), computer("SV")
    members = lambda S: tuple(i for i in range(n) if S >> i & 1)
    np.testing.assert_allclose(
        and_interactions(v)[1:], [moebius[members(S)] for S in range(1, 2**n)], atol=1e-10
    )
    np.testing.assert_allclose(
        shapley_values(and_interactions(v), np.zeros_like(v)),
        [shapley[(i,)] for i in range(n)],
        atol=1e-10,
    )


@given(batches, st.randoms(use_true_random=False))
def test_theorem_3_3_for_any_gamma(v, random):
    gamma = np.array([random.uniform(-1e3, 1e3) for _ in range(v.size)]).reshape(v.shape)
    gamma[..., 0] = v[..., 0] / 2
    i_and, i_or = and_interactions(v / 2 + gamma), or_interactions(v / 2 - gamma)
    close(reconstruct(i_and, i_or), v)
    close(shapley_values(i_and, i_or), shapley_values(and_interactions(v), np.zeros_like(v)))
    close(shapley_values(i_and, i_or).sum(-1), v[..., -1] - v[..., 0])


@given(tables, st.randoms(use_true_random=False))
def test_relabelling_players_relabels_interactions(v, random):
    perm = list(range(n_players(v)))
    random.shuffle(perm)
    for f in (and_interactions, or_interactions):
        close(f(relabel(v, perm)), relabel(f(v), perm))


@given(arrays(np.float64, 16, elements=finite), st.integers(0, 4))
def test_a_dummy_player_takes_part_in_nothing(v, position):
    bit = 1 << position                                  # among five players
    wide = np.array([v[(T & bit - 1) | (T >> position + 1 << position)] for T in range(32)])
    for f in (and_interactions, or_interactions):
        close(f(wide)[[S for S in range(32) if S & bit]], np.zeros(16))


@given(st.lists(finite, min_size=6, max_size=6))
def test_symmetric_players_get_equal_interactions(by_size):
    v = np.array(by_size)[orders(5).numpy()]
    for f in (and_interactions, or_interactions):
        for m in range(1, 6):
            assert np.ptp(f(v)[orders(5).numpy() == m]) <= 1e-9 * max(1, np.abs(v).max())


@given(tables, tables, finite)
def test_linear(v, w, a):
    if len(v) != len(w):
        return
    for f in (and_interactions, or_interactions):
        close(f(a * v + w), a * f(v) + f(w))


@given(tables)
def test_transposes_and_inverses(v):
    close(subset_sum(and_interactions(v)), v)
    np.testing.assert_allclose(subset_sum(v) @ v, v @ superset_sum(v), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_kind_dtype_and_device_are_kept(dtype, device):
    v = torch.randn(2, 3, 64, dtype=dtype, device=device)
    before = v.clone()
    for f in (and_interactions, or_interactions):
        out = f(v)
        assert (out.dtype, out.device, out.shape) == (v.dtype, v.device, v.shape)
    assert torch.equal(v, before), "the input is not changed"
    assert isinstance(and_interactions(v.cpu().numpy()), np.ndarray)
    assert and_interactions(np.arange(4)).dtype == np.float64


@pytest.mark.parametrize("bad, words", [
    (np.zeros(6), "power of two"),
    (np.zeros((8, 3)), "power of two"),
    (np.zeros(0), "power of two"),
    (np.float64(1), "power of two"),
    (np.array([0, np.nan]), "1 NaN or infinite of 2"),
    (np.array([0, np.inf, np.nan, 0]), "2 NaN or infinite of 4"),
    (np.array([1j, 0]), "real"),
])
def test_bad_tables_are_refused_in_words(bad, words):
    for f in (and_interactions, or_interactions, subset_sum, superset_sum):
        with pytest.raises(ValueError, match=words):
            f(bad)
    with pytest.raises(ValueError, match="same players"):
        reconstruct(np.zeros(4), np.zeros(8))
