"""A model as a function of its tokens' embeddings, whatever it does with them: through the model's own
forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.adapters import Adapter, TokenBatch, Tokens, pad_batch
from mambakit.core.backbone import Backbone

Sample = Tensor | Tokens | TokenBatch


@dataclass(frozen=True)
class Embedded:
    """One sample, embedded.

    Attributes:
        tokens: ``(1, length, width)``: embeddings of ids or channels, or the channels themselves.
        run: ``(rows, length, width)`` like ``tokens`` (dropped tokens are allowed) to the model's output,
            ``(rows, ...)``.
        ids: The sample's ids, ``(length,)``, where it has one a token.
        embed_ids: Embeds other ids in the sample's place, ``(length,)`` to ``(1, length, width)``.
    """

    tokens: Tensor
    run: Callable[[Tensor], Tensor]
    ids: Tensor | None = None
    embed_ids: Callable[[Tensor], Tensor] | None = None


def embedded(model: nn.Module, sample: Sample, embedding: nn.Module | None = None) -> Embedded:
    """The sample as the model embeds it, and the model as a function of that.

    The embedding module's output is replaced while the model runs: all else is the model's own forward.

    Args:
        model: Called with ids ``(rows, length)``, a ``TokenBatch``, or floats ``(rows, length, width)``.
        sample: Ids ``(length,)`` int64, ``Tokens``, a ``TokenBatch`` of one sequence, or floats ``(length,
            width)``, which are taken as they are.
        embedding: The module that embeds the tokens; by default the model's one outermost adapter, or else
            its one ``nn.Embedding``.

    Raises:
        TypeError: If the sample is none of these.
        ValueError: If it is empty or more than one sequence, or there is no one embedding.
    """
    device = device_of(model)
    sample = one_sample(sample)
    if isinstance(sample, Tensor) and sample.is_floating_point():
        return Embedded(sample[None].to(device), lambda rows: _first(model(rows)))
    module = find_embedding(model) if embedding is None else embedding

    def call(rows: int, length: int, given: Tensor | Tokens = sample) -> Any:
        if isinstance(given, Tensor):
            return model(given[:length].to(device).expand(rows, -1))
        time = None if given.time is None else given.time[:length]
        modality = None if given.modality is None else given.modality[:length]
        cut = Tokens(given.values[:length], time, modality)
        return model(pad_batch([cut] * rows).to(device))

    def embed(given: Tensor | Tokens) -> Tensor:
        with torch.no_grad(), output_of(module, None) as seen:
            call(1, len(given), given)
        return _only(module, seen)

    def run(rows: Tensor) -> Tensor:
        with output_of(module, rows) as seen:
            output = call(rows.shape[0], rows.shape[1])
        _only(module, seen)
        return _first(output)

    values = sample if isinstance(sample, Tensor) else sample.values
    if values.is_floating_point() or values.dim() != 1:
        return Embedded(embed(sample), run)

    def embed_ids(ids: Tensor) -> Tensor:
        return embed(ids if isinstance(sample, Tensor) else Tokens(ids, sample.time, sample.modality))

    return Embedded(embed(sample), run, values, embed_ids)


def one_sample(sample: Sample) -> Tensor | Tokens:
    """The sample without a batch.

    Raises:
        TypeError: If it is no tensor, ``Tokens`` or ``TokenBatch``.
        ValueError: If it is no single sequence, or an empty one.
    """
    if isinstance(sample, TokenBatch):
        if sample.n_sequences != 1:
            raise ValueError(f"sample: expected a batch of one sequence, got {sample.n_sequences}")
        sample = sample.to("cpu").unbind()[0]
    elif isinstance(sample, Tensor):
        n_dims = 2 if sample.is_floating_point() else 1
        if sample.dim() == n_dims + 1 and len(sample) == 1:
            sample = sample[0]
        if sample.dim() != n_dims or (n_dims == 1 and sample.dtype != torch.int64):
            raise ValueError(
                f"sample: expected ids (length,) int64 or floats (length, width), "
                f"got {sample.dtype} {tuple(sample.shape)}"
            )
    elif not isinstance(sample, Tokens):
        raise TypeError(f"sample: expected a tensor, Tokens or a TokenBatch, got {type(sample).__name__}")
    if len(sample) == 0:
        raise ValueError("sample: expected at least one token, got none")
    return sample


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def find_embedding(model: nn.Module) -> nn.Module:
    """The model's one outermost adapter, or else its one ``nn.Embedding``.

    Raises:
        ValueError: If it has none, or more than one.
    """
    if isinstance(model, Backbone):
        raise ValueError("sample: a backbone embeds nothing; give floats (length, d_model)")
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    inner = {id(part) for adapter in adapters for part in adapter.modules() if part is not adapter}
    found: list[nn.Module] = [adapter for adapter in adapters if id(adapter) not in inner]
    if not found:
        found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if len(found) != 1:
        raise ValueError(
            f"model: expected one adapter or embedding in {type(model).__name__}, found {len(found)}; "
            "give the module that embeds the tokens as embedding="
        )
    return found[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of the model in eval mode, and as it was afterwards: dropout would make the scores
    random."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def output_of(module: nn.Module, replacement: Tensor | None) -> Iterator[list[Tensor]]:
    """Record the module's outputs while it lasts, and put ``replacement`` in their place."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach())
        return output if replacement is None else replacement.to(output.dtype)

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _only(module: nn.Module, seen: list[Tensor]) -> Tensor:
    if len(seen) != 1 or seen[0].dim() != 3:
        got = f"{len(seen)} calls" if len(seen) != 1 else f"an output of shape {tuple(seen[0].shape)}"
        raise ValueError(
            f"embedding: expected the model to call {type(module).__name__} once for (rows, length, width), "
            f"got {got}; give the module that embeds the tokens as embedding="
        )
    return seen[0]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
