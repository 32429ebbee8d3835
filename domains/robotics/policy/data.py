"""Episodes to batches: cut into windows or left whole, and packed into rows of several."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mambakit.core.adapters.packing import first_fit
from mambakit.domains.robotics.episodes import Episode
from mambakit.domains.robotics.policy.config import SavedPolicyConfig
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.seen import PolicyBatch, Seen

ROW_STEPS = 256
PICTURE_ROW_STEPS = 32
"""Of a row with pictures, each of which costs as much as a hundred states."""
EPOCH_BATCHES = 100
"""An epoch passes over small data as often as it takes for so many batches."""


class Piece(NamedTuple):
    """Steps of an episode."""

    episode: int
    start: int
    stop: int


Row = list[Piece]
Weights = Sequence[np.ndarray]


class Packing:
    """How episodes become rows to learn from.

    Args:
        lengths: Steps of each episode.
        horizon: Steps of a window; 0 for whole episodes.
        row_steps: Steps of a row at least as long as the longest piece.
    """

    def __init__(self, lengths: Sequence[int], horizon: int, row_steps: int = ROW_STEPS) -> None:
        self.lengths = list(lengths)
        self.horizon = horizon
        longest = min(horizon, max(self.lengths)) if horizon else max(self.lengths)
        self.row_steps = max(row_steps, longest)
        self.n_rows = (
            -(-sum(self.lengths) // self.row_steps) if horizon else len(packed(self.wholes(), self.row_steps))
        )

    def wholes(self) -> Row:
        """Every episode as one piece."""
        return [Piece(i, 0, n) for i, n in enumerate(self.lengths)]

    def shuffled(self, generator: torch.Generator) -> list[Row]:
        """Rows of an epoch, in which every step is there once.

        Windows begin at random places anew in every epoch. They are dealt out in random order as one long
        stream, which rows cut: so there are as many rows in each epoch. Whole episodes are never cut.
        """
        if not self.horizon:
            rows = packed(self.wholes(), self.row_steps)
            return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        pieces = []
        phases = torch.randint(1, self.horizon + 1, (len(self.lengths),), generator=generator).tolist()
        for episode, (length, phase) in enumerate(zip(self.lengths, phases, strict=True)):
            cuts = [0, *range(phase, length, self.horizon), length]
            pieces += [Piece(episode, a, b) for a, b in itertools.pairwise(cuts)]
        order = torch.randperm(len(pieces), generator=generator).tolist()
        return list(_dealt([pieces[i] for i in order], self.row_steps))


class _Rows(Dataset[Row]):
    """What the sampler draws are the rows themselves."""

    def __getitem__(self, row: Row) -> Row:
        return row


class _EpochRows(Sampler[Row]):
    """Rows packed anew at every epoch's beginning, by torch's global generator, which fit seeds by epoch."""

    def __init__(self, packing: Packing, passes: int) -> None:
        self.packing, self.passes = packing, passes

    def __len__(self) -> int:
        return self.passes * self.packing.n_rows

    def __iter__(self) -> Iterator[Row]:
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**62, ())))
        for _ in range(self.passes):
            yield from self.packing.shuffled(generator)


def packed(pieces: Sequence[Piece], row_steps: int) -> list[Row]:
    """Pieces in as few rows as first-fit decreasing finds."""
    ordered = sorted(pieces, key=lambda one: one.start - one.stop)
    spans, used = first_fit((one.stop - one.start for one in ordered), row_steps)
    rows: list[Row] = [[] for _ in used]
    for piece, (row, _, _) in zip(ordered, spans, strict=True):
        rows[row].append(piece)
    return rows


def _dealt(pieces: Sequence[Piece], row_steps: int) -> Iterator[Row]:
    row: Row = []
    room = row_steps
    for piece in pieces:
        episode, start, stop = piece
        while stop - start > room:
            if room:
                row.append(Piece(episode, start, start + room))
            yield row
            row, start, room = [], start + room, row_steps
        row.append(Piece(episode, start, stop))
        room -= stop - start
    if row:
        yield row


class Collate:
    """Rows of pieces to a ``PolicyBatch``.

    Args:
        episodes: What pieces are of.
        policy: Whose inputs they become.
        hide: Hide previous actions and modalities at random, as training does.
        weights: How much each step counts, ``(n,)`` for every episode.
        row_steps: Steps that every row is padded to; by default as many as the longest has.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        policy: Policy,
        *,
        hide: bool,
        weights: Weights | None = None,
        row_steps: int = 0,
    ) -> None:
        self.config: SavedPolicyConfig = policy.config
        self.hide, self.weights, self.row_steps = hide, weights, row_steps
        self.episodes = episodes
        self.to_go = [one.returns_to_go() for one in episodes]
        texts = sorted({one.instruction or "" for one in episodes} | {""})
        self.places = {text: i for i, text in enumerate(texts)}
        self.words = torch.from_numpy(np.stack([policy.numbers(text) for text in texts]))

    def __call__(self, rows: Sequence[Row]) -> PolicyBatch:
        config, spaces = self.config, self.config.spaces
        length = max(self.row_steps, *(sum(piece.stop - piece.start for piece in row) for row in rows))
        shape = (len(rows), length)
        chunk, width = config.policy.chunk, spaces.action_dim
        of_action = () if spaces.discrete else (width,)
        kind = np.int64 if spaces.discrete else np.float32
        began = np.zeros(shape, bool)
        previous = np.zeros((*shape, *of_action), kind)
        state = np.zeros((*shape, spaces.state_dim), np.float32) if spaces.state_dim else None
        goal = np.zeros((*shape, spaces.goal_dim), np.float32) if "goal" in config.conditions else None
        to_go = np.zeros(shape, np.float32)
        image = np.zeros((*shape, *spaces.image, 3), np.uint8) if spaces.image else None
        instruction = np.zeros(shape, np.int64)
        seq_idx = np.zeros(shape, np.int32)
        real = np.zeros(shape, bool)
        target = np.zeros((*shape, chunk, *of_action), kind)
        counted = np.zeros((*shape, chunk), bool)
        weight = None if self.weights is None else np.ones(shape, np.float32)
        state_there, image_there = np.ones(shape, bool), np.ones(shape, bool)
        for r, row in enumerate(rows):
            at = 0
            for number, piece in enumerate(row):
                episode, start, stop = self.episodes[piece.episode], piece.start, piece.stop
                to = slice(at, at + stop - start)
                at = to.stop
                seq_idx[r, to], real[r, to] = number, True
                began[r, to.start] = start == 0
                previous[r, to] = _before(episode.actions, start, stop)
                if state is not None:
                    state[r, to] = episode.observations["state"][start:stop]
                if goal is not None:
                    goal[r, to] = episode.observations["goal"][start:stop]
                if image is not None:
                    image[r, to] = episode.observations["image"][start:stop]
                if weight is not None and self.weights is not None:
                    weight[r, to] = self.weights[piece.episode][start:stop]
                to_go[r, to] = self.to_go[piece.episode][start:stop]
                said = episode.instruction
                if self.hide:
                    said = self._hidden(said, state_there[r, to], image_there[r, to])
                instruction[r, to] = self.places[said or ""]
                for i in range(chunk):
                    there = max(min(stop, len(episode) - i) - start, 0)
                    target[r, to.start : to.start + there, i] = episode.actions[start + i : start + i + there]
                    counted[r, to.start : to.start + there, i] = True
            seq_idx[r, at:] = len(row)
        if self.hide and config.policy.action_dropout:
            began |= torch.rand(shape).numpy() < config.policy.action_dropout
        hides = self.hide and image is not None
        return PolicyBatch(
            seen=Seen(
                began=torch.from_numpy(began),
                previous=torch.from_numpy(previous),
                state=_tensor(state),
                goal=_tensor(goal),
                to_go=torch.from_numpy(to_go),
                image=_tensor(image),
                words=self.words,
                instruction=torch.from_numpy(instruction),
                state_there=torch.from_numpy(state_there) if hides else None,
                image_there=torch.from_numpy(image_there) if hides else None,
            ),
            seq_idx=torch.from_numpy(seq_idx),
            real=torch.from_numpy(real),
            target=torch.from_numpy(target),
            counted=torch.from_numpy(counted),
            weight=_tensor(weight),
        )

    def _hidden(self, said: str | None, state_there: np.ndarray, image_there: np.ndarray) -> str | None:
        """Hide a piece's modalities at random: never both its state and its pictures."""
        share = self.config.policy.modality_dropout
        drawn = torch.rand(3).tolist()
        spaces = self.config.spaces
        if spaces.image is not None and spaces.state_dim:
            if drawn[0] < share:
                image_there[:] = False
            elif drawn[1] < share:
                state_there[:] = False
        return None if drawn[2] < share else said


