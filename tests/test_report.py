"""The rules behind the verdicts: planted answers, independent references, properties, refusals."""
import itertools
import math
import re

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from layerwise_knowledge import choices, cli, measured, metrics, telling
from layerwise_knowledge import judging as J
from layerwise_knowledge import report as R

FEW, FEWER = settings(max_examples=25), settings(max_examples=5)
numbers = st.floats(-5, 5, allow_nan=False)


def some(mean=1., low=.5, high=1.5, claimed=J.ABOVE, samples=100, of=100, needed=100, **more):
    return J.Finding("mnist/mlp7", more.pop("what", "t"), mean, low, high, claimed, samples, of,
                     needed, **more)


def random_table(seed, n=4, samples=6, layers=("a", "b", "c", "output"), dataset="mnist",
                 network="resnet20", scale=1., **more):
    rng, shape = np.random.default_rng(seed), (samples, len(layers), 2**n)
    def draw(): return scale*rng.standard_t(2, shape)*(rng.random(shape) < .5)
    a, o = draw(), draw()
    o[..., 0] = 0
    return J.Table(metrics.interaction_table(a, o, list(layers)), dataset, network, **more)


def of(key, *tables, decides=True):
    found = R.CLAIMS[key].find({(t.dataset, t.network): t for t in tables})
    return [f for f in found if f.decides == decides and not f.control]


yes_no = lambda findings: [f.holds for f in findings]


# ---------------------------------------------------------------- tests and verdicts
def test_twelve_claims_each_with_its_words():
    assert list(R.CLAIMS) == [f"C{k}" for k in range(1, 13)]
    for c in R.CLAIMS.values():
        assert c.text and c.statistic and c.needs and len(c.statistic.split()) > 5


@pytest.mark.parametrize("low, high, claimed, holds", [
    (.1, .9, J.ABOVE, True), (-.1, .9, J.ABOVE, False), (0, .9, J.ABOVE, False),
    (-2, -1, J.BELOW, True), (-2, 1, J.BELOW, False), (15, 30, (14.5, 32.7), True),
    (12, 30, (14.5, 32.7), False), (15, 40, (14.5, 32.7), False),
    (math.nan, math.nan, J.ABOVE, False)])
def test_a_test_holds_if_the_whole_interval_is_where_the_claim_puts_it(low, high, claimed, holds):
    assert some(low=low, high=high, claimed=claimed).holds is holds


YES, NO, OPEN = some(), some(claimed=J.BELOW), some(low=-.5)


@pytest.mark.parametrize("findings, word", [
    ([YES]*3, "replicates"), ([YES, NO], "partly"), ([NO]*2, "does not"), ([], "not tested"),
    ([OPEN]*2, "undecided"), ([OPEN, NO], "does not"), ([OPEN, YES], "partly"),
    ([OPEN, some(what="u", samples=3)], "undecided"),
    ([YES, some(claimed=J.BELOW, decides=False)], "replicates"),
    ([some(decides=False)], "not tested"), ([some(of=24, samples=24)], "not tested"),
    ([some(samples=49)], "not tested"),
    ([YES, some(claimed=J.BELOW, of=24, samples=24)], "replicates"),
    ([YES, some(what="u", samples=3)], "partly"), ([NO, some(what="u", samples=3)], "does not"),
    ([YES, some(what="u", claimed=J.BELOW)], "does not"),
    ([YES, some(what="u", low=-.5)], "partly")])
def test_verdicts(findings, word): assert J.verdict(findings)[0] == word


def test_missing_tables_are_named_and_a_verdict_is_so_far():
    missing = ["mnist/vgg11", "cifar10/mlp7", "cifar10/vgg11"]
    assert J.verdict([], missing) == ("not tested", "needs mnist: vgg11; cifar10: mlp7, vgg11")
    word, reason = J.verdict([YES], ["cifar10/resnet32"])
    assert word == "replicates" and reason == "1 of 1 tests hold so far; needs cifar10: resnet32"
    word, reason = J.verdict([some(of=20, samples=20)], few="partly tested")
    assert word == "partly tested" and reason == "20 of 100 samples; indicative: 1 of 1 tests hold"


def a_finding(m, w, claimed, samples, of, decides, what):
    return some(m, m - w, m + w, claimed, min(samples, of), of, 100, decides=decides, what=what)


findings = st.builds(
    a_finding, numbers, st.floats(0, 2), st.sampled_from([J.ABOVE, J.BELOW, (-1, 1)]),
    st.integers(0, 120), st.integers(1, 120), st.booleans(), st.sampled_from("tu"))


