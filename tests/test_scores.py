"""Scores: log-odds against probabilities, hooks against a manual forward, tables against loops."""
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layerwise_knowledge.models import create
from layerwise_knowledge.players import FeaturePlayers, PatchPlayers, masked
from layerwise_knowledge.probes import train_probes
from layerwise_knowledge.scores import features, log_odds, score_table


def small(seed=0, d=6, classes=3):
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Linear(d, 8), nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, classes))


class Conv(nn.Module):
    "Convolutions, batch norm, dropout, a residual sum, an in-place ReLU that is used twice"
    def __init__(self):
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.norm, self.relu, self.last = nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.ReLU()
        self.drop, self.pool, self.head = nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Linear(5, 4)
        self.unused = nn.Linear(1, 1)
    def forward(self, x):
        f = self.relu(self.norm(self.conv(x)))
        f -= self.relu(self.side(x))
        return self.head(self.drop(self.pool(self.last(f)).flatten(1)))


def conv(seed=0):
    torch.manual_seed(seed)
    net = Conv()
    for _ in range(3):
        net(torch.randn(16, 3, 8, 8))                               # move the running statistics
    return net


def blobs(n=600, d=6, classes=3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, d, generator=gen) + 1.2 * F.one_hot(y, d).float()
    return x, y                                                      # overlapping: a minimum exists


def random_probes(model, layers, x, classes, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad(), features(model.eval(), layers) as f:
        model(x)
    widths = {name: f[name].flatten(1).shape[1] for name in layers if name != "output"}
    return {name: nn.Linear(width, classes) for name, width in widths.items()}


# --- log-odds

@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(.1, 8))
@settings(max_examples=50, deadline=None)
def test_log_odds_against_probabilities(classes, seed, scale):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(5, 4, classes)) * scale, rng.integers(classes, size=(5, 4))
    z = z.clip(z.max(-1, keepdims=True) - 30, None) if scale > 3 else z
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p_y = np.take_along_axis(p, y[..., None], -1)[..., 0]
    rest = np.where(np.arange(classes) == y[..., None], 0, p).sum(-1)
    np.testing.assert_allclose(log_odds(z, y), np.log(p_y / rest), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_odds(torch.tensor(z), torch.tensor(y)).numpy(), log_odds(z, y))


@pytest.mark.parametrize("dtype,top", [
    (torch.float32, 1e4), (torch.float32, 1e30), (torch.float64, 1e300), (torch.float16, 6e4),
    (torch.bfloat16, 1e30)])
def test_log_odds_where_probabilities_saturate(dtype, top):
    z = torch.tensor([top, 0, -top], dtype=dtype)
    assert log_odds(z, 0) == float(z[0]) and log_odds(z, 1) == -float(z[0])
    assert log_odds(z, 2).isfinite() and log_odds(z, 2) == 2 * float(z[2])


def test_log_odds_is_antisymmetric_for_two_classes_and_differentiable():
    z = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(log_odds(z, 0), -log_odds(z, 1))
    assert torch.autograd.gradcheck(lambda z: log_odds(z, torch.arange(9) % 2), z)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_whole_number(dtype):
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 2, 1, 1, 0])
    assert torch.equal(log_odds(z, y.to(dtype)), log_odds(z, y))
    net, (x, y) = small(), blobs(60)
    few = dict(progress=False)
    a, b = (train_probes(net, ["0"], x, labels, x, labels, **few) for labels in (y, y.to(dtype)))
    assert torch.equal(a["0"].weight, b["0"].weight) and a.accuracy == b.accuracy
    v, same = (score_table(net, x[:2], labels[:2], FeaturePlayers(range(6)), ["0"], a, x.mean(0),
                           progress=False) for labels in (y, y.to(dtype)))
    assert v.identical(same)


def test_arrays_are_as_good_as_tensors():
    net, (x, y) = small(), blobs(60)
    few = dict(progress=False)
    a = train_probes(net, ["0"], x, y, x, y, **few)
    b = train_probes(net, ["0"], x.numpy(), y.numpy(), xr.DataArray(x.numpy()), list(y), **few)
    assert torch.equal(a["0"].weight, b["0"].weight)
    game = FeaturePlayers(range(6))
    v = score_table(net, x[:2], y[:2], game, ["0", "output"], a, x.mean(0), progress=False)
    for kind in (torch.Tensor.numpy, lambda t: xr.DataArray(t.numpy()), torch.Tensor.tolist):
        same = score_table(net, kind(x[:2]), kind(y[:2]), game, ["0", "output"], a,
                           kind(x.mean(0)), progress=False)
        assert v.identical(same)
    z = torch.randn(4, 3)
    labelled = log_odds(xr.DataArray(z.numpy()), xr.DataArray([0, 1, 2, 0]))
    np.testing.assert_array_equal(labelled, log_odds(z, [0, 1, 2, 0]))


