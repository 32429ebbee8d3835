"""Search over CTC's paths, forced alignment and the transducer's loss, against enumeration."""

from __future__ import annotations

import itertools
import math
import weakref
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.core.heads import CTCHead
from mambakit.domains.speech.recognize.alignment import forced_alignment, frames_needed
from mambakit.domains.speech.recognize.fusion import Fusion, check_hotwords
from mambakit.domains.speech.recognize.ngram import END, NgramModel
from mambakit.domains.speech.recognize.prefixes import Prefixes
from mambakit.domains.speech.recognize.search import PrefixBeam, beam_search
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.recognize.transducer import transducer_loss

PIECES = ["", "a", "b", " "]


def emissions(n_frames: int, n_symbols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n_frames, n_symbols, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def paths(log_probabilities: torch.Tensor) -> list[tuple[tuple[int, ...], float]]:
    n_frames, n_symbols = log_probabilities.shape
    rows = log_probabilities.tolist()
    return [
        (path, sum(row[symbol] for row, symbol in zip(rows, path, strict=True)))
        for path in itertools.product(range(n_symbols), repeat=n_frames)
    ]


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_wide_beam_sums_every_path_of_a_text(n_frames, seed):
    given_ = emissions(n_frames, 3, seed)
    sums: dict[tuple[int, ...], float] = {}
    for path, value in paths(given_):
        sums[collapsed(path)] = sums.get(collapsed(path), 0.0) + math.exp(value)
    beam = PrefixBeam(PIECES, width=1000, least=-math.inf)
    beam.feed(given_)
    found = beam.hypotheses()
    best = max(sums, key=lambda text: sums[text])
    assert tuple(found[0].ids) == best
    for one in found:
        assert math.exp(one.log_probability) == pytest.approx(sums[tuple(one.ids)], rel=1e-9)


class Held:
    """A language model of characters whose places can be counted; ab is likelier than ba."""

    unit = "characters"
    start = ""

    def __init__(self) -> None:
        self.places: weakref.WeakSet[Held.Place] = weakref.WeakSet()

    class Place(str):
        """A text."""

    def scored(self, item, place):
        after = Held.Place(place + item)
        self.places.add(after)
        return (-0.5 if (place[-1:], item) == ("a", "b") else -1.5), after


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_what_is_held_of_texts_does_not_grow_and_changes_nothing(seed, width):
    given_ = emissions(60, 4, seed)
    lm = Held()
    beam = PrefixBeam(PIECES, width=width, fusion=Fusion(lm))
    beam.feed(given_)
    assert len(lm.places) <= 2 * width
    with patch.object(Prefixes, "forget"):
        holding = PrefixBeam(PIECES, width=width, fusion=Fusion(Held()))
        holding.feed(given_)
    assert beam.hypotheses() == holding.hypotheses()


def test_beam_is_the_same_in_pieces():
    given_ = emissions(30, 4, 3)
    whole = beam_search(given_, PIECES, width=6)
    beam = PrefixBeam(PIECES, width=6)
    for piece in given_.split([7, 1, 12, 10]):
        beam.feed(piece)
    assert beam.hypotheses() == whole


@given(st.integers(1, 6), st.lists(st.integers(1, 2), max_size=3), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_alignment_is_the_best_of_all_paths(n_frames, ids, seed):
    given_ = emissions(n_frames, 3, seed)
    if frames_needed(ids) > n_frames:
        with pytest.raises(DataError, match=f"needs {frames_needed(ids)} frames .* the audio has {n_frames}"):
            forced_alignment(given_, ids)
        return
    best, value = max(
        (entry for entry in paths(given_) if collapsed(entry[0]) == tuple(ids)), key=lambda entry: entry[1]
    )
    found = forced_alignment(given_, ids)
    assert tuple(found.path.tolist()) == best
    assert found.log_probability == pytest.approx(value, rel=1e-9)
    said = [ids[i] if i >= 0 else 0 for i in found.token.tolist()]
    assert said == found.path.tolist()


def test_alignment_equals_torchaudio():
    from mambakit.core.torchaudio_parts import has_extension, torchaudio

    if not has_extension():
        pytest.skip("torchaudio's compiled library does not load here")
    for seed in range(20):
        given_ = emissions(40, 6, seed).float()
        ids = torch.randint(1, 6, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        path, scores = torchaudio().functional.forced_align(given_[None], torch.tensor([ids]))
        found = forced_alignment(given_, ids)
        assert found.path.tolist() == path[0].tolist()
        assert found.log_probability == pytest.approx(float(scores.sum()), rel=1e-5)


def brute_transducer(log_probabilities: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Over every order of T blanks and U symbols that ends in a blank."""
    n_frames, n_symbols = len(log_probabilities), len(ids)
    totals = []
    for places in itertools.combinations(range(n_frames + n_symbols - 1), n_symbols):
        t = u = 0
        total = log_probabilities.new_zeros(())
        for step in range(n_frames + n_symbols):
            if step in places:
                total = total + log_probabilities[t, u, ids[u]]
                u += 1
            else:
                total = total + log_probabilities[t, u, 0]
                t += 1
        totals.append(total)
    return -torch.stack(totals).logsumexp(0)


def test_transducer_loss_and_gradient_equal_enumeration():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 2, 1], [2, 2, 0], [0, 0, 0]])
    lengths, target_lengths = torch.tensor([4, 3, 1]), torch.tensor([3, 2, 0])
    loss = transducer_loss(logits.log_softmax(-1), targets, lengths, target_lengths)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    slow = torch.stack(
        [
            brute_transducer(logits[i, :t, : u + 1].log_softmax(-1), targets[i, :u].tolist())
            for i, (t, u) in enumerate(zip(lengths.tolist(), target_lengths.tolist(), strict=True))
        ]
    )
    (expected,) = torch.autograd.grad(slow.sum(), logits)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ValueError, match=r"lengths: expected values in 1\.\.4, got"):
        transducer_loss(logits, targets, torch.tensor([5, 1, 1]), target_lengths)


def test_transducer_loss_has_finite_gradients_on_long_rows():
    logits = torch.randn(2, 60, 21, 8, requires_grad=True)
    loss = transducer_loss(
        logits.log_softmax(-1),
        torch.ones(2, 20, dtype=torch.int64),
        torch.tensor([60, 10]),
        torch.tensor([20, 3]),
    )
    loss.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((loss > 0).all())
    assert not bool(logits.grad[1, 10:].any())
    assert not bool(logits.grad[1, :, 4:].any())


def test_ngram_probabilities_sum_to_one_and_follow_witten_bell():
    model = NgramModel(2).fit(["a b", "a c", "a b"])
    for history in ((), ("a",), ("b",), ("unseen",)):
        words = [*model.vocabulary, "never seen"]
        assert sum(math.exp(model.log_probability(word, history)) for word in words) == pytest.approx(1.0)
    lower = (2 + 4 * (1 / 5)) / (9 + 4)  # b: 2 of 9 words, 4 kinds, spread over them and one more
    assert math.exp(model.log_probability("b", ("a",))) == pytest.approx((2 + 2 * lower) / (3 + 2))
    assert model.perplexity(["a b"]) < model.perplexity(["c a"])


def test_language_model_round_trip(tmp_path):
    model = NgramModel(3, "characters").fit(["one two", "two one"])
    model.save(tmp_path / "lm.json")
    again = NgramModel.load(tmp_path / "lm.json")
    assert again.log_probability("e", ("o", "n")) == model.log_probability("e", ("o", "n"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json is no saved language model"):
        NgramModel.load(tmp_path / "bad.json")


def test_language_model_and_hotwords_decide_between_like_sounds():
    pieces = ["", " ", "a", "b", "c"]
    given_ = torch.full((5, 5), -20.0, dtype=torch.float64)
    given_[0, 2], given_[1, 1], given_[2, 2], given_[4, 0] = 0.0, 0.0, 0.0, 0.0
    given_[3, 3], given_[3, 4] = math.log(0.6), math.log(0.4)

    def best(fusion):
        return "".join(pieces[i] for i in beam_search(given_, pieces, fusion=fusion)[0].ids)

    assert best(None) == "a ab"
    assert best(Fusion(NgramModel(2).fit(["a ac"] * 3))) == "a ac"
    assert best(Fusion(NgramModel(3, "characters").fit(["a ac"] * 3))) == "a ac"
    assert best(Fusion(hotwords=["A AC"], hotword_boost=2.0)) == "a ac"
    assert best(Fusion(hotwords=["ac"], hotword_boost=0.1)) == "a ab"
    assert best(Fusion(hotwords=["b ac"], hotword_boost=2.0)) == "a ab"


@given(st.lists(st.sampled_from(["ab", "a", "ba", "b"]), min_size=1, max_size=5))
def test_scores_piece_by_piece_are_those_of_the_words(words):
    lm = NgramModel(2).fit(["ab a", "ba b ab"])
    fusion = Fusion(lm, lm_weight=0.7, word_bonus=0.3, hotwords=["ab a"], hotword_boost=2.0)
    state = fusion.start()
    for piece in " ".join(words):
        state = fusion.extended(state, piece)
    line = ["<s>", *words, END]
    expected = sum(0.7 * lm.log_probability(b, (a,)) for a, b in itertools.pairwise(line)) + 0.3 * len(words)
    expected += 2.0 * sum(pair == ("ab", "a") for pair in itertools.pairwise(words))
    assert fusion.finished(state).score == pytest.approx(expected)


def test_a_hotword_that_can_not_be_written_is_refused():
    tokenizer = CharacterTokenizer().fit(["one two"])
    check_hotwords(tokenizer, ["two", "One"])
    with pytest.raises(UsageError, match="hotwords: 'six' can't be written: the model knows no 's'"):
        check_hotwords(tokenizer, ["six"])


def test_ctc_loss_of_the_head_is_minus_the_sum_of_paths():
    given_ = emissions(4, 3, 1).float()
    total = sum(math.exp(value) for path, value in paths(given_) if collapsed(path) == (1, 2))
    head = CTCHead(d_model=1, n_classes=3)
    loss = head.loss(given_[None], torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2]))
    assert float(loss) == pytest.approx(-math.log(total) / 2, rel=1e-5)
