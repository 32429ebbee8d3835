"""Transducer and attention decoders against enumeration; what they say in pieces and in batches."""

from __future__ import annotations

import itertools
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mambakit.core.errors import UsageError
from mambakit.core.heads import CTCHead
from mambakit.core.state import State
from mambakit.domains.speech.recognize.attention import END_ID, AttentionDecoder
from mambakit.domains.speech.recognize.attention_search import CtcPrefixes, attention_search
from mambakit.domains.speech.recognize.config import DecoderConfig, RecognizeModelConfig
from mambakit.domains.speech.recognize.fusion import Fusion
from mambakit.domains.speech.recognize.ngram import NgramModel
from mambakit.domains.speech.recognize.pieces import quiet_pieces
from mambakit.domains.speech.recognize.predictor import Transducer
from mambakit.domains.speech.recognize.prefixes import Prefix, Prefixes
from mambakit.domains.speech.recognize.transducer import transducer_loss
from mambakit.domains.speech.recognize.transducer_search import TransducerBeam

SMALL = DecoderConfig(d_model=8, n_layers=2, d_state=4, head_dim=4, n_heads=2, dropout=0.0)
PIECES = ["", "a", "b", " "]


def make(kind: type[nn.Module], n_ids: int = 3, seed: int = 0, scale: float = 4.0):
    torch.manual_seed(seed)
    model = kind(6, n_ids, SMALL).double().eval()
    with torch.no_grad():
        model.out.weight.mul_(scale)  # far from even, so that texts differ
    return model


def vectors(n_frames: int, seed: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n_frames, 6, generator=generator, dtype=torch.float64)


@given(st.integers(1, 2), st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_wide_transducer_beam_sums_every_alignment_of_a_text(n_frames, seed):
    model, x = make(Transducer, seed=seed % 5), vectors(n_frames, seed)
    beam = TransducerBeam(model, PIECES, width=40, least=-math.inf)
    with patch("mambakit.domains.speech.recognize.transducer_search.MOST_A_FRAME", 2):  # 31 texts at most
        beam.feed(x[0])
    found = {tuple(one.ids): one.log_probability for one in beam.hypotheses()}
    for ids in [(), (1,), (2,), (1, 2), (2, 2)]:  # as long as may be written in a single frame
        with torch.no_grad():
            logits = model(x, torch.tensor([ids], dtype=torch.int64))
            loss = transducer_loss(
                logits.log_softmax(-1),
                torch.tensor([ids], dtype=torch.int64),
                torch.tensor([n_frames]),
                torch.tensor([len(ids)]),
            )
        assert found[ids] == pytest.approx(-float(loss), rel=1e-9)
    assert sum(math.exp(value) for value in found.values()) <= 1 + 1e-9


class AtOnce(Transducer):
    """Waits for the last of five frames, and writes six symbols in it; the joiner's text is their number."""

    def init_state(self, batch: int) -> State:
        return State.of(text=torch.zeros(batch, 1, dtype=torch.float64))

    def advance(self, ids: torch.Tensor, state: State) -> State:
        return State.of(text=state["text"] + 1)

    def log_probabilities(self, sound: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        sound, text = torch.broadcast_tensors(sound[..., :1], text)
        wanted = torch.where((sound[..., 0] == 4) & (text[..., 0] < 6), text[..., 0].long() % 2 + 1, 0)
        return torch.where(torch.nn.functional.one_hot(wanted, 3).bool(), 0.9, 0.05).log()


def test_a_word_that_is_written_at_once_is_not_cut():
    model = AtOnce(6, 3, SMALL)
    model.of_sound = nn.Identity()
    x = torch.arange(5.0, dtype=torch.float64)[:, None].expand(5, 6)
    beam = TransducerBeam(model, PIECES, width=4)
    beam.feed(x)
    said, _ = model.greedy(x[None], model.init_state(1))
    assert [symbol for symbol, _ in said[0][4]] == beam.hypotheses()[0].ids == [1, 2, 1, 2, 1, 2]


def test_transducer_beam_in_pieces_its_symbols_in_order_and_fusion():
    model, x = make(Transducer, n_ids=4), vectors(20, 1)[0]
    whole, pieces = (TransducerBeam(model, PIECES, width=5) for _ in range(2))
    whole.feed(x)
    for piece in x.split([3, 0, 9, 8]):
        pieces.feed(piece)
    assert pieces.hypotheses() == whole.hypotheses()
    best = whole.best()
    assert [one.id for one in best] == whole.hypotheses()[0].ids
    assert [one.begin for one in best] == sorted(one.begin for one in best)
    weighed = TransducerBeam(
        model, PIECES, width=5, fusion=Fusion(NgramModel(2, "characters").fit(["bbbb"] * 9), lm_weight=3.0)
    )
    weighed.feed(x)

    def share(beam: TransducerBeam) -> float:
        ids = beam.hypotheses()[0].ids
        return ids.count(2) / max(1, len(ids))

    assert share(weighed) > share(whole)
    with patch.object(Prefixes, "forget"):
        holding = TransducerBeam(model, PIECES, width=5)
        holding.feed(x)
    for one, other in zip(whole.hypotheses(), holding.hypotheses(), strict=True):
        assert one.ids == other.ids
        assert one.score == pytest.approx(other.score, abs=1e-9)
    assert holders(whole) <= 5 < holders(holding)


def holders(beam: TransducerBeam) -> int:
    """Texts of which a network's state is held, among all that the beam's grow from."""
    seen = {id(at): at for one in beam._beam for at in line_of(one)}
    return sum(one.state is not None for one in seen.values())


def line_of(prefix: Prefix | None) -> list[Prefix]:
    return [] if prefix is None else [prefix, *line_of(prefix.before)]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 100))
