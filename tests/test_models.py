"""Networks, their named layers, training that resumes to the same bits, weights in files."""
import json

import pytest
import torch
from torch import nn

from layerwise_knowledge import models as M
from layerwise_knowledge import training
from layerwise_knowledge.datasets import Dataset
from layerwise_knowledge.files import load_story

count = lambda model: sum(p.numel() for p in model.parameters())


def toy(n=60, shape=(1, 8, 8), seed=0):
    "Images of two classes that differ in brightness"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=g)
    x = torch.rand(n, *shape, generator=g)*.6 + .4*y.view(-1, *[1]*len(shape))
    return x, y

def dataset(shape, classes=10):
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(20, dtype=torch.int64)
    columns = None if len(shape) == 3 else [("a", [0])]
    return Dataset("toy", x, y, x, y, tuple(map(str, range(classes))), "a test", "", columns)


# ---- architecture --------------------------------------------------------------------------------

def test_parameter_counts():
    """ResNets as in He et al., table 6 (0.27 M, 0.46 M); exact numbers without a bias before batch
    norm, option A"""
    conv = lambda k, widths: sum(9*a*b + 2*b for a, b in widths)
    for k, published, net in [(3, .27, M.resnet20), (5, .46, M.resnet32)]:
        widths = [(3, 16)] + [(16, 16)]*2*k
        for a, b in ((16, 32), (32, 64)):
            widths += [(a, b)] + [(b, b)]*(2*k - 1)
        assert count(net(3, 10)) == conv(k, widths) + 64*10 + 10
        assert round(count(net(3, 10))/1e6, 2) == published
    assert count(M.mlp7(784, 10)) == 784*1024 + 1024 + 6*(1024*1024 + 1024) + 1024*10 + 10

def layer_shapes(name, size):
    "The shape of every named layer's output but the last, for images of that size"
    if name == "mlp7":
        return {f"linear{i}": (1024,) for i in range(1, 8)}
    if name == "vgg11":                                                     # images padded to 32
        stages = dict(conv1_1=(64, 32), conv2_1=(128, 16), conv3_1=(256, 8), conv3_2=(256, 8),
                      conv4_1=(512, 4), conv4_2=(512, 4), conv5_1=(512, 2), conv5_2=(512, 2))
        return {n: (c, s, s) for n, (c, s) in stages.items()} | dict(fc1=(512,), fc2=(512,))
    k = {"resnet20": 3, "resnet32": 5}[name]
    blocks = {f"block{i + 1}": (16 << i//k, size >> i//k, size >> i//k) for i in range(3*k)}
    return {"stem": (16, size, size)} | blocks | {"avgpool": (64,)}

@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", M.NETWORKS)
def test_shapes_of_every_named_layer(name, shape):
    model, x = M.build(name, dataset(shape)), torch.rand(2, *shape)
    found = {}
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: found.__setitem__(n, o))
             for n, m in model.named_children()]
    out = model(x)
    for h in hooks:
        h.remove()
    wanted = layer_shapes(name, shape[-1])
    for layer, s in wanted.items():
        f = found[layer]
        assert f.shape[1:] == s, layer
        assert (f >= 0).all(), f"{layer} is not taken after its ReLU"
        assert (f == 0).any() or layer == "avgpool", f"{layer} is not taken after its ReLU"
    assert torch.equal(found["output"], out) and out.shape == (2, 10)
    assert set(M.PROBED[name]) <= wanted.keys() | {"output"} and M.SECTION33[name] in wanted
    assert M.PROBED[name][-1] == "output"

def test_features_are_the_networks_own():
    "From any named layer on, the rest of the network gives the same output"
    model, x = M.build("resnet20", dataset((3, 32, 32))), torch.rand(2, 3, 32, 32)
    names = [n for n, _ in model.named_children()]
    for n in ("block3", "avgpool"):
        at = names.index(n) + 1
        torch.testing.assert_close(model[at:](model[:at](x)), model(x))

