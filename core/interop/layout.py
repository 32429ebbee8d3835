"""Where each of our weights lies in another project's checkpoint, and moving them both ways.

A ``Table`` says it for one kind of block, local name by local name; a ``Layout`` puts a table to every block.
One rule moves everything: our tensor is theirs one after another, each at most rescaled or with its halves
swapped. That covers a split of ours (query, key and value), a stack (experts) and another shape (a
convolution's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mambakit.core.blocks import Block
from mambakit.core.errors import DataError, UserError
from mambakit.core.folders import some
from mambakit.core.interop.files import WeightFiles
from mambakit.core.language_model import LanguageModel


@dataclass(frozen=True)
class Part:
    """One tensor of theirs inside one of ours."""

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0
    """What theirs is multiplied by to become ours."""
    swapped: bool = False
    """The halves of the first dimension are the other way round."""

    def read(self, tensor: Tensor) -> Tensor:
        """Ours, of theirs."""
        if self.swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        return tensor if self.scale == 1.0 else tensor * self.scale

    def write(self, tensor: Tensor) -> Tensor:
        """Theirs, of ours."""
        tensor = tensor.reshape(self.shape)
        if self.swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        return tensor if self.scale == 1.0 else tensor / self.scale


Rule = Callable[[Block, tuple[int, ...]], list[Part]]
"""Theirs, for the weight of this shape in this block."""
Table = Mapping[str, Rule]


def whole(name: str, *, scale: float = 1.0) -> Rule:
    """The same tensor under another name."""
    return lambda block, shape: [Part(name, shape, scale)]


def same(*names: str) -> dict[str, Rule]:
    """Tensors that are called the same on both sides."""
    return {name: whole(name) for name in names}


def halves(first: str, second: str) -> Rule:
    """Two tensors of theirs that are one of ours."""
    return lambda block, shape: [Part(name, (shape[0] // 2, *shape[1:])) for name in (first, second)]


def swapped_halves(name: str) -> Rule:
    """One tensor whose two halves are the other way round."""
    return lambda block, shape: [Part(name, shape, swapped=True)]


def depthwise(name: str) -> Rule:
    """The weight of a convolution of single channels, as ``nn.Conv1d`` has it."""
    return lambda block, shape: [Part(name, (shape[0], 1, shape[1]))]


def flat(name: str) -> Rule:
    """A tensor that is one long row there."""
    return lambda block, shape: [Part(name, (math.prod(shape),))]


@dataclass(frozen=True)
class Slot:
    """Where one block of ours lies: its norm's weight, and its own weights behind a prefix."""

    norm: str
    prefix: str
    table: Table


@dataclass(frozen=True)
class Layout:
    """Where a whole language model lies."""

    embedding: str
    final_norm: str
    head: str
    slots: Sequence[Slot]
    """One for each block of ours, in order."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names that checkpoints in use have for a tensor."""
    ignored: tuple[str, ...] = ()
    """Prefixes of tensors that the language model does not use."""
    embedding_scale: float = 1.0
    final_norm_scale: float = 1.0
    head_if_tied: bool = False
    """Whether the head's weight is written although it is the embedding's."""


def parts_of(model: LanguageModel, layout: Layout) -> Iterator[tuple[str, list[Part]]]:
    """Each weight of ours and the tensors of theirs that it is made of; a tied head is left out.

    Raises:
        UserError: On a weight, added to the model after its config, that has no place.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    blocks: list[Block] = list(model.backbone.blocks)  # type: ignore[arg-type]
    seen: set[str] = set()
    for name, shape in shapes.items():
        match name.split("."):
            case ["embedding", "weight"]:
                parts = [Part(layout.embedding, shape, layout.embedding_scale)]
            case ["head", "weight"]:
                if model.config.tie_embeddings:
                    continue
                parts = [Part(layout.head, shape)]
            case ["backbone", "final_norm", "weight"]:
                parts = [Part(layout.final_norm, shape, layout.final_norm_scale)]
            case ["backbone", "norms", i, "weight"]:
                parts = [Part(layout.slots[int(i)].norm, shape)]
            case ["backbone", "blocks", i, *rest]:
                slot = layout.slots[int(i)]
                local = ".".join(rest)
                if local not in slot.table:
                    raise UserError(f"model: the format has no place for the weight {name}")
                parts = [
                    replace(part, name=slot.prefix + part.name)
                    for part in slot.table[local](blocks[int(i)], shape)
                ]
            case _:
                raise UserError(f"model: the format has no place for the weight {name}")
        assert not seen & {part.name for part in parts}, f"two weights share {parts}"
        seen |= {part.name for part in parts}
        yield name, parts


def read_weights(model: LanguageModel, layout: Layout, files: WeightFiles, dtype: torch.dtype) -> None:
    """Fill a model, which may be on the meta device, from a checkpoint.

    Args:
        model: Its parameters are replaced.
        layout: Where they lie.
        files: The checkpoint's tensors; every one must have its place, and every place its tensor.
        dtype: Of the model's parameters.

    Raises:
        DataError: If weights are missing, left over, of another shape or no floating-point numbers, or a head
            differs from the embedding that it is tied to; the message names them.
    """
    names = {
        layout.aliases.get(name, name): name for name in files.shapes if not name.startswith(layout.ignored)
    }
    places = dict(parts_of(model, layout))
    wanted = {part.name: part for parts in places.values() for part in parts}
    tied = {layout.head} if model.config.tie_embeddings else set()
    missing = [name for name in wanted if name not in names]
    extra = [own for name, own in names.items() if name not in wanted and name not in tied]
    shapes = [
        f"{names[name]} {files.shapes[names[name]]} instead of {part.shape}"
        for name, part in wanted.items()
        if name in names and files.shapes[names[name]] != part.shape
    ]
    faults = [("missing", missing), ("not in the model", extra), ("of another shape", shapes)]
    said = [f"{len(found)} weights are {what}: {some(found)}" for what, found in faults if found]
    if said:
        raise DataError(f"{files.path} doesn't fit the model that its config describes: {'; '.join(said)}")

    def fetch(name: str) -> Tensor:
        tensor = files.get(names[name])
        if not tensor.is_floating_point():
            raise DataError(
                f"{files.path}: {names[name]} holds {tensor.dtype}, no floating-point numbers; "
                "quantized checkpoints can't be read"
            )
        return tensor.to(dtype)

    shapes_of_ours = {name: p.shape for name, p in model.named_parameters()}
    ours = {
        name: torch.cat([part.read(fetch(part.name)).reshape(-1) for part in parts]).view(
            shapes_of_ours[name]
        )
        for name, parts in places.items()
    }
    if model.config.tie_embeddings:
        if layout.head in names and not _equal(fetch(layout.head), fetch(layout.embedding)):
            raise DataError(
                f"{files.path}: {names[layout.head]} differs from {names[layout.embedding]}, "
                "but the config says that they are one (tied)"
            )
        ours["head.weight"] = ours["embedding.weight"]
    model.load_state_dict(ours, assign=True)
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight


def written_weights(model: LanguageModel, layout: Layout) -> dict[str, Tensor]:
    """The checkpoint's tensors, on the CPU, none sharing memory with another or with the model."""
    state = model.state_dict()
    theirs = {}
    for name, parts in parts_of(model, layout):
        flat_weight = state[name].detach().cpu().reshape(-1)
        pieces = flat_weight.split([math.prod(part.shape) for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            theirs[part.name] = part.write(piece).clone().contiguous()
    if model.config.tie_embeddings and layout.head_if_tied:
        theirs[layout.head] = theirs[layout.embedding].clone()
    return theirs


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))