@pytest.mark.parametrize("low, high, mark", [
    (.1, 1, "yes"), (-.1, 1, "open"), (-1, -.1, "no"), (0, 1, "open"), (0, 0, "open"),
    (-1, 0, "open")])
def test_an_unsure_test_is_open(low, high, mark): assert J.mark(some(low=low, high=high)) == mark


@FEW
@given(st.lists(findings, max_size=6), st.randoms())
def test_a_verdict_depends_on_the_counted_tests_alone(many, rng):
    word = J.verdict(many)[0]
    shuffled = list(many)
    rng.shuffle(shuffled)
    assert J.verdict(shuffled)[0] == word                                    # not on their order
    beside = some(claimed=J.BELOW, decides=False)
    assert J.verdict(many + [beside])[0] == word                             # nor on what is beside
    counted = [f for f in many if f.decides and f.enough]
    assert (word == "not tested") == (not counted)
    if word == "replicates":
        assert all(f.holds for f in counted)
    lost = [w for w in "tu" if (part := [f for f in counted if f.what == w])
            and not any(f.holds for f in part) and not all(f.open for f in part)]
    assert (word == "does not") == bool(lost)
    assert J.failed_parts(counted) == sorted(lost, key=[f.what for f in counted].index)
    if word == "undecided":
        assert all(f.open for f in counted)


@FEW
@given(st.lists(numbers, min_size=3, max_size=30), st.floats(0, 3), st.floats(0, 3))
def test_a_wider_region_never_loses_a_test(values, a, b):
    t = J.planted(dict(output={1: 1.}), samples=2)
    x = xr.DataArray(values, dims="sample")
    narrow, wide = (J.finding(t, x, "t", (-w, w)) for w in sorted((a, b)))
    assert wide.holds or not narrow.holds
    assert narrow.low <= narrow.mean + 1e-9 and narrow.mean <= narrow.high + 1e-9


# -------------------------------------------------------- statistics against independent references
@FEW
@given(st.integers(0, 10**6))
def test_trend_is_scipys_spearman(seed):
    rng = np.random.default_rng(seed)
    y = np.round(rng.normal(size=(5, 6)), 1)
    y[rng.random(y.shape) < .2] = np.nan
    ours = J.trend(xr.DataArray(y, dims=("sample", "order")), "order").values
    for row, rho in zip(y, ours):
        ok = np.isfinite(row)
        if ok.sum() < 2:
            assert np.isnan(rho)
        elif np.ptp(row[ok]) == 0:
            assert rho == 0                        # flat: neither rises nor falls
        else:
            rho_scipy = stats.spearmanr(np.arange(6)[ok], row[ok]).statistic
            np.testing.assert_allclose(rho, rho_scipy, atol=1e-12)
    z = xr.DataArray(y, dims=("sample", "order"))
    np.testing.assert_allclose(J.trend(np.exp(z), "order"), ours)
    np.testing.assert_allclose(J.trend(-z, "order"), -ours)


def test_trend_over_two_kinds_pools_their_points():
    y = np.random.default_rng(0).normal(size=(3, 2, 5))
    ours = J.trend(xr.DataArray(y, dims=("sample", "kind", "order")), "order")
    at = np.tile(np.arange(5), 2)
    np.testing.assert_allclose(ours, [stats.spearmanr(at, row.ravel()).statistic for row in y])


@FEWER
@given(st.integers(0, 10**6))
def test_statistics_by_loops(seed):
    t = random_table(seed)
    n, names = 4, t.i.layer.values.tolist()
    tau = {l: .05*abs(t.i.sel(layer=l)).isel(subset=slice(1, None)).max().item() for l in names}
    def strength(x, l):
        both = ((k, t.i.sel(layer=l, kind=k).values[x]) for k in ("and", "or"))
        return {(k, S): z for k, i in both for S, z in enumerate(i) if S and abs(z) > tau[l]}
    def ratio(a, b): return a/b if b else math.nan
    for x, (l, a) in itertools.product(range(3), enumerate(names)):
        A, B = strength(x, a), strength(x, "output")
        both = {s: min(abs(A[s]), abs(B[s])) for s in A.keys() & B.keys() if A[s]*B[s] > 0}
        def total(D, keep=lambda m: True):
            return sum(abs(z) for (k, S), z in D.items() if keep(S.bit_count()))
        def high(m): return m > n*2/3
        lost, sum_a, sum_b = total(A) - total(both), total(A), total(B)
        high_a = total(A, lambda m: m > n/2)
        np.testing.assert_allclose(J.layers_alike(t, l, -1)[x], ratio(2*total(both), sum_a + sum_b))
        np.testing.assert_allclose(J.redundancy(t)[x, l], ratio(lost, sum_a), atol=1e-12)
        np.testing.assert_allclose(J.completeness(t, 2/3)[x, l],
                                   ratio(total(both, high), total(B, high)))
        np.testing.assert_allclose(J.high_share(t)[x, l], ratio(high_a, sum_a))


