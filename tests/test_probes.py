"""Probes: the optimum against scikit-learn and its certificate, SGD on the way, the bootstrap."""
import numpy as np
import pytest
import torch
from test_scores import Early, blobs, conv, small
from torch import nn
from torch.nn import functional as F

from layerwise_knowledge.feature_store import _pooled
from layerwise_knowledge.probes import (
    Probes,
    bootstrap_probes,
    held_out,
    sgd_probes,
    train_probes,
)
from layerwise_knowledge.scores import features

TEST = blobs(seed=1)


def identity(d=6, classes=3):
    "A network whose first layer passes its input on"
    return nn.Sequential(nn.Identity(), nn.Linear(d, classes))


def objective(probe, x, y, penalty):
    "P of the chapter on probes in double precision, from a probe's weights alone"
    x, weight, bias = x.double(), probe.weight.double(), probe.bias.double()
    mean = x.mean(0)
    scale = (x - mean).square().sum(1).mean().sqrt()
    w = torch.cat([weight*scale, (bias + weight @ mean)[:, None]], 1)
    return (F.cross_entropy(x @ weight.T + bias, y) + penalty/2*w.square().sum()).item()


def sklearn_objective(x, y, penalty):
    "The same minimum by scikit-learn, which is given the bias as one more feature"
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = x.double()
    x = (x - x.mean(0)) / (x - x.mean(0)).square().sum(1).mean().sqrt()
    x = torch.cat([x, torch.ones(len(x), 1)], 1).numpy()
    fitted = linear_model.LogisticRegression(C=1/(penalty*len(x)), fit_intercept=False, tol=1e-10,
                                             max_iter=10_000).fit(x, y.numpy())
    p = fitted.predict_proba(x)[range(len(x)), y.numpy()]
    return -np.log(p).mean() + penalty/2*(fitted.coef_**2).sum()


@pytest.mark.parametrize("shift,scale", [(0, 1), (100, 1), (0, 1e-4), (-3, 1e4)])
def test_an_optimum_is_scikit_learns_within_its_certificate(shift, scale):
    x, y = blobs()
    x = x*scale + shift
    probes = train_probes(identity(), ["0"], x, y, x, y, tol=1e-5, progress=False)
    seen, penalty = ~held_out(x), probes.penalty["0"]
    ours = objective(probes["0"], x[seen], y[seen], penalty)
    best = sklearn_objective(x[seen], y[seen], penalty)
    assert -1e-5 < ours/best - 1 < 3e-5 and 0 < probes.gap["0"] <= 1e-5


def test_the_penalty_is_the_one_that_serves_what_is_held_out():
    x, y = blobs(200)
    probes = train_probes(identity(), ["0", "output"], x, y, *TEST, progress=False)
    tried = probes.history["0"]
    chosen = next(one for one in tried if one["penalty"] == probes.penalty["0"])
    assert tried.index(chosen) == len(tried) - 2 and tried[-1]["held_out"] > .999*chosen["held_out"]
    assert all(b["held_out"] < .999*a["held_out"] for a, b in zip(tried[:-1], tried[1:-1]))
    assert [one["train"] for one in tried] == sorted((one["train"] for one in tried), reverse=True)
    assert set(probes.accuracy["0"]) == {"train", "held_out", "test"}
    assert set(probes.accuracy["output"]) == {"train", "held_out", "test"}


def test_an_optimum_does_not_depend_on_order_or_company_or_memory_or_mode():
    net, (x, y) = small().train(), blobs()
    net[1].eval()
    before, state = [p.clone() for p in net.parameters()], torch.get_rng_state()
    turn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    whole = train_probes(net, ["0", "1"], x, y, *TEST, tol=1e-6, progress=False)
    others = [train_probes(net, ["0"], x[turn], y[turn], *TEST, tol=1e-6, progress=False),
              train_probes(net, ["0", "1"], x, y, *TEST, tol=1e-6, memory=0, progress=False)]
    with torch.inference_mode():
        others.append(train_probes(net, ["0"], x, y, *TEST, tol=1e-6, progress=False))
    for other in others:
        assert other.penalty["0"] == whole.penalty["0"]
        apart = (other["0"].weight - whole["0"].weight).norm()
        assert apart < 5e-3*whole["0"].weight.norm()
    assert torch.equal(others[-1]["0"].weight, whole["0"].weight)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) and q.grad is None for p, q in zip(before, net.parameters()))
    assert net.training and net[0].training and not net[1].training


