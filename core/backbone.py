"""A stack of blocks from a config: pre-norm, residual, dropout; hybrids are a list of kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.auxiliary import Held
from mambakit.core.blocks import (
    BLOCKS,
    Block,
    Context,
    GraphMix,
    RMSNorm,
    block_class,
    block_options,
    build_block,
    check_edges,
    kind_of,
)
from mambakit.core.blocks.base import check_input, check_lengths, padding_mask
from mambakit.core.blocks.ragged import left_padding_index, take
from mambakit.core.presets import PRESETS
from mambakit.core.state import State


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is made of; see each field."""

    d_model: int = 256
    """Width of the residual stream."""
    layers: list[str] | str = field(default_factory=lambda: ["mamba2"])
    """Kinds of block from the first layer to the last, for instance [mamba2, mlp, attention, mlp], or the
    name of a published pattern: mamba1, mamba2, jamba, samba, zamba, mamba2-hybrid or conmamba. Layers of the
    same kind@label share their weights, and each has a norm and a state of its own."""
    repeat: int = 1
    """How many times `layers` is stacked."""
    block_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keyword arguments of the blocks, by kind, for instance {mamba2: {head_dim: 32}}; those for a kind@label
    go over its kind's."""
    residual_scale: dict[str, float] = field(default_factory=dict)
    """Factor of a block's output where it joins the residual stream, by kind; 1 where not given."""
    bidirectional: bool = False
    """Read both directions: attention sees the whole sequence, and recurrent blocks are doubled."""
    dropout: float = 0.0
    """Share of each block's output that is dropped while training."""
    norm_eps: float = 1e-5
    """Added to the mean square in the norms."""
    learn_initial_state: bool = False
    """Begin every sequence from learned states instead of zeros; an attention's cache begins empty anyway."""

    def __post_init__(self) -> None:
        for name in ("block_options", "residual_scale"):
            _check_mapping(name, getattr(self, name))
        for layer, options in self.block_options.items():
            _check_mapping(f"block_options: {layer}", options)
        self._take_preset()
        if not isinstance(self.layers, (list, tuple)) or not all(isinstance(n, str) for n in self.layers):
            raise ValueError(
                f"layers: expected a list of kinds, each a string, or the name of a preset, got {self.layers!r}"
            )
        kinds = [kind_of(layer) for layer in self.layers]
        if self.d_model < 1:
            raise ValueError(f"d_model: expected at least 1, got {self.d_model}")
        if not self.layers or self.repeat < 1:
            raise ValueError(
                f"layers, repeat: expected at least one layer, got {list(self.layers)} x {self.repeat}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")
        for name in ("block_options", "residual_scale"):
            for layer in getattr(self, name):
                if layer not in self.layers and layer not in kinds:
                    known = "" if layer in BLOCKS else f" (known kinds are {', '.join(sorted(BLOCKS))})"
                    raise ValueError(
                        f"{name}: {layer!r} is not among the layers {', '.join(self.layers)}{known}"
                    )
        for layer, options in self.block_options.items():
            valid = block_options(kind_of(layer))
            for name in options:
                if name not in valid:
                    raise ValueError(
                        f"block_options: {layer} has no option {name!r}; valid options are {', '.join(valid)}"
                    )

    def _take_preset(self) -> None:
        """Put the layers of a published pattern in place of its name, and its options below those given."""
        if not isinstance(self.layers, str):
            return
        if self.layers not in PRESETS:
            raise ValueError(
                f"layers: expected a list of kinds or the name of a preset ({', '.join(PRESETS)}), "
                f"got the string {self.layers!r}"
            )
        preset = PRESETS[self.layers]
        kinds = [
            *preset.block_options,
            *(kind for kind in self.block_options if kind not in preset.block_options),
        ]
        options = {
            kind: {**preset.block_options.get(kind, {}), **self.block_options.get(kind, {})} for kind in kinds
        }
        object.__setattr__(self, "layers", list(preset.layers))  # frozen for others
        object.__setattr__(self, "block_options", options)
        object.__setattr__(self, "residual_scale", {**preset.residual_scale, **self.residual_scale})

    def options_of(self, layer: str) -> dict[str, Any]:
        """Keyword arguments of the block of a layer, ``kind`` or ``kind@label``."""
        return {**self.block_options.get(kind_of(layer), {}), **self.block_options.get(layer, {})}

    def scale_of(self, layer: str) -> float:
        """Factor of a layer's output in the residual stream."""
        return self.residual_scale.get(layer, self.residual_scale.get(kind_of(layer), 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, as JSON and YAML hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneConfig:
        """The inverse of ``to_dict``; what is not given has its default.

        Raises:
            ValueError: On a key that is no field, or a bad value.
        """
        fields = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in fields:
                raise ValueError(f"backbone config: no field {key!r}; fields are {', '.join(fields)}")
        return cls(**values)

    def to_yaml(self) -> str:
        """The config as YAML text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> BackboneConfig:
        """The inverse of ``to_yaml``.

        Raises:
            ValueError: If the text is not a mapping of the config's fields.
        """
        values = yaml.safe_load(text)
        if not isinstance(values, dict):
            raise ValueError(f"backbone config: expected a YAML mapping, got {type(values).__name__}")
        return cls.from_dict(values)


class Backbone(nn.Module):
    """``x + scale * dropout(block(norm(x)))`` for every layer, and a norm at the end.

    Args:
        config: What to build.

    Attributes:
        auxiliary: What layers ask training to minimise besides its loss, of the last forward pass in training
            mode; ``mambakit.core.auxiliary.auxiliary_loss(model)`` adds it up over a model.

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
        self._names = [str(i) for i in range(len(layers))]
        self._scales = [config.scale_of(layer) for layer in layers]
        self._uses_context = any(block.uses_context for block in self._blocks())
        self._uses_edges = any(isinstance(block, GraphMix) for block in self._blocks())
        init.rescale_output_projections_(self.blocks, len(layers))
        if config.learn_initial_state:
            _learn_initial_state(self.blocks)

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
        states = (block.init_state(batch, device, dtype) for block in self._blocks())
        return State.of(**dict(zip(self._names, states, strict=True)))

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

        Returns:
            ``y`` like ``x``, zero at padding, and the state after each row's last real token.

        Raises:
            ValueError: On a wrong shape, lengths outside ``0..length``, a state of another batch size or
                backbone, ``lengths`` together with ``seq_idx``, another ``padding``, edges that leave their
                sequence, or edges where no layer uses them or none where one does.
            RuntimeError: If a state is given and a layer is not causal.
        """
        batch, length = check_input(x, self.d_model)
        if padding not in ("right", "left"):
            raise ValueError(f"padding: expected 'right' or 'left', got {padding!r}")
        self._check_state(state)
        back = pads = None
        if lengths is not None:
            lengths = check_lengths(lengths, batch, length, synchronize=True).to(x.device)
            if padding == "left":
                to_right, back = left_padding_index(lengths, length)
                x = take(x, to_right)
                edges = _moved(edges, lengths - length)
            pads = padding_mask(lengths, length)[..., None]
            x = x.masked_fill(pads, 0.0)  # whatever padding holds, NaN too, reaches nothing
        context = self._context(x, edges, edge_features, seq_idx, lengths)
        states: dict[str, Any] = {}
        for name, norm, block, scale in zip(self._names, self.norms, self.blocks, self._scales, strict=True):
            past = None if state is None else state[name]
            y, states[name] = block(norm(x), past, seq_idx, lengths, context)
            x = x + self.dropout(y if scale == 1.0 else scale * y)
        if context is not None:
            self.auxiliary.value = torch.stack(context.losses).sum() if context.losses else None
        x = self.final_norm(x)
        if pads is not None:
            x = x.masked_fill(pads, 0.0)
        return (x if back is None else take(x, back)), State.of(**states)

    def step(self, x: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Run one token ``(batch, d_model)``; returns ``y`` like ``x`` and the next state.

        With ``inplace`` the state's tensors may be overwritten, see ``Block.step``.

        Raises:
            ValueError: On a wrong shape, or a state of another batch size or backbone.
            RuntimeError: If a layer is not causal.
        """
        self._check_state(state)
        context = Context(inputs=x) if self._uses_context else None
        states: dict[str, Any] = {}
        layers = zip(self._names, self.norms, self._blocks(), self._scales, strict=True)
        for name, norm, block, scale in layers:
            y, states[name] = block.step(norm(x), state[name], inplace=inplace, context=context)
            x = x + (y if scale == 1.0 else scale * y)
        return self.final_norm(x), State.of(**states)

    def _context(
        self,
        x: Tensor,
        edges: Tensor | None,
        features: Tensor | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
    ) -> Context | None:
        """What layers are told beside the sequence, if any asks; edges are checked once, on a GPU too."""
        if not self._uses_edges and (edges is not None or features is not None):
            raise ValueError("edges: no layer of this backbone looks at them; one called graph does")
        if not self._uses_context:
            return None
        if edges is not None:
            check_edges(edges, x.shape[0], x.shape[1], seq_idx, lengths, synchronize=True)
        return Context(inputs=x, edges=edges, edge_features=features)

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


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping, got {value!r}")


def _learn_initial_state(blocks: nn.ModuleList) -> None:
    inner = [module for module in blocks.modules() if isinstance(module, Block)]  # of wrappers too
    for block in inner:
        block.learn_initial_state()
    if not any("initial" in block._modules for block in inner):
        raise ValueError(
            "learn_initial_state: no layer has a state that can be learned; use a recurrent one, such as mamba2"
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
        block = _build(config, layer)
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


def _build(config: BackboneConfig, layer: str) -> Block:
    """One block, made to look both ways if the config says so and the kind can."""
    kind = kind_of(layer)
    cls = block_class(kind)
    options = config.options_of(layer)
    if not config.bidirectional or not cls.mixes_time or not cls.causal:
        return build_block(kind, config.d_model, options)
    if "causal" in block_options(kind):
        return build_block(kind, config.d_model, {**options, "causal": False})
    return build_block("bidirectional", config.d_model, {"inner": kind, "inner_options": options})