@FEWER
@given(st.integers(0, 10**6), st.floats(.01, 100))
def test_no_unit(seed, scale):
    "Strengths in another unit change no test"
    for key in ("C1", "C2", "C3", "C4", "C6", "C12"):
        for f, g in zip(of(key, random_table(seed)), of(key, random_table(seed, scale=scale))):
            assert f.holds == g.holds and np.allclose(f.mean, g.mean, equal_nan=True)


@FEW
@given(st.integers(0, 10**6))
def test_alike_is_symmetric_and_at_most_one(seed):
    t = random_table(seed)
    a, b = J.layers_alike(t, 0, 1), J.layers_alike(t, 1, 0)
    np.testing.assert_allclose(a, b)
    assert ((a >= 0) & (a <= 1 + 1e-12) | a.isnull()).all()
    np.testing.assert_allclose(J.layers_alike(t, 2, 2).dropna("sample"), 1)
    with pytest.raises(ValueError):
        J.alike(t.i, t.omega, t.i[::-1], t.omega[::-1])


def test_relative_change_is_numpys_line():
    y = np.random.default_rng(0).random((4, 7)) + 1
    slope = np.polyfit(np.arange(1, 8), y.T, 1)[0]
    z = xr.DataArray(y, dims=("sample", "order"), coords=dict(order=np.arange(1, 8)))
    np.testing.assert_allclose(R.relative_change(z), 6*slope/y.mean(1))


def test_the_peak_is_not_chosen_from_the_sample_itself():
    y = xr.DataArray([[0., 9, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]], dims=("sample", "layer"))
    # the first one's own peak is not used; for the others layer 1 looks highest
    np.testing.assert_allclose(R.rise_and_fall(y)[0], [0, 0, 0])
    def rises(seed):
        noise = np.random.default_rng(seed).random((60, 6))
        rise = R.rise_and_fall(xr.DataArray(noise, dims=("sample", "layer")))[0]
        return J.finding(J.planted(dict(output={1: 1.})), rise, "", J.ABOVE).holds
    held = sum(map(rises, range(40)))
    assert held <= 6                                                     # noise rises by luck alone


# ----------------------------------------------------------- claims on tables with a planted answer
one, two, five = ({S: 1. for S in J.sets(m)} for m in (1, 2, 5))
first = lambda sets, k: dict(list(sets.items())[:k])


def test_c1_needs_the_papers_number_and_its_samples():
    every = two | {S: 1. for S in J.sets(3)}
    near, far = (J.planted(dict(output=first(every, k)), "cifar10", samples=30) for k in (34, 20))
    assert yes_no(of("C1", near)) == [True] and yes_no(of("C1", far)) == [False]
    vgg11 = J.planted(dict(output=first(two, 10)), "cifar10", "vgg11", samples=30)
    assert [f.mean for f in of("C1", near, vgg11)] == [22]                     # mean over networks
    short = J.planted(dict(output=first(two, 10)), "cifar10", samples=29)
    assert R.judge({("cifar10", "mlp7"): short})["C1"].word == "not tested"


@FEWER
@given(st.integers(0, 10**6), st.booleans())
def test_c1_draws_tau_with_the_samples(seed, per_sample):
    tables = [random_table(seed + k).read(per_sample=per_sample) for k in range(2)]
    rng = np.random.default_rng(0)
    def count(t, drawn):
        s = abs(t.i.isel(layer=-1)).where(t.i.order > 0, 0).isel(sample=drawn)
        top = s.max(["kind", "subset"]) if per_sample else s.max()
        return float((s > .05*top).sum(["kind", "subset"]).mean())
    means = [np.mean([count(t, drawn) for t in tables]) for drawn in rng.integers(6, size=(60, 6))]
    np.testing.assert_allclose(R.with_tau_drawn(tables, draws=60), np.quantile(means, [.025, .975]))


def test_high_orders_read_otherwise():
    "n = 6: above 3 for C6 and above 4 for C3, or 2 of those that the paper would show, 1 and 2"
    t = J.planted(dict(a=one, b=one, c=one | first(two, 9), output=one | two), "mnist", "resnet20")
    known = {("mnist", "resnet20"): t}
    table = choices.sensitivity(known, ["C3", "C6"]).loc["high: upper half shown"]
    assert table["C6"] == "1/1" and table["C3"] == "partly 1/1 → does not 1/2"


