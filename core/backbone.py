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
from mambakit.core.blocks import BLOCKS, Block, RMSNorm, block_class, block_options, build_block
from mambakit.core.blocks.base import check_input, check_lengths, padding_mask
from mambakit.core.blocks.ragged import left_padding_index, take
from mambakit.core.state import State


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is made of; see each field."""

    d_model: int = 256
    """Width of the residual stream."""
    layers: list[str] = field(default_factory=lambda: ["mamba2"])
    """Kinds of block from the first layer to the last, for instance [mamba2, mlp, attention, mlp]."""
    repeat: int = 1
    """How many times `layers` is stacked."""
    block_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keyword arguments of the blocks, by kind, for instance {mamba2: {head_dim: 32}}."""
    bidirectional: bool = False
    """Read both directions: attention sees the whole sequence, and recurrent blocks are doubled."""
    dropout: float = 0.0
    """Share of each block's output that is dropped while training."""
    norm_eps: float = 1e-5
    """Added to the mean square in the norms."""
    learn_initial_state: bool = False
    """Begin every sequence from learned states instead of zeros; an attention's cache begins empty anyway."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"layers: expected a list of kinds, got the string {self.layers!r}")
        for kind in self.layers:
            block_class(kind)
        if self.d_model < 1:
            raise ValueError(f"d_model: expected at least 1, got {self.d_model}")
        if not self.layers or self.repeat < 1:
            raise ValueError(
                f"layers, repeat: expected at least one layer, got {list(self.layers)} x {self.repeat}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")
        for kind, options in self.block_options.items():
            if kind not in self.layers:
                known = "" if kind in BLOCKS else f" (known kinds are {', '.join(sorted(BLOCKS))})"
                raise ValueError(
                    f"block_options: {kind!r} is not among the layers {', '.join(self.layers)}{known}"
                )
            for name in options:
                valid = block_options(kind)
                if name not in valid:
                    raise ValueError(
                        f"block_options: {kind} has no option {name!r}; valid options are {', '.join(valid)}"
                    )

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
    """``x + dropout(block(norm(x)))`` for every layer, and a norm at the end.

    Args:
        config: What to build.

    Raises:
        ValueError: If a block cannot be built as the config says.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.d_model = config.d_model
        kinds = list(config.layers) * config.repeat
        self.blocks = nn.ModuleList(_build(config, kind) for kind in kinds)
        self.norms = nn.ModuleList(RMSNorm(config.d_model, config.norm_eps) for _ in kinds)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self._names = [str(i) for i in range(len(kinds))]
        init.rescale_output_projections_(self.blocks, len(kinds))
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
    ) -> tuple[Tensor, State]:
        """Run a sequence, or the next piece of one.

        Args:
            x: ``(batch, length, d_model)``.
            state: What came before; None at the beginning.
            seq_idx: ``(batch, length)`` int32 for packed sequences.
            lengths: ``(batch,)`` int64 for padded rows: the number of real tokens of each.
            padding: The side the padding is on, ``"right"`` or ``"left"``.

        Returns:
            ``y`` like ``x``, zero at padding, and the state after each row's last real token.

        Raises:
            ValueError: On a wrong shape, lengths outside ``0..length``, a state of another batch size or
                backbone, ``lengths`` together with ``seq_idx``, or another ``padding``.
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
            pads = padding_mask(lengths, length)[..., None]
            x = x.masked_fill(pads, 0.0)  # whatever padding holds, NaN too, reaches nothing
        states: dict[str, Any] = {}
        for name, norm, block in zip(self._names, self.norms, self.blocks, strict=True):
            y, states[name] = block(norm(x), None if state is None else state[name], seq_idx, lengths)
            x = x + self.dropout(y)
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
        states: dict[str, Any] = {}
        for name, norm, block in zip(self._names, self.norms, self._blocks(), strict=True):
            y, states[name] = block.step(norm(x), state[name], inplace=inplace)
            x = x + y
        return self.final_norm(x), State.of(**states)

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


def _learn_initial_state(blocks: nn.ModuleList) -> None:
    inner = [module for module in blocks.modules() if isinstance(module, Block)]  # of wrappers too
    for block in inner:
        block.learn_initial_state()
    if not any("initial" in block._modules for block in inner):
        raise ValueError(
            "learn_initial_state: no layer keeps a state of fixed size; use a recurrent one, such as mamba2"
        )


def _build(config: BackboneConfig, kind: str) -> Block:
    """One block, made to look both ways if the config says so and the kind can."""
    options = dict(config.block_options.get(kind, {}))
    if not config.bidirectional or not block_class(kind).mixes_time or kind == "bidirectional":
        return build_block(kind, config.d_model, options)
    if "causal" in block_options(kind):
        return build_block(kind, config.d_model, {**options, "causal": False})
    return build_block("bidirectional", config.d_model, {"inner": kind, "inner_options": options})
