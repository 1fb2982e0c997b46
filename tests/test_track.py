"""The door: one call for networks of every kind, one sentence for everything else."""
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

import layerwise_knowledge as lk
from layerwise_knowledge import metrics, scores
from layerwise_knowledge.interactions import reconstruct

GEN = torch.Generator().manual_seed(0)
X = torch.randn(120, 4, generator=GEN)
Z = torch.stack([X[:, 0] * X[:, 1], X[:, 2], -X[:, 3]], 1)
Y, YES = Z.argmax(-1), (X[:, 0] * X[:, 1] > 0).long()
ONES = dict(train=(X, YES), progress=False)


def net(out=3, act=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, out))


def known(model=None, x=X[:2], y=None, **changed):
    request = dict(train=(X, Y), progress=False) | changed
    return lk.track(net() if model is None else model, x, y, **request)


def log_odds(model, x, y):
    with torch.no_grad():
        return scores.log_odds(model.eval()(x).float(), y)


# ---- what comes back ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def k():
    return known(x=X[:3], y=Y[:3])


def test_everything_hangs_together(k):
    assert k.scores.layer.values.tolist() == ["1", "3", "output"]
    i = k.interactions.astype(float)
    explained = reconstruct(i.sel(kind="and").values, i.sel(kind="or").values)
    assert (abs(explained - k.scores.values) <= k.data.kappa.values[..., None] + 1e-5).all()
    assert float(k.gap.max()) <= 1e-2 and k.metrics.sizes == dict(layer=3, kind=2, order=4)
    np.testing.assert_allclose(k.scores.sel(layer="output")[:, -1], log_odds(net(), X[:3], Y[:3]),
                               rtol=1e-4, atol=1e-4)
    assert {"probe accuracy", "salient AND", "largest gap"} <= {*k.summary().columns}
    assert "<table" in k._repr_html_() and repr(k).count("\n") == 5


def test_the_held_out_tenth_and_a_test_set_are_other_inputs(k):
    tested = known(x=X[:3], y=Y[:3], test=(X[:60], Y[:60]))
    right = (net()(X[:60]).argmax(-1) == Y[:60]).float().mean().item()
    assert tested.probes.accuracy["output"]["test"] == pytest.approx(right)
    assert k.probes.accuracy["output"]["test"] * 12 == pytest.approx(
        round(k.probes.accuracy["output"]["test"] * 12))                  # of twelve inputs


def test_without_labels_the_predicted_class(k):
    a, b = known(layers=["output"]), known(y=net()(X[:2]).argmax(-1), layers=["output"])
    xr.testing.assert_identical(a.data, b.data)


def test_pictures(k):
    for figure in (k.plot(), k.plot(kind="or"), k.plot(sample=1), k.flow()[1],
                   known(layers=["output"]).plot(), known(layers=["output"]).plot(0)):
        assert figure.axes and figure.get_figwidth() < 7


def test_other_baselines_give_other_tables():
    zero, given = known(baseline="zeros"), known(baseline=np.zeros(4, np.float32))
    xr.testing.assert_identical(zero.data, given.data)
    assert not zero.scores.equals(known().scores)


def test_compare_with_itself_and_with_another(k):
    torch.manual_seed(1)
    other = known(nn.Linear(4, 3), X[:3], Y[:3], layers=["output"])
    assert np.nanmin(k.compare(k).iou) == 1 and k.compare(other).layer.values.tolist() == ["output"]


def test_shapiq_gives_our_shapley_values(k):
    shapiq = pytest.importorskip("shapiq")
    from shapiq.game_theory.moebius_converter import MoebiusConverter
    ours = k.attributions().shapley
    for s, layer in ((0, "1"), (2, "output")):
        found = k.to_shapiq(s, layer)
        assert isinstance(found, shapiq.InteractionValues) and found.index == "Moebius"
        theirs = MoebiusConverter(found)("SV", order=1)
        np.testing.assert_allclose([theirs[(p,)] for p in range(4)],
                                   ours.sel(sample=s, layer=layer), atol=1e-6)


# ---- networks of every kind --------------------------------------------------------------------

