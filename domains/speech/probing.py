"""What is spoilt to probe a model of speech: noise over recordings, packets lost or reordered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mambakit.core.trust.perturbations import lost, shuffled
from mambakit.core.trust.probe import Perturbation, Subject
from mambakit.domains.speech.augment import mix

SHARES, WINDOWS = (0.05, 0.2, 0.5), (2.0, 4.0, 16.0)
SNR_DB = (20.0, 10.0, 0.0, -10.0)
_PACKET_S = 0.02


def subject(
    model: nn.Module,
    recordings: list[Tensor],
    rate_hz: int,
    measure: Callable[[list[Tensor]], Mapping[str, float]],
    metric: str,
    better: Literal["min", "max"],
    about: str,
) -> Subject:
    """Any model that reads recordings.

    Args:
        model: Trained.
        recordings: What it hears, ``(n,)`` each.
        rate_hz: Their rate.
        measure: Its figures when it hears such recordings in their place.
        metric, better: The figure that counts, and which way.
        about: What is measured, in a few words.
    """
    heard = [recordings]
    packet = max(1, round(_PACKET_S * rate_hz))

    def spoil(change: Callable[[Tensor, float, torch.Generator], Tensor]) -> Any:
        @contextmanager
        def spoilt(level: float, generator: torch.Generator) -> Iterator[None]:
            heard[0] = [change(one, level, generator) for one in recordings]
            try:
                yield
            finally:
                heard[0] = recordings

        return spoilt

    def in_noise(samples: Tensor, level: float, generator: torch.Generator) -> Tensor:
        return mix(samples, torch.randn(samples.shape, generator=generator), level)

    def drop(samples: Tensor, level: float, generator: torch.Generator) -> Tensor:
        gone = lost(_packets(samples, packet), level, generator)[0]
        return samples * ~gone.repeat_interleave(packet)[: len(samples)]

    def shuffle(samples: Tensor, level: float, generator: torch.Generator) -> Tensor:
        whole = len(samples) // packet
        order = shuffled(_packets(samples[: whole * packet], packet), int(level), generator)[0]
        moved = samples[: whole * packet].reshape(whole, packet)[order].flatten()
        return torch.cat([moved, samples[whole * packet :]])

    ways = {
        "noise": Perturbation(SNR_DB, "dB of speech over white noise", spoil(in_noise)),
        "drop": Perturbation(SHARES, "share of 20 ms packets", spoil(drop)),
        "shuffle": Perturbation(WINDOWS, "20 ms packets in a window", spoil(shuffle)),
    }
    return Subject(model, lambda: measure(heard[0]), metric, better, ways, about)


def _packets(samples: Tensor, packet: int) -> Tensor:
    return torch.ones(1, -(-len(samples) // packet), dtype=torch.bool)