def test_option_a_has_no_parameters():
    block = M.Block(16, 32, 2)
    assert all(n.startswith("convs") for n, _ in block.named_parameters())
    x = torch.rand(2, 16, 8, 8)
    s = block.shortcut(x)
    assert torch.equal(s[:, 8:24], x[:, :, ::2, ::2]) and not s[:, :8].any() and not s[:, 24:].any()
    assert torch.equal(M.Block(16, 16).shortcut(x), x)

def test_resnet_block_against_its_formula():
    block, x = M.Block(4, 8, 2).eval(), torch.rand(3, 4, 6, 6)
    c1, b1, _, c2, b2 = block.convs
    with torch.no_grad():
        for b in (b1, b2):
            b.running_mean.uniform_(-1, 1)
            b.running_var.uniform_(.5, 2)
        def norm(z, b):
            mean, var = (t.view(1, -1, 1, 1) for t in (b.running_mean, b.running_var))
            return (z - mean)/(var + b.eps).sqrt()
        z = norm(torch.conv2d(x, c1.weight, stride=2, padding=1), b1).relu()
        z = norm(torch.conv2d(z, c2.weight, padding=1), b2)
        z[:, 2:6] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), z.relu())

def test_vgg11_against_torchvision():
    "The convolutions of torchvision's vgg11_bn: same shapes; with its weights the same features"
    torchvision = pytest.importorskip("torchvision")
    theirs, ours = torchvision.models.vgg11_bn().eval(), M.vgg11(3, 10).eval()
    convs = lambda m: [c for c in m.modules() if isinstance(c, nn.Conv2d)]
    norms = lambda m: [c for c in m.modules() if isinstance(c, nn.BatchNorm2d)]
    assert [c.weight.shape for c in convs(theirs)] == [c.weight.shape for c in convs(ours)]
    with torch.no_grad():
        for a, b in zip(convs(ours), convs(theirs)):
            a.weight.copy_(b.weight)
            b.bias.zero_()
        for a, b in zip(norms(ours), norms(theirs)):
            b.running_mean.uniform_(-.1, .1)
            b.weight.uniform_(.5, 1.5)
            a.load_state_dict(b.state_dict())
    x = torch.rand(2, 3, 32, 32)
    names = [n for n, _ in ours.named_children()]
    torch.testing.assert_close(ours[:names.index("flatten")](x), theirs.features(x))

def test_vgg11_pads_a_digit_with_its_own_background():
    model, x = M.vgg11(1, 10, 28, mean=.13, std=.31).eval(), torch.rand(2, 1, 28, 28)
    bare = M.vgg11(1, 10, 32, mean=.13, std=.31).eval()
    bare.load_state_dict(model.state_dict())
    assert torch.equal(model(x), bare(nn.functional.pad(x, (2, 2, 2, 2))))

def test_tables_take_mlp7_and_nothing_else():
    d = dataset((14,), classes=2)
    assert M.build("mlp7", d)(d.x_test).shape == (20, 2)
    with pytest.raises(ValueError, match="for tables there is mlp7"):
        M.build("resnet20", d)
    assert M.PROBED["mlp7-table"] == tuple(f"linear{i}" for i in range(3, 8)) + ("output",)

def test_wrong_names_list_the_valid_ones():
    with pytest.raises(ValueError, match="mlp7, vgg11, resnet20, resnet32"):
        M.build("resnet18", dataset((3, 32, 32)))

def test_normalisation_is_inside_and_saved():
    d = dataset((3, 8, 8))
    model = M.build("mlp7", d)
    z = model.normalise(d.x_train)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert {"normalise.mean", "normalise.std"} <= model.state_dict().keys()

def test_initial_weights_come_from_the_seed_and_leave_the_callers_numbers_alone():
    d = dataset((1, 28, 28))
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    a = M.build("resnet20", d, seed=1)
    assert torch.equal(torch.rand(1), before)
    b, c = M.build("resnet20", d, seed=1), M.build("resnet20", d, seed=2)
    assert torch.equal(a.output.weight, b.output.weight)
    assert not torch.equal(a.output.weight, c.output.weight)


# ---- training ------------------------------------------------------------------------------------

def small(dropout=0., seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout),
                         nn.Flatten(), nn.Linear(144, 2))

def same(a, b):
    states = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in states)

settings = dict(epochs=4, lr=.05, batch_size=16, augment="crop+flip", progress=False)

