"""The steps of chunked SSD between its matrix products, in plain torch for any device.

Letters: b rows, c chunks, q tokens of a chunk, h heads, g groups, p head_dim, n d_state; ``bc`` is both in
one dimension. A slab's token tensors ``[b, t, h, p]`` may end before its last chunk does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split(v: Tensor, weight: Tensor, n_groups: int, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens by head, ``[bch, q, p]``, and, times ``weight [b, c, h, q]``, by group, ``[bcg, q, hp/g]``.

    With ``z`` the tokens are gradients behind the gate, and pass it first.
    """
    tokens = _chunked(v, weight)
    if z is not None:
        tokens = tokens * F.silu(_chunked(z, weight))
    weighted = tokens * weight.transpose(2, 3)[..., None]  # [b, c, q, h, p]
    by_group = weighted.unflatten(3, (n_groups, -1)).transpose(2, 3).flatten(4)
    return tokens.transpose(2, 3).flatten(0, 2), by_group.flatten(0, 2)


def recur(local: Tensor, through: Tensor, state: Tensor) -> Tensor:
    """States at the chunks' starts, ``[bcg, n, hp/g]``, from what each chunk adds; updates ``state``."""
    starts = local.view(*through.shape[:2], *state.shape[1:])
    decay = _per_channel(through, state)
    for c in range(through.shape[1]):
        at_start = state.clone()
        state.mul_(decay[:, c]).add_(starts[:, c])
        starts[:, c] = at_start
    return local


def recur_back(local: Tensor, through: Tensor, dstate: Tensor, starts: Tensor, dthrough: Tensor) -> Tensor:
    """Gradients at the chunks' ends from what each chunk gives its own start; updates ``dstate``."""
    ends = local.view(*through.shape[:2], *dstate.shape[1:])
    decay = _per_channel(through, dstate)
    for c in reversed(range(through.shape[1])):
        at_end = dstate.clone()
        dstate.mul_(decay[:, c]).add_(ends[:, c])
        ends[:, c] = at_end
    products = (ends * starts.view(ends.shape)).sum(3)  # [b, c, g, hp/g]
    dthrough.copy_(products.view(*through.shape, -1).sum(-1))
    return local


def decay(CB: Tensor, cum: Tensor, scale: Tensor, start: Tensor | None) -> Tensor:
    """``M_ij = CB_ij exp(cum_i - cum_j) scale_j`` for j <= i in one sequence, else 0; ``[bch, q, q]``."""
    M = _per_head(CB, cum) * _decay_matrix(cum, start, CB.dtype) * scale[..., None, :]
    return M.flatten(0, 2)


