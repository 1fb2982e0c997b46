"""Interactions from sampled masks: against brute force, by their properties, and with bad input."""
import os
import subprocess
import sys
import time
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

pytest.importorskip("numba")
from layerwise_knowledge import column_generation as cg
from layerwise_knowledge import pricing
from layerwise_knowledge import sampled as s
from layerwise_knowledge.held_out import _FLAT, _STEEP
from layerwise_knowledge.sampled_knowledge import sparse_metrics
from layerwise_knowledge.sparsify import sparsify


def every(n, least=1):
    return [S for k in range(least, n + 1) for S in combinations(range(n), k)]


def game(sets, T):
    return s.indicators(list(sets), T) @ np.array(list(sets.values()))


@given(st.integers(3, 10), st.integers(0, 10**6), st.sampled_from([0, .05, .3, 1]), st.booleans())
def test_pricing_leaves_nothing_out(n, seed, epsilon, ties):
    rng = np.random.default_rng(seed)
    T, u = rng.random((80, n)) < rng.uniform(.2, 1, (80, 1)), rng.standard_normal(80)
    u = np.sign(u) if ties else u
    u -= u.mean()
    price = 1 + epsilon*np.maximum(np.arange(n + 4) - 1., 0)
    theta = rng.uniform(1, 10)
    found, looked, finished = pricing.search(T, u, theta, price, most=2000)
    g = {S: abs(u[T[:, list(S)].all(1)].sum()) for S in every(n, 2)}
    assert finished
    assert {S for S, x in g.items() if x >= theta*price[len(S)]} <= set(found)


@pytest.mark.parametrize("n", [6, 8, 10])
@pytest.mark.parametrize("lam", [.3, .1, .05])
@pytest.mark.parametrize("epsilon", [_FLAT, _STEEP])
def test_objective_is_that_of_all_columns(n, lam, epsilon):
    T = s.masks(n, 60)
    v = np.random.default_rng(n).standard_normal(60) + 2*T[:, :3].all(1) - T[:, 3:6].any(1)
    p = cg._Program(T, v, epsilon)
    factor = cg._certified(p, lam, 10**7)
    mine = p.r @ p.r/2/60 + lam*np.abs(p.z) @ p.costs(p.sets)
    sets = [("and", S) for S in every(n)] + [("or", S) for S in every(n, 2)]
    w = 1 + epsilon*np.array([len(S) - 1 for _, S in sets])
    m = Lasso(lam, tol=1e-9, max_iter=10**5).fit(s.indicators(sets, T)/w, v)
    literal = ((m.predict(s.indicators(sets, T)/w) - v)**2).mean()/2 + lam*np.abs(m.coef_).sum()
    assert abs(mine - literal) < 1e-6*literal
    assert factor < 1.001 and 0 <= cg._gap(p, lam, factor) < 1e-6


def test_the_gap_is_a_bound_when_the_search_is_cut_short():
    T = s.masks(10, 200)
    v = np.random.default_rng(0).standard_normal(200)
    cut, whole = (cg._Program(T, v, _FLAT) for _ in range(2))
    factor = cg._certified(cut, .05, 60)
    cg._certified(whole, .05, 10**7)
    def objective(p): return p.r @ p.r/2/p.M + .05*np.abs(p.z) @ p.costs(p.sets)
    assert factor > 1.001
    assert objective(cut)*(1 - cg._gap(cut, .05, factor)) <= objective(whole)*(1 + 1e-9)


def test_planted_sets_come_back_and_no_others():
    n, rng = 30, np.random.default_rng(0)
    large = {("and", (0, 1, 2, 3)): 1.5, ("or", (4, 5, 6, 7, 8)): 1.2, ("and", (9,)): 1.,
             ("or", (10, 11, 12)): -.8, ("and", (13, 14)): -1.}
    noise = {("and", tuple(sorted(rng.permutation(n)[:2].tolist()))): .01*x
             for x in rng.standard_normal(100)}
    T = s.masks(n, 1500)
    q = s.sampled_interactions(game(noise | large, T), T, progress=False)
    f = q.to_dataframe()
    top = f[f.value.abs() > .25*f.value.abs().max()]
    assert set(zip(top.kind, top.players)) == set(large)
    assert q.exhausted and q.gap < 1e-6 and q.r2 > .99
    fresh = s.masks(n, 500, seed=3)
    error = ((q.predict(fresh) - game(noise | large, fresh))**2).mean()
    assert 1 - error/q.predict(fresh).var() > .99