@pytest.mark.parametrize("z,y,words", [
    (torch.zeros(2, 3), [0, 3], "label 3 is out of range: 3 classes are numbered 0 to 2"),
    (torch.zeros(2, 3), [-1, 0], "label -1 is out of range"),
    (torch.zeros(2, 1), [0, 0], "at least two classes"),
    (torch.tensor(1.), 0, "at least two classes"), (torch.zeros(2, 3), [0., 1.], "whole numbers"),
    (torch.tensor([[torch.nan, 0.]]), 0, "NaN or infinity"),
    (torch.tensor([[torch.inf, 0.]]), 0, "NaN or infinity")])
def test_log_odds_refusals(z, y, words):
    with pytest.raises(ValueError, match=words):
        log_odds(z, torch.tensor(y))


# --- features

def test_features_are_those_of_a_manual_forward():
    net, x = conv().eval(), torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        first = net.norm(net.conv(x))
        total = first.relu() - net.side(x).relu()
        pooled = net.pool(total.relu())
        with features(net, ["conv", "norm", "last", "pool", "output"]) as f:
            net(x)
        assert torch.equal(f["norm"], first)                   # although relu overwrote it in place
        assert torch.equal(f["conv"], net.conv(x))
        assert torch.equal(f["last"], total.relu()) and torch.equal(f["pool"], pooled)
        assert torch.equal(f["output"], net.head(pooled.flatten(1)))


def test_hooks_go_away_and_nest():
    net, x = small(), torch.randn(2, 6)
    with features(net, ["0"]) as outer, features(net, ["0", "1.0"]) as inner:
        net(x)
    assert torch.equal(outer["0"], inner["0"]) and len(net[0]._forward_hooks) == 0
    net(torch.randn(3, 6))
    assert len(outer["0"]) == 2                                 # nothing is heard after the context
    with pytest.raises(ZeroDivisionError):
        with features(net, ["0"]):
            1 / 0
    assert len(net[0]._forward_hooks) == 0


def test_tuple_outputs_give_their_first_tensor():
    net = nn.Sequential(nn.LSTM(4, 5, batch_first=True))
    with features(net, ["0"]) as f:
        out = net(torch.randn(2, 3, 4))
    assert torch.equal(f["0"], out[0])


class Early(nn.Module):
    "Small inputs leave after the first layer"
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        f = self.first(x)
        return self.head(self.second(f) if x.abs().max() > .5 else f)


def test_a_layer_that_is_not_reached_has_no_features():
    net = Early()
    with torch.no_grad(), features(net, ["first", "second"]) as f:
        net(torch.ones(2, 6))
        assert set(f) == {"first", "second"}
        net(torch.zeros(2, 6))
        assert set(f) == {"first"}
    request = dict(x=torch.ones(1, 6), y=torch.tensor([0]), players=FeaturePlayers(range(6)),
                   layers=["second", "output"], probes={"second": nn.Linear(8, 3)})
    with pytest.raises(ValueError, match="layer 'second' was never reached"):
        score_table(net, baseline=torch.zeros(6), batch_size=1, progress=False, **request)


def test_a_layer_that_is_called_twice_is_refused():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 3), relu)
    words = "layer '1' is called twice"
    with pytest.raises(ValueError, match=words), features(net, ["1"]):
        net(torch.zeros(2, 6))
    x, y = blobs(12)
    with pytest.raises(ValueError, match=words):
        train_probes(net, ["1"], x, y, x, y, progress=False)
    with features(net, ["0", "2", "output"]) as f:
        net(x)
    assert torch.equal(f["output"], f["2"].relu())                # the layers around it can be read


@pytest.mark.parametrize("layers,words", [
    (["0", "nine"], "the model has no layer 'nine'; it has 0, 0.0, 0.1, 1, 1.0, 1.1, 2, output"),
    ("0", r"write \['0'\]"), (["1", "1"], "listed twice"), ([], "no layers were given")])
