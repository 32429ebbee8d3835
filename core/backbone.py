"""A stack of blocks from a config: pre-norm, residual, dropout; hybrids are a list of kinds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.auxiliary import Held
from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.blocks import (
    Block,
    Context,
    GraphMix,
    RMSNorm,
    build_layer,
    check_edges,
    kind_of,
)
from mambakit.core.blocks.base import check_input, check_lengths, padding_mask
from mambakit.core.blocks.dense import Hidden, connect
from mambakit.core.blocks.gaps import check_elapsed, check_gaps
from mambakit.core.blocks.packed import Packed
from mambakit.core.blocks.ragged import left_padding_index, take
from mambakit.core.compiled_stack import ShortPieces
from mambakit.core.state import State
from mambakit.kernels.checks import check_seq_idx

__all__ = ["Backbone", "BackboneConfig"]


# Of a prefix's first values: as wide as embeddings begin.
_PREFIX_SCALE = 0.02


class Backbone(nn.Module):
    """``x + scale * dropout(block(norm(x)))`` for every layer, and a norm at the end.

    Args:
        config: What to build.

    Attributes:
        auxiliary: What layers asked training to minimise besides its loss in the last forward pass; nothing
            if that was not in training mode. ``mambakit.core.auxiliary.auxiliary_loss(model)`` adds it up
            over a model.
        uses_elapsed: Whether a layer has a step size that ``elapsed`` can drive.
        prefix: ``(n_tokens, d_model)`` that every sequence is read after, or None; see ``learn_prefix``.

    Raises:
        ValueError: If a block cannot be built as the config says.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.d_model = config.d_model
        layers = list(config.layers) * config.repeat
        self.blocks = nn.ModuleList(_build_all(config, layers))
        self.norms = nn.ModuleList(
            RMSNorm(config.d_model, config.norm_eps) if block.prenorm else nn.Identity()
            for block in self._blocks()
        )
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.auxiliary = Held()
        self.prefix: nn.Parameter | None = None
        self._short = ShortPieces()
        self._names = [str(i) for i in range(len(layers))]
        self._scales = [config.scale_of(layer) for layer in layers]
        mixing = [
            name
            for name, block in zip(self._names, self._blocks(), strict=True)
            if block.mixes_time or isinstance(block, GraphMix)
        ]
        self._last_mixing = mixing[-1] if mixing else ""
        if config.dense:
            connect(self._blocks(), config.dense)
        self._uses_context = any(block.uses_context for block in self._blocks())
        self.uses_elapsed = any(block.uses_elapsed for block in self._blocks())
        self._uses_edges = any(isinstance(block, GraphMix) for block in self._blocks())
        init.rescale_output_projections_(self.blocks, len(layers))
        if config.learn_initial_state:
            self.learn_initial_state()

    @property
    def causal(self) -> bool:
        """Whether every layer is, so that the backbone has a state and ``step``."""
        return all(block.causal for block in self._blocks())

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token: one nested state a layer, named ``"0"``, ``"1"``, ...

        Raises:
            RuntimeError: If a layer is not causal.
        """
        if self.prefix is None:
            return self._empty_state(batch, device, dtype)
        where = self.prefix.device
        _, state = self.forward(self.prefix[None], self._empty_state(1, where, self.prefix.dtype))
        # memory of its own for every row: a step may overwrite it
        return state.index_select(torch.zeros(batch, dtype=torch.int64, device=where)).to(device)

    def learn_initial_state(self) -> None:
        """Begin every sequence from parameters where layers can, see ``Block.learn_initial_state``.

        Those that do already keep what they have.

        Raises:
            ValueError: If no layer can.
        """
        if not self.has_learnable_state:
            raise ValueError(
                "learn_initial_state: no layer has a state that can be learned; "
                "use a recurrent one, such as mamba2"
            )
        for block in self._every_block():
            if "initial" not in block._modules:
                block.learn_initial_state()

    @property
    def has_learnable_state(self) -> bool:
        """Whether a layer has an initial state that could be learned, or is."""
        return any(
            0 not in [size or 0 for size in block.state_shapes()[name]]
            for block in self._every_block()
            for name in block.learnable_state
            if name in block.state_shapes()
        )

    @property
    def learns_initial_state(self) -> bool:
        """Whether layers begin from parameters."""
        return any("initial" in block._modules for block in self._every_block())

    def _every_block(self) -> list[Block]:
        return [module for module in self.blocks.modules() if isinstance(module, Block)]  # of wrappers too

    def _empty_state(self, batch: int, device: torch.device | str | None, dtype: torch.dtype | None) -> State:
        states = (block.init_state(batch, device, dtype) for block in self._blocks())
        return State.of(**dict(zip(self._names, states, strict=True)))

    def learn_prefix(self, n_tokens: int) -> None:
        """Read every sequence after ``n_tokens`` vectors that are parameters, ``prefix``.

        Prefix tuning (Li & Liang 2021, arXiv:2101.00190) with vectors at the stack's input (Lester et al.
        2021, arXiv:2104.08691). What they leave is the state that sequences begin from, so no output is
        theirs, and a step costs nothing more. Packed rows are taken apart, as with learned initial states.

        Raises:
            ValueError: On less than one token.
            RuntimeError: If a layer is not causal.
        """
        if n_tokens < 1:
            raise ValueError(f"n_tokens: expected at least 1, got {n_tokens}")
        parameter = next(self.parameters())
        self._empty_state(0, parameter.device, parameter.dtype)  # says which layer is not causal
        started = torch.randn(n_tokens, self.d_model) * _PREFIX_SCALE
        self.prefix = nn.Parameter(started.to(parameter.device, parameter.dtype))
        self.prefix._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        seq_idx: Tensor | None = None,
        lengths: Tensor | None = None,
        padding: str = "right",
        *,
        edges: Tensor | None = None,
        edge_features: Tensor | None = None,
        elapsed: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Run a sequence, or the next piece of one.

        Args:
            x: ``(batch, length, d_model)``.
            state: What came before; None at the beginning.
            seq_idx: ``(batch, length)`` int32 for packed sequences.
            lengths: ``(batch,)`` int64 for padded rows: the number of real tokens of each.
            padding: The side the padding is on, ``"right"`` or ``"left"``.
            edges: For ``graph`` layers: ``(n_edges, 3)`` int64, each a row of the batch, and a source and a
                target token of it, as columns of ``x``. Both are in one sequence and none in padding.
            edge_features: For ``graph`` layers: ``(n_edges, d_edge)``.
            elapsed: ``(batch, length)``, the time since the token before, in ordinary gaps; at least 0, and
                anything in padding. Mamba layers multiply their step size dt by it after softplus and limits:
                their state decays by exp(A dt elapsed) and the input enters with dt elapsed B, as dt is the
                step by which a continuous-time system is discretised (Gu & Dao 2023, arXiv:2312.00752,
                section 2). Other layers do not look at it. None is as ones. A token with 0 leaves the state
                as it was, so the first of a sequence, which has nothing before it, gets 1; gaps far
                from 1 want a bound, as the input's weight grows with them. ``TokenBatch.elapsed`` has these
                numbers: ``backbone(adapter.embed(batch), **batch.layout(), elapsed=batch.elapsed(unit))``.
                Layers that read backwards or in other orders work out the gaps between the tokens as they
                read them. On a GPU the values are not read back: negative ones or NaN go unnoticed there.
            keep: ``(n,)`` int64, the only tokens whose output is wanted, in any order: what comes after the
                last layer that mixes tokens is computed for them alone. Not with padded or packed rows.

        Returns:
            ``y`` like ``x`` (with ``keep`` ``(batch, n, d_model)``), zero at padding, and the state after
            each row's last real token.

        Raises:
            ValueError: On a wrong shape, lengths outside ``0..length``, a state of another batch size or
                backbone, ``lengths`` together with ``seq_idx``, another ``padding``, edges that leave their
                sequence, edges where no layer uses them or none where one does, ``elapsed`` where no layer
                has a step size, or one that is negative, infinite or NaN, or ``keep`` with ``lengths`` or
                ``seq_idx``.
            TypeError: If ``elapsed`` is not a tensor of floats.
            RuntimeError: If a state is given and a layer is not causal.
        """
        batch, length = check_input(x, self.d_model)
        if padding not in ("right", "left"):
            raise ValueError(f"padding: expected 'right' or 'left', got {padding!r}")
        if keep is not None and (lengths is not None or seq_idx is not None):
            raise ValueError("keep: only of whole rows; leave lengths and seq_idx out")
        self._check_state(state)
        self._check_elapsed(elapsed, x)
        begun = self.prefix is not None or (self.config.dense and self.learns_initial_state)
        if begun and seq_idx is not None and batch and length:
            return self._forward_apart(x, state, seq_idx, lengths, edges, elapsed)
        if self.prefix is not None and state is None:
            state = self.init_state(batch, x.device)
        told = (seq_idx, lengths, edges, edge_features, elapsed, keep)
        eager = x.is_cpu and not (self.training or torch.compiler.is_compiling())
        if eager and all(one is None for one in told):
            found = self._short.run(self, x, state)
            if found is not None:
                return found
        back = pads = None
        if lengths is not None:
            lengths = check_lengths(lengths, batch, length, synchronize=True).to(x.device)
            if padding == "left":
                to_right, back = left_padding_index(lengths, length)
                x = take(x, to_right)
                edges = _moved(edges, lengths - length)
                elapsed = None if elapsed is None else elapsed.gather(1, to_right)
            pads = padding_mask(lengths, length)[..., None]
            x = x.masked_fill(pads, 0.0)  # whatever padding holds, NaN too, reaches nothing
            elapsed = None if elapsed is None else elapsed.masked_fill(pads[..., 0], 0.0)
        context = self._context(x, edges, edge_features, seq_idx, lengths, elapsed)
        states: dict[str, Any] = {}
        x = x if keep is None or self._last_mixing else x.index_select(1, keep)
        for name, norm, block, scale in zip(self._names, self.norms, self.blocks, self._scales, strict=True):
            past = None if state is None else state[name]
            y, states[name] = block(norm(x), past, seq_idx, lengths, context)
            if keep is not None and name == self._last_mixing:
                x, y = x.index_select(1, keep), y.index_select(1, keep)
            x = x + self.dropout(y if scale == 1.0 else scale * y)
        if context is not None:
            self.auxiliary.value = torch.stack(context.losses).sum() if context.losses else None
        x = self.final_norm(x)
        if pads is not None:
            x = x.masked_fill(pads, 0.0)
        return (x if back is None else take(x, back)), State.of(**states)

    def step(
        self, x: Tensor, state: State, *, inplace: bool = False, elapsed: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run one token ``(batch, d_model)``; returns ``y`` like ``x`` and the next state.

        With ``inplace`` the state's tensors may be overwritten, see ``Block.step``. ``elapsed``
        ``(batch,)`` is the time since the token before, as in ``forward``.

        Raises:
            ValueError: On a wrong shape, a state of another batch size or backbone, or ``elapsed`` as in
                ``forward``.
            TypeError: If ``elapsed`` is not a tensor of floats.
            RuntimeError: If a layer is not causal.
        """
        self._check_state(state)
        context = None
        if elapsed is not None or self._uses_context:
            self._check_elapsed(elapsed, x)
            check_gaps(elapsed)
            context = Context(inputs=x, elapsed=elapsed, hidden=[] if self.config.dense else None)
        states: dict[str, Any] = {}
        layers = zip(self._names, self.norms, self._blocks(), self._scales, strict=True)
        for name, norm, block, scale in layers:
            y, states[name] = block.step(norm(x), state[name], inplace=inplace, context=context)
            x = x + (y if scale == 1.0 else scale * y)
        return self.final_norm(x), State.of(**states)

    def _forward_apart(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor,
        lengths: Tensor | None,
        edges: Tensor | None,
        elapsed: Tensor | None,
    ) -> tuple[Tensor, State]:
        """``forward`` of packed rows with every sequence a row of its own, read after the prefix."""
        check_seq_idx(seq_idx, batch=x.shape[0], length=x.shape[1])
        if lengths is not None or edges is not None:
            raise ValueError(
                "seq_idx: with a learned prefix, or dense layers that learn where they begin, "
                "neither lengths nor edges go with packed rows"
            )
        packed = Packed(seq_idx)
        starts = self.init_state(packed.count, x.device)
        if state is not None:
            starts = starts.put_rows(packed.first, state)
        outputs, finals, losses = [], [], []
        for members in packed.groups():
            sizes, rows, gaps = packed.take(members, x, elapsed)
            y, final = self.forward(rows, starts.index_select(members), lengths=sizes, elapsed=gaps)
            outputs.append(y)
            finals.append(final)
            losses += [] if self.auxiliary.value is None else [self.auxiliary.value]
        if losses:
            self.auxiliary.value = torch.stack(losses).mean()
        return packed.join(outputs), packed.last_of(State.cat(finals))

    def _context(
        self,
        x: Tensor,
        edges: Tensor | None,
        features: Tensor | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        elapsed: Tensor | None,
    ) -> Context | None:
        """What layers are told beside the sequence, if any asks; edges are checked once, on a GPU too."""
        if not self._uses_edges and (edges is not None or features is not None):
            raise ValueError("edges: no layer of this backbone looks at them; one called graph does")
        if elapsed is None and not self._uses_context:
            return None
        hidden: list[Hidden] | None = [] if self.config.dense else None
        if edges is not None:
            check_edges(edges, x.shape[0], x.shape[1], seq_idx, lengths, synchronize=True)
        check_gaps(elapsed)
        return Context(inputs=x, edges=edges, edge_features=features, elapsed=elapsed, hidden=hidden)

    def _check_elapsed(self, elapsed: Tensor | None, x: Tensor) -> None:
        if elapsed is None:
            return
        if not self.uses_elapsed:
            raise ValueError(
                "elapsed: no layer of this backbone has a step size for it to drive; "
                "mamba1, mamba2 and mamba3 have"
            )
        check_elapsed(elapsed, x)

    def _check_state(self, state: State | None) -> None:
        if state is None:
            return
        if not isinstance(state, State):
            raise TypeError(f"state: expected a State (from init_state), got {type(state).__name__}")
        if len(state) != len(self._names) or not all(
            name in state and isinstance(state[name], State) for name in self._names
        ):
            raise ValueError(
                f"state: it belongs to another backbone: expected one nested state for each of "
                f"{len(self._names)} layers, got {state!r}"
            )


def _build_all(config: BackboneConfig, layers: list[str]) -> list[Block]:
    """The blocks in order; those of one ``kind@label`` are one block, or share the parts it names."""
    blocks: list[Block] = []
    shared: dict[str, Block] = {}
    for layer in layers:
        first = shared.get(layer)
        if first is not None and first.shared_parts is None:
            blocks.append(first)
            continue
        options = config.options_of(layer)
        block = build_layer(kind_of(layer), config.d_model, options, both_ways=config.bidirectional)
        if first is not None:
            for part in first.shared_parts or ():
                setattr(block, part, getattr(first, part))
        if "@" in layer:
            shared.setdefault(layer, block)
        blocks.append(block)
    return blocks


def _moved(edges: Tensor | None, by: Tensor) -> Tensor | None:
    """Edges after each row's tokens moved by ``by`` ``(batch,)``; one of no row is left for the check."""
    if not isinstance(edges, Tensor) or edges.dim() != 2 or edges.shape[1] != 3 or len(by) == 0:
        return edges
    row = edges[:, 0]
    return torch.cat([edges[:, :1], edges[:, 1:] + by[row.clamp(0, len(by) - 1)][:, None]], dim=1)