def test_one_logit_is_signed_by_the_class():
    up, down = (known(net(1), y=torch.full((2,), c), **ONES) for c in (1, 0))
    np.testing.assert_allclose(up.scores.sel(layer="output"), -down.scores.sel(layer="output"),
                               atol=1e-5)
    z = net(1)(X[:2])[:, 0].detach()
    np.testing.assert_allclose(up.scores.sel(layer="output")[:, -1], z, atol=1e-5)
    assert known(net(1), y=np.array([True, False]), train=(X, YES.bool())).told["kind"] == "logit"


def test_a_regression_is_its_output():
    k = known(net(1), train=(X, X.sum(1)))
    np.testing.assert_allclose(k.scores[:, 0, -1], net(1)(X[:2])[:, 0].detach(), atol=1e-5)
    assert "Knowledge of the output" in repr(k)


class Wrapped(nn.Module):
    "The same network, its answer in another form"
    def __init__(self, form):
        super().__init__()
        self.net, self.form = net(), form

    def forward(self, x):
        return self.form(self.net(x))


class Two(nn.Module):
    "Two inputs by name"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = net()

    def forward(self, left, right):
        return self.net(torch.cat([left, right.float()], 1))


@pytest.mark.parametrize("form", [lambda z: (z, None), lambda z: [z], lambda z: dict(logits=z),
                                  lambda z: dict(loss=None, logits=z), lambda z: dict(out=z)])
def test_answers_in_other_forms(form):
    xr.testing.assert_allclose(known(Wrapped(form)).scores.sel(layer="output"),
                               known().scores.sel(layer="output"))


def test_hugging_face_output():
    transformers = pytest.importorskip("transformers")
    output = transformers.modeling_outputs.SequenceClassifierOutput
    xr.testing.assert_allclose(known(Wrapped(lambda z: output(logits=z))).scores[:, -1],
                               known().scores[:, -1])


def test_probabilities_are_not_taken_for_logits():
    soft = known(nn.Sequential(net(), nn.Softmax(-1)), layers=["output"])
    xr.testing.assert_allclose(soft.scores, known(layers=["output"]).scores, atol=1e-4)
    sigmoid = known(nn.Sequential(net(1), nn.Sigmoid()), y=YES[:2], **ONES)
    logit = known(net(1), y=YES[:2], **ONES)
    xr.testing.assert_allclose(sigmoid.scores[:, -1], logit.scores[:, -1], atol=1e-4)
    assert "probabilities" in repr(soft)


def test_a_dict_of_inputs():
    def split(x): return dict(left=x[:, :2], right=x[:, 2:].double())
    players = dict(left=torch.tensor([0, 1]), right=[2, 3])
    named = known(Two(), split(X[:2]), train=(split(X), Y), players=players, layers=["output"])
    np.testing.assert_allclose(named.scores, known(layers=["output"]).scores, atol=1e-5)


def test_arrays_and_frames_are_tensors():
    frame = pd.DataFrame(X.numpy(), columns=list("abcd"))
    def function(z): return net()(torch.tensor(np.asarray(z))).detach().numpy()
    plain = known(layers=["output"])
    xr.testing.assert_allclose(known(x=X[:2].numpy(), train=(X.numpy(), Y.numpy()),
                                     layers=["output"]).scores, plain.scores)
    for x, train in ((X[:2].numpy(), X.numpy()), (frame[:2], frame)):
        k = known(lambda z: function(np.asarray(z, np.float32)), x, train=(train, Y.numpy()))
        np.testing.assert_allclose(k.scores, plain.scores, atol=1e-4)
    assert k.players[0].names == list("abcd")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    k = known(net().to(dtype), layers=["1", "output"])
    exact = known(layers=["output"]).scores.values
    assert abs(k.scores.sel(layer=["output"]).values - exact).max() < .05
    assert float(k.gap.max()) < 1e-2


class Again(nn.Module):
    "One ReLU, in place, for two layers; and a layer that gives a tuple"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.relu = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        f = self.relu(self.b(self.relu(self.a(x))))
        return self.head(self.lstm(f[:, None])[0][:, -1])


def test_calls_tuples_and_writing_in_place():
    model = Again().eval()
    assert lk.layers(model, X)["layer"].tolist() == ["a", "relu#1", "b", "relu#2", "lstm", "head"]
    with torch.no_grad(), scores.features(model, ["a", "relu#1", "relu#2", "lstm"]) as f:
        model(X)
    torch.testing.assert_close(f["relu#1"], f["a"].relu())
    assert f["a"].min() < 0 and f["lstm"].shape == (120, 1, 5)
    k = known(model, layers=["relu#1", "b", "relu#2", "lstm"])
    assert k.scores.sizes["layer"] == 5
    assert known(model).scores.layer.values.tolist() == ["relu#1", "relu#2", "lstm", "output"]