@pytest.mark.parametrize("key, layers, holds", [
    ("C3", dict(a=first(one, 1), b=first(one, 3), c=one | first(five, 2), output=one | five),
     [True, True]),
    ("C3", dict(a=one | five, b=one | first(five, 4), c=five, output=one | five), [False, False]),
    ("C4", dict(a=one, b=one | two, c=one | first(two, 3), output=one), [True, True]),
    ("C4", dict(a=one | two, b=one | first(two, 9), c=one | first(two, 5), d=one, output=one),
     [False, True]),
    ("C6", dict(a=one, b=one, c=one | five, output=one | five), [True]),
    ("C6", dict(a=one | five, b=one | five, c=one, output=one), [False]),
    ("C12", dict(a=first(two, 8), b=first(two, 10), c=first(two, 12), d=first(two, 15), output=one),
     [True, True]),
    ("C12", dict(a=first(two, 8), b=first(five, 3), c=one, d=first(two, 8), output=one),
     [False, False])])
def test_layers(key, layers, holds):
    for d, samples in (("mnist", 100), ("cifar10", 30)):
        assert yes_no(of(key, J.planted(layers, d, "resnet20", samples=samples))) == holds
    beside = J.planted(layers, "mnist", "vgg11")                # the paper shows no VGG-11 on MNIST
    assert of(key, beside) == [] and R.judge({("mnist", "vgg11"): beside})[key].word == "not tested"


def test_c5_beside_its_peer():
    lean = J.planted(dict(a=one, b=one, c=one, output=one), "cifar10", "vgg11", samples=30)
    both = one | two
    fat = J.planted(dict(a=both, b=both, c=both, output=one), "cifar10", "resnet20", samples=30)
    assert yes_no(of("C5", lean, fat)) == [True]*3 and yes_no(of("C5", lean)) == [True]*2
    fat.network, lean.network = "vgg11", "resnet20"
    assert yes_no(of("C5", fat, lean)) == [False, False, True]


def test_c7_pairs_of_networks():
    def net(name, k):
        middle = dict.fromkeys(("block6", "conv4_2", "linear4", "block10"), {1: 1.})
        output = first(one, 4) | {S: 1. for S in J.sets(3)[k:k + 5]}
        return J.planted(middle | dict(output=output), "cifar10", name, samples=30)
    nets = [net(n, k) for k, n in enumerate(("mlp7", "vgg11", "resnet20", "resnet32"))]
    found = of("C7", *nets)
    assert len(found) == 24                              # six pairs, two layers, two readings
    assert len({f.where for f in found}) == 12
    assert all(f.holds for f in found if "output" in f.where)
    assert all(J.mark(f) == "few" for f in found if "middle" in f.where)    # one set: nothing falls
    assert R.judge({("cifar10", t.network): t for t in nets})["C7"].word == "replicates"


def test_c8_is_never_judged_from_fewer_samples():
    t = J.planted(dict(linear4=one | five, output=one | two | five))
    mean = metrics.merge_first_order(t.interactions)
    for k, word in ((20, "partly tested"), (100, "replicates")):
        t.noise = xr.Dataset(dict(mean=mean, std=abs(mean)*mean.order)).isel(sample=slice(0, k))
        assert R.judge({("mnist", "mlp7"): t})["C8"].word == word


@pytest.mark.parametrize("other, holds", [
    (one | two, [True, True]), (one, [False, False]), (first(one | two, 20), [True, True]),
    (five | {S: 1. for S in J.sets(4)}, [True, False])])
def test_c9(other, holds):
    variants = {"kappa=0.05": J.planted(dict(output=other), samples=30), "seed=1": None}
    t = J.planted(dict(output=one | two), "cifar10", "resnet20", samples=30, variants=variants)
    assert yes_no(of("C9", t)) == holds


@pytest.mark.parametrize("ink, holds", [([.5]*4, [True]), ([.01, .01, .5, .5], [False])])
def test_c10(ink, holds):
    x, owner = (torch.as_tensor(z).repeat_interleave(12).expand(30, 3, 12, 48)
                for z in (ink, range(4)))
    t = J.planted(dict(output=one), "cifar10", samples=30, pixels=(x, owner))
    assert yes_no(of("C10", t)) == holds
    e = .02*torch.randn(20, *x.shape, generator=torch.Generator().manual_seed(0))
    whole = (e.flatten(2).norm(dim=-1)/x.flatten(1).norm(dim=-1)).mean(0)
    patches = [z.unflatten(-1, (4, 12)).square().sum((-4, -3, -1)).sqrt() for z in (e, x)]
    single = (patches[0]/patches[1]).mean(0).numpy()
    for y, f in zip(R.noise_by_order(t), (np.median, np.mean)):    # largest and smallest by hand
        np.testing.assert_allclose(y.sel(order=4), whole, rtol=1e-5)
        np.testing.assert_allclose(y.sel(order=1), f(single, -1), rtol=1e-5)