def test_features_refusals(layers, words):
    with pytest.raises(ValueError, match=words):
        with features(small(), layers):
            pass


# --- score tables

def scored(model=None, n=4, **change):
    "A small request, and the parts it was made of"
    model = model or conv()
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 3, 8, 8, generator=gen), torch.tensor([0, 3, 1])
    b = torch.randn(3, 8, 8, generator=gen)
    cells = [(r, c) for r in range(2) for c in range(2)][:n]
    players = [PatchPlayers(cells, (3, 8, 8), 4 - i) for i in range(3)]
    layers = ["conv", "norm", "last", "pool", "output"]
    request = dict(model=model, x=x, y=y, players=players, layers=layers,
                   probes=random_probes(model, layers, x, 4), baseline=b, batch_size=5,
                   progress=False)
    return request | change


def test_table_against_a_loop_over_everything():
    request = scored()
    model, x, y, b = (request[k] for k in ("model", "x", "y", "baseline"))
    v = score_table(**request)
    assert v.dims == ("sample", "layer", "subset") and v.name == "v" and v.dtype == np.float32
    assert list(v.layer.values) == request["layers"] and v.attrs["n_players"] == 4
    assert list(v.subset) == list(range(16)) and list(v.order[:8]) == [0, 1, 1, 2, 1, 2, 2, 3]
    model.eval()
    with torch.no_grad():
        for i in range(3):
            for T in range(16):
                x_T = masked(x[i], b, request["players"][i].owner, [T])
                norm = model.norm(model.conv(x_T))
                total = norm.relu() - model.side(x_T).relu()
                pooled = model.pool(total.relu())
                f = dict(conv=model.conv(x_T), norm=norm, last=total.relu(), pool=pooled)
                z = {name: request["probes"][name](f[name].flatten(1)) for name in f}
                z["output"] = model.head(pooled.flatten(1))
                for name, logits in z.items():
                    p = logits.double().softmax(-1)[0, y[i]]
                    expected = pytest.approx(float((p / (1 - p)).log()), abs=1e-4)
                    assert v.sel(sample=i, layer=name, subset=T).item() == expected


@given(st.permutations(range(4)))
@settings(max_examples=4, deadline=None)
def test_permuted_players_permute_the_bits(perm):
    request = scored()
    v = score_table(**request)
    players = [PatchPlayers([p.patches[k] for k in perm], (3, 8, 8), p.patch)
               for p in request["players"]]
    moved = [sum((T >> p & 1) << new for new, p in enumerate(perm)) for T in range(16)]
    again = score_table(**request | dict(players=players))
    np.testing.assert_allclose(again.values[..., moved], v.values, atol=1e-5)


def test_dummy_player_changes_nothing():
    request = scored(n=3)
    x, b = request["x"].clone(), request["baseline"]
    for i, p in enumerate(request["players"]):
        x[i][p.owner == 1] = b[p.owner == 1]          # player 1 looks like its baseline
    v = score_table(**request | dict(x=x)).values
    without = [T for T in range(8) if not T & 2]
    np.testing.assert_allclose(v[..., without], v[..., [T | 2 for T in without]], atol=1e-5)


def test_second_run_is_identical_and_batches_hardly_matter():
    request = scored()
    v = score_table(**request)
    assert v.identical(score_table(**request))
    at_once = score_table(**request | dict(batch_size=1024))
    np.testing.assert_allclose(at_once.values, v.values, atol=1e-5)
    second = dict(x=request["x"][1:2], y=request["y"][1:2], players=request["players"][1])
    one = score_table(**request | second, sample=[1])
    assert one.identical(v[1:2])                                               # alone or in company


def test_every_masked_input_is_seen_once():
    request, seen = scored(), []
    def note(module, inputs, output): seen.append(len(inputs[0]))
    handle = request["model"].conv.register_forward_hook(note)
    score_table(**request)
    handle.remove()
    assert seen == [1] + 3 * [5, 5, 5, 1, 1, 1]          # a first look, 16 subsets, both ends alone


def test_modes_and_hooks_are_restored_even_after_a_failure():
    request = scored()
    model = request["model"].train()
    model.norm.eval()
    score_table(**request)
    with pytest.raises(ValueError, match="NaN"):
        score_table(**request | dict(x=request["x"] * torch.nan))
    assert model.training and model.drop.training and not model.norm.training
    assert not any(m._forward_hooks for m in model.modules())