def test_batchnorm_and_dropout_in_training_mode_are_put_into_evaluation_and_back():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(),
                          nn.Linear(8, 3)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    k = known(model)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    np.testing.assert_allclose(k.scores.sel(layer="output")[:, -1],
                               log_odds(model, X[:2], k.data.y.values), atol=1e-4)


def test_scikit_learn_with_text_columns_and_classes_in_words():
    compose, pipeline, linear, preprocessing = (
        pytest.importorskip(f"sklearn.{m}")
        for m in ("compose", "pipeline", "linear_model", "preprocessing"))
    frame = pd.DataFrame(dict(age=X[:, 0].numpy(), work=np.array(list("abc"))[Y], rich=X[:, 1] > 0))
    words = np.array(["no", "yes"])[YES]
    encoder = compose.make_column_transformer((preprocessing.OneHotEncoder(), ["work"]),
                                              remainder="passthrough")
    model = pipeline.make_pipeline(encoder, linear.LogisticRegression()).fit(frame, words)
    k = known(model, frame[:3], words[:3], train=(frame, words))
    assert k.players[0].names == ["age", "work", "rich"]
    odds = np.log(model.predict_proba(frame[:3])[range(3), YES[:3]])
    np.testing.assert_allclose(k.scores[:, 0, -1], odds - np.log1p(-np.exp(odds)), atol=1e-5)
    i = abs(metrics.merge_first_order(k.interactions))
    assert float(i.where(i.order > 1, 0).sum()) < 1e-6 * float(i.sum())              # additive


# ---- kept ---------------------------------------------------------------------------------------

def test_a_file_comes_back_whole_and_goes_on_with_its_network(k, tmp_path):
    again = lk.open(k.save(tmp_path/"k.nc"), net())
    xr.testing.assert_identical(again.data, k.data)
    again.progress = k.progress = False
    assert repr(again) == repr(k)
    xr.testing.assert_equal(again.stability(draws=2), k.stability(draws=2))
    assert k.save(tmp_path/"same.nc").read_bytes() == (tmp_path/"k.nc").read_bytes()


def test_a_run_killed_in_the_middle_goes_on(tmp_path):
    code = """
import os, sys, torch
from torch import nn
from layerwise_knowledge import scores
import layerwise_knowledge as lk
real, calls = scores.score_table, []
def table(*a, **k):
    calls.append(1)
    return os._exit(9) if len(calls) > int(sys.argv[1]) else real(*a, **k)
scores.score_table = table
torch.manual_seed(0)
x, net = torch.randn(4, 3), nn.Linear(3, 2)
k = lk.track(net, x, baseline="zeros", cache="kept", progress=False)
print(len(calls), float(abs(k.interactions).sum()))
"""
    def run(most):
        return subprocess.run([sys.executable, "-c", code, str(most)], cwd=tmp_path, text=True,
                              capture_output=True)
    assert run(2).returncode == 9
    assert len(list((tmp_path/"kept").glob("scores-*.nc"))) == 2 and run(2).stdout.startswith("2 ")
    assert run(0).stdout.split()[1] == run(9).stdout.split()[1]


def test_another_setting_is_another_file(tmp_path):
    def files(**changed):
        known(cache=tmp_path, **changed)
        return len(list(tmp_path.glob("*.*")))
    first = files()
    assert files() == first                                             # nothing new
    assert files(kappa=.03) == first + 1                                # the extraction alone
    assert files(layers=["1"]) > first + 2                              # probes, scores, extraction
    assert files(model=net(act=nn.Tanh)) > first + 5


def test_functions_that_agree_on_most_inputs_do_not_share_files(tmp_path):
    x = np.array([[1., 1, 1], [1, 1, 0], [1, 0, 1]])
    def product(i, j): return lambda z: z[:, i]*z[:, j]
    ask = dict(baseline="zeros", progress=False)
    pairs = (0, 1), (0, 2), (1, 2)                 # alike on x[0], with all and with one of three
    own = [lk.track(product(*p), x, **ask).data.v for p in pairs]
    shared = [lk.track(product(*p), x, cache=tmp_path, **ask).data.v for p in pairs]
    for a, b in zip(own, shared):
        np.testing.assert_array_equal(a, b)
    assert abs(shared[0] - shared[1]).max() > .5


