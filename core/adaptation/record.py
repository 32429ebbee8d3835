"""What an adapted model remembers of its adaptation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from mambakit.core.adaptation.config import AdaptConfig

_NAME = "_adaptation"


@dataclass(frozen=True)
class Learning:
    """How much of a model learns; as text a sentence's middle."""

    learns: int
    """Numbers that learn."""
    total: int
    """Numbers in the model, those that learn among them."""
    where: str
    """What they are parts of."""

    def __str__(self) -> str:
        share = 100 * self.learns / self.total
        return f"{self.learns:,} of {self.total:,} parameters learn ({share:.3g} %): {self.where}"


@dataclass
class Record:
    """Kept on the model."""

    config: AdaptConfig
    base_fingerprint: str
    """Of the model before it was adapted."""
    learns: list[str]
    """Names of the parameters that learn, in the adapted model."""
    frozen: set[str]
    """Names of those that did not learn before either."""
    buffers: dict[str, Tensor]
    """Those of the base."""
    learned: dict[str, Tensor] = field(default_factory=dict)
    """What was learned, once it is merged."""
    merged: bool = False


def record_of(model: nn.Module) -> Record | None:
    """The record of an adapted model, merged or not; None of any other."""
    return model.__dict__.get(_NAME)


def keep(model: nn.Module, record: Record) -> None:
    model.__dict__[_NAME] = record


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """What ``state_dict`` holds beside parameters."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
