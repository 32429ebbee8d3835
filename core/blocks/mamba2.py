"""Mamba-2: state-space duality, one decay per head (Dao & Gu 2024, arXiv:2405.21060)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambakit.core import init
from mambakit.core.blocks.base import Block, Context, count_heads
from mambakit.core.blocks.dense import Hidden, with_earlier
from mambakit.core.blocks.linear import plain_linear
from mambakit.core.blocks.ragged import finished_dt, last_inputs
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State
from mambakit.kernels import causal_conv1d, causal_conv1d_step, gated_rms_norm, ssd, ssd_step
from mambakit.kernels.token_step import mamba2_mix, mamba2_token

# parameters that a step between the projections takes
_OF_A_STEP = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
# Tokens times numbers of state up to which a piece is sooner read token by token than by chunks: for each
# thread; and for each row where there are fewer rows than threads, of which chunks use more.
_SHORT, _SHORT_ROW = 1 << 22, 1 << 19


@register_block("mamba2")
class Mamba2(Block):
    """in_proj to z, x, B, C, dt -> convolution of x, B, C -> SSD -> gated norm -> out_proj (section 7.1).

    Args:
        d_model: Width of input and output.
        d_state: State size per head.
        d_conv: Taps of the convolution.
        expand: ``d_inner = expand * d_model``.
        head_dim: Channels per head; divides ``d_inner``.
        n_groups: Groups of heads that share B and C; divides the number of heads.
        A_init: How the heads' decays start, of which each has one: ``"uniform"`` in ``A_init_range``, as
            published; ``"random"``: log-uniform in it; ``"s4d-real"``: ``-1 ... -n_heads``. They are real, so
            S4D-Lin, S4D-Inv and S4D-LegS are starts of mamba3.
        A_init_range: Each head's decay starts uniform in it.
        dt_min, dt_max: Range of dt at the start.
        dt_floor: Least dt at the start.
        dt_limit: Clamp on dt after softplus.
        D_per_channel: A skip for every channel instead of one per head.
        norm: RMSNorm before out_proj, over each group; without it z gates the scan's output directly.
        norm_before_gate: Gate after the norm instead of before it.
        norm_eps: Added to the norm's mean square.
        conv_bias: Bias of the convolution.
        bias: Biases of in_proj and out_proj.
        chunk_size: Chunk of the scan; the kernel's choice if None.
        recompute: Keep only what in_proj and the scan give for backward, and compute the rest again there:
            a training step takes an eighth less memory, and longer: a quarter for 130M parameters on a GPU.

    Raises:
        ValueError: On a size below 1, sizes that do not divide as above, or another ``A_init``.
    """

    uses_elapsed = True
    learnable_state = ("conv", "ssm")
    projections = ("in_proj", "out_proj")

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: float = 2,
        head_dim: int = 64,
        n_groups: int = 1,
        A_init: str = "uniform",
        A_init_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        D_per_channel: bool = False,
        norm: bool = True,
        norm_before_gate: bool = False,
        norm_eps: float = 1e-5,
        conv_bias: bool = True,
        bias: bool = False,
        chunk_size: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_inner = int(expand * d_model)
        self.d_state = d_state
        self.d_conv = d_conv
        self.head_dim = head_dim
        self.n_groups = n_groups
        for name in ("d_model", "d_inner", "d_state", "d_conv", "head_dim", "n_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        self.n_heads = count_heads(self.d_inner, head_dim, n_groups)
        if A_init not in ("uniform", "s4d-real", "random"):
            hint = "; A is real here, and mamba3 holds complex ones" if A_init in init.COMPLEX_STARTS else ""
            raise ValueError(f"A_init: expected 'uniform', 's4d-real' or 'random', got {A_init!r}{hint}")
        self.norm_before_gate = norm_before_gate
        self.norm_eps = norm_eps
        self.chunk_size = chunk_size
        self.recompute = recompute
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        d_bc = n_groups * d_state
        d_conv_in = self.d_inner + 2 * d_bc
        self._split_in = [self.d_inner, d_conv_in, self.n_heads]
        self._split_conv = [self.d_inner, d_bc, d_bc]
        self._heads = (self.n_heads, head_dim)
        self._groups = (n_groups, d_state)
        self._shapes = {"conv": (d_conv_in, d_conv - 1), "ssm": (self.n_heads, head_dim, d_state)}

        self.in_proj = nn.Linear(d_model, self.d_inner + d_conv_in + self.n_heads, bias=bias)
        self.conv_weight = nn.Parameter(torch.empty(d_conv_in, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_conv_in)) if conv_bias else None
        self.dt_bias = nn.Parameter(init.dt_bias(self.n_heads, dt_min, dt_max, dt_floor))
        if A_init == "s4d-real":
            A = init.s4d_real(1, self.n_heads)[0]
        elif A_init == "random":
            A = init.log_uniform_decay(*A_init_range, self.n_heads)
        else:
            A = init.uniform_decay(self.n_heads, *A_init_range)
        self.A_log = nn.Parameter(torch.log(-A))
        self.D = nn.Parameter(torch.ones(self._heads if D_per_channel else self.n_heads))
        self.norm_weight = nn.Parameter(torch.ones(self.d_inner)) if norm else None
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self._own = set(self._parameters)
        init.convolution_(self.conv_weight, self.conv_bias)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes  # type: ignore[return-value]

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        conv_state, ssm_state = (None, None) if state is None else (state["conv"], state["ssm"])
        projected = self.in_proj(x)
        short = seq_idx is None and lengths is None and self._is_short(x)
        if short and (options := self._step_options(context)):
            before = self.init_state(len(x), dtype=x.dtype) if state is None else state
            result = mamba2_mix(projected, before["conv"], before["ssm"], inplace=state is None, **options)
            if result is not None:
                return self.out_proj(result[0]), State.of(conv=result[1], ssm=result[2])
        z, inputs, dt = projected.split(self._split_in, dim=-1)
        if context is not None and context.hidden is not None:
            return self._mix_dense(x, z, inputs, dt, conv_state, ssm_state, seq_idx, lengths, context)
        y, next_conv, next_ssm = self._keep_inputs_of(
            self._recurrence,
            inputs,
            dt,
            z,
            conv_state,
            ssm_state,
            seq_idx,
            lengths,
            None if context is None else context.elapsed,
        )
        return self._keep_inputs_of(self.project_out, y, z), State.of(conv=next_conv, ssm=next_ssm)

    @property
    def is_plain(self) -> bool:
        """Whether its own parameters are what its class gave it, which compiled steps read."""
        return self._parameters.keys() == self._own

    def _is_short(self, x: Tensor) -> bool:
        """Whether reading a piece token by token is sooner done than by chunks, which takes many calls."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not x.is_cpu:
            return False
        batch, n_threads = len(x), torch.get_num_threads()
        most = n_threads * _SHORT if batch >= n_threads else batch * _SHORT_ROW
        return batch * x.shape[1] * self.d_inner * self.d_state <= most

    def _step_options(self, context: Context | None) -> dict[str, Any]:
        """What compiled steps are told beside projections and states; nothing where they can't be called."""
        if not self.is_plain or (context is not None and context.hidden is not None):
            return {}
        own: dict[str, Any] = self._parameters  # a module's attributes are slow to find
        return {name: own.get(name) for name in _OF_A_STEP} | {
            "elapsed": None if context is None else context.elapsed,
            "n_groups": self.n_groups,
            "norm_before_gate": self.norm_before_gate,
            "norm_eps": self.norm_eps,
            "dt_limit": self.dt_limit,
        }

    def hidden_key(self) -> tuple[object, ...]:
        return ("mamba2", *self._heads, *self._groups)

    def _mix_dense(
        self,
        x: Tensor,
        z: Tensor,
        inputs: Tensor,
        dt: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context,
    ) -> tuple[Tensor, State]:
        """``mix`` with the hidden states of layers below; nothing is forgotten until backward."""
        assert context.hidden is not None
        arguments, next_conv = self.scan_arguments(inputs, dt, conv_state, seq_idx, lengths, context.elapsed)
        carried: dict[str, Any] = {"initial_state": ssm_state, "seq_idx": seq_idx}
        carried["chunk_size"] = self.chunk_size
        y, next_ssm = ssd(**arguments, **carried, return_final_state=True)

        def read(C: Tensor) -> Tensor:
            told = {**arguments, "C": C, "D": None}
            return ssd(**told, **carried).flatten(-2)  # type: ignore[union-attr]

        mine = Hidden(self.hidden_key(), read)
        y = with_earlier(self.dense_reads, context.hidden, mine, x, arguments["C"], y.flatten(-2))
        return self._project_dense(y, z), State.of(conv=next_conv, ssm=next_ssm)

    def _project_dense(self, y: Tensor, z: Tensor) -> Tensor:
        """``(batch, length, d_inner)`` that no gate has seen yet, to the block's output."""
        return self.out_proj(y * F.silu(z) if self.norm_weight is None else self._normalize(y, z))

    def _keep_inputs_of(self, function: Callable[..., Any], *inputs: Tensor | None) -> Any:
        """``function(*inputs)``, all but its inputs forgotten until backward, with ``recompute``."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
            )
        return function(*inputs)

    def _recurrence(
        self,
        inputs: Tensor,
        dt: Tensor,
        z: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        elapsed: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Convolution and state-space model: ``(y, next_conv, next_ssm)``."""
        arguments, next_conv = self.scan_arguments(inputs, dt, conv_state, seq_idx, lengths, elapsed)
        y, next_ssm = ssd(
            **arguments,
            z=z.unflatten(-1, self._heads) if self.norm_weight is None else None,
            initial_state=ssm_state,
            seq_idx=seq_idx,
            return_final_state=True,
            chunk_size=self.chunk_size,
        )
        return y, next_conv, next_ssm

    def project_in(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gate z ``(batch, length, d_inner)``, what is convolved (x, B and C), and dt of every head."""
        return self.in_proj(x).split(self._split_in, dim=-1)

    def scan_arguments(
        self,
        inputs: Tensor,
        dt: Tensor,
        conv_state: Tensor | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        elapsed: Tensor | None = None,
    ) -> tuple[dict[str, Any], Tensor]:
        """What ``ssd`` is called with, beside gate and state; and the convolution's next state.

        Args:
            inputs: What is convolved, ``(batch, length, d_inner + 2 * n_groups * d_state)``.
            dt: ``(batch, length, n_heads)``, before bias and softplus.
            conv_state: The convolution's state.
            seq_idx, lengths: As in ``forward``.
            elapsed: ``(batch, length)``, multiplies dt.
        """
        mixed, next_conv = causal_conv1d(
            inputs,
            self.conv_weight,
            self.conv_bias,
            activation="silu",
            initial_state=conv_state,
            seq_idx=seq_idx,
            return_final_state=True,
        )
        u, B, C = mixed.split(self._split_conv, dim=-1)
        finished = lengths is not None or elapsed is not None
        if lengths is not None:
            next_conv = last_inputs(inputs, conv_state, lengths, self.d_conv)
        if finished:
            dt = finished_dt(dt, self.dt_bias, self.dt_limit, lengths, elapsed)
        arguments = {
            "x": u.unflatten(-1, self._heads),
            "dt": dt,
            "A": -torch.exp(self.A_log),
            "B": B.unflatten(-1, self._groups),
            "C": C.unflatten(-1, self._groups),
            "D": self.D,
            "dt_bias": None if finished else self.dt_bias,
            "dt_softplus": not finished,
            "dt_limit": (0.0, math.inf) if finished else self.dt_limit,
        }
        return arguments, next_conv

    def project_out(self, y: Tensor, z: Tensor) -> Tensor:
        """The block's output of the scan's ``(batch, length, n_heads, head_dim)``: gate, norm, out_proj."""
        return self.out_proj(self._normalize(y.flatten(-2), z))

    def mix_step(
        self, x: Tensor, state: State, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        options = self._step_options(context)
        projections = plain_linear(self._modules, "in_proj", "out_proj") if options else None
        if projections is not None:
            in_proj, out_proj = projections
            result = mamba2_token(
                x,
                state["conv"],
                state["ssm"],
                in_weight=in_proj["weight"],
                in_bias=in_proj["bias"],
                out_weight=out_proj["weight"],
                out_bias=out_proj["bias"],
                **options,
            )
            if result is not None:
                return result[0], State.of(conv=result[1], ssm=result[2])
        projected = self.in_proj(x)
        if options:
            result = mamba2_mix(projected, state["conv"], state["ssm"], inplace=inplace, **options)
            if result is not None:
                return self.out_proj(result[0]), State.of(conv=result[1], ssm=result[2])
        batch = x.shape[0]
        elapsed, hidden = (None, None) if context is None else (context.elapsed, context.hidden)
        z, inputs, dt = projected.split_with_sizes(self._split_in, -1)
        mixed, next_conv = causal_conv1d_step(
            state["conv"], inputs, self.conv_weight, self.conv_bias, activation="silu", inplace=inplace
        )
        u, B, C = mixed.split_with_sizes(self._split_conv, -1)
        finished = elapsed is not None
        if finished:
            dt = finished_dt(dt, self.dt_bias, self.dt_limit, None, elapsed)
        y, next_ssm = ssd_step(
            state["ssm"],
            u.view(batch, *self._heads),
            dt,
            self.A_log,
            B.view(batch, *self._groups),
            C.view(batch, *self._groups),
            D=self.D,
            z=z.view(batch, *self._heads) if self.norm_weight is None and hidden is None else None,
            dt_bias=None if finished else self.dt_bias,
            dt_softplus=not finished,
            dt_limit=(0.0, math.inf) if finished else self.dt_limit,
            A_is_log=True,
            inplace=inplace,
        )
        if hidden is not None:

            def read(C: Tensor) -> Tensor:
                of_heads = C.to(next_ssm.dtype).repeat_interleave(self.n_heads // self._groups[0], 1)
                return (next_ssm * of_heads[:, :, None]).sum(-1).flatten(1)

            mine = Hidden(self.hidden_key(), read)
            y = with_earlier(self.dense_reads, hidden, mine, x, C.view(batch, *self._groups), y.flatten(1))
            return self._project_dense(y, z), State.of(conv=next_conv, ssm=next_ssm)
        y = self._normalize(y.flatten(1), z)
        return self.out_proj(y), State.of(conv=next_conv, ssm=next_ssm)

    def _normalize(self, y: Tensor, z: Tensor) -> Tensor:
        if self.norm_weight is None:
            return y
        return gated_rms_norm(
            y,
            self.norm_weight,
            z=z,
            eps=self.norm_eps,
            group_size=self.d_inner // self.n_groups,
            norm_before_gate=self.norm_before_gate,
        )
