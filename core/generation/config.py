"""How to generate: the strategy and its options, as a dataclass that YAML and flags can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Literal, get_args

Strategy = Literal["greedy", "sample", "beam"]

_ONLY: dict[str, str] = {
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "n_samples", "seed"), "sample"),
    **dict.fromkeys(("beam_width", "n_best", "length_penalty"), "beam"),
}


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate; an option of another strategy than the chosen one is an error, never ignored."""

    max_new_tokens: int = 128
    """The most ids that are generated for a row, the end id included; 0 only reads the prompt."""
    strategy: Strategy = "greedy"
    """greedy: the likeliest id each time; sample: drawn; beam: search for likely sequences."""
    temperature: float = 1.0
    """sample: divides the logits. Below 1 likely ids become likelier."""
    top_k: int | None = None
    """sample: only the k likeliest ids (Fan et al. 2018, arXiv:1805.04833)."""
    top_p: float = 1.0
    """sample: only the fewest likeliest ids whose probabilities reach p (Holtzman et al. 2020,
    arXiv:1904.09751)."""
    min_p: float = 0.0
    """sample: only ids at least this share as likely as the likeliest (Nguyen et al. 2024,
    arXiv:2407.01082)."""
    n_samples: int = 1
    """sample: rows drawn for each prompt."""
    seed: int | None = None
    """sample: makes the draws repeatable; None takes a new seed from torch's global generator."""
    beam_width: int = 4
    """beam: sequences kept at each step."""
    n_best: int = 1
    """beam: sequences returned for each prompt, the best first; at most beam_width."""
    length_penalty: float = 0.0
    """beam: sequences are ranked by log-probability / length**length_penalty: 0 favours short ones, 1 is a
    mean."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end a row."""
    start_id: int | None = None
    """What an empty prompt begins with; it is not among the generated ids."""
    pad_id: int = 0
    """What the rest of a row holds after its end; it need not be in the vocabulary."""

    def __post_init__(self) -> None:
        if not isinstance(self.eos_ids, Iterable):
            raise TypeError(f"eos_ids: expected a list of ids, got {self.eos_ids!r}")
        object.__setattr__(self, "eos_ids", tuple(int(one) for one in self.eos_ids))  # YAML has lists
        if self.strategy not in get_args(Strategy):
            raise ValueError(
                f"strategy: expected one of {', '.join(get_args(Strategy))}, got {self.strategy!r}"
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise TypeError(f"{name}: expected a whole number, got {value!r}")
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 < self.temperature < float("inf"):
            hint = "; for the likeliest ids take strategy='greedy'" if self.temperature == 0 else ""
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}{hint}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected 0 < top_p <= 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected 0 <= min_p <= 1, got {self.min_p}")
        if any(one < 0 for one in self.eos_ids):
            raise ValueError(f"eos_ids: ids are not negative, got {self.eos_ids}")
        for field in fields(self):
            owner = _ONLY.get(field.name, self.strategy)
            value = getattr(self, field.name)
            if owner != self.strategy and value != field.default:
                raise ValueError(
                    f"{field.name}: {value} has no effect with strategy={self.strategy!r}; "
                    f"leave it out, or take strategy={owner!r}"
                )
        if self.strategy == "beam" and self.n_best > self.beam_width:
            raise ValueError(
                f"n_best: expected at most beam_width={self.beam_width} sequences, got {self.n_best}"
            )

    @property
    def copies(self) -> int:
        """Rows returned for each prompt."""
        return {"sample": self.n_samples, "beam": self.n_best}.get(self.strategy, 1)


_LEAST = {
    "max_new_tokens": 0,
    "top_k": 1,
    "n_samples": 1,
    "seed": 0,
    "beam_width": 1,
    "n_best": 1,
    "start_id": 0,
}