@settings(max_examples=4, deadline=None)
def test_transducer_says_the_same_in_pieces_and_beside_others(sizes, seed):
    model = make(Transducer, n_ids=4, scale=8.0)
    with torch.no_grad():
        model.out.bias[0] += 3.0  # blanks between the symbols
    x = vectors(sum(sizes), seed, batch=3)
    whole, _ = model.greedy(x, model.init_state(3))
    for row in range(3):
        state, said = model.init_state(1), []
        for piece in x[row : row + 1].split(sizes, 1):
            new, state = model.greedy(piece, state)
            said += new[0]
        assert [[symbol for symbol, _ in frame] for frame in said] == [
            [symbol for symbol, _ in frame] for frame in whole[row]
        ]
    lengths = torch.tensor([sum(sizes), 0, sum(sizes) // 2])
    alone = [[symbol for frame in whole[i][: lengths[i]] for symbol, _ in frame] for i in range(3)]
    assert model.written(x, lengths) == alone


def test_attention_step_by_step_and_with_padding_is_the_whole():
    model, x = make(AttentionDecoder, n_ids=5), vectors(9, 3, batch=2)
    ids = torch.tensor([[0, 3, 1, 4], [0, 2, 2, 1]])
    lengths = torch.tensor([9, 5])
    with torch.no_grad():
        whole, _ = model(ids, model.memory(x, lengths))
        alone, _ = model(ids[1:], model.memory(x[1:, :5], lengths[1:]))
        x[1, 5:] = 1e3
        padded, _ = model(ids, model.memory(x, lengths))
        state: State | None = None
        steps = []
        for column in ids.split(1, 1):
            said, state = model(column, model.memory(x, lengths), state)
            steps.append(said)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    torch.testing.assert_close(padded, whole)
    torch.testing.assert_close(whole[1:], alone)


def brute_attention(model: AttentionDecoder, x: torch.Tensor, ids: tuple[int, ...]) -> float:
    given_ = torch.tensor([[END_ID, *ids]])
    with torch.no_grad():
        said, _ = model(given_, model.memory(x[None], torch.tensor([len(x)])))
    return sum(float(said[0, i, symbol]) for i, symbol in enumerate([*ids, END_ID]))


def brute_ctc(log_probabilities: torch.Tensor) -> dict[tuple[int, ...], float]:
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probabilities.shape[1]), repeat=len(log_probabilities)):
        text = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)
        value = sum(float(log_probabilities[t, symbol]) for t, symbol in enumerate(path))
        sums[text] = sums.get(text, 0.0) + math.exp(value)
    return sums


