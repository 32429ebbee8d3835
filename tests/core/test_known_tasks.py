"""Known tasks: every answer follows from its row by the task's rule, worked out here in plain Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mambakit.core.backbone import BackboneConfig
from mambakit.core.known_tasks import (
    NOTHING,
    AssociativeRecall,
    Drawn,
    Induction,
    ModularArithmetic,
    Needle,
    Parity,
    PermutedPixels,
    SelectiveCopying,
    share_right,
)
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

seeds = st.integers(0, 2**31)


def rows_of(task: Any, length: int, seed: int, n: int = 5) -> list[tuple[list[int], dict[int, int]]]:
    """Tokens of each row, and its answers by position."""
    drawn = task.draw(n, length, torch.Generator().manual_seed(seed))
    again = task.draw(n, length, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn.ids, again.ids)
    assert torch.equal(drawn.targets, again.targets)
    assert drawn.ids.shape == drawn.targets.shape == (n, length)
    rows = []
    for ids, targets in zip(drawn.ids.tolist(), drawn.targets.tolist(), strict=True):
        assert all(0 <= one < task.n_ids for one in ids)
        rows.append((ids, {t: one for t, one in enumerate(targets) if one != NOTHING}))
        assert all(0 <= one < task.n_ids for one in rows[-1][1].values())
    return rows


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(0, 30))
def test_selective_copying_asks_for_the_symbols_in_their_order(seed, n_symbols, n_copied, more):
    length = 2 * n_copied + more
    for ids, answers in rows_of(SelectiveCopying(n_symbols, n_copied), length, seed):
        symbols = [one for one in ids if one < n_symbols]
        assert len(symbols) == n_copied
        assert ids[-n_copied:] == [n_symbols + 1] * n_copied
        assert ids.count(n_symbols) == length - 2 * n_copied
        assert answers == dict(zip(range(length - n_copied, length), symbols, strict=True))


@given(seeds, st.integers(1, 9), st.integers(3, 40))
def test_induction_asks_for_what_followed_the_mark(seed, n_stream, length):
    for ids, answers in rows_of(Induction(n_stream), length, seed):
        first, last = [t for t, one in enumerate(ids) if one == n_stream]
        assert last == length - 1
        assert answers == {last: ids[first + 1]}


@given(seeds, st.integers(1, 6), st.integers(0, 5), st.integers(1, 7), st.integers(0, 20))
def test_associative_recall_asks_for_every_key_once(seed, n_pairs, more_keys, n_values, more):
    n_keys = n_pairs + more_keys
    task = AssociativeRecall(n_pairs, n_keys, n_values)
    for ids, answers in rows_of(task, 3 * n_pairs + more, seed):
        pairs = dict(zip(ids[0 : 2 * n_pairs : 2], ids[1 : 2 * n_pairs : 2], strict=True))
        assert len(pairs) == n_pairs
        asked = {t: one for t, one in enumerate(ids[2 * n_pairs :], 2 * n_pairs) if one < n_keys}
        assert sorted(asked.values()) == sorted(pairs)
        assert answers == {t: pairs[key] for t, key in asked.items()}
        assert all(n_keys <= value < n_keys + n_values for value in pairs.values())


@given(seeds, st.integers(1, 50), st.booleans())
def test_parity_counts_the_ones(seed, length, every):
    for ids, answers in rows_of(Parity(every), length, seed):
        wanted = {t: sum(ids[: t + 1]) % 2 for t in range(length)}
        assert answers == (wanted if every else {length - 1: wanted[length - 1]})


@given(seeds, st.integers(2, 9), st.integers(1, 40), st.booleans())
def test_arithmetic_is_what_python_makes_of_it(seed, modulus, length, every):
    words = [*(str(digit) for digit in range(modulus)), "+", "-"]
    for ids, answers in rows_of(ModularArithmetic(modulus, every), length, seed):
        ends = [t for t, one in enumerate(ids) if one < modulus]
        assert ends[-1] == length - 1
        wanted = {t: eval("".join(words[one] for one in ids[: t + 1])) % modulus for t in ends}
        assert answers == (wanted if every else {length - 1: wanted[length - 1]})


@given(seeds, st.integers(1, 5), st.integers(0, 4), st.integers(1, 40))
def test_a_needle_is_followed_by_its_value(seed, n_needles, more_names, more):
    task = Needle(n_noise=3, n_names=n_needles + more_names, n_values=4, n_needles=n_needles)
    length = 2 * n_needles + more
    for ids, answers in rows_of(task, length, seed):
        names = {one: t for t, one in enumerate(ids[:-1]) if 3 <= one < 3 + task.n_names}
        assert len(names) == n_needles
        assert sum(one < 3 for one in ids) == length - 2 * n_needles - 1
        assert answers == {length - 1: ids[names[ids[-1]] + 1]}
        assert answers[length - 1] >= 3 + task.n_names


# columns of the upper and lower half's left and right strokes, and rows of the three across
SHAPES = {
    0: " _ | ||_|", 1: "     |  |", 2: " _  _||_ ", 3: " _  _| _|", 4: "   |_|  |",
    5: " _ |_  _|", 6: " _ |_ |_|", 7: " _   |  |", 8: " _ |_||_|", 9: " _ |_| _|",
}  # fmt: skip


@given(seeds, st.integers(11, 20), st.integers(0, 4), st.integers(0, 3))
def test_pixels_show_the_digit(seed, side, jitter, order_seed):
    """The drawing is read back from its strokes, by where they lie within the lit box."""
    task = PermutedPixels(side, jitter, noise=0.0, seed=order_seed)
    order = task.order.tolist()
    assert sorted(order) == list(range(side * side))
    for ids, answers in rows_of(task, side * side, seed):
        lit = {divmod(order[t], side) for t, one in enumerate(ids) if one}
        (digit,) = (answer - 2 for answer in answers.values())
        assert list(answers) == [side * side - 1]
        found = []
        for top in range(side - 10):
            for left in range(side - 5):
                shape = SHAPES[digit]
                wanted = set()
                for line, stroke in enumerate(shape):
                    third, third_of_width = divmod(line, 3)
                    if stroke == "_":
                        wanted |= {(top + 5 * third, left + column) for column in range(1, 5)}
                    if stroke == "|":
                        first = top + 5 * third - 4
                        wanted |= {(row, left + 5 * (third_of_width // 2)) for row in range(first, first + 4)}
                if wanted == lit:
                    found.append((top, left))
        assert len(found) == 1
        (top, left) = found[0]
        assert abs(top - (side - 11) // 2) <= jitter
        assert abs(left - (side - 6) // 2) <= jitter


def test_noise_flips_as_many_pixels_as_it_says():
    clean, noisy = PermutedPixels(noise=0.0), PermutedPixels(noise=0.1)
    pairs = [one.draw(400, 256, torch.Generator().manual_seed(0)).ids for one in (clean, noisy)]
    share = (pairs[0] != pairs[1]).double().mean().item()
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / (400 * 256)) ** 0.5


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (SelectiveCopying(2, 4), 7), (Induction(), 2), (AssociativeRecall(3, 4, 4), 8), (Parity(), 0),
        (ModularArithmetic(), 0), (Needle(), 8), (PermutedPixels(), 255),
    ],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_says_which_length_is_too_short(task, length):
    with pytest.raises(ValueError, match=f"length: .*got {length}"):
        task.draw(2, length, torch.Generator())


def test_more_needles_than_names_are_refused():
    with pytest.raises(ValueError, match="n_needles: expected 1 to n_names=8, got 9"):
        Needle(n_needles=9)
    with pytest.raises(ValueError, match="n_pairs: expected 1 to n_keys=64, got 0"):
        AssociativeRecall(n_pairs=0)


class Knowing(nn.Module):
    """Parity by its rule, wrong wherever the count of all tokens is a multiple of ``wrong``."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, ids, state=None):
        ones, tokens = (0, 0) if state is None else state
        ones = ones + ids.cumsum(1)
        count = tokens + 1 + torch.arange(ids.shape[1])
        said = (ones + (count % self.wrong == 0)) % 2
        return torch.nn.functional.one_hot(said, 2), (ones[:, -1:], count[-1])