def test_a_sample_is_not_scored_again_beside_others(tmp_path):
    known(x=X[:3], cache=tmp_path)
    before = set(tmp_path.glob("scores-*")) | set(tmp_path.glob("probes-*"))
    again = known(x=X[[2, 1]], cache=tmp_path)
    assert set(tmp_path.glob("scores-*")) | set(tmp_path.glob("probes-*")) == before
    np.testing.assert_array_equal(again.data.v, known(x=X[[2, 1]]).data.v)


# ---- what is refused ----------------------------------------------------------------------------

class Dice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.dropout(self.first(x), .5))


BAD = {
    "one-hot labels": (dict(y=F.one_hot(Y[:2], 3)), "look one-hot"),
    "labels as fractions": (dict(y=Y[:2].float()), "labels must be whole numbers"),
    "a label out of range": (dict(y=[3, 0]), "label 3 is out of range: 3 classes"),
    "a label of train out of range": (dict(train=(X, Y + 1)), "label 3 is out of range"),
    "too few labels": (dict(y=Y[:1]), "2 inputs but 1 labels"),
    "labels of train are missing": (dict(train=X), r"train must be a pair, train=\(x_train, y_tr"),
    "players made for other inputs": (dict(players=lk.columns(X[:, :3])),
                                      "made for inputs of shape"),
    "players as a word": (dict(players="grid"), "players must be made already, as patches"),
    "players not called": (dict(players=lk.patches), "players must be made already, as patches"),
    "players of an image for a table": (dict(players=lk.patches(4)), "an image has shape"),
    "too many players": (dict(model=nn.Linear(24, 2), x=torch.randn(2, 24), train=None,
                              baseline="zeros"), "24 players have 2.24 subsets"),
    "layers without train": (dict(layers=["1"], train=None, baseline="zeros"),
                             "1 must be read by probes.*only 'output' needs none"),
    "a mean of nothing": (dict(train=None), "baseline='mean' is the mean of the training inputs"),
    "a baseline of another shape": (dict(baseline=torch.zeros(3)),
                                    "one input of baseline has shape"),
    "a baseline unheard of": (dict(baseline="median"), "baseline must be 'mean'"),
    "a random network": (dict(model=Dice()), "layer 'output': the network or a probe draws random"),
    "a random layer": (dict(model=nn.Sequential(Dice(), nn.Linear(3, 3)), layers=["0"]),
                       "layer '0': the network or a probe draws random numbers"),
    "train nowhere": (dict(train=(X.to("meta"), Y)), "train is on the device meta"),
    "train of another shape": (dict(train=(X[:, :3], Y)), "one input of train has shape"),
    "train with NaN": (dict(train=(X * torch.nan, Y)), "NaN"),
    "an unknown layer": (dict(layers=["9"]), "no layer '9'; it has 0, 1, 2, 3, 4, output"),
    "layers as a word": (dict(layers="1"), r"write \['1'\]"),
    "layers of a function": (dict(model=lambda z: z, layers=["a"]), "no layer 'a'; it has output"),
    "layers of a regression": (dict(model=net(1), train=(X, X[:, 0]), layers=["1"]),
                               "layers of a regression cannot be read"),
    "kappa": (dict(kappa=-1), "kappa must be a number >= 0"),
    "one input alone": (dict(x=X[0]), r"a single input is x\[None\]"),
    "inputs of two kinds": (dict(x=pd.DataFrame(X[:2].numpy())), "the inputs come as frame and"),
    "a mean of whole numbers": (
        dict(model=Two(), x=dict(left=X[:2, :2], right=X[:2, 2:].long()),
             players=dict(right=[0, 1]), train=(dict(left=X[:, :2], right=X[:, 2:].long()), Y)),
        "holds whole numbers and its mean"),
    "missing values": (dict(x=pd.DataFrame(dict(a=[1, None])), train=None, baseline="zeros",
                            model=lambda z: z), "columns .'a'. hold missing values"),
    "a class of networks": (dict(model=nn.Linear), "model must be made already, got the class"),
    "no model": (dict(model=3), "model must be a torch.nn.Module, a fitted scikit-learn"),
    "a map for an answer": (dict(model=nn.Unflatten(1, (2, 2))), "must return logits"),
    "a dict without logits": (dict(model=Wrapped(lambda z: dict(a=z, b=z))), "returns dict of a"),
    "probabilities of 0 and 1": (dict(model=lambda z: F.one_hot(Y[:1].expand(len(z)), 3).double()),
                                 r"return p.clip\(1e-6"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_sentence_says_what_does_not_fit(name):
    changed, words = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        known(**changed)
    said = str(caught.value)
    assert re.search(words, said), said
    assert "\n" not in said and 20 < len(said) < 400


def test_a_part_of_a_sorted_set_is_told():
    few = Y < 2
    with pytest.warns(UserWarning, match="train holds 2 of the network's 3 classes"):
        known(train=(X[few], Y[few]))


def test_the_nearest_names_of_many_layers():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=3)
    words = "no layer 'layer3.1.con1'; the nearest of its 68 are layer3.1.conv1"
    with pytest.raises(ValueError, match=words):
        with scores.features(model, ["layer3.1.con1"]):
            pass


def test_files_that_cannot_be_opened(k, tmp_path):
    foreign, cut = tmp_path/"foreign.nc", k.save(tmp_path/"cut.nc")
    foreign.write_text("not a table")
    cut.write_bytes(cut.read_bytes()[:-50])
    for path, error, words in ((foreign, ValueError, "foreign.nc is not what Knowledge.save wrote"),
                               (cut, ValueError, "cut.nc is not what Knowledge.save wrote"),
                               (tmp_path/"no.nc", FileNotFoundError, "there is no file"),
                               (foreign.open(), TypeError, "path must be the name of a file")):
        with pytest.raises(error, match=words):
            lk.open(path)
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="another network than the file was made with"):
        lk.open(k.save(tmp_path/"k.nc"), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"lk.open\(path, model\)"):
        lk.open(tmp_path/"k.nc").stability()


