"""What every block has in common: checks at the boundary, padding, empty input, the shape of its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mambakit.core.blocks.dense import DenseReads, Hidden
from mambakit.core.blocks.packed import Packed
from mambakit.core.state import State
from mambakit.kernels.checks import check_seq_idx

_SYNC_IS_ERROR = 2  # of torch.cuda.set_sync_debug_mode


@dataclass
class Context:
    """What a backbone tells those of its layers that ask for it, beside the sequence itself.

    Attributes:
        inputs: The backbone's own input, shaped as the layer's ``x``.
        edges: ``(n_edges, 3)`` int64, each a row of the batch, a source and a target token of it.
        edge_features: ``(n_edges, d_edge)``.
        elapsed: Time since the token read before, in ordinary gaps: ``(batch, length)``, ``(batch,)`` in a
            step. Blocks with a step size multiply it by this.
        losses: Layers append to it what training is to minimise besides its own loss.
        hidden: With dense connections, what the layers below show of their hidden states; a layer appends.
    """

    inputs: Tensor | None = None
    edges: Tensor | None = None
    edge_features: Tensor | None = None
    elapsed: Tensor | None = None
    losses: list[Tensor] = field(default_factory=list)
    hidden: list[Hidden] | None = None

    def reordered(self, move: Callable[[Tensor], Tensor], gaps: Callable[[Tensor], Tensor]) -> Context:
        """For a block inside another, which reads the tokens as ``move`` puts them; edges stay outside.

        ``gaps`` makes of ``elapsed`` the time between the tokens that are then read one after the other.
        """
        inputs = None if self.inputs is None else move(self.inputs)
        elapsed = None if self.elapsed is None else gaps(self.elapsed)
        return Context(inputs=inputs, elapsed=elapsed, losses=self.losses)


class Block(nn.Module):
    """A sequence mixer: no norm and no residual (the backbone adds them).

    A subclass names its state in ``state_shapes`` and computes in ``mix`` and ``mix_step``. For every
    block ``forward`` over a sequence, ``forward`` over its pieces with the state carried, and ``step``
    token by token agree.

    Attributes:
        d_model: Width of input and output.
        causal: Whether a token sees only what came before; a block that is not causal has no state.
        mixes_time: Whether tokens see each other at all; a block of the class that does has a direction.
        uses_context: Whether ``mix`` and ``mix_step`` take a ``context``.
        uses_elapsed: Whether they take one that has ``elapsed``; where there is none, and the block does not
            use contexts otherwise, they are called without.
        prenorm: Whether the backbone norms the block's input; a block that does not want it has its own.
        shared_parts: Submodules that places of the same ``kind@label`` share, by name; None for the whole.
        learnable_state: What of the state ``learn_initial_state`` makes parameters of.
        projections: Its own linear maps that adapting to a new task changes, by name; those of blocks inside
            it are theirs to say. Some may be None.
    """

    d_model: int
    causal: bool = True
    mixes_time: bool = True
    uses_context: bool = False
    uses_elapsed: bool = False
    prenorm: bool = True
    shared_parts: tuple[str, ...] | None = None
    learnable_state: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()

    @property
    def dense_reads(self) -> DenseReads | None:
        """How it reads the hidden states of layers below it, if a backbone has connected them."""
        return self._modules.get("dense")  # type: ignore[return-value]

    def hidden_key(self) -> tuple[object, ...] | None:
        """What hidden states must have alike for one layer to read another's; None if none can be read."""
        return None

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Names and shapes (after the batch) of the state; None stands for a size that grows."""
        raise NotImplementedError

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """``forward`` after its checks: ``x`` has at least one token and is zero at padding."""
        raise NotImplementedError

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        """``step`` after its checks."""
        raise NotImplementedError

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token.

        Args:
            batch: Number of rows.
            device: Where; the parameters' device by default.
            dtype: The dtype of the activations, the parameters' by default. A recurrent state is kept in
                float32 for half-precision activations.

        Raises:
            RuntimeError: If the block is not causal.
        """
        self._refuse_unless_causal()
        device, dtype = self._place(device, dtype)
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        state = {
            name: torch.zeros(batch, *(size or 0 for size in shape), device=device, dtype=dtype)
            for name, shape in self.state_shapes().items()
        }
        for name, start in self._learned_start().items():
            # memory of its own: a step in place must not write into the parameter
            state[name] = start.to(device, dtype).expand(batch, *start.shape).clone()
        return State.of(**state)

    def learn_initial_state(self) -> None:
        """Begin every sequence from parameters, ``initial.NAME``, instead of zeros; they are zero at first.

        Packed sequences too: their rows are then taken apart, as the kernels begin all but a row's first
        sequence at zero. That reads ``seq_idx`` back from a GPU, and breaks a compiled graph.
        """
        shapes = self.state_shapes()
        wanted = {
            name: [size or 0 for size in shapes[name]] for name in self.learnable_state if name in shapes
        }
        device, dtype = self._place(None, None)
        starts = {
            name: nn.Parameter(torch.zeros(sizes, device=device, dtype=dtype))
            for name, sizes in wanted.items()
            if 0 not in sizes
        }
        if not starts:
            return
        for start in starts.values():
            start._no_weight_decay = True  # type: ignore[attr-defined]
        self.initial = nn.ParameterDict(starts)

    def _learned_start(self) -> dict[str, Tensor]:
        return dict(self._modules.get("initial") or {})  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        seq_idx: Tensor | None = None,
        lengths: Tensor | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        """Mix a sequence, or the next piece of one.

        Args:
            x: ``(batch, length, d_model)``; any length, zero too.
            state: What came before, from ``init_state``, ``forward`` or ``step``; None at the beginning.
            seq_idx: ``(batch, length)`` int32, non-decreasing in a row, for packed sequences: nothing
                passes from one to the next, and the first one of a row continues ``state``.
            lengths: ``(batch,)`` int64 for right-padded rows: the number of real tokens of each.
            context: What a backbone knows besides; most blocks do not look at it.

        Returns:
            ``y`` like ``x``, zero at padding, and the state after each row's last real token (of its
            last sequence, where rows are packed).

        Raises:
            ValueError: On a wrong shape, lengths outside ``0..length``, a state of another batch size or
                block, or ``lengths`` together with ``seq_idx``.
            RuntimeError: If a state is given to a block that is not causal.
        """
        batch, length = check_input(x, self.d_model)
        if seq_idx is not None:
            check_seq_idx(seq_idx, batch=batch, length=length)
            if lengths is not None:
                raise ValueError(
                    "lengths: give either lengths (padded rows) or seq_idx (packed rows), not both"
                )
        if state is not None:
            self._refuse_unless_causal()
            self.check_state(state, batch)
        if length == 0:
            if lengths is not None:
                check_lengths(lengths, batch, length)
            if state is None:
                state = self.init_state(batch, device=x.device, dtype=x.dtype) if self.causal else State()
            return x, state
        if "initial" in self._modules:
            if seq_idx is not None and batch > 0:
                return self._mix_apart(x, state, seq_idx, context)
            if state is None:
                state = self.init_state(batch, device=x.device, dtype=x.dtype)
        more = (
            {"context": context}
            if self.uses_context or (context is not None and self._driven_by(context))
            else {}
        )
        if lengths is None:
            return self.mix(x, state, seq_idx, None, **more)
        lengths = check_lengths(lengths, batch, length).to(x.device)
        padding = padding_mask(lengths, length)
        if context is not None and context.elapsed is not None and more:
            more["context"] = replace(context, elapsed=context.elapsed.masked_fill(padding, 0.0))
        padding = padding[..., None]
        y, state = self.mix(x.masked_fill(padding, 0.0), state, None, lengths, **more)
        return y.masked_fill(padding, 0.0), state

    def step(
        self, x: Tensor, state: State, *, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        """Mix one token.

        Args:
            x: ``(batch, d_model)``.
            state: What came before; it is left as it is unless ``inplace``.
            inplace: The state's tensors may be overwritten: a decoding loop that keeps only the returned
                state spares the memory. Not for a state that needs gradients.
            context: As in ``forward``, of this token.

        Returns:
            ``y`` like ``x`` and the next state: the same as ``forward`` on a sequence of one token.

        Raises:
            ValueError: On a wrong shape, or a state of another batch size or block.
            RuntimeError: If the block is not causal.
        """
        if not self.causal:
            self._refuse_unless_causal()
        if x.dim() != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"x: expected shape (batch, d_model={self.d_model}), got {tuple(x.shape)}")
        self.check_state(state, x.shape[0])
        if self.uses_context or (context is not None and self._driven_by(context)):
            return self.mix_step(x, state, inplace, context=context)  # type: ignore[call-arg]
        return self.mix_step(x, state, inplace)

    def _driven_by(self, context: Context) -> bool:
        return context.elapsed is not None and self.uses_elapsed

    def _mix_apart(
        self, x: Tensor, state: State | None, seq_idx: Tensor, context: Context | None
    ) -> tuple[Tensor, State]:
        """``forward`` of packed rows with every sequence a row of its own, so that each has a start."""
        elapsed = None if context is None else context.elapsed
        packed = Packed(seq_idx)
        starts = self.init_state(packed.count, device=x.device, dtype=x.dtype) if self.causal else None
        if starts is not None and state is not None:
            starts = starts.put_rows(packed.first, state)
        outputs, finals, losses = [], [], []
        for members in packed.groups():
            lengths, rows, gaps = packed.take(members, x, elapsed)
            told = None if context is None else Context(elapsed=gaps)
            begin = None if starts is None else starts.index_select(members)
            y, final = self.forward(rows, begin, lengths=lengths, context=told)
            outputs.append(y)
            finals.append(final)
            losses += told.losses[:1] and [torch.stack(told.losses).sum()] if told is not None else []
        if context is not None and losses:
            context.losses.append(torch.stack(losses).mean())
        return packed.join(outputs), packed.last_of(State.cat(finals)) if self.causal else State.of()

    def check_state(self, state: State, batch: int) -> None:
        """Raise unless ``state`` is one of this block's for ``batch`` rows.

        Raises:
            TypeError: If it is not a ``State``.
            ValueError: If it holds other names or shapes, or another number of rows.
        """
        if not isinstance(state, State):
            raise TypeError(f"state: expected a State (from init_state), got {type(state).__name__}")
        shapes = self.state_shapes()
        if len(state) == len(shapes):
            for name, shape in shapes.items():
                tensor = state.get(name)
                if not isinstance(tensor, Tensor):
                    break
                got = tensor.shape
                if got[0] != batch:
                    raise ValueError(f"state: it is for a batch of {got[0]} rows, but x has {batch}")
                if got == (batch, *shape):
                    continue
                if got[1:] != shape and not _fits(got[1:], shape):
                    break
            else:
                return
        hint = "; decompress it first" if any(isinstance(item, State) for item in state.values()) else ""
        wanted = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
        raise ValueError(
            f"state: it belongs to another block: {type(self).__name__} keeps {wanted} (a row), "
            f"got {state!r}{hint}"
        )

    def _refuse_unless_causal(self) -> None:
        if not self.causal:
            raise RuntimeError(
                f"{type(self).__name__} looks in both directions and needs the whole sequence at once: "
                "it has no state and no step; use a causal block to stream"
            )

    def _place(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> tuple[torch.device | str, torch.dtype]:
        parameter = next(self.parameters())
        return device or parameter.device, dtype or parameter.dtype


def _fits(got: torch.Size, wanted: tuple[int | None, ...]) -> bool:
    return len(got) == len(wanted) and all(w is None or g == w for g, w in zip(got, wanted, strict=True))


def check_input(x: Tensor, d_model: int) -> tuple[int, int]:
    """``(batch, length)`` of ``x``, or a ValueError unless it is ``(batch, length, d_model)``."""
    if x.dim() != 3 or x.shape[2] != d_model:
        raise ValueError(f"x: expected shape (batch, length, d_model={d_model}), got {tuple(x.shape)}")
    return x.shape[0], x.shape[1]


def check_lengths(lengths: Tensor, batch: int, length: int, *, synchronize: bool = False) -> Tensor:
    """Return ``lengths`` if it counts the real tokens of ``batch`` rows of ``length``.

    Args:
        lengths: ``(batch,)`` integers.
        batch: Rows of x.
        length: Tokens of a row of x.
        synchronize: Read the values on a GPU too, which waits for it, but not where waiting is forbidden:
            while a CUDA graph is recorded. On a CPU they always are.

    Raises:
        TypeError: If it is not a tensor of integers.
        ValueError: On a wrong shape, or a value outside ``0..length``.
    """
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths: expected an int64 tensor, got {got}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected shape (batch={batch},), got {tuple(lengths.shape)}")
    readable = not torch.compiler.is_compiling() and (
        lengths.device.type == "cpu" or (synchronize and not forbids_waiting(lengths))
    )
    if readable and bool(((lengths < 0) | (lengths > length)).any()):
        raise ValueError(f"lengths: values must be in 0..{length} (the length of x), got {lengths.tolist()}")
    return lengths.long()


def count_heads(d_inner: int, head_dim: int, n_groups: int) -> int:
    """How many heads share ``d_inner`` channels (``expand * d_model``).

    Raises:
        ValueError: If the channels don't come out even in heads, or the heads in groups.
    """
    if d_inner % head_dim:
        raise ValueError(
            f"head_dim: d_inner={d_inner} (expand * d_model) is not divisible by head_dim={head_dim}"
        )
    n_heads = d_inner // head_dim
    if n_heads % n_groups:
        raise ValueError(
            f"n_groups: n_heads={n_heads} (d_inner / head_dim) is not divisible by n_groups={n_groups}"
        )
    return n_heads


def forbids_waiting(x: Tensor) -> bool:
    """Whether a value of ``x`` may not be read on the CPU now: a CUDA graph is recorded, or soon will be."""
    return x.is_cuda and (
        torch.cuda.get_sync_debug_mode() == _SYNC_IS_ERROR or torch.cuda.is_current_stream_capturing()
    )


def padding_mask(lengths: Tensor, length: int) -> Tensor:
    """True at the padding of right-padded rows, ``(batch, length)``."""
    return torch.arange(length, device=lengths.device) >= lengths[:, None]