def test_c11_needs_fifty_rows():
    layers = dict(linear3=first(one, 5), linear5=one, output=one)
    census, bike = (J.planted(layers, d, samples=50) for d in ("census", "bike"))
    assert yes_no(of("C11", census, bike)) == [True]*2
    assert yes_no(of("C11", census, bike, decides=False)) == [True]*2       # the paper has no bike
    both = R.judge({("census", "mlp7"): census, ("bike", "mlp7"): bike})
    reason = "2 of 2 tests hold so far; beside it 2 of 2; needs commercial: mlp7"
    assert both["C11"].reason == reason
    short = J.planted(layers, "census", samples=49)
    assert R.judge({("census", "mlp7"): short})["C11"].word == "not tested"


# ---------------------------------------------------------------- tables, choices, sensitivity
def test_reading_otherwise():
    t = random_table(3, variants=dict(other=random_table(4)))
    assert (t.read(per_sample=True).omega >= t.omega).all()      # own τ is at most the common one
    for k in ("and", "or"):
        alone = t.read(kinds=(k,))
        xr.testing.assert_equal(alone.omega.sel(kind=k), t.omega.sel(kind=k))
        assert not alone.omega.where(alone.omega.kind != k, False).any()
    other = t.read(tau=.5).variants["other"]
    assert other.tau == .5 and t.tau == .05           # variants follow, the table itself stays
    v = t.interactions.sum("kind")
    whole = metrics.normalise(metrics.merge_first_order(t.interactions), v)
    xr.testing.assert_allclose(t.read(v=v).whole, whole)


def test_sensitivity_names_what_changes():
    weak = {1: 1.} | {S: .04 for S in J.sets(2) + J.sets(3)[:7]}
    predicted = J.planted(dict(output=first(two, 15) | one))
    weak = J.planted(dict(output=weak), variants={"target=predicted": predicted})
    table = choices.sensitivity({("mnist", "mlp7"): weak}, ["C1", "C2", "C12"]).T
    assert table.loc["C1", "predicted class"] == "does not 0/1 → replicates 1/1"
    assert table.loc["C1", "τ of each sample"] == "0/1"
    assert table.loc["C1", "background masked"] == "–" and (table.loc["C12"] == "–").all()
    assert choices.sensitivity({}).eq("–").all(axis=None)
    nothing = {"nothing left": lambda t: J.planted(dict(output={}))}
    gone = choices.sensitivity({("mnist", "mlp7"): weak}, ["C2"], nothing).iloc[0, 0]
    assert gone == "replicates 1/1 → not tested"                 # the claim is there, but undefined


def test_the_table_fits_and_is_escaped():
    t = J.planted(dict(a=one, b=one | two, c=one, output=one), "mnist", "resnet20")
    results = R.judge({("mnist", "resnet20"): t})
    text, page = telling.as_text(results), telling.as_html(results)
    assert max(map(len, text.split("\n"))) <= 100
    assert "C4" in text and "yes    mnist/resnet20: rise" in text
    assert page.count("<tr") == 13 and "C12 Neighbouring" in page


def test_nothing_is_computed_and_wrong_words_are_refused(tmp_path, monkeypatch, root):
    (tmp_path/"settings.ini").write_bytes((root/"settings.ini").read_bytes())
    monkeypatch.setenv("LAYERWISE_HOME", str(tmp_path))
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"cache"))
    assert J.load_tables("paper") == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["settings.ini"]
    for r in R.judge({}).values():
        assert r.word == "not tested" and r.reason.startswith("needs")
    with pytest.raises(ValueError, match="there is no profile 'fast'"):
        J.load_tables("fast")
    with pytest.raises(ValueError, match="has no experiment 'mnist mlp8'"):
        J.load_tables("smoke", only=[("mnist", "mlp8")])
    with pytest.raises(ValueError, match="between 0 and 1; got 5"):
        J.load_tables("smoke", tau=5)


