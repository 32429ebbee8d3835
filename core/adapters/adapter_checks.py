"""What ``check_adapter`` checks about an adapter; an AssertionError says what to mend."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mambakit.core.adapters.adapter import Adapter
from mambakit.core.adapters.collate import pack_batch, pad_batch
from mambakit.core.adapters.tokenizer_checks import fail
from mambakit.core.adapters.tokens import TokenBatch, Tokens


def check_output(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """``embed`` gives finite ``(batch, length, d_model)`` in the parameters' dtype, on their device."""
    batch = _pad(adapter, tokens)
    embedded = adapter.embed(batch)
    wanted = (batch.batch_size, batch.length, adapter.d_model)
    if tuple(embedded.shape) != wanted:
        fail(f"embed returned shape {tuple(embedded.shape)}, expected (batch, length, d_model) = {wanted}")
    weight = next((p for p in adapter.parameters() if p.is_floating_point()), None)
    if weight is not None and (embedded.dtype, embedded.device) != (weight.dtype, weight.device):
        fail(
            f"embed returned {embedded.dtype} on {embedded.device}, but the parameters are {weight.dtype} on "
            f"{weight.device}; cast the values to the parameters' dtype"
        )
    if not bool(torch.isfinite(embedded).all()):
        fail("embed returned NaN or infinity; look at its normalisation and its handling of zeros")


def check_dtype(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """An adapter moved to another dtype embeds in that dtype."""
    double = copy.deepcopy(adapter).double()
    if next(double.parameters(), None) is None:
        return
    try:
        embedded = double.embed(_pad(adapter, tokens))
    except RuntimeError as error:
        raise AssertionError(
            f"after .double() embed raised {error}; cast the values to the parameters' dtype"
        ) from error
    if embedded.dtype != torch.float64:
        fail(f"after .double() embed returned {embedded.dtype}; cast the values to the parameters' dtype")


def check_padding_is_zero(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """The padding embeds to zeros, on either side."""
    longest = max(len(sample) for sample in tokens)
    for padding in ("right", "left"):
        batch = pad_batch(tokens, padding=padding, length=longest + 1).to(_device(adapter))
        if bool(adapter.embed(batch)[~batch.mask].any()):
            fail(
                f"{padding} padding embeds to something else than zeros; "
                "override embed_tokens, not embed or forward"
            )


def check_padding_and_packing(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """A sequence embeds alike alone, padded on the right or left, whatever the pads hold, and packed."""
    alone = [adapter.embed(_pad(adapter, [sample]))[0] for sample in tokens]
    row = max(1, max(len(sample) for sample in tokens), sum(len(sample) for sample in tokens) // 2 + 1)
    ways = {
        "right-padded": pad_batch(tokens),
        "left-padded": pad_batch(tokens, padding="left"),
        "right-padded with a pad value of 1": pad_batch(tokens, pad_value=1),
        "packed": pack_batch(tokens, row),
    }
    for way, batch in ways.items():
        moved = batch.to(_device(adapter))
        for i, (part, expected) in enumerate(zip(moved.split(adapter.embed(moved)), alone, strict=True)):
            if not _close(part, expected):
                fail(
                    f"sample {i} embeds otherwise {way} than alone "
                    f"(difference {_difference(part, expected):.3g}); "
                    "let a token's embedding depend on its own sequence only (batch.mask, batch.gaps and "
                    "batch.seq_idx tell sequences apart)"
                )


def check_empty_row(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """An empty sequence, alone or among others, embeds to nothing and disturbs nobody."""
    first = tokens[0]
    empty = Tokens(
        first.values[:0],
        None if first.time is None else first.time[:0],
        None if first.modality is None else first.modality[:0],
    )
    try:
        alone = adapter.embed(_pad(adapter, [empty]))
        beside = adapter.embed(_pad(adapter, [empty, first]))
    except Exception as error:
        raise AssertionError(
            f"an empty sequence raises {type(error).__name__}: {error}; handle length 0 in embed_tokens"
        ) from error
    if tuple(alone.shape) != (1, 0, adapter.d_model):
        fail(f"an empty sequence embeds to shape {tuple(alone.shape)}, expected (1, 0, {adapter.d_model})")
    if not _close(beside[1], adapter.embed(_pad(adapter, [first]))[0]):
        fail("an empty row changes what the row beside it embeds to")


def check_gradients(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """Gradients reach every parameter that wants one."""
    twin = copy.deepcopy(adapter)
    wanting = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    if not wanting:
        return
    embedded = twin.embed(_pad(adapter, tokens))
    if not embedded.requires_grad:
        fail("embed returned a tensor without gradient; take .detach(), .numpy() and no_grad out of it")
    torch.manual_seed(0)
    embedded.backward(torch.randn_like(embedded))
    dead = [name for name, p in wanting.items() if p.grad is None or not bool(p.grad.any())]
    if dead:
        fail(
            f"no gradient reaches {', '.join(dead)}; use it in embed_tokens, or remove it (or requires_grad)"
        )


def check_config(adapter: Adapter, tokens: Sequence[Tokens]) -> None:
    """``from_config(config())`` through JSON, with the weights copied over, is the same adapter."""
    try:
        config = json.loads(json.dumps(adapter.config()))
        twin = type(adapter).from_config(config)
        twin.load_state_dict(adapter.state_dict())
    except Exception as error:
        raise AssertionError(
            f"config() can't rebuild the adapter ({type(error).__name__}: {error}); "
            "return all the constructor's arguments as JSON-able values"
        ) from error
    twin.to(_device(adapter), next((p.dtype for p in adapter.parameters()), None)).eval()
    batch = _pad(adapter, tokens)
    if twin.d_model != adapter.d_model or not _close(twin.embed(batch), adapter.embed(batch)):
        fail("the adapter rebuilt from config() embeds otherwise; return all the constructor's arguments")


ADAPTER_CHECKS: tuple[tuple[str, Callable[[Adapter, Sequence[Tokens]], None]], ...] = (
    ("output", check_output),
    ("dtype", check_dtype),
    ("padding is zero", check_padding_is_zero),
    ("padding and packing", check_padding_and_packing),
    ("empty row", check_empty_row),
    ("gradients", check_gradients),
    ("config", check_config),
)


def _device(adapter: Adapter) -> torch.device:
    return adapter.device or torch.device("cpu")


def _pad(adapter: Adapter, tokens: Sequence[Tokens]) -> TokenBatch:
    return pad_batch(tokens).to(_device(adapter))


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max()) if a.shape == b.shape and a.numel() else float("nan")


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to what another order of summation does to a sum of this size."""
    if a.shape != b.shape:
        return False
    a, b = a.detach(), b.detach()
    size = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return bool(((a - b).abs() <= 32 * torch.finfo(a.dtype).eps * size).all())
