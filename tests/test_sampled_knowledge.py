"""Many players in one call: the door with sampled masks."""
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import layerwise_knowledge as lk
from layerwise_knowledge.sampled_knowledge import SampledKnowledge, _and_form, chosen_masks

GEN = torch.Generator().manual_seed(0)
N = 24
X = torch.rand(200, N, generator=GEN)
Y = ((X[:, 0] > .5) & (X[:, 1] > .5)).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, 16), nn.ReLU(), nn.Linear(16, 2))


def known(**changed):
    request = dict(train=(X, Y), layers=["1"], baseline="zeros", masks=300, progress=False)
    return lk.track(net(), X[:2], Y[:2], **(request | changed))


@pytest.fixture(scope="module")
def k():
    return known()


def test_the_same_methods_as_of_full_tables(k):
    assert isinstance(k, SampledKnowledge) and k.scores.shape == (2, 2, 300)
    assert {*k.summary().columns} >= {"salient AND", "held-out R²", "largest gap"}
    assert "24 players, 300 masks" in repr(k) and "<table" in k._repr_html_()
    assert {*k.to_dataframe().columns} == {*known_full().to_dataframe().columns}
    assert {*k.metrics.data_vars} >= {"overlap", "forget", "new", "completeness", "redundancy"}
    assert k.strongest(1, top=3).groupby("layer").size().max() == 3
    table, picture = k.flow()
    assert {*table} == {"appears", "persists", "disappears"} and picture.axes
    assert k.plot().axes and k.plot(sample=0).axes


def known_full():
    return lk.track(net(), X[:2, :N], Y[:2], torch.arange(N) // 6, train=(X, Y), layers=["1"],
                    baseline="zeros", progress=False)


def test_completeness_of_an_additive_network():
    "Weights read off as single players: ReLU of what is always positive is no interaction"
    w = torch.linspace(-1, 1, N)
    model = nn.Linear(N, 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack([0*w, w]))
        model.bias.zero_()
    k = lk.track(model, torch.ones(1, N), [1], baseline="zeros", masks=200, progress=False)
    f = k.sets[k.sets.value.abs() > 1e-3]
    assert f.players.map(len).max() == 1
    found = {S[0]: x for S, x in zip(f.players, f.value)}
    np.testing.assert_allclose([found.get(p, 0) for p in range(N)], w, atol=.02)
    np.testing.assert_allclose(k.attributions().shapley[0, 0], w, atol=.02)


def test_files_and_caches_bring_everything_back(k, tmp_path):
    again = lk.open(k.save(tmp_path/"k.nc"), net())
    assert isinstance(again, SampledKnowledge) and repr(again) == repr(k)
    pd.testing.assert_frame_equal(again.sets, k.sets)
    for _ in range(2):
        cached = known(cache=tmp_path/"cache")
        pd.testing.assert_frame_equal(cached.sets, k.sets)
    many = len(list((tmp_path/"cache").glob("*")))
    known(cache=tmp_path/"cache", seed=1)                         # other masks, other files
    assert len(list((tmp_path/"cache").glob("*"))) > many


def test_compared_with_itself_and_with_full_tables(k):
    assert float(k.compare(known()).iou.min()) == 1
    full = known(masks=None, players=torch.arange(N) // 6, layers=["output"])
    with pytest.raises(ValueError, match="players differ"):
        k.compare(full)
    with pytest.raises(TypeError, match="give both calls masks"):
        k._overlap(full, ["output"])


def test_a_table_without_sets_is_a_player_that_does_nothing(k):
    lone = k.data.drop_dims("term").assign(
        {z: k.data[z].isel(term=[0]) for z in ("of_sample", "of_layer", "kind", "owners", "value")})
    f = SampledKnowledge(lone, k.probes).sets
    assert len(f) == 4 and (f.value == 0).sum() == 3 and f["sample"].tolist() == [0, 0, 1, 1]


def test_an_or_as_ands_adds_up():
    for size in (1, 2, 5):
        S = tuple(range(size))
        for shown in range(1 << size):
            on = {p for p in S if shown >> p & 1}
            assert sum(sign for T, sign in _and_form("or", S) if set(T) <= on) == bool(on)


def test_shapiq_gets_the_same_game(k):
    values = k.to_shapiq(0)
    f = k.sets[(k.sets["sample"] == 0) & (k.sets.layer == "output")]
    whole = float(k.data.c.sel(sample=0, layer="output")) + f.value.sum()
    assert sum(values[S] for S in values.interaction_lookup) == pytest.approx(whole)
    with pytest.raises(ValueError, match="an OR of 15 players is 32,767 ANDs"):
        _and_form("or", tuple(range(15)))


@pytest.mark.parametrize("changed, words", [
    (dict(masks=20), "58 are the least"),
    (dict(masks=np.ones((80, 3), bool)), "for each of the 24 players"),
    (dict(masks=True), "got shape \\(\\)"),
    (dict(masks="many"), "got shape \\(\\)"),
    (dict(masks=-5), "at least|the least"),
    (dict(masks=np.ones((80, N), bool)), "too few|∅ and N"),
    (dict(masks=None), "ask only some, masks=960"),
])
def test_bad_masks_end_in_one_sentence(changed, words):
    with pytest.raises(ValueError, match=words):
        known(**changed)


def test_what_only_full_tables_have(k):
    with pytest.raises(ValueError, match="leave masks out"):
        k.stability()


def test_own_masks_in_any_order(k):
    "What is shown as the whole input is the score of N, wherever N stood"
    T = chosen_masks(300, N)
    again = known(masks=T[::-1])
    np.testing.assert_array_equal(again.scores[..., [0, -1]], k.scores[..., [0, -1]])


def test_the_same_masks_from_the_same_seed():
    assert (chosen_masks(200, N, 3) == chosen_masks(200, N, 3)).all()
    assert (chosen_masks(200, N, 3) != chosen_masks(200, N, 4)).any()