NOTEBOOKS = ("report", "appendix/claims", "appendix/choices")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs_where_nothing_was_computed(name, tmp_path, monkeypatch, root):
    (tmp_path/"settings.ini").write_bytes((root/"settings.ini").read_bytes())
    monkeypatch.setenv("LAYERWISE_HOME", str(tmp_path))
    monkeypatch.setenv("LAYERWISE_CACHE", str(tmp_path/"cache"))
    pictures = tmp_path/"pictures"
    more = {} if name.endswith("claims") else dict(folder=str(pictures))
    cli.draw(root/"nbs"/f"{name}.ipynb", **more)
    assert not pictures.exists() or not any(pictures.iterdir())                  # and draws nothing


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs_on_what_is_shipped(name, tmp_path, root):
    "The profile paper, with whatever tables this clone has"
    more = {} if name.endswith("claims") else dict(folder=str(tmp_path))
    text = cli.draw(root/"nbs"/f"{name}.ipynb", profile="paper", **more).read_text()
    assert f"profile paper, tau = 0.05: {len(J.load_tables('paper'))} experiments" in text


# ---------------------------------------------------------------- which of the optima
def both_ends(low, high, **more):
    return J.planted(low, variants={"prefer=high": J.planted(high, **more)}, **more)


@pytest.mark.parametrize("other, decided, says", [
    ({1: 3., 7: 1.}, True, "so at both ends"),
    ({1: 1., 7: 9., 11: 9.}, False, "Eq. 5 does not decide: does not with high")])
def test_a_verdict_says_whether_the_other_end_agrees(other, decided, says):
    falls = {S: 2.**-S.bit_count() for S in range(1, 64)}
    rises = {S: 2.**S.bit_count() for S in range(1, 64)}
    t = both_ends(dict(output=falls), dict(output=falls if decided else rises))
    result = R.judge({("mnist", "mlp7"): t}, ["C2"])["C2"]
    assert result.word == "replicates" and result.decided == decided
    assert says == telling.at_ends(result)


def test_without_the_other_end_a_verdict_says_nothing_of_it():
    t = J.planted(dict(output={1: 1., 3: .5}))
    result = R.judge({("mnist", "mlp7"): t}, ["C2"])["C2"]
    assert result.other == "" and result.decided and telling.at_ends(result) == ""


def test_mean_order_and_number_at_every_optimum():
    t = both_ends(dict(output={1: 1., 2: 1., 12: 2.}), dict(output={3: 2., 15: 2.}))
    low, high = choices.optima(t).values()
    np.testing.assert_allclose(J.mean_order(low), (1 + 1 + 2*2)/4)
    np.testing.assert_allclose(J.mean_order(high), (2*2 + 2*4)/4)
    np.testing.assert_allclose([choices.salient_number(z).mean() for z in (low, high)], [3, 2])
    fig = choices.plot_optima({("mnist", "mlp7"): t})
    assert [ax.get_ylabel() for ax in fig.axes] == ["mean order", "salient per sample"]
    assert choices.plot_optima({}) is None


# ----------------------------------- controls, layers that are undefined, variants of fewer samples
def test_random_functions_pass_where_nothing_is_learned():
    t = J.planted(dict(output={S: 2.**-S.bit_count() for S in range(1, 64)}))
    result = R.judge({("mnist", "mlp7"): t}, ["C2"])["C2"]
    assert result.controls == {"random MLPs": (1, 1), "independent numbers": (0, 1)}
    assert result.passing == ["random MLPs"] and result.shown == "replicates on 1 of 6 tables"
    assert "random MLPs 1 of 1" in telling.on_controls(result)


def test_a_variant_that_has_learned_nothing_is_a_control_of_every_claim():
    rises = dict(a=first(one, 1), b=first(one, 3), c=one, output=one)
    untrained = J.planted(rises, "mnist", "resnet20")
    t = J.planted(rises, "mnist", "resnet20", variants={"epochs=0": untrained})
    result = R.judge({("mnist", "resnet20"): t}, ["C3"])["C3"]
    assert result.controls["untrained"] == (1, 1)
    assert J.beyond(result.findings)[1]["untrained"] == (0, 1)           # and no more than that
    flat = J.planted(dict.fromkeys(rises, one), "mnist", "resnet20")
    t.variants["epochs=0"] = flat
    result = R.judge({("mnist", "resnet20"): t}, ["C3"])["C3"]
    assert result.controls["untrained"] == (0, 1)
    assert J.beyond(result.findings)[1]["untrained"] == (1, 1)


