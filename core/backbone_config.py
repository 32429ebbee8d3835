"""What a backbone is made of, as a dataclass that YAML and JSON can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import yaml

from mambakit.core.blocks import BLOCKS, block_options, kind_of
from mambakit.core.presets import PRESETS


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is made of; see each field."""

    d_model: int = 256
    """Width of the residual stream."""
    layers: list[str] | str = field(default_factory=lambda: ["mamba2"])
    """Kinds of block from the first layer to the last, for instance [mamba2, mlp, attention, mlp], or the
    name of a published pattern: mamba1, mamba2, mamba3, mamba3-mimo, jamba, samba, zamba, mamba2-hybrid or
    conmamba. Layers of the same kind@label share their weights; each has a norm and a state of its own."""
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
    dense: int = 0
    """How many layers of its kind below it every Mamba-1 or Mamba-2 layer also reads the hidden states of
    (DenseSSM, arXiv:2403.00818); each costs a scan."""

    def __post_init__(self) -> None:
        for name in ("block_options", "residual_scale"):
            _check_mapping(name, getattr(self, name))
        for layer, options in self.block_options.items():
            _check_mapping(f"block_options: {layer}", options)
        self._take_preset()
        if not isinstance(self.layers, (list, tuple)) or not all(isinstance(n, str) for n in self.layers):
            raise ValueError(
                "layers: expected a list of kinds, each a string, or the name of a preset, "
                f"got {self.layers!r}"
            )
        kinds = [kind_of(layer) for layer in self.layers]
        for name in ("d_model", "repeat", "dense"):
            if not isinstance(getattr(self, name), Integral):
                raise TypeError(f"{name}: expected a whole number, got {getattr(self, name)!r}")
        if self.d_model < 1:
            raise ValueError(f"d_model: expected at least 1, got {self.d_model}")
        if not self.layers or self.repeat < 1:
            raise ValueError(
                f"layers, repeat: expected at least one layer, got {list(self.layers)} x {self.repeat}"
            )
        if self.dense < 0:
            raise ValueError(f"dense: expected a number of layers, at least 0, got {self.dense}")
        if self.dense and (self.bidirectional or any("@" in layer for layer in self.layers)):
            raise ValueError(
                "dense: states of layers that read both ways, or share weights, cannot be read by others; "
                "leave bidirectional off and labels out"
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


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping, got {value!r}")


def sizes_of_heads(layers: Iterable[str], *, d_state: int, head_dim: int) -> dict[str, dict[str, Any]]:
    """``block_options`` that give Mamba-2 and Mamba-3, where they are among the layers, such heads."""
    options = {"d_state": d_state, "head_dim": head_dim}
    return {kind: dict(options) for kind in ("mamba2", "mamba3") if kind in set(layers)}