def test_table_survives_netcdf_with_its_labels(tmp_path):
    pytest.importorskip("h5netcdf")
    v = score_table(**scored(sample=[7, 11, 13]))
    v.to_netcdf(tmp_path / "v.nc", engine="h5netcdf")
    again = xr.load_dataarray(tmp_path / "v.nc", engine="h5netcdf")
    assert again.equals(v) and list(v.sample) == [7, 11, 13]


def test_probe_accuracies_travel_with_the_table():
    net, (x, y) = small(), blobs()
    probes = train_probes(net, ["0", "output"], x, y, x, y, progress=False)
    v = score_table(net, x[:2], y[:2], FeaturePlayers(range(6)), ["0", "output"], probes, x.mean(0),
                    progress=False)
    assert list(v.accuracy) == [probes.accuracy["0"]["test"], probes.accuracy["output"]["test"]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    request = scored()
    v = score_table(**request)
    single = torch.promote_types(dtype, torch.float32)
    probes = {k: p.to(single) for k, p in request["probes"].items()}
    other = score_table(**request | dict(model=request["model"].to(dtype), probes=probes))
    assert other.dtype == np.float32
    np.testing.assert_allclose(other.values, v.values, atol=1e-4 if dtype == torch.float64 else .3)


class Dice(nn.Module):
    "Dropout that nobody can switch off"
    def forward(self, f): return F.dropout(f, .5)


class Other(nn.Module):
    "Looks at the other inputs without being a BatchNorm"
    def forward(self, f): return f - f.mean(0)


def crowd(part, d=6):
    "A network with a part that is no function of one input"
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 8), part, nn.Linear(8, 3))


OWN = dict(track_running_stats=False)
ACCUSED = [
    (crowd(Dice()), {}, "sample 0: the network or a probe draws random numbers"),
    (crowd(Other()), {}, "sample 0: .* looks at the other inputs of the batch, so"),
    (crowd(nn.BatchNorm1d(8, **OWN)), {},
     r"one input cannot run alone: .* \('1': BatchNorm without"),
    (nn.Sequential(nn.Unflatten(1, (1, 6)), nn.BatchNorm1d(1, **OWN), nn.Flatten(),
                   nn.Linear(6, 3)), {},
     r"sample 0: .* looks at the other inputs of the batch \('1': BatchNorm without running"),
    (small(), {"0": nn.Sequential(nn.Linear(8, 3), Dice())}, "sample 0: .* draws random numbers"),
    (small(), {"0": nn.Sequential(nn.BatchNorm1d(8, **OWN), nn.Linear(8, 3))},
     r"one input cannot run alone: .* \('0': BatchNorm without"),
]


@pytest.mark.parametrize("k", range(len(ACCUSED)))
def test_a_network_is_a_function_of_one_input(k):
    model, probes, words = ACCUSED[k]
    x, y = blobs(8)
    layers = [*probes, "output"]
    with pytest.raises(ValueError, match=words) as e:
        score_table(model, x[:2], y[:2], FeaturePlayers(range(6)), layers, probes, x.mean(0),
                    progress=False)
    assert "\n" not in str(e.value)
    if not probes:
        with pytest.raises(ValueError, match="random|other inputs"):
            train_probes(model, ["0", "2"], x, y, x, y, progress=False)