def test_a_sample_with_an_undefined_layer_is_left_out():
    layers = dict(a=one, b=one | two, c=one, output=one)
    t, full = (J.planted(layers, "census", "mlp7", samples=60) for _ in range(2))
    t.interactions[:20, 1] = 0                                  # nothing in layer b of 20 samples
    found = [f for f in of("C11", t) if f.what == "redundancy"]
    assert [(f.samples, f.of) for f in found] == [(40, 60)]
    whole = [f for f in of("C11", full) if f.what == "redundancy"]
    assert found[0].mean == pytest.approx(whole[0].mean, abs=.02)


def test_a_variant_of_fewer_samples_is_compared_with_the_same_ones():
    few = J.planted(dict(output=one | two), "cifar10", "resnet20", samples=30)
    few.interactions = few.interactions.assign_coords(sample=range(30))
    variants = {"kappa=0.05": few, "kappa=['robust', 0.04]": few}
    t = J.planted(dict(output=one | two), "cifar10", "resnet20", samples=100, variants=variants)
    t.interactions = t.interactions.assign_coords(sample=range(100))
    found = of("C9", t)
    assert {(f.where, f.of) for f in found} == {("cifar10/resnet20 κ = 0.05", 30)}
    assert J.named({"kappa": 0.05, "samples": 30}) == "kappa=0.05"


def test_partial_is_the_correlation_of_what_the_strength_leaves():
    rng = np.random.default_rng(0)
    x, z, noise = rng.normal(size=(3, 300))
    y = x + z + noise
    ranks = [stats.rankdata(a) for a in (y, x, z)]
    left = [a - np.polyval(np.polyfit(ranks[2], a, 1), ranks[2]) for a in ranks[:2]]
    assert measured.partial(y, x, z) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert measured.partial(y, x, np.ones(300)) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(measured.partial(y, np.ones(300), z))
    assert np.isnan(measured.partial(y[:3], x[:3], z[:3]))


def test_counts_by_tau_against_a_loop():
    t, taus = random_table(5), np.array([.01, .05, .2])
    counts = measured.counts_by_tau(t, taus)
    s = abs(t.i.isel(layer=-1)).where(t.i.order > 0, 0)
    strongest = s.max(["kind", "subset"])
    for k, scale in enumerate((strongest.max(), strongest, strongest.mean())):
        for tau, n in zip(taus, counts.values[k]):
            assert n == pytest.approx(float((s > tau*scale).sum(["kind", "subset"]).mean()), abs=.2)
    assert float(R.count_at_output(t).mean()) == pytest.approx(counts.values[0, 1])
    falling = xr.DataArray([[100., 10, 1]], dims=("reading", "tau"), coords=dict(tau=[.01, .1, 1.]))
    assert R.tau_of(falling, 10) == pytest.approx([.1]) and np.isnan(R.tau_of(falling, 1000)).all()
    assert R.plot_tau({}, taus) is None


def test_the_floor_is_what_two_draws_have_in_common():
    same = random_table(1, layers=("a", "b", "output"))
    t = J.replace(same, variants={"bootstrap=1": same, "bootstrap=2": same})
    np.testing.assert_allclose(J.floors(t, J.completeness), 1)
    np.testing.assert_allclose(J.floors(t, J.redundancy), 0, atol=1e-12)
    other = random_table(2, layers=("a", "b", "output"))
    t = J.replace(same, variants={"bootstrap=1": same, "bootstrap=2": other})
    for l, name in enumerate(("a", "b")):
        theirs = other.interactions[:, l].assign_coords(layer="output")
        pair = xr.concat([same.interactions[:, l], theirs], "layer")
        by_hand = J.redundancy(J.Table(pair, "mnist", "resnet20")).isel(layer=0)
        np.testing.assert_allclose(J.floors(t, J.redundancy).sel(layer=name), by_hand)
    assert J.floors(J.replace(t, variants={"bootstrap=1": same}), J.redundancy) is None


# ---------------------------------------------------------------- the second answer
@FEW
@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_a_difference_is_that_of_the_samples_in_common(seed, shift):
    rng = np.random.default_rng(seed)
    t = J.planted(dict(output={1: 1.}), samples=40)
    values = xr.DataArray(rng.normal(size=40), dims="sample", coords=dict(sample=np.arange(40)))
    ours = J.finding(t, values, "t", J.ABOVE)
    theirs = J.finding(t, (values - shift)[10:], "t", J.ABOVE)
    d = J.difference(ours, theirs, "untrained")
    assert d.of == 30 and d.control == "untrained"
    assert d.mean == pytest.approx(shift) and d.high - d.low < 1e-9
    back = J.difference(J.replace(ours, claimed=J.BELOW), theirs, "untrained")
    assert back.holds == (shift < 0) and d.holds == (shift > 0) or abs(shift) < 1e-12
    assert J.difference(J.replace(ours, claimed=(0, 1)), theirs, "untrained") is None


