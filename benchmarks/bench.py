"""Time and gap of `sparsify` against HiGHS, the published optimiser, shapiq and the machine

    .venv/bin/python benchmarks/bench.py

Everything is measured in one run on the same real tables (data/sparsify_tables.npz), in CPU seconds
of one thread, which other jobs on the machine disturb least. HiGHS runs on a few tables, chosen
before anything is solved: the tables are sorted by κ/range, which decides how hard they are, and
the middle one of each of several equal shares is taken, so that their mean stands for all;
`sparsify` solves each of them right after HiGHS has. HiGHS's simplex method, its default, is
stopped after LIMIT seconds (its ratio is then a lower bound); the optimum comes from its
interior-point method, which has no limit. Writes benchmarks/results.json and results.md.
"""
import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import linprog

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from published import published
from threadpoolctl import threadpool_limits

from layerwise_knowledge.interactions import and_interactions, n_players
from layerwise_knowledge.solver import projection as projection_of
from layerwise_knowledge.sparsify import _rule, sparsify

STEPS = {8: 2000, 10: 100, 12: 10}        # of the published optimiser's 10,000 that are timed
SHARES = {8: 16, 10: 16, 12: 6}           # tables for HiGHS
LIMIT = 120                               # seconds for its simplex method


def clock(f, repeats=1):
    "CPU seconds of the fastest of some calls, and what it returns"
    best = np.inf
    for _ in range(repeats):
        t = time.process_time()
        out = f()
        best = min(best, time.process_time() - t)
    return best, out


def highs(v, kappa, method):
    "The linear program of prefer='low', written down literally for a general solver"
    Z, one = sp.csr_matrix([[1.]]), sp.csr_matrix([[1., 0], [1, 1]])
    for _ in range(n_players(v)):
        Z = sp.kron(one, Z, format="csr")
    e = np.ones((len(v), 1))
    A = sp.hstack([Z[:, 1:], -Z[:, 1:], -Z[::-1][:, 1:], Z[::-1][:, 1:], e, -e]).tocsr()
    cost = np.r_[np.tile(_rule("low", n_players(v)).cost[1:], 4), 0, 0]
    limit = {"time_limit": LIMIT} if method == "highs-ds" else {}
    return linprog(cost, A_ub=sp.vstack([A, -A]), b_ub=np.r_[v + kappa, kappa - v], method=method,
                   options=limit)


def transform(report):
    "The butterfly against n plain passes over the array, which memory bounds, and against shapiq"
    report["transform"] = {}
    for n in (8, 10, 12, 14, 20):
        v, many = torch.randn(2**n, dtype=torch.float64), max(1, 2**16 >> n)
        def passes():
            w = v.clone()
            for _ in range(n):
                w.add_(1.)
        def times(f):
            return clock(lambda: [f() for _ in range(many)], 20)[0]/many
        report["transform"][n] = {"seconds": times(lambda: and_interactions(v)),
                                  "plain_passes": times(passes)}
    for n in (8, 10, 12, 14):
        report["transform"][n]["shapiq"] = shapiq_moebius(n)
        print(n, report["transform"][n], flush=True)


def shapiq_moebius(n):
    "Seconds that shapiq takes for the Möbius transform"
    import shapiq
    w, index = np.random.default_rng(n).normal(size=2**n), 1 << np.arange(n)
    class Table(shapiq.Game):
        def __init__(self):
            super().__init__(n_players=n, normalize=False)
        def value_function(self, c):
            return w[(c @ index).astype(int)]
    computer = shapiq.ExactComputer(n_players=n, game=Table())
    return clock(lambda: computer(index="Moebius", order=n))[0]


def projection(report):
    "Our block projection against the dense product it replaces (float32)"
    report["projection"] = {}
    for n in (8, 10, 12, 14):
        r = torch.randn(32, 2**n)
        P = projection_of(n, 30., torch.device("cpu"), torch.float32)
        row = {"blocks": clock(lambda: P.back(P.plain, P.solve(P.into(P.plain, r))), 3)[0]/32}
        M = torch.randn(2**n, 2**n)
        row["dense"] = clock(lambda: r @ M, 3)[0]/32
        report["projection"][n] = row


def salient(r):
    i = torch.stack([r.i_and, r.i_or], -2)[..., 1:].abs()
    return i > .05*i.amax((-1, -2), keepdim=True)


