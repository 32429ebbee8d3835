"""``forward`` and ``step`` of a model as torch.export programs.

    forward    (x, **more) -> (y, state)            any batch, any length
    step       (x, state, **more) -> (y, state)     any batch

``state`` is a dict of tensors by dotted name (``StateLayout``), so that one can be read by a program's
forward and go on in its step. A step is made of torch's own operators, the kernels' plain references: it
runs where mambakit isn't, as ONNX and as a package too. A forward pass for any length holds the kernels as
``mambakit::`` ops: where it is loaded, ``mambakit.core.export`` is imported first.

Three blocks are other than in eager mode, with the same results: a mixture of experts runs every expert on
every token, as a program's shapes may not depend on what it computes; sliding attention scores all pairs of
tokens; a GRU or LSTM is one op.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Block
from mambakit.core.errors import UsageError, UserError
from mambakit.core.export.layout import StateLayout
from mambakit.core.language_model import LanguageModel
from mambakit.kernels.backend import use_backend

# sizes that are traced for any: 0 and 1 would be taken as such, and equal ones as one
_BATCH, _LENGTH = 3, 9
_BY_DATA = "with these inputs its shapes depend on the data"


def traced(
    program: nn.Module, args: tuple[Any, ...], dynamic_shapes: Any = None, *, plain: bool = True
) -> ExportedProgram:
    """``torch.export.export`` without gradients.

    Args:
        program: On the device and in the mode that it is to run in.
        args: What it is called with.
        dynamic_shapes: As torch.export takes them.
        plain: Of torch's own operators alone, by the kernels' plain references.

    Raises:
        UserError: If it can't be traced, with the block where that ended.
    """
    with torch.no_grad(), use_backend("reference") if plain else nullcontext(), _explained():
        return torch.export.export(program, args, dynamic_shapes=dynamic_shapes, strict=False)


class _Step(nn.Module):
    model: Any  # what has a step

    def __init__(self, model: nn.Module, layout: StateLayout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(
        self, x: Tensor, state: dict[str, Tensor], more: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = self.model.step(x, self.layout.unpack(state), **more)
        return y, self.layout.pack(after)


class _Forward(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, state = self.model(x, **more)
        return y, StateLayout.pack(state)


def export_step(model: nn.Module, example: Tensor | None = None, **more: Tensor) -> ExportedProgram:
    """``(x, state, more) -> (y, state)`` for any batch.

    The state of attention without a window grows: such a program takes caches of any length, 0 too.

    Args:
        model: A causal ``Block``, ``Backbone`` or ``LanguageModel``, or what else has their ``step`` and
            ``init_state``. It is copied to the CPU.
        example: What ``step`` takes, ``(batch, ...)``; for the three named ones it need not be given.
        more: Further arguments of ``step``, such as ``elapsed``, each ``(batch, ...)``; the program takes
            them as a dict.

    Raises:
        UsageError: If the model is not causal, or an example is needed.
        UserError: If it can't be traced; see ``traced``.
    """
    frozen = _frozen(model)
    if not getattr(model, "causal", True):
        raise UsageError(
            f"model: {_named(model)} looks in both directions and has no step to export; export its forward"
        )
    x = _example(frozen, example, (_BATCH,))
    more = {name: _repeated(tensor, (_BATCH,)) for name, tensor in more.items()}
    with torch.no_grad():
        states = [frozen.init_state(_BATCH)]
        for _ in range(3):  # sizes of 0 and 1 would be taken as such
            states.append(frozen.step(x, states[-1], **more)[1])
    layout, batch, cached = StateLayout(states[0]), Dim("batch", min=1), Dim("cached", min=0)
    before, after = (layout.pack(state) for state in states[-2:])
    sizes = {
        name: {0: batch, **{i: cached for i, n in enumerate(tensor.shape) if n != after[name].shape[i]}}
        for name, tensor in before.items()
    }
    return traced(
        _Step(frozen, layout), (x, before, more), ({0: batch}, sizes, {name: {0: batch} for name in more})
    )


def export_forward(
    model: nn.Module, example: Tensor | None = None, *, fixed_length: int | None = None, **more: Tensor
) -> ExportedProgram:
    """``(x, more) -> (y, state)`` for any batch and length; the state is empty if the model is not causal.

    Args:
        model: A ``Block``, ``Backbone`` or ``LanguageModel``, or what else has their ``forward``. It is
            copied to the CPU.
        example: What ``forward`` takes, ``(batch, length, ...)``; for the three named ones it need not be
            given.
        fixed_length: The only length that the program is to take, for instance the cells of a grid.
        more: Further arguments of ``forward``, ``(batch, length, ...)`` or ``(batch,)``; the program takes
            them as a dict. ``edges`` and ``edge_features`` may be of any number.

    Raises:
        UsageError: If an example is needed.
        UserError: If it can't be traced; see ``traced``.
    """
    model = _frozen(model)
    sizes = (_BATCH, fixed_length or _LENGTH)
    dims = {0: Dim("batch", min=1)} | ({} if fixed_length else {1: Dim("length", min=1)})
    n_edges, of_more = Dim("n_edges", min=0), {}
    for name, tensor in more.items():
        if name.startswith("edge"):
            of_more[name] = {0: n_edges}
        else:
            more[name] = _repeated(tensor, sizes[: tensor.dim()])
            of_more[name] = {i: dim for i, dim in dims.items() if i < tensor.dim()}
    x = _example(model, example, sizes)
    try:
        return traced(_Forward(model), (x, more), (dims, of_more), plain=False)
    except UserError as error:
        known = fixed_length is not None or _BY_DATA in str(error)
        hint = "" if known else "; with fixed_length it may be one of that length"
        raise UserError(f"{error}{hint}") from error


def growing_block(model: nn.Module) -> str | None:
    """The class of a block whose state grows with the history, as that of attention does, if there is one."""
    for block in model.modules():
        if isinstance(block, Block) and any(None in shape for shape in block.state_shapes().values()):
            return type(block).__name__
    return None


def _frozen(model: nn.Module) -> Any:
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def _named(model: nn.Module) -> str:
    inside = [m for m in model.modules() if isinstance(m, Block) and not m.causal]
    return type(inside[0] if inside else model).__name__


def _example(model: nn.Module, given: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
    if given is not None:
        return _repeated(given, sizes)
    if isinstance(model, LanguageModel):
        return torch.zeros(sizes, dtype=torch.int64)
    if isinstance(model, (Block, Backbone)):
        return torch.zeros(*sizes, model.d_model, dtype=next(model.parameters()).dtype)
    raise UsageError(
        f"example: give a tensor as {type(model).__name__} takes it; only its sizes are looked at"
    )


def _repeated(given: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return given.new_ones(*sizes, *given.shape[len(sizes) :]).to(given.dtype)


@contextmanager
def _explained() -> Iterator[None]:
    """torch's pages on what it can't trace as one sentence."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # dynamo's are RuntimeErrors
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        blocks = [type(one).__name__ for one in frames if isinstance(one, Block)]
        where = f"the block {blocks[-1]}" if blocks else "the model"
        if "data-dependent" in str(error):
            raise UserError(f"export: {where} can't be a program: {_BY_DATA}") from error
        lines = [line.strip(" -\t") for line in str(error).splitlines()]
        said = next((line for line in lines if line and not line.startswith("Constraints violated")), "")
        raise UserError(f"export: {where} can't be a program of any size: {said}") from error