def test_independent_samples_are_compared_by_their_own_intervals():
    rng, t = np.random.default_rng(0), J.planted(dict(output={1: 1.}), samples=50)
    a, b = (xr.DataArray(rng.normal(m, 1, 400), dims="sample") for m in (1, 0))
    d = J.difference(J.finding(t, a, "t", J.ABOVE), J.finding(t, b, "t", J.ABOVE), "random")
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert [d.low, d.high] == pytest.approx([welch.low, welch.high], abs=.03)


@pytest.mark.parametrize("control, kept", [(J.permuted, True), (J.another_sample, True)])
def test_controls_keep_every_layers_strength_by_order(control, kept):
    t = random_table(3)
    def by_order(z):
        return abs(z.interactions).sum("kind").groupby("order").sum("subset").sum("sample")
    np.testing.assert_allclose(by_order(control(t)), by_order(t))
    assert not np.allclose(control(t).interactions, t.interactions)
    xr.testing.assert_equal(control(t).interactions, control(t).interactions)       # the same again


def test_another_sample_is_another_one_wherever_two_things_are_compared():
    shown = {}
    for network, layers in dict(mlp7=5, vgg11=6, resnet20=8, resnet32=6).items():
        t = J.planted({f"l{k}": {1: 1.} for k in range(layers)}, "cifar10", network, samples=30)
        t.interactions = xr.ones_like(t.interactions)*t.interactions.sample
        who = J.another_sample(t).interactions.sel(kind="and").isel(subset=1)
        for l in range(layers):
            shown[network, l] = who[:, l].values
    for (a, k), (b, l) in itertools.combinations(shown, 2):
        assert (shown[a, k] == shown[b, l]).mean() < .25, (a, k, b, l)


def test_permuted_players_are_a_renaming():
    t = J.planted(dict(a={0b0011: 2., 0b0111: 1.}, output={1: 1.}), n=4, samples=5)
    for row in J.permuted(t).interactions.sel(layer="a", kind="and").values:
        pair, triple = (int(np.flatnonzero(np.isclose(row/row.max(), z))[0]) for z in (1, .5))
        assert pair.bit_count() == 2 and triple.bit_count() == 3 and pair & triple == pair


def test_what_no_control_can_tell_is_not_compared():
    assert J.beyond([some()]) == ("not compared", {})
    mixed = [some(control="a"), some(control="a", claimed=J.BELOW)]
    assert J.beyond(mixed) == ("partly", {"a": (1, 2)})
    assert J.beyond([some(control="a", of=5, samples=5)])[0] == "not compared"     # too few samples
    mixed = [some(), some(control="a", claimed=J.BELOW)]
    assert J.verdict(mixed)[0] == "replicates"                                   # another question
    assert J.controls({}).keys() == {"random MLPs", "independent numbers"}


def test_the_floor_enters_the_second_answer_alone():
    rises = dict(a=first(one, 1), b=first(one, 3), c=one, output=one)
    t = J.planted(rises, "mnist", "resnet20")
    drawn = {f"bootstrap={k}": J.planted(rises, "mnist", "resnet20") for k in (1, 2)}
    with_floor = J.replace(t, variants=drawn)
    for key in ("C3", "C4", "C12"):
        plain, floored = (R.judge({("mnist", "resnet20"): z}, [key])[key] for z in (t, with_floor))
        assert plain.word == floored.word and "two draws" in J.beyond(floored.findings)[1]
        assert "two draws" not in J.beyond(plain.findings)[1]


def test_seeds_beside_the_interval():
    a, b = (random_table(k) for k in (1, 2))
    found = choices.seeds({("mnist", "resnet20"): J.replace(a, variants={"seed=1": b})})
    row = found.loc[("C12", "mnist/resnet20", "neighbours")]
    means = [float(R.by_distance(t).sel(distance=1).mean()) for t in (a, b)]
    assert row[["seed=0", "seed=1"]].tolist() == pytest.approx(means)
    assert row.spread == pytest.approx(np.std(means, ddof=1))


def test_the_readme_tells_the_verdicts_of_the_report(root):
    from layerwise_knowledge import judging, report
    results = report.judge(judging.load_tables("paper", .05))
    lines = re.findall(r"^- (replicates.*?|partly|does not|undecided): (.*)$",
                       (root/"README.md").read_text(), re.M)
    told = {key: verdict for verdict, keys in lines for key in re.findall(r"\bC\d+\b", keys)}
    assert told == {key: r.shown for key, r in results.items()}
