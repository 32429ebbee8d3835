"""Streams of documents, and truncated back-propagation over them."""

from __future__ import annotations

import itertools
import json
import pickle

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.training import CarriedState, DocumentStreams, Piece, begin_rows

N_IDS = 7


def documents(lengths: list[int]) -> list[Tensor]:
    """Every token of the corpus is another number, so that it can be told where it went."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [torch.arange(a, b) for a, b in itertools.pairwise(bounds)]


def model(*layers: str, learned: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    options = {"mamba2": {"head_dim": 4, "d_state": 4}, "attention": {"n_heads": 2}, "mamba1": {"d_state": 4}}
    options |= {
        "conv_attention": {"n_heads": 2},
        "sliding_attention": {"n_heads": 2, "window": 3},
        "zamba": {"n_heads": 2, "inner_options": {"d_state": 4}},
    }
    config = BackboneConfig(
        8,
        list(layers),
        block_options={kind: options.get(kind, {}) for kind in layers},
        learn_initial_state=learned,
    )
    module = LanguageModel(LanguageModelConfig(N_IDS, config)).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".initial." in name:
                parameter.normal_()
            if name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.add_(3.0)
    return module


def stitch(pieces: list[Piece]) -> list[list[int]]:
    """The documents as they went through each stream, as far as they went."""
    found: list[list[int]] = []
    n_streams = len(pieces[0].values)
    for row in range(n_streams):
        current: list[int] = []
        for piece in pieces:
            if piece.fresh[row] and current:
                found.append(current)
                current = []
            last = 0
            for t, value in enumerate(piece.values[row].tolist()):
                if int(piece.seq_idx[row, t]) != last:
                    found.append(current)
                    current, last = [], int(piece.seq_idx[row, t])
                current.append(value)
        found.append(current)
    return [document for document in found if document and any(document)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda n: sum(n) > 0),
    n_streams=st.integers(1, 4),
    piece_length=st.integers(1, 6),
)
def test_one_pass_gives_every_token_once(lengths: list[int], n_streams: int, piece_length: int) -> None:
    docs = [document + 1 for document in documents(lengths)]  # no zero, which stands for nothing
    streams = DocumentStreams(docs, n_streams=n_streams, piece_length=piece_length, one_pass=True)
    pieces = list(streams)
    assert len(pieces) == len(streams)
    values = torch.cat([piece.values.flatten() for piece in pieces])
    assert sorted(values[values > 0].tolist()) == list(range(1, sum(lengths) + 1))
    # documents are whole, in their order, and each token's target is what follows it in its document
    assert sorted(token for d in stitch(pieces) for token in d if token) == list(range(1, sum(lengths) + 1))
    wanted = [document.tolist() for document in docs if len(document)]
    assert sorted([t for t in d if t] for d in stitch(pieces)) == wanted
    ends = {document[-1].item() for document in docs if len(document)}
    for piece in pieces:
        has = (piece.values > 0) & ~torch.isin(piece.values, torch.tensor(list(ends)))
        assert torch.equal(piece.mask, has)
        assert torch.equal(piece.targets[has], piece.values[has] + 1)
        assert not piece.targets[~has].any()
    assert [p.values.tolist() for p in streams] == [p.values.tolist() for p in pieces]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda n: sum(n) > 0),
    n_streams=st.integers(1, 3),
    piece_length=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_endless_streams_are_full_and_begin_documents_at_their_start(
    lengths: list[int], n_streams: int, piece_length: int, seed: int
) -> None:
    docs = documents(lengths)
    streams = DocumentStreams(docs, n_streams=n_streams, piece_length=piece_length, seed=seed)
    pieces = [piece for _ in range(3) for piece in streams]
    assert len(pieces) == 3 * len(streams)
    assert pieces[0].fresh.all()
    firsts = {document[0].item() for document in docs if len(document)}
    lasts = {document[-1].item() for document in docs if len(document)}
    for row in range(n_streams):
        values = torch.cat([piece.values[row] for piece in pieces]).tolist()
        begins = []
        for piece in pieces:
            change = torch.ones(piece_length, dtype=torch.bool)
            change[1:] = piece.seq_idx[row, 1:] != piece.seq_idx[row, :-1]
            change[0] = piece.fresh[row]
            begins += change.tolist()
        for t, (value, begin) in enumerate(zip(values, begins, strict=True)):
            if begin:
                assert value in firsts
                assert t == 0 or values[t - 1] in lasts
            else:
                assert value == values[t - 1] + 1


def test_every_order_holds_every_document() -> None:
    streams = DocumentStreams(documents([3] * 10), n_streams=1, piece_length=30, seed=3)
    epochs = [next(p.values[0].tolist() for p in streams) for _ in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = DocumentStreams(documents([3] * 10), n_streams=1, piece_length=30, seed=3)
    assert [next(p.values[0].tolist() for p in again) for _ in range(3)] == epochs
    other = DocumentStreams(documents([3] * 10), n_streams=1, piece_length=30, seed=4)
    assert next(iter(other)).values[0].tolist() != epochs[0]


@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_resumed_streams_go_on(after: int) -> None:
    def make() -> DocumentStreams:
        return DocumentStreams(documents([5, 9, 1, 4, 7]), n_streams=2, piece_length=3, seed=1)

    whole = make()
    expected = [piece for _ in range(4) for piece in whole]
    begun = make()
    seen = []
    while len(seen) < after:
        for piece in begun:
            seen.append(piece)
            if len(seen) == after:
                break
    resumed = pickle.loads(pickle.dumps(make()))
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    for streams in (resumed, pickle.loads(pickle.dumps(begun))):
        rest: list[Piece] = []
        while after + len(rest) < len(expected):
            rest += streams
        for a, e in zip(rest, expected[after:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, e, strict=True))


def test_pairs_of_real_numbers_and_a_worker() -> None:
    docs = [(torch.randn(n, 2), torch.randn(n)) for n in (4, 3)]
    streams = DocumentStreams(docs, n_streams=1, piece_length=7, one_pass=True)
    for pieces in (streams, DataLoader(streams, batch_size=None, num_workers=1)):
        (piece,) = pieces
        assert torch.equal(piece.values[0], torch.cat([docs[0][0], docs[1][0]]))
        assert torch.equal(piece.targets[0], torch.cat([docs[0][1], docs[1][1]]))
        assert piece.mask.all()


@pytest.mark.slow  # torch waits ten seconds for the workers that raised
def test_several_workers_are_refused() -> None:
    streams = DocumentStreams(documents([4, 3]), n_streams=1, piece_length=7, one_pass=True)
    with pytest.raises(RuntimeError, match="num_workers: pieces of a stream follow each other"):
        list(DataLoader(streams, batch_size=None, num_workers=2))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="n_streams: expected at least 1, got 0"):
        DocumentStreams(documents([3]), n_streams=0, piece_length=3)
    with pytest.raises(ValueError, match="not one token in 2 documents"):
        DocumentStreams(documents([0, 0]), n_streams=1, piece_length=3)
    with pytest.raises(ValueError, match="lengths: expected one for each of 1 documents, got 2"):
        DocumentStreams(documents([3]), n_streams=1, piece_length=3, lengths=[3, 4])
    a = DocumentStreams(documents([3]), n_streams=1, piece_length=3)
    with pytest.raises(ValueError, match="state: it is of other streams"):
        a.load_state_dict(DocumentStreams(documents([4]), n_streams=1, piece_length=3).state_dict())
    with pytest.raises(ValueError, match="number 0 has 3 values and 2 targets"):
        list(DocumentStreams([(torch.zeros(3), torch.zeros(2))], n_streams=1, piece_length=3))
    for other in (torch.zeros(3), torch.zeros(3, 2).long()):
        with pytest.raises(ValueError, match=r"documents: number 1 holds .* tokens of shape .*, others"):
            list(DocumentStreams([torch.zeros(3).long(), other], n_streams=1, piece_length=6, one_pass=True))


def test_a_carried_state_of_another_batch_or_model_is_refused() -> None:
    module, fresh = model("mamba2"), torch.tensor([True, False])
    with pytest.raises(ValueError, match="state: it is for a batch of 3 rows, but fresh has 2"):
        begin_rows(module, module.init_state(3), fresh)
    with pytest.raises(ValueError, match="state: it belongs to another model"):
        begin_rows(module, model("mamba1").init_state(2), fresh)


CORPUS = [9, 2, 14, 1, 6]


def corpus() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(N_IDS, (n,), generator=generator) for n in CORPUS]


def run(module: LanguageModel, *, detach: bool) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
    """Summed loss of one pass, and the logits at every (document, place)."""
    docs = corpus()
    numbered = [
        (torch.stack([d, torch.full_like(d, i), torch.arange(len(d))], 1), torch.zeros(len(d)))
        for i, d in enumerate(docs)
    ]
    places = list(DocumentStreams(numbered, n_streams=2, piece_length=4, one_pass=True))
    pieces = list(DocumentStreams(docs, n_streams=2, piece_length=4, one_pass=True))
    state, total, found = None, torch.zeros((), dtype=torch.float64), {}
    for piece, place in zip(pieces, places, strict=True):
        logits, state = module(piece.values, begin_rows(module, state, piece.fresh), seq_idx=piece.seq_idx)
        total = total + F.cross_entropy(logits[piece.mask], piece.targets[piece.mask], reduction="sum")
        for row, t in place.mask.nonzero().tolist():
            _, document, offset = place.values[row, t].tolist()
            found[document, offset] = logits[row, t]
        if detach:
            state = state.detach()
    return total, found


LAYERS = [
    (["conv_attention", "sliding_attention", "zamba"], True),
    (["mamba2"], True),
    (["gru", "lstm"], False),
    (["mamba1", "attention", "mamba2"], True),
    (["mamba2", "attention"], False),
]


@pytest.mark.parametrize(("layers", "learned"), LAYERS, ids=str)
def test_pieces_give_what_whole_documents_give(layers: list[str], learned: bool) -> None:
    module = model(*layers, learned=learned)
    whole = {
        (i, t): logits
        for i, document in enumerate(corpus())
        for t, logits in enumerate(module(document[None])[0][0])
    }
    for detach in (False, True):
        _, found = run(module, detach=detach)
        assert found.keys() == whole.keys()
        for key, logits in whole.items():
            torch.testing.assert_close(found[key], logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("layers", "learned"), LAYERS, ids=str)
def test_undetached_gradients_are_those_of_whole_documents(layers: list[str], learned: bool) -> None:
    module = model(*layers, learned=learned)
    expected_loss = torch.zeros((), dtype=torch.float64)
    for document in corpus():
        logits, _ = module(document[None, :-1])
        expected_loss = expected_loss + F.cross_entropy(logits[0], document[1:], reduction="sum")
    parameters = list(module.parameters())
    expected = torch.autograd.grad(expected_loss, parameters)
    loss, _ = run(module, detach=False)
    torch.testing.assert_close(loss, expected_loss, atol=1e-10, rtol=0)
    for a, e in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-9, rtol=1e-9)
    cut, _ = run(module, detach=True)
    grads = torch.autograd.grad(cut, parameters)
    assert any(not torch.allclose(a, e, rtol=1e-3) for a, e in zip(grads, expected, strict=True))


class Task(CarriedState, pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = model("mamba2", "attention", learned=True).float()

    def training_step(self, piece: Piece, batch_idx: int) -> Tensor:
        logits, state = self.model(piece.values, self.take_state(self.model, piece), piece.seq_idx)
        self.keep_state(state)
        return self.model.loss(logits, piece.targets, piece.mask)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_of_lightning_is_the_run_that_went_on(tmp_path, stop: int) -> None:
    def fit(steps: int, checkpoint: str | None = None) -> tuple[pl.Trainer, Task]:
        task = Task()
        streams = DocumentStreams(corpus(), n_streams=2, piece_length=4, seed=1)
        assert len(streams) == 4  # so that 3 is inside an epoch and 4 at its end
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(task, streams, ckpt_path=checkpoint, weights_only=True)
        return trainer, task

    _, whole = fit(9)
    trainer, _ = fit(stop)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(9, str(tmp_path / "half.ckpt"))
    for (name, a), e in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, e), name