def test_the_valley_is_a_matter_of_speed_alone(monkeypatch):
    from layerwise_knowledge import probes as module
    (x, y), request = blobs(), dict(tol=1e-6, progress=False)
    a = train_probes(identity(), ["0"], x, y, *TEST, **request)
    monkeypatch.setattr(module._Valley, "stretch", lambda self, w, penalty, power: w.clone())
    b = train_probes(identity(), ["0"], x, y, *TEST, **request)
    assert (a["0"].weight - b["0"].weight).norm() < 5e-3*a["0"].weight.norm()
    passes = [sum(one["passes"] for one in probes.history["0"]) for probes in (a, b)]
    assert passes[0] < passes[1]


def test_features_that_tell_nothing():
    x, y = torch.randn(600, 6, generator=torch.Generator().manual_seed(0)), torch.arange(600) % 3
    probes = train_probes(identity(), ["0"], x, y, x, y, progress=False)
    p = probes["0"](x).softmax(-1)
    assert (p - 1/3).abs().max() < .1 and probes.gap["0"] <= 1e-4


def test_classes_that_are_far_apart_are_solved_too():
    x, y = blobs()
    x = x + 100*F.one_hot(y, 6)
    probes = train_probes(identity(), ["0"], x, y, x, y, progress=False)
    assert probes.gap["0"] <= 1e-4 and probes.accuracy["0"]["train"] == 1


def test_held_out_is_a_tenth_by_content():
    x = torch.randn(500, 6)
    turn = torch.randperm(500)
    assert held_out(x).sum() == 50 and torch.equal(held_out(x[turn]), held_out(x)[turn])
    twice = torch.cat([x, x])
    assert torch.equal(held_out(twice)[:500], held_out(twice)[500:])  # no copy is on the other side