def test_it_learns():
    x, y = toy(200)
    history = M.train(model := small(), x, y, test=toy(100, seed=1), **settings)
    assert M.accuracy(model, *toy(100, seed=1)) == history[-1]["test"] >= .9
    assert [h["epoch"] for h in history] == [1, 2, 3, 4] and not model.training
    json.dumps(history, allow_nan=False)

def test_same_seed_same_bits_other_seed_other_bits():
    x, y = toy()
    runs = [small(.5) for _ in range(3)]
    for m, seed in zip(runs, (0, 0, 1)):
        torch.manual_seed(seed + torch.randint(9, ()).item())
        M.train(m, x, y, seed=seed, **settings)
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])

@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(monkeypatch, tmp_path, after):
    x, y = toy()
    whole, path = small(.5), tmp_path/"run.pt"
    history = M.train(whole, x, y, **settings)
    class Killed(BaseException):
        pass
    save = training._save_checkpoint
    def kill(path, **state):
        save(path, **state)
        if len(state["history"]) == after:
            raise Killed
    monkeypatch.setattr(training, "_save_checkpoint", kill)
    with pytest.raises(Killed):
        M.train(small(.5), x, y, checkpoint=path, **settings)
    monkeypatch.undo()
    model = small(.5, seed=9)                                       # other initial weights
    resumed = M.train(model, x, y, checkpoint=path, **settings)
    assert same(whole, model)
    assert [(h["loss"], h["train"]) for h in history] == [(h["loss"], h["train"]) for h in resumed]
    model = small(.5, seed=8)
    again = M.train(model, x, y, checkpoint=path, **settings)       # finished: nothing left to do
    assert same(whole, model) and again == resumed

def test_killed_in_the_middle_of_a_write(monkeypatch, tmp_path):
    x, y = toy()
    M.train(small(), x, y, checkpoint=tmp_path/"run.pt", **settings)
    good = (tmp_path/"run.pt").read_bytes()
    def half(path, body):
        with open(path, "wb") as f:
            f.write(body[:100])
        raise KeyboardInterrupt
    monkeypatch.setattr("pathlib.Path.write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        training._save_checkpoint(tmp_path/"run.pt", history=[])
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    assert (tmp_path/"run.pt").read_bytes() == good

def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    x, y = toy()
    M.train(small(), x, y, checkpoint=tmp_path/"run.pt", **settings)
    with pytest.raises(ValueError, match="lr was 0.05, is 0.1"):
        M.train(small(), x, y, checkpoint=tmp_path/"run.pt", **(settings | dict(lr=.1)))
    with pytest.raises(ValueError, match="data was"):
        M.train(small(), x + .01, y, checkpoint=tmp_path/"run.pt", **settings)
    x[-1, -1, -1, -1] += 1                                                # one pixel of one sample
    with pytest.raises(ValueError, match="data was"):
        M.train(small(), x, y, checkpoint=tmp_path/"run.pt", **settings)

def test_a_damaged_checkpoint_is_named(tmp_path):
    x, y = toy()
    (tmp_path/"run.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match="run.pt has no seal.*delete it"):
        M.train(small(), x, y, checkpoint=tmp_path/"run.pt", **settings)
    training._save_checkpoint(tmp_path/"run.pt", model=small().state_dict())
    with pytest.raises(ValueError, match="run.pt lacks the recipe of its run.*delete it"):
        M.train(small(), x, y, checkpoint=tmp_path/"run.pt", **settings)

@pytest.mark.parametrize("y, message", [
    (torch.tensor([0, 2]*30), "from 0 to 2"),
    (torch.tensor([0, -1]*30), "from -1 to 0"),
    (torch.zeros(3).long(), "3 labels"),
])
def test_labels_out_of_range(y, message):
    with pytest.raises(ValueError, match=message):
        M.train(small(), toy()[0], y, **settings)

def test_a_run_that_blows_up_says_so():
    x, y = toy()
    with pytest.raises(FloatingPointError, match="smaller lr"):
        M.train(small(), x, y, **(settings | dict(lr=1e6)))

@pytest.mark.parametrize("wrong, words", [
    (dict(epochs=0), "epochs must be .* from 1 on, got 0"),
    (dict(batch_size=0), "batch_size must be"),
    (dict(lr=0), "lr must be a positive"),
    (dict(lr=float("nan")), "lr must be a positive"),
])
def test_a_recipe_of_nothing_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        M.train(small(), *toy(), **(settings | wrong))

@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8])
def test_labels_of_other_whole_numbers_are_the_same_labels(dtype):
    x, y = toy()
    M.train(a := small(.5), x, y, **settings)
    M.train(b := small(.5), x.numpy(), y.to(dtype).numpy(), **settings)
    assert same(a, b)

