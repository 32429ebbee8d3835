"""Images and videos as sequences: a block over one or several orders of their cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.directions import Merge, build_directions
from mambakit.core.blocks.gaps import gaps_as_read
from mambakit.core.blocks.registry import register_block
from mambakit.core.scans import GROUPS, check_grid, inverse, scan_orders
from mambakit.core.state import State


@register_block("grid_scan")
class GridScan(Block):
    """Reads the cells of a grid in every order of a scan, and merges what comes out cell by cell.

    A row of the batch is one grid, cells in the order of ``x.flatten(1, -2)``. Several of them may be packed
    into a row (``seq_idx``) or padded (``lengths``) if each sequence is one whole grid. It needs the whole
    grid: it takes no state and has no ``step``. Where time gaps are given, every reading sees the mean
    gap on the way from the cell before to the one it reads (``gaps.gaps_as_read``).

    Args:
        d_model: Width of input and output.
        grid: ``(height, width)`` or ``(frames, height, width)``.
        scan: A name in ``mambakit.core.scans.SCANS``.
        scan_options: Its options, such as ``{"size": 4}`` for windows.
        reverse: Read every order backwards too; one that is there already is not read twice.
        isolate: Every window (or pass of a dilated scan, as in EfficientVMamba, arXiv:2403.09977) is a
            sequence of its own: nothing is carried from one to the next.
        inner: Kind of the block that reads.
        inner_options: Its keyword arguments.
        merge: How the orders' outputs become one, see ``directions.Merge``.
        share: What the orders share, see ``directions.build_directions``; with ``"all"`` they run as one
            batch.

    Raises:
        ValueError: On an unknown name or option, a grid that the scan does not take, or ``isolate`` for a
            scan without groups.
    """

    causal = False
    projections = ("merge.out_proj",)
    orders: Tensor
    inverses: Tensor
    groups: Tensor | None

    def __init__(
        self,
        *,
        d_model: int,
        grid: Sequence[int],
        scan: str = "cross",
        scan_options: Mapping[str, object] | None = None,
        reverse: bool = True,
        isolate: bool = False,
        inner: str = "mamba2",
        inner_options: Mapping[str, object] | None = None,
        merge: str = "sum",
        share: str = "none",
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.grid = check_grid(grid, 2, 3)
        self.n_cells = math.prod(self.grid)
        orders = scan_orders(scan, self.grid, scan_options, reverse=reverse)
        groups = None
        if isolate:
            if scan not in GROUPS:
                raise ValueError(f"isolate: the scan {scan!r} has no groups; use {' or '.join(GROUPS)}")
            number = GROUPS[scan](self.grid, **(scan_options or {}))[orders]
            steps = number.diff(dim=1) != 0
            groups = F.pad(steps.cumsum(1), (1, 0)).int()
        # they follow from the options, so that files need not hold them
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("inverses", inverse(orders), persistent=False)
        self.register_buffer("groups", groups, persistent=False)
        n = orders.shape[0]
        self.merge = Merge(merge, d_model, n)
        self.inner = nn.ModuleList(build_directions(inner, d_model, inner_options, n, share))
        self.uses_context = any(block.uses_context for block in self.inner)
        self.uses_elapsed = any(block.uses_elapsed for block in self.inner)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        check_whole_grids(self.grid, length, seq_idx, lengths)
        if lengths is not None:
            x = x[:, : self.n_cells]
        n_tokens = x.shape[1]

        def apart(v: Tensor) -> Tensor:
            return v[:, :n_tokens].reshape(batch * (n_tokens // self.n_cells), self.n_cells, *v.shape[2:])

        grids = apart(x)
        told = context and context.reordered(apart, apart)
        y = self.merge(grids, self._read(grids, told)).reshape(x.shape)
        return F.pad(y, (0, 0, 0, length - y.shape[1])), State.of()

    def _read(self, grids: Tensor, context: Context | None) -> list[Tensor]:
        """The outputs of every order, back in place."""
        n = grids.shape[0]
        orders, inverses = self.orders.unbind(), self.inverses.unbind()

        def in_orders(v: Tensor) -> Tensor:
            return torch.cat([v.index_select(1, order) for order in orders])

        def gaps(v: Tensor, order: Tensor) -> Tensor:
            return gaps_as_read(v, order[None], None)

        groups = None if self.groups is None else self.groups[:, None].expand(-1, n, -1)  # [order, b, l]
        if len(self.inner) == 1:
            told = context and context.reordered(
                in_orders, lambda v: torch.cat([gaps(v, order) for order in orders])
            )
            packed = None if groups is None else groups.flatten(0, 1)
            y, _ = self.inner[0](in_orders(grids), None, packed, None, told)
            outputs = y.unflatten(0, (len(orders), n)).unbind()
        else:
            outputs = tuple(
                block(
                    grids.index_select(1, order),
                    None,
                    None if groups is None else groups[i],
                    None,
                    context
                    and context.reordered(
                        partial(torch.index_select, dim=1, index=order), partial(gaps, order=order)
                    ),
                )[0]
                for i, (block, order) in enumerate(zip(self.inner, orders, strict=True))
            )
        return [y.index_select(1, order) for y, order in zip(outputs, inverses, strict=True)]


def check_whole_grids(
    grid: Sequence[int], length: int, seq_idx: Tensor | None, lengths: Tensor | None
) -> None:
    """Raise a ValueError unless each sequence of rows of ``length`` tokens is one whole grid, or nothing."""
    n = math.prod(grid)
    wanted = f"one whole grid {tuple(grid)} of {n} cells"
    if lengths is not None:
        if _readable(lengths) and not bool(((lengths == n) | (lengths == 0)).all()):
            raise ValueError(f"lengths: each row must hold {wanted}, or nothing, got {lengths.tolist()}")
        if length < n:
            raise ValueError(f"x: each row must hold {wanted}, got a length of {length}")
    elif seq_idx is None:
        if length != n:
            raise ValueError(
                f"x: each row must be {wanted}, got a length of {length}; "
                "give seq_idx for several grids in a row"
            )
    elif length % n or (_readable(seq_idx) and not _is_whole(seq_idx.unflatten(1, (-1, n)))):
        raise ValueError(f"seq_idx: each packed sequence must be {wanted}, got others (length {length})")


def _readable(values: Tensor) -> bool:
    """Whether reading them is possible: not in a graph that is being traced or captured."""
    if torch.compiler.is_compiling():
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())


def _is_whole(cells: Tensor) -> bool:
    """Whether each ``[:, i]`` of ``seq_idx`` ``(batch, grids, cells)`` is one sequence."""
    same = (cells == cells[..., :1]).all()
    return bool(same & (cells[:, 1:, 0] != cells[:, :-1, 0]).all())