def decay_back(
    CB: Tensor,
    dM: Tensor,
    cum: Tensor,
    scale: Tensor,
    start: Tensor | None,
    span: Tensor,
    column: Tensor,
) -> tuple[Tensor, Tensor]:
    """M again and the gradient of ``CB``.

    Also writes two sums of ``W = dM * M``: ``span_t`` over all i >= t > j, ``column_j`` of ``W / scale``.
    """
    L = _decay_matrix(cum, start, CB.dtype)
    dL = dM.view(L.shape) * L
    unscaled = _per_head(CB, cum)
    column.copy_((dL * unscaled).sum(-2))
    dL *= scale[..., None, :]
    span.copy_((dL * unscaled).flip(-2).cumsum(-2).flip(-2).tril(-1).sum(-1))
    n_chunks = cum.shape[0] * cum.shape[1]
    dCB = dL.view(n_chunks, CB.shape[0] // max(n_chunks, 1), -1, *CB.shape[1:]).sum(2)
    return (unscaled * L * scale[..., None, :]).flatten(0, 2), dCB.flatten(0, 1)


def combine(
    y: Tensor,
    diagonal: Tensor,
    carried: Tensor,
    into: Tensor,
    x: Tensor,
    D: Tensor | None,
    z: Tensor | None,
) -> None:
    """Write ``(diagonal + into * carried + D x) silu(z)`` to ``y``."""
    total = _sum_output(diagonal, carried, into, x, D)
    if z is not None:
        total = total * F.silu(_chunked(z, into))
    y.copy_(total.flatten(1, 2)[:, : y.shape[1]])


def combine_back(
    dx: Tensor,
    dz: Tensor | None,
    dD: Tensor | None,
    leaving: Tensor,
    entering: Tensor,
    dx_diagonal: Tensor,
    dx_carried: Tensor,
    diagonal: Tensor | None,
    carried: Tensor,
    weight: Tensor,
    into: Tensor,
    x: Tensor,
    dy: Tensor,
    D: Tensor | None,
    z: Tensor | None,
) -> None:
    """Write dx and dz, add to dD, and leave ``sum_p x dx_carried`` and ``sum_p dy carried``."""
    tokens, grad = _chunked(x, into), _chunked(dy, into)
    if z is not None and diagonal is not None and dz is not None:
        gate = _chunked(z, into)
        sigmoid = gate.sigmoid()
        total = _sum_output(diagonal, carried, into, x, D)
        dgate = grad * total * sigmoid * (1 + gate * (1 - sigmoid))
        dz.copy_(dgate.flatten(1, 2)[:, : dz.shape[1]])
        grad = grad * gate * sigmoid
    dtokens = _sum_output(dx_diagonal, dx_carried, weight, dy, None)
    if D is not None and dD is not None:
        dtokens = dtokens + D * grad
        dD += (grad * tokens).sum((0, 1, 2))
    dx.copy_(dtokens.flatten(1, 2)[:, : dx.shape[1]])
    leaving.copy_((tokens * _tokens_first(dx_carried, into, x)).sum(-1).transpose(2, 3))
    entering.copy_((grad * _tokens_first(carried, into, x)).sum(-1).transpose(2, 3))


def _chunked(v: Tensor, like: Tensor) -> Tensor:
    """``[b, t, h, p]`` to ``[b, c, q, h, p]`` in the dtype of ``like [b, c, h, q]``, zeros after the end."""
    n_chunks, q = like.shape[1], like.shape[3]
    v = F.pad(v.to(like.dtype), (0, 0, 0, 0, 0, n_chunks * q - v.shape[1]))
    return v.unflatten(1, (n_chunks, q))


def _tokens_first(by_group: Tensor, into: Tensor, x: Tensor) -> Tensor:
    """``[bcg, q, hp/g]`` to ``[b, c, q, h, p]``."""
    b, c, h, q = into.shape
    n_groups = by_group.shape[0] // max(b * c, 1)
    return (
        by_group.view(b, c, n_groups, q, by_group.shape[-1]).transpose(2, 3).reshape(b, c, q, h, x.shape[-1])
    )


def _sum_output(diagonal: Tensor, carried: Tensor, factor: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    b, c, h, q = factor.shape
    total = diagonal.view(b, c, h, q, x.shape[-1]).transpose(2, 3)
    total = total + factor.transpose(2, 3)[..., None] * _tokens_first(carried, factor, x)
    return total if D is None else total + D * _chunked(x, factor)


def _per_channel(through: Tensor, state: Tensor) -> Tensor:
    """``[b, c, h]`` to ``[b, c, g, 1, hp/g]``."""
    b, c, h = through.shape
    head_dim = state.shape[1] * state.shape[3] // h
    return through.repeat_interleave(head_dim, dim=2).view(b, c, state.shape[1], 1, state.shape[3])


def _per_head(CB: Tensor, cum: Tensor) -> Tensor:
    """``[bcg, q, q]`` to ``[b, c, h, q, q]``, without a copy where all heads are one group."""
    b, c, h, q = cum.shape
    n_groups = CB.shape[0] // max(b * c, 1)
    if n_groups == 1:
        return CB.view(b, c, 1, q, q)
    return CB.view(b, c, n_groups, q, q).repeat_interleave(h // max(n_groups, 1), dim=2)


def _decay_matrix(cum: Tensor, start: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``exp(cum_i - cum_j)`` for j <= i in one sequence, else 0; masked before exp, so nothing overflows."""
    position = torch.arange(cum.shape[-1], device=cum.device)
    masked = position > position[:, None]  # [i, j]: j after i
    if start is not None:
        masked = masked | (position < start[..., None])[:, :, None]
    difference = cum[..., :, None] - cum[..., None, :]
    return difference.masked_fill(masked, float("-inf")).to(dtype).exp()