def test_labels_and_shapes_go_along():
    T = s.masks(8, 100)
    v = np.stack([game({("and", (0, 1)): x, ("or", (2, 3, 4)): 1.}, T) for x in (1., 2., 3., 4.)])
    names = ["".join("01"[x] for x in row) for row in T.astype(int)]
    v = xr.DataArray(v.reshape(2, 2, 100), dict(layer=["a", "output"], masks=("mask", names)),
                     ("sample", "layer", "mask"))
    q = s.sampled_interactions(v, progress=False)
    assert q.c.shape == q.gap.shape == q.exhausted.shape == (2, 2)
    assert list(q.to_dataframe()) == ["sample", "layer", "kind", "players", "value"]
    again = sparsify(v.values[1, 0], masks=T).to_dataframe()
    one = q.to_dataframe().query("sample == 1 and layer == 'a'")
    assert one.value.tolist() == again.value.tolist()
    m = sparse_metrics(q.to_dataframe())
    assert float(m.completeness.sel(layer="output", kind="or", order=3).mean()) == 1


AGAIN = """
import numpy as np
from layerwise_knowledge import sampled as s
T = s.masks(24, 600)
few = {("and", (0, 1, 2)): 1., ("or", (3, 4, 5)): 1., ("and", (6,)): -1.}
v = s.indicators(list(few), T).sum(1) + .3*np.random.default_rng(0).standard_normal(600)
q = s.sampled_interactions(v, T, progress=False)
print(float(q.c[()]).hex(), [(S, x.hex()) for S, x in q.terms[()]])
"""


def test_another_process_gives_the_same_to_the_last_bit():
    "Sets of Python come in another order in every process: none may decide anything"
    def run(seed):
        env = os.environ | dict(PYTHONHASHSEED=str(seed))
        return subprocess.run([sys.executable, "-c", AGAIN], env=env, check=True,
                              capture_output=True, text=True).stdout
    first = run(1)
    assert first.count("and") + first.count("or") > 5
    assert first == run(2) == run(3)


T = s.masks(8, 100)
V = game({("and", (0, 1)): 1., ("or", (2, 3, 4)): 1.}, T)


@pytest.mark.parametrize("words, v, masks, more", [
    ("are too few: 26 are the least", V[:20], np.vstack([T[:19], T[-1:]]), {}),
    ("one for each of the 100 masks", V[:99], T, {}),
    ("shape (M, n)", V, T[0], {}),
    ("yes or no", V, T + 1., {}),
    ("1 different masks", V, np.repeat(T[:1], 100, 0), {}),
    ("∅ and N must be among the masks", V[1:], T[1:], {}),
    ("are all equal: leave that table out", 0*V, T, {}),
    ("v[1] are not finite", np.stack([V, V*np.nan]), T, {}),
    ("nodes, the limit of a search, must be at least 1", V, T, dict(nodes=0)),
    ("which masks were scored? pass masks=T", V, None, {}),
    ("kappa must be a number >= 0", V, T, dict(kappa=-1)),
])
def test_bad_input_ends_in_one_sentence(words, v, masks, more):
    with pytest.raises(ValueError) as e:
        s.sampled_interactions(v, masks, **{"progress": False} | more)
    assert words in str(e.value)


def test_sparsify_with_masks_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="leave tol and prefer out"):
        sparsify(V, prefer="high", masks=T)


def test_without_numba_one_sentence_says_how_to_get_it():
    code = ("import sys; sys.modules['numba'] = None; import layerwise_knowledge.sampled as s; "
            "T = s.masks(8, 100); s.sampled_interactions(T[:, 0] + 0., T, progress=False)")
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True,
                         text=True)
    assert out.stderr.strip().split("\n")[-1].endswith("pip install 'layerwise-knowledge[sampled]'")


def _slow_table(row, folder, masks):
    "One table, after a rest in which its worker can be stopped"
    (folder/f"{os.getpid()}").touch()
    time.sleep(.3)
    return s.sampled_interactions(row, masks, progress=False).to_dataframe().to_json()


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed")
    from joblib import Parallel, delayed, parallel_config
    rows = [V + k*T[:, 5] for k in range(8)]
    alone = [s.sampled_interactions(row, T, progress=False) for row in rows]
    alone = [one.to_dataframe().to_json() for one in alone]
    cluster = distributed.LocalCluster(2, threads_per_worker=1, processes=True,
                                       dashboard_address=None)
    with cluster, distributed.Client(cluster), parallel_config(backend="dask"):
        tables = (delayed(_slow_table)(row, tmp_path, T) for row in rows)
        jobs = Parallel(return_as="generator")(tables)
        first = next(jobs)
        victim = int(sorted(tmp_path.iterdir())[0].name)
        assert victim in [w.pid for w in cluster.workers.values()]
        os.kill(victim, 9)
        together = [first, *jobs]
        whole = s.sampled_interactions(np.stack(rows), T, progress=False)
    assert together == alone
    whole = whole.to_dataframe()
    parts = [whole[whole.axis0 == k].drop(columns="axis0") for k in range(8)]
    assert [part.reset_index(drop=True).to_json() for part in parts] == alone
