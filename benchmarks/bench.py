"""Time and gap of `sparsify` against HiGHS, the published optimiser, shapiq and the machine: .venv/bin/python benchmarks/bench.py

Every ratio comes from one run on the same real tables (data/sparsify_tables.npz). HiGHS and the published optimiser are timed on a
few tables (spread evenly over the batch), chosen before anything is solved, and scaled. Writes benchmarks/results.json and results.md.
"""
import argparse, json, platform, resource, sys, time
from pathlib import Path
import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import linprog

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from layerwise_knowledge.interactions import and_interactions, n_players
from layerwise_knowledge.sparsify import _projection, sparsify
from threadpoolctl import threadpool_limits
from published import published


def highs(v, kappa):
    "The linear program, written down literally for a general solver"
    Z, one = sp.csr_matrix([[1.]]), sp.csr_matrix([[1., 0], [1, 1]])
    for _ in range(n_players(v)): Z = sp.kron(one, Z, format="csr")
    e = np.ones((len(v), 1))
    A = sp.hstack([Z[:, 1:], -Z[:, 1:], -Z[::-1][:, 1:], Z[::-1][:, 1:], e, -e]).tocsr()
    cost = np.r_[np.ones(A.shape[1] - 2), 0, 0]
    return linprog(cost, A_ub=sp.vstack([A, -A]), b_ub=np.r_[v + kappa, kappa - v], method="highs").fun


def clock(f, repeats=1):
    best = np.inf
    for _ in range(repeats):
        t = time.perf_counter(); out = f(); best = min(best, time.perf_counter() - t)
    return best, out


def transform(report):
    "The butterfly against n plain passes over the array, and against shapiq"
    v = torch.randn(2**20, dtype=torch.float64)
    def passes():
        w = v.clone()
        for _ in range(20): w.add_(1.)
    ours, plain = clock(lambda: and_interactions(v), 5)[0], clock(passes, 5)[0]
    report["transform_n20"] = {"seconds": ours, "plain_passes": plain, "ratio": ours/plain}
    try:
        from shapiq import ExactComputer
        import shapiq
        w = np.random.default_rng(0).normal(size=2**12)
        class Table(shapiq.Game):
            def __init__(self): super().__init__(n_players=12, normalize=False)
            def value_function(self, c): return w[(c @ (1 << np.arange(12))).astype(int)]
        computer = ExactComputer(n_players=12, game=Table())
        theirs, _ = clock(lambda: computer(index="Moebius", order=12))
        tw = torch.from_numpy(w)
        report["transform_n12"] = {"seconds": (o := clock(lambda: and_interactions(tw), 20)[0]), "shapiq": theirs, "ratio": theirs/o}
    except Exception as e: report["transform_n12"] = {"error": repr(e)[:200]}