def test_probes_score_in_evaluation_mode_and_come_back_as_they_were():
    model, (x, y) = small(), blobs(8)
    drop = nn.Sequential(nn.Dropout(.9), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    request = (model, x[:2], y[:2], FeaturePlayers(range(6)), ["0"], {"0": drop}, x.mean(0))
    v = score_table(*request, progress=False)
    assert drop.training and drop[0].training and not drop[1].num_batches_tracked
    assert v.identical(score_table(*request[:5], {"0": drop.eval()}, x.mean(0), progress=False))


@pytest.mark.parametrize("name", ["mlp7", "resnet20"])
def test_batches_of_128_and_of_1_are_one_network_in_any_memory_format(name):
    net = create(name, (3, 16, 16), 10).to(memory_format=torch.channels_last).eval()
    with torch.no_grad():
        [p.mul_(2) for n, p in net.named_parameters() if "weight" in n and p.ndim == 2]
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    game = PatchPlayers([(r, c) for r in range(2) for c in range(4)], (3, 16, 16), 4)
    v = score_table(net, x.to(memory_format=torch.channels_last), [3], game, ["output"],
                    baseline=x[0].flip(-1), progress=False)
    assert v.shape == (1, 1, 256) and np.isfinite(v).all()


def test_layers_of_half_precision_score_in_single():
    net = small().bfloat16()
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    v = score_table(net, x, [1], FeaturePlayers(range(6)), ["output"], baseline=0 * x[0],
                    progress=False)
    with torch.no_grad():
        z = net(masked(x[0].bfloat16(), 0 * x[0], torch.arange(6), range(64)))
    np.testing.assert_array_equal(v[0, 0], log_odds(z.float(), 1))


TABLE_REFUSALS = [
    (dict(layers=["conv9"]), "the model has no layer 'conv9'; it has conv, side"),
    (dict(layers="conv"), r"write \['conv'\]"),
    (dict(probes=None), "no probe for conv, norm, last, pool"),
    (dict(baseline=None), "baseline=mean_baseline"),
    (dict(baseline=torch.zeros(8, 8)),
     r"baseline has shape \(8, 8\), one input has \(3, 8, 8\)"),
    (dict(y=torch.tensor([0, 1])), "3 inputs but 2 labels"),
    (dict(y=torch.tensor([0, 1, 4])), "label 4 is out of range: 4 classes"),
    (dict(y=torch.tensor([0., 1., 2.])), "whole numbers"),
    (dict(players=[PatchPlayers([(0, 0)], (3, 8, 8), 2)]), "3 inputs but 1 players"),
    (dict(players=[PatchPlayers([(0, 0), (1, 1)][:k], (3, 8, 8), 2) for k in (1, 2, 1)]),
     r"the same number of players, got \[1, 2\]"),
    (dict(players=PatchPlayers([(0, 0)], (1, 9, 9), 2)),
     r"players were made for inputs of shape \(1, 9, 9\)"),
    (dict(players=FeaturePlayers(range(25))),
     "25 players have 33,554,432 subsets: 15 score tables would take 1.9 GiB"),
    (dict(sample=["a", "b"]), "3 inputs but 2 sample names"),
    (dict(x=torch.zeros(0, 3, 8, 8), y=torch.zeros(0, dtype=int), players=[]), "at least one"),
    (dict(baseline=torch.full((3, 8, 8), torch.nan)), "the baseline holds NaN"),
    (dict(x=torch.zeros(3, 3, 8, 8, dtype=torch.uint8)),
     "cannot run one input of shape .3, 8, 8. and torch.uint8"),
    (dict(probes={name: nn.LazyLinear(3) for name in ("conv", "norm", "last", "pool")}),
     "both must know the same classes"),
    (dict(layers=["unused", "output"], probes={"unused": nn.Linear(1, 4)}),
     "'unused' was never reached"),
    (dict(layers=["pool"], probes={"pool": nn.Linear(7, 4)}),
     "gave other features than its probe"),
    (dict(batch_size=0), "batch_size must be at least 1"),
]


@pytest.mark.parametrize("k", range(len(TABLE_REFUSALS)))
def test_table_refusals(k):
    change, words = TABLE_REFUSALS[k]
    with pytest.raises(ValueError, match=words) as e:
        score_table(**scored() | change)
    assert "\n" not in str(e.value)


def test_model_that_returns_no_logits():
    with pytest.raises(ValueError, match=r"must return logits \(batch, classes\)"):
        score_table(nn.Sequential(nn.Linear(6, 1)), torch.zeros(1, 6), torch.tensor([0]),
                    FeaturePlayers(range(6)), ["output"], baseline=torch.zeros(6), progress=False)


def test_torchvision_network():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net, layers = models.resnet18(num_classes=10), ["layer1.0.bn2", "layer1.0", "avgpool", "output"]
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    probes = train_probes(net, layers, x, y, x, y, progress=False)
    players = PatchPlayers([(1, 1), (2, 2), (3, 3)], (3, 32, 32), 8)
    v = score_table(net, x[:1], y[:1], players, layers, probes, x.mean(0), progress=False)
    assert v.shape == (1, 4, 8) and np.isfinite(v).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_table():
    request = scored()
    v = score_table(**request)
    request["model"].cuda()
    request["probes"] = {k: p.cuda() for k, p in request["probes"].items()}
    np.testing.assert_allclose(score_table(**request).values, v.values, atol=2e-2)
    net, (x, y) = small().cuda(), blobs()
    assert train_probes(net, ["0"], x, y, x, y, progress=False)["0"].weight.is_cuda