def ours(t):
    "All tables, in batches of three sizes; the largest batch gives gaps and memory"
    tables, row = len(t), {"tables": len(t)}
    single = [clock(lambda: sparsify(v)) for v in t]
    row["batch"] = {1: sum(s for s, _ in single)/tables}
    row["each"] = [s for s, _ in single]
    row["binding"] = [int((r.delta.abs() >= .999*r.kappa).sum()) for _, r in single]
    if tables >= 32:
        some = [clock(lambda: sparsify(t[i:i + 32]))[0] for i in range(0, tables, 32)]
        row["batch"][32] = sum(some)/tables
        seconds, r = clock(lambda: sparsify(t))
        row["batch"][tables] = seconds/tables
        row["rules"] = {prefer: clock(lambda: sparsify(t[::2], prefer=prefer))[0]
                        for prefer in ("low", "even", "high")}
    else:
        r = sparsify(t)
    row["seconds"] = min(row["batch"].values())
    row["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    row |= quality(t, r)
    print(n_players(t), {k: x for k, x in row.items() if k not in ("each", "binding")}, flush=True)
    return row, r


def quality(t, r):
    "Gaps, and how well float32 finds the same salient sets"
    g = r.gap.numpy()
    gap = {"largest": float(g.max()), "median": float(np.median(g)),
           "share <= 1e-3": float((g <= 1e-3).mean()), "share <= 1e-4": float((g <= 1e-4).mean())}
    a, b = salient(r), salient(sparsify(t[::4].float()))
    jaccard = ((a[::4] & b).sum((1, 2))/(a[::4] | b).sum((1, 2))).mean()
    return {"gap": gap, "order_gap": float(r.order_gap.max()), "jaccard_float32": float(jaccard)}


def spread(t, kappa, shares):
    "The middle table of each share, in the order of κ/range"
    order = (kappa/(t.amax(1) - t.amin(1))).argsort()
    return [int(order[int((k + .5)*len(t)/shares)]) for k in range(shares)]


def peers(t, r, shares):
    "HiGHS and the published optimiser on a few of the tables"
    names = "tables", "simplex", "interior point", "sparsify", "inside", "stopped"
    row = {name: [] for name in names}
    for i in spread(t, r.kappa, shares):
        for name, x in zip(names, against_highs(t, r, i)):
            row[name].append(x)
    return row | against_published(t, r)


def against_highs(t, r, i):
    "One table: seconds of HiGHS's two methods and of ours; is its optimum inside our bounds?"
    n, v, k = n_players(t), t[i].numpy(), float(r.kappa[i])
    s, simplex = clock(lambda: highs(v, k, "highs-ds"))
    q, found = clock(lambda: highs(v, k, "highs-ipm"))
    o, _ = clock(lambda: sparsify(v))
    z = (r.i_and[i].abs() + r.i_or[i].abs()).numpy()
    ours = float(z[1:] @ _rule("low", n).cost[1:])
    inside = bool(r.lower_bound[i] <= found.fun*(1 + 1e-7) and found.fun*(1 - 1e-7) <= ours)
    print(f"  n = {n}, table {i}: HiGHS {s:.2f} s{' (stopped)' if simplex.status else ''}, "
          f"its interior point {q:.2f} s, sparsify {o:.3f} s, inside {inside}", flush=True)
    return i, s, q, o, inside, simplex.status != 0


def against_published(t, r):
    "Seconds of the published optimiser, and how far above ours it ends with the best of five rates"
    two, steps = spread(t, r.kappa, 2), STEPS[n_players(t)]
    one = two[:1]
    seconds = clock(lambda: published(t[one], r.kappa[one], steps=steps))[0]*10_000/steps
    rates = 10.**-torch.arange(4, 9)        # by hand: the best of five for each table
    ends = published(t[two].repeat(5, 1), r.kappa[two].repeat(5), lr=rates.repeat_interleave(2),
                     transforms=True, steps=10_000).view(5, 2)
    above = (ends.nan_to_num(torch.inf).amin(0)/r.objective[two]).tolist()
    print(f"  n = {n_players(t)}: published {seconds:.0f} s, objective x {above}", flush=True)
    return {"published": seconds, "published objective / ours": above}


def arguments():
    a = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--tables", type=int, default=256, help="at most so many of each size")
    a.add_argument("--shares12", type=int, default=SHARES[12],
                   help="HiGHS runs at n = 12 (minutes each)")
    return a.parse_args()


def main():
    a = arguments()
    torch.set_num_threads(1)
    threadpool_limits(1)                    # one thread for everybody: HiGHS's simplex has one
    tables = np.load(HERE.parent/"data"/"sparsify_tables.npz")
    real = {int(k[1:]): torch.from_numpy(t[:a.tables]).double() for k, t in tables.items()}
    report = {"command": ".venv/bin/python benchmarks/bench.py", "torch": torch.__version__,
              "python": platform.python_version(), "sparsify": {}, "peers": {}}
    solved = {}
    for n, t in sorted(real.items()):       # before the peers, so that the peak memory is ours
        report["sparsify"][n], solved[n] = ours(t)
    transform(report)
    projection(report)
    for n, shares in (SHARES | {12: a.shares12}).items():
        report["peers"][n] = peers(real[n], solved[n], min(shares, len(real[n])))
    report["summary"] = summary(report)
    (HERE/"results.json").write_text(json.dumps(report, indent=1) + "\n")
    (HERE/"results.md").write_text(f"Made by `{report['command']}`\n\n" + report["summary"] + "\n")
    print(report["summary"])


def rows(head, *lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"]*len(head), *lines))


def our_line(n, o):
    batch = [f"{o['batch'][b]:.3f}" if b in o["batch"] else "-" for b in (1, 32, o["tables"])]
    even = f"{o['rules']['low']/o['rules']['even']:.2f}" if "rules" in o else "-"
    gap = [f"{o['gap']['largest']:.0e}", f"{o['gap']['share <= 1e-4']:.0%}",
           f"{o['order_gap']:.0e}", even, f"{o['jaccard_float32']:.4f}"]
    return [str(n), str(o["tables"]), *batch, *gap, f"{o['peak_memory_gb']:.2f}"]


def their_line(n, p, batch):
    inside, alone = f"{sum(p['inside'])} of {len(p['inside'])}", np.mean(p["sparsify"])
    times = {method: np.array(p[method]) for method in ("simplex", "interior point")}
    times["quicker"] = np.minimum(*times.values())
    def ratio(method, ours):
        bound = ">= " if method == "simplex" and any(p["stopped"]) else ""
        return f"{bound}{times[method].mean()/ours:.3g}"
    ratios = [f"{ratio(method, batch)} ({ratio(method, alone)})" for method in times]
    above = ", ".join(f"{x:.2f}" for x in p["published objective / ours"])
    return [str(n), inside, *ratios, f"{p['published']/batch:.3g}", above]


OURS = ["n", "tables", "batch 1", "batch 32", "all", "largest gap", "gap <= 1e-4",
        "largest order gap", "low / even", "Jaccard with float32", "peak GB"]
THEIRS = ["n", "HiGHS's optimum inside our bounds", "HiGHS, simplex", "HiGHS, interior point",
          "the quicker of the two on each table", "published", "published objective / ours"]


def summary(r):
    "The tables of the chapter"
    mine = [our_line(n, o) for n, o in r["sparsify"].items()]
    theirs = [their_line(n, p, r["sparsify"][n]["seconds"]) for n, p in r["peers"].items()]
    t, p = r["transform"], r["projection"][12]
    return "\n".join([
        "CPU seconds per table for `sparsify`, one thread (low / even: how much longer the default "
        "rule takes than the smallest sum of squares, same tables):", "",
        rows(OURS, *mine), "",
        "How many times as long a table takes the others as the mean of all our tables, the "
        "largest batch (in brackets: as the very same tables, one at a time), and how far above "
        "the optimum the published optimiser ends. HiGHS solves the same program, with the weights "
        "of the default rule:", "",
        rows(THEIRS, *theirs), "",
        f"Transform: {t[20]['seconds']/t[20]['plain_passes']:.1f} times as long as n plain passes "
        f"over the array at n = 20; shapiq takes {t[12]['shapiq']/t[12]['seconds']:.0f} times as "
        f"long at n = 12. Projection at n = 12: {p['dense']/p['blocks']:.0f} times faster than the "
        "dense product with its matrix."])


if __name__ == "__main__":
    main()