def test_what_a_result_refuses(k):
    for words, call in (("sample must be one of 0 to 2, got 3", lambda: k.plot(3)),
                        ("there is no layer '7'", lambda: k.strongest(0, layer="7")),
                        ("draws must be a whole number from 2", lambda: k.stability(draws=1)),
                        ("their inputs differ", lambda: k.compare(known(x=X[3:6]))),
                        ("only the output is known", lambda: known(layers=["output"]).flow())):
        with pytest.raises(ValueError, match=words):
            call()


# ---- the surface --------------------------------------------------------------------------------

def test_the_package_imports_without_torch_and_says_what_it_has():
    code = ("import sys, layerwise_knowledge as lk\n"
            "assert not {'torch', 'xarray', 'numpy'} & {*sys.modules}\n"
            "assert {*lk.__all__} <= {*dir(lk)} and not hasattr(lk, 'nothing')\n"
            "import layerwise_knowledge.sparsify, layerwise_knowledge.track\n"
            "assert callable(lk.track) and callable(lk.sparsify)\n")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("name", lk.__all__)
def test_every_public_name_says_what_it_takes(name):
    thing = getattr(lk, name)
    source = inspect.getsource(thing)
    head = source if inspect.isclass(thing) else source.partition('"""')[0]
    said = inspect.getdoc(thing) + head
    assert thing.__doc__ and len(thing.__doc__) > 25 and "#" in head
    assert re.search(r"\(\.\.\.|\(N|\(sample|\(layer|shape|input|rows, D|path|players", said)
    assert re.search(r"(Def|Eqs?|Figs?|App)\. |Section|Theorem|not in the paper", said)
    if inspect.isfunction(thing):
        assert re.search(r"Raises|Error|refuse", inspect.getdoc(thing)), "says what it refuses"
        names = [p for p in inspect.signature(thing).parameters]
        assert all(re.search(rf"\b{p}\b.*#|\b{p}\b", head) for p in names)


def test_the_readme_runs_as_pasted(root, tmp_path):
    block, = re.findall(r"```python\n(.*?)```", (root/"README.md").read_text(), re.S)
    assert "lk.track(" in block and max(map(len, block.splitlines())) <= 100
    env = os.environ | {"PYTHONPATH": str(root), "MPLBACKEND": "agg"}
    out = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", block], cwd=tmp_path,
                         env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "Knowledge of log-odds" in out.stdout
    assert {p.suffix for p in tmp_path.iterdir()} == {".png"}
