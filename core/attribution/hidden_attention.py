"""The attention hidden in a block: which token it reads for which, as exact matrices.

A selective state-space model mixes tokens by a matrix that depends on its input, as attention does (Ali et
al. 2024, "The Hidden Attention of Mamba Models", arXiv:2403.01590). Mamba-2 has one matrix a head, Mamba-1
one a channel, softmax attention one a head.

    found = hidden_attention(model.backbone.blocks[0], x)
    found.matrix                              # (batch, n_heads, length, length)
    found.output() - model.backbone.blocks[0](x)[0]      # zero up to rounding

What is exact, and what is not. For the input at hand the matrix times the values is the block's output, to
rounding. But matrix and values are both made of the input: dt, B, C, the gate and the slope of the SiLU
behind the convolution are held at what they are here. So the matrix says what is read, not what the output
would be for another input; integrated gradients and perturbation say that.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mambakit.core.attribution.of_block import n_heads_of, terms_of, width_of
from mambakit.core.attribution.terms import Request
from mambakit.core.blocks import Bidirectional, Block, Context
from mambakit.core.blocks.base import padding_mask
from mambakit.core.state import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# numbers in a block's matrices: 0.5 GiB in float32
MOST_NUMBERS = 1 << 27


@dataclass(frozen=True, eq=False)
class HiddenAttention:
    """Matrices of one block for one input.

    A unit is a head; a channel for Mamba-1, and wherever something that differs among channels is folded
    in.

    Attributes:
        matrix: ``(batch, n_units, n_queries, length)``: weight of each token's value in each query's
            output. May be negative, and its rows sum to one for softmax attention only.
        values: ``(batch, n_units, length, width)``: what is weighted. The scan's input (after convolution
            and SiLU), or with ``fold_convolution`` in_proj's output; attention's values.
        state_matrix, state_values: The same for what a given or learned state holds, ``(batch, n_units,
            n_queries, n_columns)`` and ``(batch, n_units, n_columns, width)``: entries of the recurrent state
            (and of the convolution's, where it is folded in, which come first), or attention's cached tokens.
            None without a state.
        beside: ``(batch, n_units, n_queries, width)`` added to the products: a skip D per channel of a
            Mamba-2 head, or what a folded convolution's bias becomes. None if there is none.
        positions: The tokens whose rows these are.
        unit_names: One for each unit, such as ``"head 3"``.
        gap: The largest difference between ``output()`` and what the block itself gives: rounding. None
            where only some heads were asked for.
    """

    matrix: Tensor
    values: Tensor
    state_matrix: Tensor | None
    state_values: Tensor | None
    beside: Tensor | None
    positions: list[int]
    unit_names: list[str]
    gap: float | None
    _finish: Callable[[Tensor], Tensor] | None
    _out_weight: Tensor | None

    def mixed(self) -> Tensor:
        """The products, ``(batch, n_queries, n_units, width)``: the scan's output, before gate, norm and
        out_proj."""
        y = self.matrix @ self.values
        if self.state_matrix is not None:
            assert self.state_values is not None
            y = y + self.state_matrix @ self.state_values
        if self.beside is not None:
            y = y + self.beside
        return y.transpose(1, 2)

    def output(self) -> Tensor:
        """The block's output at the positions, ``(batch, n_queries, d_model)``, from the products.

        Raises:
            ValueError: If only some heads were asked for: the output needs all.
        """
        if self._finish is None:
            raise ValueError("heads: the block's output needs all heads; ask for the matrices without heads=")
        return self._finish(self.mixed())

    def average(self, *, absolute: bool = True) -> Tensor:
        """Mean over the units, ``(batch, n_queries, length)``; of magnitudes, so that signs don't
        cancel."""
        return (self.matrix.abs() if absolute else self.matrix).mean(1)

    def plot(
        self, path: str | Path | None = None, *, row: int = 0, labels: Sequence[str] | None = None
    ) -> Figure:
        """A heat map of each unit's matrix (the first twelve) for one row of the batch.

        Args:
            path: Also written there; the ending says how.
            row: Of the batch.
            labels: The tokens' names.

        Raises:
            ValueError: If only some positions were asked for, or labels or ending are not as they should
                be.
        """
        from mambakit.core.attribution.pictures import heat_map_figure, save_figure

        matrices = dict(zip(self.unit_names, self.matrix[row].double().cpu().numpy(), strict=True))
        figure = heat_map_figure(matrices, labels, title="Hidden attention")
        if path is not None:
            save_figure(figure, path)
        return figure

    def contributions(self) -> Tensor:
        """How much of the block's output each token wrote, ``(batch, n_queries, length)``.

        The output is a sum of vectors, one a token: its values, weighted, through out_proj. This is their
        norm (Kobayashi et al. 2020, arXiv:2004.10102), which no rescaling between weights and values can
        change, as it can the matrix. A last column is for what came from a given or learned state.

        Raises:
            ValueError: If a gate or norm lies between the products and out_proj.
        """
        if self._out_weight is None:
            raise ValueError(
                "contributions: a gate stands between these matrices and the output; ask for the matrices "
                "with fold_gate=True (a gated merge of two directions cannot be folded in)"
            )
        weight = self._out_weight.to(self.matrix.dtype).T  # [units * p, m]
        values = self.values.transpose(1, 2)  # [b, l, u, p]
        rows = [
            ((row.transpose(1, 2)[..., None] * values).flatten(2) @ weight).norm(dim=-1)
            for row in self.matrix.unbind(2)
        ]
        norms = torch.stack(rows, dim=1)
        if self.state_matrix is None:
            return norms
        assert self.state_values is not None
        from_state = (self.state_matrix @ self.state_values).transpose(1, 2).flatten(2) @ weight
        return torch.cat([norms, from_state.norm(dim=-1, keepdim=True)], dim=-1)


@torch.no_grad()
def hidden_attention(
    block: Block,
    x: Tensor,
    state: State | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    elapsed: Tensor | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    fold_convolution: bool = False,
    fold_gate: bool = False,
    most_numbers: int = MOST_NUMBERS,
) -> HiddenAttention:
    """The matrices by which a block mixes tokens, for this input.

    Args:
        block: ``Mamba1``, ``Mamba2``, ``Attention``, or ``Bidirectional`` over one of them: its units are
            those of the direction ahead, then those of the one back (in the order of ``x``).
        x: What the block is given (in a backbone: after the norm), ``(batch, length, d_model)``.
        state, seq_idx, lengths: As in ``Block.forward``: no state is the learned one, where there is such;
            packed sequences of a block that learned one are refused. Nothing passes between packed sequences;
            rows and columns at padding are zero.
        elapsed: The time gaps that the block was given, ``(batch, length)``, as in ``Backbone.forward``.
        heads: Only these (Mamba-1: channels).
        positions: Only these tokens' rows; negative ones count from the end of ``x``.
        fold_convolution: Let the matrices act on in_proj's output instead of the convolution's: they
            include its taps and the SiLU's slope ``sigmoid(a)`` at what it is here. One matrix a channel.
            Nothing for attention.
        fold_gate: Include what the products are multiplied by before out_proj: the gate ``silu(z)``, and
            Mamba-2's norm, held at their values here. One matrix a channel. Nothing for attention.
        most_numbers: Refuse to make matrices of more numbers than this. Mamba-1's take three times their
            size to compute.

    Raises:
        TypeError, ValueError, RuntimeError: If the matrices do not give the block's output (of a subclass,
            say, that does more); on input that ``Block.forward`` would refuse, a block without hidden
            attention, a head or position that is not there, or matrices above ``most_numbers``.
    """
    n_heads = n_heads_of(block)
    chosen = list(range(n_heads)) if heads is None else indices("heads", heads, n_heads)
    context = None if elapsed is None else Context(elapsed=elapsed)
    expected, _ = block(x, state, seq_idx, lengths, context)  # checks them, too
    batch, length, _ = x.shape
    if length == 0:
        raise ValueError("x: expected at least one token, got length 0")
    at = list(range(length)) if positions is None else indices("positions", positions, length)
    width = width_of(block) if fold_convolution or fold_gate else 1
    units = len(chosen) * width * (2 if isinstance(block, Bidirectional) else 1)
    _guard(block, (batch, units, len(at), length), x.element_size(), most_numbers)
    queries = torch.tensor(at, device=x.device).expand(batch, -1)
    hidden = torch.zeros_like(queries, dtype=torch.bool)[:, None, :, None]  # [b, 1, q, 1]
    columns = torch.zeros(batch, 1, 1, length, device=x.device, dtype=torch.bool)
    if lengths is not None:
        lengths = lengths.long().to(x.device)
        pads = padding_mask(lengths, length)
        x = x.masked_fill(pads[..., None], 0.0)
        elapsed = None if elapsed is None else elapsed.masked_fill(pads, 0.0)
        hidden, columns = pads.gather(1, queries)[:, None, :, None], pads[:, None, None]
    request = Request(x, state, seq_idx, lengths, queries, chosen, fold_convolution, fold_gate, elapsed)
    terms = terms_of(block, request)
    found = HiddenAttention(
        matrix=terms.matrix.masked_fill(hidden | columns, 0.0),
        values=terms.values,
        state_matrix=None if terms.state_matrix is None else terms.state_matrix.masked_fill(hidden, 0.0),
        state_values=terms.state_values,
        beside=None if terms.beside is None else terms.beside.masked_fill(hidden, 0.0),
        positions=at,
        unit_names=terms.names,
        gap=None,
        _finish=None,
        _out_weight=terms.out_weight,
    )
    if len(chosen) < n_heads:
        return found
    found = dataclasses.replace(found, _finish=lambda y: terms.finish(y).masked_fill(hidden[:, 0], 0.0))
    expected = expected[:, at]
    gap = float((found.output() - expected).abs().max()) if batch else 0.0
    allowed = (0.1 if x.element_size() < 4 else 1e-3) * float(expected.abs().max()) if batch else 0.0
    if gap > allowed:
        raise ValueError(
            f"block: this {type(block).__name__} gives another output than its matrices do "
            f"(by up to {gap:.1g}): it does more than mix tokens by them"
        )
    return dataclasses.replace(found, gap=gap)


def indices(name: str, given: Sequence[int], size: int) -> list[int]:
    """``given`` as indices from the start, or a ValueError that names what is outside ``-size..size-1``."""
    try:
        chosen = [operator.index(i) for i in given]
    except TypeError:
        raise TypeError(f"{name}: expected whole numbers, got {list(given)}") from None
    if not chosen:
        raise ValueError(f"{name}: expected at least one, got none")
    for i in chosen:
        if not -size <= i < size:
            raise ValueError(f"{name}: {i} is outside 0..{size - 1}")
    chosen = [i % size for i in chosen]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{name}: expected each at most once, got {list(given)}")
    return chosen


def _guard(block: Block, shape: tuple[int, int, int, int], bytes_each: int, most_numbers: int) -> None:
    batch, units, n_queries, length = shape
    numbers = math.prod(shape)
    if numbers > most_numbers:
        raise ValueError(
            f"hidden attention of {type(block).__name__}: {batch} rows x {units} matrices of {n_queries} x "
            f"{length} are {numbers:.1e} numbers ({numbers * max(bytes_each, 4) / 2**30:.1f} GiB), more than "
            f"most_numbers={most_numbers}; crop the sequence, ask for fewer heads= or positions=, or raise it"
        )
