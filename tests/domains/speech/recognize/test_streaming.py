"""Streams: whatever the chunks, what the whole recording gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.recognize import formats
from mambakit.domains.speech.recognize.config import DecoderConfig, RecognizeModelConfig, RecognizerConfig
from mambakit.domains.speech.recognize.decoding import DecodeConfig, Decoder, align, transcribe
from mambakit.domains.speech.recognize.endpoints import EndpointConfig, LineEnds, VoiceActivity
from mambakit.domains.speech.recognize.lines import Lines
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.pieces import quiet_pieces
from mambakit.domains.speech.recognize.reach import activity_of
from mambakit.domains.speech.recognize.search import best_path
from mambakit.domains.speech.recognize.streaming import Event, StreamBatch, StreamingRecognizer
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.recognize.words import spoken_along, spoken_in_frames

SMALL = EncoderConfig(
    d_model=16, channels=4, subsampling=2, n_layers=1, d_state=8, head_dim=8, bidirectional=False, dropout=0.0
)


# from one sample on; the bound on their mean keeps the number of calls, and so the time, small
SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=5).filter(lambda s: sum(s) > 500 * len(s))


def make(encoder: EncoderConfig = SMALL, **options) -> Recognizer:
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer().fit(["one two six"])
    shape = RecognizeModelConfig(encoder=encoder, **{"units": "characters"} | options)
    model = Recognizer(RecognizerConfig(tokenizer.n_ids, "test", shape)).eval()
    model.tokenizer = tokenizer
    with torch.no_grad():  # so that symbols and blanks come in turn
        model.head.proj.weight.mul_(6)
        model.head.proj.bias[0] += 3.0
        model.front_end.mean.fill_(-6.0)
        model.front_end.deviation.fill_(3.0)
    return model


def sound(seconds: float = 3.0, seed: int = 0) -> torch.Tensor:
    """Bursts of noise between silences."""
    generator = torch.Generator().manual_seed(seed)
    samples = 0.002 * torch.randn(int(8000 * seconds), generator=generator)
    for start in range(1500, len(samples) - 2500, 9000):
        samples[start : start + 2500] += 0.3 * torch.randn(2500, generator=generator).cumsum(0).sin()
    return samples


@pytest.fixture(scope="module")
def model() -> Recognizer:
    return make()


def pieces_of(samples: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    pieces, at, i = [], 0, 0
    while at < len(samples):
        pieces.append(samples[at : at + sizes[i % len(sizes)]])
        at += sizes[i % len(sizes)]
        i += 1
    return pieces


@given(SIZES)
@settings(max_examples=6, deadline=None)
def test_log_probabilities_and_lines_do_not_depend_on_the_chunks(model, sizes):
    samples = sound(1.6)
    whole = model.log_probabilities(samples)
    state, found = model.init_state(1), []
    for piece in [*pieces_of(samples, sizes), torch.zeros(model.n_tail)]:
        with torch.no_grad():
            said, state = model.step(piece[None], state)
        found.append(said[0])
    torch.testing.assert_close(torch.cat(found), whole, atol=1e-4, rtol=0)
    assert lines(model, samples, sizes) == lines(model, samples, [8000])


def lines(model, samples, sizes, **options) -> list[tuple]:
    listener = StreamingRecognizer(
        model, endpoints=EndpointConfig(silence_s=0.4, blank_s=0.5, longest_s=0.5), **options
    )
    events = [event for piece in pieces_of(samples, sizes) for event in listener.feed(piece)]
    events += listener.finish()
    check_order(events)
    return [
        (event.number, event.line.text, round(event.line.start_s, 6), round(event.line.end_s, 6))
        for event in events
        if event.kind == "completed"
    ]


def check_order(events):
    """Every line is started once, and completed once after it; numbers rise by one."""
    state = {}
    for event in events:
        if event.kind == "started":
            assert event.number == len(state)
            state[event.number] = "open"
        else:
            assert state[event.number] == "open"
            state[event.number] = "closed" if event.kind == "completed" else "open"
    assert set(state.values()) <= {"closed"}


def test_a_stream_says_the_symbols_of_the_best_path(model):
    samples = sound()
    whole = model.log_probabilities(samples)
    expected = model.tokenizer.text([one.id for one in spoken_along(best_path(whole), whole)])
    found = " ".join(text for _, text, _, _ in lines(model, samples, [800]))
    assert expected
    assert found.replace(" ", "") == expected.replace(" ", "")
    assert len(lines(model, samples, [800])) > 1


def test_whole_recordings_run_in_pieces_are_the_same(model, monkeypatch):
    samples = sound()
    whole = model.log_probabilities(samples)
    monkeypatch.setattr("mambakit.domains.speech.recognize.model._PIECE_S", 0.5)
    torch.testing.assert_close(model.log_probabilities(samples), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_samples", [3000, 3999, 4100])
def test_what_is_written_behind_the_end_is_of_the_end(n_samples):
    """The recording ends inside a burst; the silence behind it brings symbols, in time of the recording."""
    audio = Audio(sound(1.5)[:n_samples], 8000)
    late, cut = (transcribe(make(tail_s=tail_s), audio) for tail_s in (0.4, 0.0))
    assert late.text.startswith(cut.text)
    assert len(late.text) > len(cut.text)
    listener = StreamingRecognizer(make(tail_s=0.4))
    events = [event for piece in audio.samples.split(700) for event in listener.feed(piece)]
    events += listener.finish()
    check_order(events)
    streamed = [word for event in events if event.kind == "completed" for word in event.line.words]
    assert [word.text for word in streamed] == [word.text for word in late.words]
    for one, other in zip(streamed, late.words, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=1e-4)
        assert 0.0 <= one.start_s < one.end_s <= audio.seconds


@given(SIZES, st.lists(st.integers(0, 14), min_size=5, max_size=5))
@settings(max_examples=20, deadline=None)
def test_words_of_lines_have_the_times_that_the_whole_recording_says(model, sizes, places):
    """A word is written in two frames somewhere in each burst; chunks are frames of symbols in number."""
    samples, frames = sound(6.0), [[] for _ in range(300)]
    for burst, place in enumerate(places):
        frame = round((1500 + 9000 * burst) / 160) + place
        frames[frame], frames[frame + 1] = [(2, -0.1)], [(1, -0.1)]  # a letter and a space
    lines, said = Lines(model, EndpointConfig(), Decoder(model)), []
    at = done = 0
    for piece in pieces_of(samples, sizes):
        lines.hear(piece)
        at += len(piece)
        ready = at // model.frame_samples
        said += lines.take(torch.zeros(ready - done, 16), frames[done:ready])
        done = ready
    said += lines.finish()
    found = [event.line.words for event in said if event.kind == "completed"]
    whole = model.words(spoken_in_frames(frames, repeats=False), activity_of(samples, 8000), 6.0)
    assert [len(words) for words in found] == [1] * 5
    for (one,), other in zip(found, whole, strict=True):
        assert one.text == other.text
        assert one[1:] == pytest.approx(other[1:], abs=1e-6)
    starts = [1500 / 8000 + 9000 / 8000 * burst for burst in range(5)]
    assert [word.start_s for word in whole] == pytest.approx(starts, abs=0.05)
    assert [word.end_s for word in whole] == pytest.approx([start + 0.3125 for start in starts], abs=0.05)


def test_a_stream_of_less_than_a_frame_says_nothing(model):
    listener = StreamingRecognizer(model)
    assert listener.feed(sound(1.0)[:159]) == []
    assert listener.finish() == []


def test_samples_that_are_none_are_refused_and_no_stream_goes_on(model):
    batch = StreamBatch(model)
    good, bad = batch.join(), batch.join()
    broken = sound(0.1)
    broken[3] = torch.nan
    for wrong, error in (
        (broken, DataError),
        (sound(0.1).to(torch.int16), ValueError),
        (sound(0.1)[None], ValueError),
    ):
        with pytest.raises(error):
            batch.feed({good: sound(1.0), bad: wrong})
    with pytest.raises(KeyError):
        batch.feed({good: sound(1.0), 10**6: sound(0.1)})
    events = batch.feed({good: sound(1.0)})[good] + batch.leave(good)
    alone = StreamingRecognizer(model)
    expected = alone.feed(sound(1.0)) + alone.finish()
    assert [event.line.text for event in events] == [event.line.text for event in expected]
    assert events


def test_memory_is_flat(model):
    listener = StreamingRecognizer(model, endpoints=EndpointConfig(longest_s=1.0, blank_s=0.5))
    sizes = set()
    for _ in range(20):
        listener.feed(sound(1.0))
        sizes.add(listener.nbytes)
        assert listener.n_held * model.frame_s <= 2.0 + 1e-6
    assert len(sizes) == 1


@pytest.mark.parametrize(("network", "both"), [("mamba", True), ("bigru", True), ("mamba", False)])
def test_rows_of_a_padded_batch_are_as_alone(network, both):
    model = make(dataclasses.replace(SMALL, bidirectional=both), network=network)
    rows = [sound(1.0, 1), sound(0.53, 2)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    padded[1, len(rows[1]) :] = 100.0
    with torch.no_grad():
        said, lengths = model(padded, torch.tensor([len(row) for row in rows]))
    for i, row in enumerate(rows):
        torch.testing.assert_close(said[i, : lengths[i]], model.log_probabilities(row), atol=1e-4, rtol=1e-4)
    assert lengths.tolist() == [(8000 + model.n_tail) // 160, (4240 + model.n_tail) // 160]
    assert model.causal != both
    if both:
        assert model.n_tail == 0
        with pytest.raises(UsageError, match="it reads both ways, so it can't stream"):
            StreamingRecognizer(model)


def test_baseline_has_about_as_many_parameters():
    sizes = [
        sum(p.numel() for p in make(EncoderConfig(), network=network).parameters())
        for network in ("mamba", "bigru")
    ]
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[0]


def test_saved_models_say_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = Recognizer.from_pretrained(tmp_path).eval()
    assert transcribe(again, Audio(sound(), 8000)) == transcribe(model, Audio(sound(), 8000))
    assert again.tokenizer.pieces == model.tokenizer.pieces


def test_alignment_keeps_the_words_in_order(model, tmp_path):
    audio = Audio(sound(2.0), 8000)
    found = align(model, audio, "Two one  six")
    assert [word.text for word in found.words] == ["two", "one", "six"]
    edges = [edge for word in found.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert edges[-1] <= 2.0
    formats.write_transcript(found, tmp_path / "x.TextGrid")
    assert 'text = "six"' in (tmp_path / "x.TextGrid").read_text()
    with pytest.raises(DataError, match="text: the model knows no 'z', 'r'"):
        align(model, audio, "zero")
    with pytest.raises(DataError, match="the text needs 60 frames"):
        align(model, Audio(sound(0.5), 8000), "sixone" * 10)
    with pytest.raises(DataError, match="too short"):
        transcribe(model, Audio(torch.zeros(100), 8000))


def test_beam_never_says_a_less_likely_text(model):
    audio = Audio(sound(1.0), 8000)
    vectors = model.vectors_of(audio.samples)
    for config in (DecodeConfig(beam=8), DecodeConfig()):
        symbols = Decoder(model, config)(vectors)
        assert all(0 <= one.begin < one.end <= len(vectors) for one in symbols)
    with pytest.raises(UsageError, match=r"have no effect with --decode\.beam 1"):
        DecodeConfig(hotwords=["one"])


@given(SIZES)
@settings(max_examples=10, deadline=None)
def test_voice_activity_finds_the_bursts_in_chunks_of_any_size(sizes):
    samples = sound()
    listener = VoiceActivity(8000, EndpointConfig())
    found = [one for piece in pieces_of(samples, sizes) for one in listener(piece)]
    assert found == VoiceActivity(8000, EndpointConfig())(samples)
    inside = [
        any(s + 160 <= i * 160 and i * 160 + 160 <= s + 2500 for s in (1500, 10500, 19500))
        for i in range(150)
    ]
    assert sum(a and b for a, b in zip(found, inside, strict=True)) > 0.9 * sum(inside)
    assert sum(a and not b for a, b in zip(found, inside, strict=True)) < 12


def test_a_line_ends_after_silence_not_before_a_word():
    ends = LineEnds(0.02, 0.02, EndpointConfig(silence_s=0.1, blank_s=9))
    ends.hear([False] * 100)
    assert not any(ends.over(i, None, -1, True) for i in range(20))
    over = [ends.over(i, 20, 22, True) for i in range(20, 40)]
    assert over.index(True) == 7  # 0.1 s after the last symbol


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3000)), min_size=4, max_size=9))
@settings(max_examples=5, deadline=None)
def test_streams_that_come_and_go_together_say_what_each_says_alone(model, moves):
    """A move feeds so many samples to all streams; kind 1 joins one before, kind 2 has the first leave."""
    endpoints = EndpointConfig(silence_s=0.4, blank_s=0.5, longest_s=0.5)
    batch = StreamBatch(model, endpoints=endpoints)
    fed: dict[int, list[torch.Tensor]] = {}
    said: dict[int, list[Event]] = {}
    gone: set[int] = set()
    for kind, size in [(1, 100), *moves, (1, 4000), (0, 5000)]:
        here = [one for one in fed if one not in gone]
        if kind == 2 and here:
            said[here[0]] += batch.leave(here[0])
            gone.add(here[0])
        if kind == 1:
            new = batch.join()
            fed[new], said[new] = [], []
        pieces = {}
        for one in fed:
            if one not in gone:
                at = sum(map(len, fed[one]))
                pieces[one] = sound(4.0, seed=one)[at : at + size + 37 * one]
                fed[one].append(pieces[one])
        for one, events in batch.feed(pieces).items():
            said[one] += events
    for one in fed:
        if one not in gone:
            said[one] += batch.leave(one)
        alone = StreamingRecognizer(model, endpoints=endpoints)
        expected = [event for piece in fed[one] for event in alone.feed(piece)] + alone.finish()
        assert [event.plain() | {"words": None} for event in said[one]] == [
            event.plain() | {"words": None} for event in expected
        ]
    assert len(batch) == 0


@pytest.mark.parametrize("head", ["rnnt", "attention"])
def test_other_heads_stream_or_say_why_not(head, tmp_path, monkeypatch):
    small = DecoderConfig(d_model=16, d_state=8, head_dim=8, dropout=0.0)
    model = make(head=head, decoder=small)
    audio = Audio(sound(2.0), 8000)
    model.save_pretrained(tmp_path)
    again = Recognizer.from_pretrained(tmp_path).eval()
    assert transcribe(again, audio) == transcribe(model, audio)
    if head == "attention":
        with pytest.raises(UsageError, match="its attention decoder looks at the whole recording"):
            StreamingRecognizer(model)
        for beam in (1, 4):
            words = transcribe(model, audio, Decoder(model, DecodeConfig(beam=beam))).words
            assert [word.start_s for word in words] == sorted(word.start_s for word in words)
        monkeypatch.setattr("mambakit.domains.speech.recognize.pieces.LONGEST_S", 0.5)
        vectors = model.vectors_of(audio.samples)
        decoder = Decoder(model, DecodeConfig(beam=2))
        whole = [one for one in decoder(vectors) if model.tokenizer.pieces[one.id] != " "]
        apart = []
        for begin, end in quiet_pieces(model.head(vectors), model.frame_s):
            for one in decoder(vectors[begin:end]):
                if model.tokenizer.pieces[one.id] != " ":
                    apart.append((one.id, one.begin + begin))
        assert len({begin for begin, _ in quiet_pieces(model.head(vectors), model.frame_s)}) > 3
        assert [(one.id, one.begin) for one in whole] == apart
        return
    with torch.no_grad():
        model.decoder.out.weight.mul_(8)
        model.decoder.out.bias[0] += 2.5
    whole, _ = model.said(model.vectors_of(audio.samples)[None], model.said_before(1))
    expected = model.tokenizer.text([symbol for frame in whole[0] for symbol, _ in frame])
    assert len(expected) > 3
    streamed = [lines(model, audio.samples, sizes) for sizes in ([800], [8000], [517, 1204])]
    assert streamed[0] == streamed[1] == streamed[2]
    assert "".join(text for _, text, _, _ in streamed[0]).replace(" ", "") == expected.replace(" ", "")
    assert transcribe(model, audio).text.replace(" ", "").replace("\n", "") == expected.replace(" ", "")
    batch = StreamBatch(model, endpoints=EndpointConfig(silence_s=0.4, blank_s=0.5, longest_s=0.5))
    other, ours = batch.join(), batch.join()
    events: list[Event] = []
    for piece in audio.samples.split(1000):
        events += batch.feed({other: sound(0.1, seed=5), ours: piece})[ours]
    batch.leave(other)
    events += batch.leave(ours)
    assert [one.line.text for one in events if one.kind == "completed"] == [one[1] for one in streamed[0]]
    beamed = lines(model, audio.samples, [3000], decode=DecodeConfig(beam=3))
    assert beamed == lines(model, audio.samples, [1111], decode=DecodeConfig(beam=3))