def projection(report):
    "Our block projection against the dense product it replaces (float32)"
    report["projection"] = {}
    for n in (8, 10, 12, 14):
        B, r = 32, torch.randn(32, 2**n)
        P = _projection(n, 30., torch.device("cpu"), torch.float32)
        row = {"blocks": clock(lambda: P.back(P.plain, P.solve(P.into(P.plain, r))), 3)[0]/B}
        if n <= 12: M = torch.randn(2**n, 2**n); row["dense"] = clock(lambda: r @ M, 3)[0]/B
        report["projection"][n] = row


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--tables12", type=int, default=210, help="how many n = 12 tables")
    a.add_argument("--highs12", type=int, default=2, help="HiGHS runs at n = 12 (up to minutes each)")
    a = a.parse_args()
    torch.set_num_threads(1); threadpool_limits(1)       # one thread for everybody: HiGHS's simplex has one
    real = {int(k[1:]): torch.from_numpy(t).double() for k, t in np.load(HERE.parent/"data"/"sparsify_tables.npz").items()}
    report = {"command": ".venv/bin/python benchmarks/bench.py", "torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads(),
              "seconds_per_table": {"sparsify": {}, "HiGHS": {}, "published": {}}, "batches": {}, "gaps": {}, "excess": {}}
    transform(report); projection(report)
    for n, t in sorted(real.items()):
        t = t[:a.tables12] if n == 12 else t
        seconds, r = clock(lambda: sparsify(t))
        report["seconds_per_table"]["sparsify"][n] = seconds/len(t)
        g = r.gap.numpy()
        report["gaps"][n] = {"tables": len(g), "max": float(g.max()), "median": float(np.median(g)), "share <= 1e-3": float((g <= 1e-3).mean()), "share <= 1e-2": float((g <= 1e-2).mean())}
        report["gaps"][n]["seconds"] = seconds
        report["gaps"][n]["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
        print(n, report["gaps"][n], flush=True)
        if n <= 10:
            report["batches"][n] = {B: clock(lambda: sparsify(t[:B]))[0]/B for B in (1, 32)} | {len(t): seconds/len(t)}
        if n > 12: continue
        pick = np.linspace(0, len(t) - 1, {8: 16, 10: 8, 12: a.highs12}[n] + 1).astype(int)[:-1] + len(t)//40
        k = r.kappa[pick]
        inside, spent, same = [], 0., clock(lambda: sparsify(t[pick]))[0]/len(pick)
        for i, ki in zip(pick, k.numpy()):
            s, best = clock(lambda: highs(t[i].numpy(), ki)); spent += s
            inside.append(bool(r.lower_bound[i] <= best*(1 + 1e-7) and best*(1 - 1e-7) <= r.objective[i]))
            print("  HiGHS", n, i, round(s, 2), best, float(r.objective[i]), flush=True)
        report["seconds_per_table"]["HiGHS"][n] = spent/len(pick)
        dense = 2000 if n == 8 else 100 if n == 10 else 10
        s, _ = clock(lambda: published(t[pick[:1]], k[:1], steps=dense)); s *= 10_000/dense
        report["seconds_per_table"]["published"][n] = s
        rates = 10.**-torch.arange(4, 9)                               # by hand: the best of five for each table
        two, kk = t[pick[:2]], k[:2]
        ends = published(two.repeat(5, 1), kk.repeat(5), lr=rates.repeat_interleave(2), transforms=True, steps=10_000).view(5, 2)
        ratio = ends.nan_to_num(torch.inf).amin(0)/r.objective[pick[:2]]
        report["excess"][n] = {"published objective / ours": [round(float(x), 2) for x in ratio], "HiGHS inside [bound, objective]": f"{sum(inside)}/{len(inside)}",
                               "ours on the same tables, seconds": same}
        print("  published", n, round(s, 2), report["excess"][n], flush=True)
    report["summary"] = summary(report)
    (HERE/"results.json").write_text(json.dumps(report, indent=1) + "\n")
    (HERE/"results.md").write_text(f"Made by `{report['command']}`\n\n" + report["summary"] + "\n")
    print(report["summary"])


def summary(r):
    s, lines = r["seconds_per_table"], ["| n | tables | sparsify s/table | largest gap | <= 1e-3 | HiGHS / ours | same, on the very same tables | published / ours | published objective / ours | peak GB |", "|" + "---|"*10]
    for n, g in r["gaps"].items():
        t = s["sparsify"][n]
        h, p = ((f"{s[m][n]/t:.0f}x" if n in s[m] else "-") for m in ("HiGHS", "published"))
        x = r["excess"].get(n, {}).get("published objective / ours", "-")
        same = f"{s['HiGHS'][n]/r['excess'][n]['ours on the same tables, seconds']:.0f}x" if n in r["excess"] else "-"
        lines.append(f"| {n} | {g['tables']} | {t:.3f} | {g['max']:.1e} | {g['share <= 1e-3']:.0%} | {h} | {same} | {p} | {x} | {g['peak_memory_gb']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__": main()
