"""Players: masking against a loop over pixels, choices that depend on the image alone, refusals."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwise_knowledge.players import (
    FeaturePlayers,
    PatchPlayers,
    Players,
    central_patches,
    check_size,
    foreground_patches,
    grid_size,
    masked,
    masked_batches,
    mean_baseline,
    pixel_hash,
)


def loop(x, baseline, owner, T):
    "x_T one variable at a time, from the definition"
    out = x.clone()
    for place in np.ndindex(*x.shape):
        p = int(owner[place])
        if p == -2 or p >= 0 and not (T >> p) & 1:
            out[place] = baseline[place]
    return out


def digit(seed=0, shape=(1, 28, 28)):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([(7,), (2, 5), (3, 4, 4)]),
       st.sampled_from([torch.float32, torch.float64, torch.int64]))
@settings(max_examples=40, deadline=None)
def test_masked_is_the_loop(n, seed, shape, dtype):
    gen = torch.Generator().manual_seed(seed)
    owner = torch.randint(-2, n, shape, generator=gen)
    owner.view(-1)[:n] = torch.arange(n)                                  # everybody owns something
    x, b = (torch.randint(-99, 99, shape, generator=gen).to(dtype) for _ in range(2))
    both = masked(x, b, owner, range(1 << n))
    assert both.dtype == dtype
    for T in range(1 << n):
        assert torch.equal(both[T], loop(x, b, owner, T))


@given(st.integers(1, 8), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_batches_are_all_subsets_in_order(n, batch_size):
    x, b, players = torch.randn(n + 1), torch.zeros(n + 1), FeaturePlayers(range(n), width=n + 1)
    batches = list(masked_batches(x, players, b, batch_size))
    assert max(len(T) for T, _ in batches) <= batch_size
    assert len(batches) == -(-(1 << n) // batch_size)
    assert torch.equal(torch.cat([T for T, _ in batches]), torch.arange(1 << n))
    everything = masked(x, b, players.owner, range(1 << n))
    assert torch.equal(torch.cat([x_T for _, x_T in batches]), everything)


def test_batches_are_made_when_asked_for():
    x = torch.randn(3, 32, 32)
    players = PatchPlayers([(r, c) for r in range(4) for c in range(5)], x.shape, 4)
    batches = masked_batches(x, players, torch.zeros_like(x), batch_size=16)
    T, x_T = next(iter(batches))                          # 20 players: all inputs would take 12 GiB
    assert len(T) == len(x_T) == 16


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_relabelling_players_relabels_subsets(perm):
    x, b, cells = digit(), torch.zeros(1, 28, 28), [(0, 0), (1, 4), (2, 2), (5, 8), (8, 8), (4, 4)]
    old, new = PatchPlayers(cells, x.shape, 3), PatchPlayers([cells[p] for p in perm], x.shape, 3)
    moved = [sum((T >> p & 1) << i for i, p in enumerate(perm)) for T in range(64)]
    assert torch.equal(masked(x, b, new.owner, moved), masked(x, b, old.owner, range(64)))


@pytest.mark.parametrize("background", ["visible", "masked"])
@pytest.mark.parametrize("size,patch", [((1, 28, 28), 3), ((3, 32, 32), 4), ((3, 10, 13), 3)])
def test_patch_owner_by_pixel(size, patch, background):
    rows, cols = grid_size(size, patch)
    cells = [(rows - 1, cols - 1), (0, 0), (rows - 1, 0)]
    owner = PatchPlayers(cells, size, patch, background).owner
    assert owner.shape == size and owner.dtype == torch.int64
    for c, i, j in np.ndindex(*size):
        cell = (i // patch, j // patch)
        nobody = {"visible": -1, "masked": -2}[background]
        assert owner[c, i, j] == (cells.index(cell) if cell in cells else nobody)


def test_last_row_and_column_of_mnist_belong_to_nobody():
    everyone = PatchPlayers([(r, c) for r in range(9) for c in range(9)], 28, 3)
    assert (everyone.owner[0, :27, :27] >= 0).all()
    assert (everyone.owner[0, 27] == -1).all() and (everyone.owner[0, :, 27] == -1).all()


def test_one_hot_columns_move_together():
    players = FeaturePlayers([("age", [0]), ("job", [1, 2, 3])])
    x, b = torch.tensor([1., 0, 1, 0]), torch.tensor([.5, .2, .3, .5])
    expected = torch.tensor([[1., .2, .3, .5], [.5, 0, 1, 0]])
    assert torch.equal(masked(x, b, players.owner, [1, 2]), expected)
    assert players.names == ["age", "job"]


def test_mean_baseline_keeps_its_digits():
    x = torch.full((100_000, 2), 0.1)
    x[:, 1] += 1e4 * (torch.arange(100_000) % 2)
    exact = x.double().mean(0)
    assert torch.equal(mean_baseline(x, chunk=999), exact.float())


def test_choice_depends_on_the_image_alone():
    images = [digit(seed) for seed in range(8)]
    forward = [foreground_patches(image) for image in images]
    assert forward == [foreground_patches(image) for image in reversed(images)][::-1]
    torch.manual_seed(1)
    np.random.seed(1)
    for same in (lambda x: (x * 255).round().to(torch.uint8), torch.Tensor.double,
                 lambda x: x[0].numpy()):
        assert forward == [foreground_patches(same(image)) for image in images]
    code = ("import torch; from layerwise_knowledge.players import foreground_patches; "
            "g = torch.Generator().manual_seed(0); "
            "print(foreground_patches((torch.rand((1, 28, 28), generator=g) * 255).round() / 255))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(forward[0])


def test_the_choice_is_frozen():
    "Published tables were made with these players: the rule must never change silently"
    ramp = (torch.arange(784.).view(1, 28, 28) % 256) / 255
    assert foreground_patches(ramp, n=4) == FROZEN[0]
    assert central_patches(ramp.expand(3, 28, 28), n=4, central=5) == FROZEN[1]
    assert pixel_hash(ramp)[:16] == FROZEN[2]
    assert pixel_hash(torch.tensor([1., -0.]))[:16] == FROZEN[3]


FROZEN = ([(2, 6), (3, 1), (8, 1), (8, 5)], [(1, 4), (3, 4), (3, 5), (5, 1)], "e134792eaeb26b86",
          "434b26042aff3fb8")


def test_foreground_has_ink_or_the_most_of_it():
    image = torch.zeros(1, 28, 28)
    for k, ink in ((1, 1.), (3, .5), (4, .1)):                        # cells (1,1), (3,3), (4,4)
        image[0, 3*k:3*k + 3, 3*k:3*k + 3] = ink
    assert foreground_patches(image, n=2) == [(1, 1), (3, 3)]
    assert foreground_patches(image, n=2, seed=5) == [(1, 1), (3, 3)]
    assert foreground_patches(image, n=3) == [(1, 1), (3, 3), (4, 4)]        # too few: the most ink
    assert {(1, 1), (3, 3), (4, 4)} < set(foreground_patches(image, n=5))
    exactly = torch.zeros(1, 28, 28)
    exactly[0, :3, :3] = 51 / 255                       # 0.2 in every copy of the image
    assert foreground_patches(exactly, n=1, seed=3) == [(0, 0)]


def test_central_patches_stay_central():
    for seed in range(20):
        cells = central_patches(digit(seed, (3, 32, 32)), seed=seed)
        assert len(set(cells)) == 12 and cells == sorted(cells)
        assert all(1 <= r <= 6 and 1 <= c <= 6 for r, c in cells)


@pytest.mark.parametrize("x,b,words", [
    (torch.tensor([0, 9], dtype=torch.uint8), torch.tensor([-5., 3.]), "turn the input to float"),
    (torch.tensor([0, 9]), torch.tensor([torch.nan, 3.]), "turn the input to float"),
    (torch.tensor([0, 9]), torch.tensor([1, 2], dtype=torch.int32), "give both the same type"),
    (torch.tensor([0., 9.]), torch.tensor([1., torch.nan]), "the baseline holds NaN or infinity"),
    (torch.tensor([0., 9.], dtype=torch.float16), torch.tensor([1e5, 0.]),
     "infinity in torch.float16")])
def test_a_baseline_keeps_its_value_or_is_refused(x, b, words):
    players = FeaturePlayers(range(2))
    for request in (lambda: masked(x, b, players.owner, [0]),
                    lambda: masked_batches(x, players, b)):
        with pytest.raises(ValueError, match=words):
            request()


@pytest.mark.parametrize("dtype", [
    torch.float64, torch.float16, torch.int8, torch.uint8, torch.bool])
def test_a_float_input_takes_any_baseline(dtype):
    x, b = torch.tensor([5., 6.]), torch.tensor([0, 1]).to(dtype)
    assert torch.equal(masked(x, b, torch.arange(2), [0, 1])[0], torch.tensor([0., 1.]))


def test_size_is_measured_against_free_memory(monkeypatch):
    from layerwise_knowledge import players
    class Free:
        available = 12 * 2**20 + 4000
    monkeypatch.setattr(players.psutil, "virtual_memory", Free)
    check_size(10, torch.zeros(4), tables=1024, batch=4000)        # 12 bytes a score, and one batch
    with pytest.raises(ValueError, match="1,024 score tables would take 4.0 MiB.*one batch take "
                                         "12.0 MiB, and 12.0 MiB are free"):
        check_size(10, torch.zeros(4), tables=1024, batch=4001)
    game, b = FeaturePlayers(range(10)), torch.zeros(10)
    Free.available = 12 * 2**10 + 999 * 40
    masked_batches(b, game, b, batch_size=999)
    with pytest.raises(ValueError, match="are free"):
        masked_batches(b, game, b, batch_size=1000)


def test_a_size_beyond_all_numbers_has_words():
    with pytest.raises(ValueError, match=r"^3072 players have 2\^3072 subsets: .* 2\^3074 bytes"):
        check_size(3072, torch.zeros(3072))


SQUARE = PatchPlayers([(0, 0)], (1, 6, 6), 3)
REFUSALS = [
    (lambda: PatchPlayers([(0, 9)], 28, 3),
     r"patch \(0, 9\) lies outside the image: 28x28 pixels hold a 9x9 grid"),
    (lambda: PatchPlayers([(-1, 0)], 28, 3), r"patch \(-1, 0\) lies outside"),
    (lambda: PatchPlayers([(1, 1), (0, 0), (1, 1)], 28, 3), r"patch \(1, 1\) is listed twice"),
    (lambda: PatchPlayers([], 28, 3), "there are no players"),
    (lambda: PatchPlayers([(0, 0)], (1, 1, 28, 28), 3), "an image has shape"),
    (lambda: PatchPlayers([(0, 0)], 28, 0), "no patches of 0x0"),
    (lambda: PatchPlayers([(0, 0)], 28, 3, "hidden"), "'visible' or 'masked', got 'hidden'"),
    (lambda: FeaturePlayers([[0, 1], [1]]), "input 1 belongs to both '0' and '1'"),
    (lambda: FeaturePlayers([[0], []]), "player '1' owns no input"),
    (lambda: FeaturePlayers([[0], [-1]]), "owns input -1, but inputs are numbered 0 to 0"),
    (lambda: Players(torch.tensor([0, 1]), names=["a"]), "1 names for 2 players"),
    (lambda: masked(torch.zeros(1, 6, 6), torch.zeros(6, 6), SQUARE.owner, [0]), "must be equal"),
    (lambda: masked(torch.zeros(3, 6, 8), torch.zeros(3, 6, 8), SQUARE.owner, [0]),
     "players were made for inputs of shape"),
    (lambda: masked(torch.zeros(1, 6, 6), torch.zeros(1, 6, 6), SQUARE.owner, [2]),
     "run from 0 to 1, got 2 to 2"),
    (lambda: masked_batches(torch.zeros(1, 6, 6), SQUARE, torch.zeros(1, 6, 6), batch_size=0),
     "batch_size must be at least 1"),
    (lambda: masked_batches(torch.zeros(21), FeaturePlayers(range(21)), torch.zeros(21)),
     r"21 players have 2,097,152 subsets.* 8.0 MiB.*168.0 MiB.*max_players=21"),
    (lambda: check_size(60, torch.zeros(1), max_players=99),
     "60 players have 1,152,921,504,606,846,976 subsets: 1 score table would take 4.0 EiB"),
    (lambda: foreground_patches(torch.zeros(1, 28, 28)), "the image is blank"),
    (lambda: foreground_patches(digit(), n=82),
     "cannot choose 82 patches from a 9x9 grid, which has 81"),
    (lambda: foreground_patches(digit() * 3), "pixels must lie in"),
    (lambda: central_patches(digit(), central=9), "central must be 1 to 7, got 9"),
    (lambda: pixel_hash(torch.full((2, 2), torch.nan)), "pixels must lie in"),
    (lambda: mean_baseline(torch.zeros(0, 3)), "at least one training input"),
    (lambda: mean_baseline(torch.tensor([[torch.nan]])), "NaN or infinity"),
]


@pytest.mark.parametrize("k", range(len(REFUSALS)))
def test_refusals(k):
    request, words = REFUSALS[k]
    with pytest.raises(ValueError, match=words) as e:
        request()
    assert "\n" not in str(e.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_masks_the_same():
    x, b, players = digit(), torch.zeros(1, 28, 28), PatchPlayers([(0, 0), (4, 4)], 28, 3)
    there = [x_T for _, x_T in masked_batches(x.cuda(), players, b)]
    assert there[0].is_cuda and torch.equal(there[0].cpu(), masked(x, b, players.owner, range(4)))