@given(st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_ctc_prefixes_sum_every_text_that_begins_so(n_frames, seed):
    given_ = (2 * vectors(n_frames, seed)[0, :, :3]).log_softmax(-1)
    sums = brute_ctc(given_)
    scorer = CtcPrefixes(given_)
    ends = {(): scorer.start()[0]}
    for text in [(), (1,), (2,), (1, 1), (2, 1)]:
        last = torch.tensor([text[-1] if text else 0])
        values, longer = scorer.extended(ends[text][None], last)
        assert math.exp(values[0, 0]) == pytest.approx(sums.get(text, 0.0), abs=1e-12)
        for symbol in (1, 2):
            begun = (*text, symbol)
            ends[begun] = longer[0, symbol]
            expected = sum(value for other, value in sums.items() if other[: len(begun)] == begun)
            assert math.exp(values[0, symbol]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
def test_wide_attention_search_finds_the_best_of_all_texts(ctc_weight):
    for seed in range(3):
        model, x = make(AttentionDecoder, seed=seed), vectors(4, seed)[0]
        given_ = (2 * vectors(4, seed + 9)[0, :, :3]).log_softmax(-1)
        scores = {
            text: (1 - ctc_weight) * brute_attention(model, x, text) + ctc_weight * math.log(value)
            for text, value in brute_ctc(given_).items()
        }
        found = attention_search(model, x, given_, PIECES, width=40, ctc_weight=ctc_weight)
        best = max(scores, key=lambda text: scores[text])
        assert tuple(found[0].ids) == best
        for one in found:
            assert one.log_probability == pytest.approx(scores[tuple(one.ids)], rel=1e-9)


@pytest.mark.parametrize("kind", [Transducer, AttentionDecoder])
def test_decoders_learn_to_write(kind):
    torch.manual_seed(0)
    texts = torch.tensor([[1, 2, 3], [3, 3, 1], [2, 1, 0]])
    counts = torch.tensor([3, 3, 2])
    lengths = torch.tensor([9, 9, 6])
    x = torch.nn.functional.one_hot(texts.repeat_interleave(3, 1), 6).float()
    model = kind(6, 4, DecoderConfig(d_model=16, n_layers=1, d_state=8, head_dim=8, n_heads=2, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = model.loss(x, lengths, texts, counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert model.eval().written(x, lengths) == [[1, 2, 3], [3, 3, 1], [2, 1]]


@given(st.integers(0, 900), st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_pieces_are_all_frames_and_end_where_it_is_quiet(n_frames, seed):
    frame_s, generator = 0.1, torch.Generator().manual_seed(seed)
    speaks = torch.rand(n_frames // 10 + 1, generator=generator).repeat_interleave(10)[:n_frames] > 0.3
    given_ = torch.where(speaks[:, None], torch.tensor([0.1, 0.9]), torch.tensor([0.99, 0.01])).log()
    found = quiet_pieces(given_, frame_s)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == n_frames
    for begin, end in found[:-1]:
        assert 100 <= end - begin <= 200
        assert not speaks[end] or bool(speaks[begin + 100 : begin + 200].all())
    assert found[-1][1] - found[-1][0] <= 200


def test_configs_are_checked():
    with pytest.raises(UsageError, match="head: expected ctc or rnnt or attention, got 'rnn'"):
        RecognizeModelConfig(head="rnn")
    with pytest.raises(UsageError, match="ctc_weight: expected a share between 0 and 1, got 1"):
        RecognizeModelConfig(ctc_weight=1.0)
    with pytest.raises(UsageError, match="n_heads: d_model, 64, is no multiple of 5"):
        DecoderConfig(n_heads=5)
    with pytest.raises(UsageError, match="block: bidirectional looks at what comes later"):
        DecoderConfig(block="bidirectional")
    with pytest.raises(UsageError, match=r"block: .*'mamba9'"):
        DecoderConfig(block="mamba9")
    assert CTCHead(d_model=1, n_classes=2).blank == END_ID


def test_the_loss_is_torchaudios_where_that_can_be_called(monkeypatch):
    from mambakit.core.torchaudio_parts import has_extension, torchaudio
    from mambakit.domains.speech.recognize import torchaudio_loss

    logits = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))  # padded beyond every row
    given_ = (torch.tensor([[1, 2, 3, 0], [2, 2, 0, 0]]), torch.tensor([5, 3]), torch.tensor([3, 2]))
    plain = transducer_loss(logits.log_softmax(-1), *given_)
    torch.testing.assert_close(torchaudio_loss.rnnt_loss(logits, *given_), plain, rtol=1e-4, atol=1e-4)
    if has_extension():
        return

    def compiled(logits, targets, logit_lengths, target_lengths, blank, reduction):
        """As torchaudio checks its arguments, and without them mixed up."""
        ints = (targets, logit_lengths, target_lengths)
        assert all(one.dtype == torch.int32 and one.is_contiguous() for one in ints)
        assert logits.shape[1] == logit_lengths.max()
        assert logits.shape[2] == target_lengths.max() + 1
        assert (blank, reduction) == (0, "none")
        return transducer_loss(logits.log_softmax(-1), targets.long(), logit_lengths, target_lengths) + 1

    monkeypatch.setattr(torchaudio_loss, "has_extension", lambda: True)
    monkeypatch.setattr(torchaudio().functional, "rnnt_loss", compiled)
    torch.testing.assert_close(torchaudio_loss.rnnt_loss(logits, *given_), plain + 1)
    double = torchaudio_loss.rnnt_loss(logits.double(), *given_)  # which torchaudio has no kernel for
    torch.testing.assert_close(double, plain.double())