@given(seeds, st.integers(1, 30), st.integers(1, 9), st.integers(1, 40))
def test_share_right_carries_the_state_over_pieces(seed, length, wrong, piece):
    drawn = Parity().draw(3, length, torch.Generator().manual_seed(seed))
    wanted = sum(t % wrong != 0 for t in range(1, length + 1)) / length
    assert share_right(Knowing(wrong), drawn, piece=piece) == pytest.approx(wanted)
    assert share_right(Knowing(wrong), drawn) == pytest.approx(wanted)


def test_share_right_refuses_what_asks_nothing():
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="no question"):
        share_right(Knowing(2), Drawn(ids, torch.full_like(ids, NOTHING)))
    with pytest.raises(ValueError, match="piece: expected at least 1, got 0"):
        share_right(Knowing(2), Parity().draw(1, 3, torch.Generator()), piece=0)


@pytest.mark.parametrize("layers", [["mamba3"], ["mamba1", "attention"], ["lstm"]], ids=str)
def test_a_stream_in_pieces_is_answered_as_the_whole(layers):
    torch.manual_seed(0)
    task = Induction(3)
    options = {"mamba3": {"d_state": 4, "head_dim": 4}} if layers == ["mamba3"] else {}
    backbone = BackboneConfig(d_model=8, layers=layers, block_options=options)
    model = LanguageModel(LanguageModelConfig(task.n_ids, backbone)).eval()
    drawn = task.draw(64, 50, torch.Generator().manual_seed(0))
    assert share_right(model, drawn, piece=7) == share_right(model, drawn)