def training_loader(
    episodes: Sequence[Episode],
    policy: Policy,
    batch_size: int,
    n_workers: int = 0,
    weights: Weights | None = None,
) -> DataLoader[PolicyBatch]:
    """Packed rows in an order of chance: as many a step as ``batch_size`` rows of 256 control steps are.

    With pictures, of 32 control steps.
    """
    nominal = ROW_STEPS if policy.config.spaces.image is None else PICTURE_ROW_STEPS
    packing = Packing([len(one) for one in episodes], policy.config.policy.horizon, nominal)
    rows = max(1, round(batch_size * nominal / packing.row_steps))
    passes = max(1, round(EPOCH_BATCHES * rows / packing.n_rows))
    # one shape for all batches, so that a GPU can replay a step
    collate = Collate(episodes, policy, hide=True, weights=weights, row_steps=packing.row_steps)
    return DataLoader(
        _Rows(),  # type: ignore[arg-type]
        rows,
        sampler=_EpochRows(packing, passes),
        collate_fn=collate,
        num_workers=n_workers,
    )


def measuring_loader(
    episodes: Sequence[Episode], policy: Policy, batch_size: int = 8, weights: Weights | None = None
) -> DataLoader[PolicyBatch]:
    """Whole episodes with nothing hidden."""
    pieces = [Piece(i, 0, len(one)) for i, one in enumerate(episodes)]
    rows = packed(pieces, max(ROW_STEPS, *map(len, episodes)))
    return DataLoader(rows, batch_size, collate_fn=Collate(episodes, policy, hide=False, weights=weights))  # type: ignore[arg-type]


def _before(actions: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The action before each step; before the first of an episode, anything."""
    if start:
        return actions[start - 1 : stop - 1]
    return np.concatenate([np.zeros_like(actions[:1]), actions[: stop - 1]])


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)
