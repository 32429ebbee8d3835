"""The arguments of ``mamba3_scan`` and ``mamba3_step``, checked."""

from __future__ import annotations

from torch import Tensor

from mambakit.kernels.checks import check_float, check_groups, check_same_device, check_seq_idx, check_shape
from mambakit.kernels.mamba3_scan.state import Mamba3State


def check_scan(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    turn: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    up: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    state: Mamba3State | None,
    *,
    length: int | None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
) -> None:
    """Raise unless everything fits ``x``; ``length`` None is one token, without that dimension.

    Raises:
        TypeError: If an argument is no tensor, or not of floats.
        ValueError: On a wrong shape or device, or ``lengths`` together with ``seq_idx``.
    """
    in_time: dict[str, int | None] = {} if length is None else {"length": None}
    check_float("x", x)
    check_shape("x", x, batch=None, **in_time, n_heads=None, head_dim=None)
    batch, (n_heads, head_dim) = x.shape[0], x.shape[-2:]
    tokens: dict[str, int | None] = {"batch": batch}
    if length is not None:
        tokens["length"] = length
    for name, value in (("dt", dt), ("log_decay", log_decay), ("trap", trap)):
        check_float(name, value)
        check_shape(name, value, **tokens, n_heads=n_heads)
    check_float("B", B)
    check_shape("B", B, **tokens, rank=None, n_groups=None, d_state=None)
    rank, n_groups, d_state = B.shape[-3:]
    check_groups(n_groups, n_heads, "n_heads")
    check_float("C", C)
    check_shape("C", C, **tokens, rank=rank, n_groups=n_groups, d_state=d_state)
    n_angles = 0
    if turn is not None:
        check_float("turn", turn)
        check_shape("turn", turn, **tokens, n_angles=None)
        n_angles = turn.shape[-1]
        if 2 * n_angles > d_state:
            raise ValueError(
                f"turn: each angle turns two channels, but there are {n_angles} for d_state={d_state}"
            )
    for name, bias in (("B_bias", B_bias), ("C_bias", C_bias)):
        if bias is not None:
            check_float(name, bias)
            check_shape(name, bias, n_heads=n_heads, rank=rank, d_state=d_state)
    if up is not None:
        check_float("up", up)
        check_shape("up", up, n_heads=n_heads, rank=rank, head_dim=head_dim)
    if D is not None:
        check_float("D", D)
        check_shape("D", D, n_heads=n_heads)
    if z is not None:
        check_float("z", z)
        check_shape("z", z, **tokens, rank=rank, n_heads=n_heads, head_dim=head_dim)
    if state is not None:
        check_shape("ssm", state.ssm, batch=batch, n_heads=n_heads, head_dim=head_dim, d_state=d_state)
        check_shape("angles", state.angles, batch=batch, n_heads=n_heads, n_angles=n_angles)
        check_shape("key", state.key, batch=batch, rank=rank, n_heads=n_heads, d_state=d_state)
        check_shape("value", state.value, batch=batch, n_heads=n_heads, head_dim=head_dim)
        check_same_device("x", x, **state._asdict())
    if seq_idx is not None:
        check_seq_idx(seq_idx, batch=batch, length=x.shape[1])
        if lengths is not None:
            raise ValueError("lengths: give either lengths (padded rows) or seq_idx (packed rows), not both")
    if lengths is not None:
        check_shape("lengths", lengths, batch=batch)
    others = {"dt": dt, "log_decay": log_decay, "trap": trap, "B": B, "C": C, "turn": turn, "z": z}
    others |= {"B_bias": B_bias, "C_bias": C_bias, "up": up, "D": D, "seq_idx": seq_idx, "lengths": lengths}
    check_same_device("x", x, **others)