def test_pooled_probes_read_averages():
    net, x, y = conv(), torch.randn(80, 3, 8, 8), torch.arange(80) % 4
    probes = train_probes(net, ["conv"], x, y, x, y, pool=20, progress=False)
    weight = probes["conv"].weight.view(4, 5, 8, 8)
    cells = weight.unflatten(2, (2, 4)).unflatten(4, (2, 4))
    assert torch.allclose(cells, cells.mean((3, 5), keepdim=True), atol=1e-6)
    with torch.no_grad(), features(net.eval(), ["conv"]) as f:
        net(x)
    small, one = _pooled(f["conv"], 20), nn.Linear(20, 4)
    one.weight.data = weight[:, :, ::4, ::4].flatten(1)*16
    one.bias.data = probes["conv"].bias
    assert torch.allclose(one(small.flatten(1)), probes["conv"](f["conv"].flatten(1)), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_read_too(dtype):
    net, (x, y) = small().to(dtype), blobs()
    probes = train_probes(net, ["0"], x, y, *TEST, progress=False)
    assert probes["0"].weight.dtype == torch.promote_types(dtype, torch.float32)
    assert probes.accuracy["0"]["test"] > .5


# --- the bootstrap

def test_a_bootstrap_is_another_draw_and_the_same_again():
    net, (x, y) = small(), blobs()
    probes = train_probes(net, ["0", "output"], x, y, *TEST, progress=False)
    one, same, two = (bootstrap_probes(probes, k, net, x, y, *TEST, progress=False)
                      for k in (1, 1, 2))
    assert torch.equal(one["0"].weight, same["0"].weight) and one.penalty == probes.penalty
    apart = (one["0"].weight - two["0"].weight).norm() / probes["0"].weight.norm()
    assert .01 < apart < 1 and one.gap["0"] <= 1e-4 and one.settings["bootstrap"] == 1


def test_a_bootstrap_is_the_optimum_of_its_draw():
    x, y = blobs()
    probes = train_probes(identity(), ["0"], x, y, *TEST, tol=1e-5, progress=False)
    one = bootstrap_probes(probes, 1, identity(), x, y, *TEST, progress=False)
    index = torch.nonzero(~held_out(x))[:, 0]
    gen = torch.Generator().manual_seed(1)
    drawn = index[torch.randint(len(index), (len(index),), generator=gen)]
    best = sklearn_objective(x[drawn], y[drawn], probes.penalty["0"])
    assert objective(one["0"], x[drawn], y[drawn], probes.penalty["0"])/best - 1 < 3e-5


# --- SGD

def test_sgd_ends_at_logistic_regression():
    "A layer that passes its input on: the probe must find scikit-learn's optimum, of gradient zero"
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs()
    probes = sgd_probes(identity(), ["0"], x, y, *TEST, lr=.2, batch_size=600, epochs=600, tol=0,
                        progress=False)
    reference = linear_model.LogisticRegression(C=np.inf, max_iter=1000, tol=1e-10)
    reference.fit(x.numpy(), y.numpy())
    probe = probes["0"]
    ours, theirs = probe(x).softmax(-1).numpy(), reference.predict_proba(x.numpy())
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    score = reference.score(TEST[0].numpy(), TEST[1].numpy())
    assert probes.accuracy["0"]["test"] == pytest.approx(score, abs=.01)
    gradient = (probe(x).softmax(-1) - F.one_hot(y, 3)).T @ x / len(x)
    assert gradient.abs().max() < 1e-3


def test_sgd_rests_when_settled_each_on_its_own():
    net, (x, y) = small(), blobs()
    request = dict(lr=.1, epochs=300, progress=False)
    both = sgd_probes(net, ["0", "1", "output"], x, y, x, y, **request)
    assert all(10 < len(h) < 300 for h in both.history.values()) and set(both) == {"0", "1"}
    for name in ("0", "1"):
        one = sgd_probes(net, [name], x, y, x, y, **request)
        assert torch.equal(one[name].weight, both[name].weight)
        assert one.history[name] == both.history[name]
    with torch.no_grad():
        right = float((net(x).argmax(-1) == y).float().mean())
    assert both.accuracy["output"]["test"] == pytest.approx(right)


def test_sgd_is_a_function_of_the_seed():
    net, (x, y) = small(), blobs()
    a, b, c = (sgd_probes(net, ["0"], x, y, x, y, epochs=3, seed=seed, progress=False)
               for seed in (0, 0, 1))
    assert torch.equal(a["0"].weight, b["0"].weight) and a.history == b.history
    assert not torch.equal(a["0"].weight, c["0"].weight)


@pytest.mark.parametrize("memory,passes", [(2**30, 3), (0, 2 * 3 + 3)])
def test_one_forward_pass_an_epoch_feeds_all_probes(memory, passes):
    """128 training inputs in batches of 64. Kept: one pass over train in all. Not kept: one each,
    one for the accuracies. Then one over test."""
    net, (x, y) = small(), blobs(128)
    sizes = []
    net[0].register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    sgd_probes(net, ["0", "1", "0.0"], x, y, x[:64], y[:64], epochs=3, batch_size=64, memory=memory,
               progress=False)
    assert len([s for s in sizes if s == 64]) == passes


# --- files, refusals

@pytest.mark.parametrize("train", [train_probes, sgd_probes])
def test_probes_survive_the_disk(train, tmp_path):
    net, (x, y) = small(), blobs()
    probes = train(net, ["0.0", "1"], x, y, x, y, progress=False)
    probes.save(tmp_path / "probes.safetensors")
    loaded = Probes.load(tmp_path / "probes.safetensors")
    told = ("accuracy", "gap", "penalty", "history", "settings")
    assert str(loaded) == str(probes)
    assert all(getattr(loaded, k) == getattr(probes, k) for k in told)
    assert all(torch.equal(loaded[name].weight, probes[name].weight) for name in probes)
    assert [f.name for f in tmp_path.iterdir()] == ["probes.safetensors"]
    whole = (tmp_path / "probes.safetensors").read_bytes()
    for damaged in (whole[:-10], whole[:50], b"", b"not a probe"):
        (tmp_path / "bad").write_bytes(damaged)
        with pytest.raises(ValueError, match="bad is damaged.*delete it and make it anew"):
            Probes.load(tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        Probes.load(tmp_path / "nowhere")


def test_probe_refusals():
    net, (x, y) = small(), blobs()
    def refused(words, model=net, layer="0", x=x, y=y, train=train_probes, **more):
        with pytest.raises(ValueError, match=words):
            train(model, [layer], x, y, x, y, progress=False, **more)
    refused("no layer 'x'", layer="x")
    refused("label 3 is out of range", y=y + 1)
    refused("600 inputs but 5 labels", y=y[:5])
    refused("diverged.*smaller learning rate than 1e", train=sgd_probes, lr=1e20, epochs=2)
    refused("'unused' was never reached", conv(), "unused", torch.randn(4, 3, 8, 8), y[:4])
    x, y = torch.cat([torch.rand(2000, 6) + 1, .1*torch.rand(400, 6)]), torch.arange(2400) % 3
    for train in (train_probes, sgd_probes):
        refused("layer 'second' was never reached", Early(), "second", x, y, train)
    sgd = sgd_probes(net, ["0"], *TEST, *TEST, epochs=1, progress=False)
    with pytest.raises(ValueError, match="needs probes of train_probes"):
        bootstrap_probes(sgd, 1, net, *TEST, *TEST)
    with pytest.raises(ValueError, match="seed must be at least 1"):
        bootstrap_probes(sgd, 0, net, *TEST, *TEST)


class Stopped(Exception):
    "Someone pressed a key"


def test_a_stopped_run_goes_on_with_the_next_layer(tmp_path, monkeypatch):
    from layerwise_knowledge import probes as module
    data, model = (*blobs(), *TEST), small()
    whole = train_probes(model, ["0", "1", "output"], *data, progress=False)
    path, solved = module._path, []
    def stops(reading, tol):
        if solved:
            raise Stopped
        solved.append(reading.name)
        return path(reading, tol)
    monkeypatch.setattr(module, "_path", stops)
    with pytest.raises(Stopped):
        train_probes(model, ["0", "1", "output"], *data, cache=tmp_path, progress=False)
    assert [p.stem for p in tmp_path.glob("*.safetensors")] == solved == ["0"]
    monkeypatch.setattr(module, "_path", lambda *a: solved.append(a[0].name) or path(*a))
    again = train_probes(model, ["0", "1", "output"], *data, cache=tmp_path, progress=False)
    assert solved == ["0", "1"]                                       # not "0" once more
    for layer in whole:
        assert torch.equal(whole[layer].weight, again[layer].weight)
        assert torch.equal(whole[layer].bias, again[layer].bias)
    for told in ("accuracy", "gap", "penalty", "history"):
        assert getattr(whole, told) == getattr(again, told)


def test_kept_layers_of_something_else_are_refused(tmp_path):
    (x, y), net = blobs(), identity()
    train_probes(net, ["0"], x, y, *TEST, cache=tmp_path, progress=False)
    for other in (dict(x=x + 1), dict(y=y.flip(0)), dict(tol=1e-3)):
        given = dict(x=x, y=y, tol=1e-4) | other
        with pytest.raises(ValueError, match="was made from another (data|settings)"):
            train_probes(net, ["0"], given["x"], given["y"], *TEST, given["tol"],
                         cache=tmp_path, progress=False)
