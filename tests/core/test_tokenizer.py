import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.adapters import (
    ContinuousTokenizer,
    NotFittedError,
    SampleError,
    Tokenizer,
    Tokens,
    VocabularyTokenizer,
)
from mambakit.core.adapters.vocabulary import BOS_ID, EOS_ID, UNK_ID
from mambakit.core.errors import DataError


def fitted(samples=("ACGT", "AAC"), **options):
    return VocabularyTokenizer(**options).fit(samples)


def test_vocabulary_is_ordered_by_frequency_and_does_not_depend_on_order():
    tokenizer = fitted(["ba", "bbc"])
    assert tokenizer.symbols == ["b", "a", "c"]
    assert fitted(["bbc", "ba"]).symbols == tokenizer.symbols
    assert tokenizer.encode("cab").values.tolist() == [6, 5, 4]
    assert tokenizer.n_ids == 7


def test_bos_eos_and_decode():
    tokenizer = fitted(bos=True, eos=True)
    ids = tokenizer.encode("GA").values.tolist()
    assert (ids[0], ids[-1], len(ids)) == (BOS_ID, EOS_ID, 4)
    assert tokenizer.decode(tokenizer.encode("GA")) == "GA"
    assert tokenizer.decode(Tokens(torch.tensor([*ids, 0, 0]))) == "GA"


def test_unknown_symbol_is_an_error_that_names_symbol_and_position():
    with pytest.raises(SampleError, match=r"sample 'ACXG': unknown symbol 'X' at position 2"):
        fitted().encode("ACXG")


def test_unknown_symbol_as_unk_is_declared_lossy():
    tokenizer = fitted(unknown="unk")
    assert tokenizer.encode("AX").values.tolist()[1] == UNK_ID
    assert tokenizer.decode(tokenizer.encode("AX")) == "A<unk>"
    assert "outside the vocabulary" in tokenizer.lossy
    assert fitted().lossy == ""


def test_regular_expression_splits_and_names_what_it_does_not_cover():
    smiles = fitted(["CCl", "BrC"], split=r"Cl|Br|[A-Z]|[()=#]")
    assert len(smiles.encode("ClCBr")) == 3
    with pytest.raises(SampleError, match="matches nothing at position 2, '!'"):
        smiles.encode("CC!C")
    with pytest.raises(SampleError, match=r"sample 1 \('C\?'\): .* position 1"):
        smiles.fit(["C", "C?"])


def test_words_and_items():
    words = fitted(["reach the red one", "the blue one"], split="words")
    assert words.decode(words.encode("the  red one")) == "the red one"
    items = fitted([[318, 12], (7, "x")], split="items")
    assert items.decode(items.encode([7, 318, "x"])) == [7, 318, "x"]
    assert items.same((7, 12), [7, 12])
    with pytest.raises(SampleError, match="item at position 1 is float"):
        items.encode([7, 1.5])
    with pytest.raises(SampleError, match="expected a sequence of items, got str"):
        items.encode("7")


def test_integer_items_survive_saving(tmp_path):
    items = fitted([[318, 12, "12"]], split="items")
    items.save(tmp_path)
    loaded = VocabularyTokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode([12, "12", 318])) == [12, "12", 318]


def test_rare_symbols_and_a_limit():
    assert fitted(["aab", "abc"], min_count=2).symbols == ["a", "b"]
    assert fitted(["aab", "abc"], max_symbols=1).symbols == ["a"]


def test_extend_keeps_known_ids():
    tokenizer = fitted(["ab"])
    before = tokenizer.encode("ab").values.tolist()
    assert tokenizer.extend(["bzy", "z"]) == ["z", "y"]
    assert tokenizer.encode("ab").values.tolist() == before
    assert tokenizer.encode("zy").values.tolist() == [6, 7]


@given(st.lists(st.text(max_size=8), min_size=1), st.booleans(), st.booleans())
def test_any_text_round_trips(texts, bos, eos):
    tokenizer = VocabularyTokenizer(bos=bos, eos=eos).fit(texts)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", [VocabularyTokenizer(), ContinuousTokenizer()])
def test_use_before_fit_is_a_clear_error(tokenizer, tmp_path):
    name = type(tokenizer).__name__
    for use in (
        lambda: tokenizer.encode("a"),
        lambda: tokenizer.encode_many(["a"]),
        lambda: tokenizer.decode(Tokens(torch.tensor([4]))),
        lambda: tokenizer.save(tmp_path),
    ):
        with pytest.raises(
            NotFittedError, match=rf"{name} is not fitted: call fit\(samples\) on the training split"
        ):
            use()