def test_unknown_augmentation():
    with pytest.raises(ValueError, match="crop\\+flip"):
        M.train(small(), *toy(), augment="mixup")

def test_accuracy_leaves_the_model_as_it_was():
    model = small().train()
    share = M.accuracy(model, torch.rand(5, 1, 8, 8), torch.zeros(5).long())
    assert share in (0, .2, .4, .6, .8, 1)
    assert model.training and torch.equal(model[1].running_mean, torch.zeros(4))

def test_one_cycle_climbs_then_falls():
    rates = [M.one_cycle(i, 1000, .3) for i in range(1001)]
    assert max(rates) == pytest.approx(.3) and rates.index(max(rates)) == 300
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert all(a < b for a, b in zip(rates[:300], rates[1:301]))
    assert all(a > b for a, b in zip(rates[300:], rates[301:]))

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda():
    x, y = toy(200)
    history = M.train(small().cuda(), x, y, test=toy(100, seed=1), **settings)
    assert history[-1]["test"] >= .9


# ---- files ---------------------------------------------------------------------------------------

def test_weights_and_story_come_back(tmp_path):
    model = M.build("resnet20", d := dataset((3, 32, 32)), seed=4)
    model.block1.convs[1].running_mean.uniform_()
    told = dict(accuracy=.9, recipe=dict(lr=.1, augment=None))
    path = M.save_weights(model, tmp_path/"deep"/"r.safetensors", **told)
    again, story = M.load_model(path)
    assert same(model, again) and not again.training
    spec = dict(network="resnet20", shape=[3, 32, 32], classes=10)
    assert story == dict(spec=spec, weights_sha256=M.weights_sha256(model)) | told
    assert torch.equal(again(d.x_test), model(d.x_test))
    assert load_story(path) == story and not list(path.parent.glob("*.partial"))

def test_resnets_fit_into_two_megabytes(tmp_path):
    for name in ("resnet20", "resnet32"):
        assert M.save_weights(M.create(name, (3, 32, 32), 10), tmp_path/name).stat().st_size < 2e6

def test_channels_last_weights_can_be_saved(tmp_path):
    model = M.create("resnet20", (3, 32, 32), 10).to(memory_format=torch.channels_last)
    assert same(model, M.load_model(M.save_weights(model, tmp_path/"w"))[0])

@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_a_truncated_file_is_named(tmp_path, size):
    path = M.save_weights(M.create("resnet20", (1, 28, 28), 10), tmp_path/"w.safetensors")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="w.safetensors is damaged"):
        M.load_model(path)

def test_weights_of_another_network_are_refused(tmp_path):
    path = M.save_weights(M.create("resnet20", (1, 28, 28), 10), tmp_path/"w")
    with pytest.raises(ValueError, match="nothing in the file"):
        M.load_weights(M.create("resnet32", (1, 28, 28), 10), path)
    words = r"normalise.mean is \(1, 1, 1\) in the file, \(3, 1, 1\) in the network"
    with pytest.raises(ValueError, match=words):
        M.load_weights(M.create("resnet20", (3, 32, 32), 10), path)

def test_a_strangers_network_trains_and_saves(tmp_path):
    x, y = toy()
    M.train(model := small(), x, y, **settings)
    path = M.save_weights(model, tmp_path/"w")
    story = M.load_weights(other := small(seed=5), path)
    assert story == dict(spec=None, weights_sha256=M.weights_sha256(model)) and same(model, other)
    with pytest.raises(ValueError, match="use load_weights"):
        M.load_model(path)