def test_bad_samples_are_counted_listed_and_left_out(caplog):
    tokens, bad = encoded = fitted().encode_many(["AC", "AX", "G", 7, "T"])
    assert [len(t) for t in tokens] == [2, 1, 1]
    assert [(b.index, b.reason.split(" (")[0]) for b in bad] == [
        (1, "unknown symbol 'X' at position 1"),
        (3, "expected a string, got int"),
    ]
    assert encoded.kept == [0, 2, 4]
    assert "2 of 5 samples left out; the first is sample 1" in caplog.text


def test_a_fault_of_the_code_is_not_a_bad_sample():
    class Faulty(VocabularyTokenizer):
        def encode(self, sample):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        Faulty().fit(["a"]).encode_many(["a"])


def test_sample_error_survives_workers_and_shortens_long_samples():
    error = SampleError("too long", sample="A" * 500, index=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.index, str(copy)) == ("too long", 3, str(error))
    assert str(error).startswith("sample 3 ('AAA")
    assert len(str(error)) < 100
    assert str(SampleError("empty")) == "empty"


def test_saved_form_is_json_and_is_checked(tmp_path):
    tokenizer = fitted()
    tokenizer.save(tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / "tokenizer.json"
    content = json.loads(path.read_text())
    assert (content["kind"], content["version"]) == ("vocabulary", 1)
    assert sorted(p.name for p in path.parent.iterdir()) == ["tokenizer.json"]
    with pytest.raises(DataError, match="of kind 'vocabulary', but ContinuousTokenizer reads 'continuous'"):
        ContinuousTokenizer.load(path.parent)
    path.write_text(json.dumps({**content, "version": 9}))
    with pytest.raises(DataError, match=r"has version 9 .* reads version 1"):
        VocabularyTokenizer.load(path.parent)
    path.write_text(json.dumps({**content, "state": {"split": "words"}}))
    with pytest.raises(DataError, match="saved state is damaged"):
        VocabularyTokenizer.load(path.parent)
    path.write_text("{")
    with pytest.raises(DataError, match="is not a saved tokenizer"):
        VocabularyTokenizer.load(path.parent)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
        VocabularyTokenizer.load(path.parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "skip"}, "unknown: expected 'error' or 'unk', got 'skip'"),
        ({"split": "["}, "regular expression, got"),
        ({"min_count": 0}, "expected at least 1, got 0"),
    ],
)
def test_vocabulary_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        VocabularyTokenizer(**options)


def test_standard_scale_is_that_of_the_training_split():
    rng = np.random.default_rng(0)
    train = [rng.normal(1e6, 3.0, (n, 1)) * [1.0, 0.001] for n in (5, 1, 40)]
    tokenizer = ContinuousTokenizer().fit(train)
    whole = np.concatenate(train)
    np.testing.assert_allclose(tokenizer.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(tokenizer.deviation, whole.std(0), rtol=1e-9)
    encoded = torch.cat([tokenizer.encode(part).values for part in train]).double()
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(2).double(), rtol=1e-6, atol=1e-6)
    other = rng.normal(1e6, 3.0, (4, 2))
    assert tokenizer.same(other, tokenizer.decode(tokenizer.encode(other)))


def test_constant_channel_is_only_centred():
    tokenizer = ContinuousTokenizer().fit([[[0.1, 1.0]], [[0.1, 2.0]], [[0.1, 3.0]]])
    assert tokenizer.deviation[0] == 1.0
    assert tokenizer.encode([[0.1, 2.0]]).values.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([[1.0, np.nan]], "nan at position 0, channel 1"),
        ([[1.0]], r"shape \(length, d_input=2\), got \(1, 1\)"),
        ("text", "expected numbers"),
    ],
)
def test_bad_channels_are_named(sample, message):
    tokenizer = ContinuousTokenizer().fit([[[1.0, 2.0], [3.0, 4.0]]])
    with pytest.raises(SampleError, match=message):
        tokenizer.encode(sample)


def test_fit_names_the_bad_training_sample_and_refuses_nothing():
    with pytest.raises(SampleError, match="sample 1: inf at position 0"):
        ContinuousTokenizer().fit([[[1.0]], [[np.inf]]])
    with pytest.raises(SampleError, match="nothing to fit on"):
        ContinuousTokenizer().fit([])


def test_a_tokenizer_without_fit_is_always_ready():
    class Bits(Tokenizer[int]):
        kind = "bits"

        def encode(self, sample):
            return Tokens(torch.tensor([int(bit) for bit in f"{sample:b}"]))

        def decode(self, tokens):
            return int("".join(map(str, tokens.values.tolist())), 2)

        def state(self):
            return {}

        @classmethod
        def from_state(cls, state):
            return cls()

    bits = Bits()
    assert bits.fit([1]) is bits
    assert bits.decode(bits.encode(13)) == 13
