"""What a controller is told at a step, checked: one sentence for what no policy can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.policy.config import Spaces


class Readings:
    """Arrays of ``n_envs`` robots to tensors.

    All raise a DataError on a number that is NaN or infinite, which names robot and place, and a UsageError
    on what is missing or of another shape.

    Args:
        spaces: What the policy reads.
        n_envs: Robots.
        device: Of the tensors.
        dtype: Of numbers.
    """

    def __init__(self, spaces: Spaces, n_envs: int, device: torch.device, dtype: torch.dtype) -> None:
        self.spaces, self.n_envs = spaces, n_envs
        self.device = device
        self._kind = np.float64 if dtype == torch.float64 else np.float32

    def vector(self, named: Mapping[str, Any], name: str, width: int) -> tuple[Tensor | None, bool]:
        """Numbers ``(n_envs, width)`` of that name, and whether they were one robot's alone; None where the
        policy reads none, or acts by its picture without them."""
        if not width:
            return None, False
        given = named.get(name)
        if given is None:
            if name == "state" and self.spaces.image is not None and named.get("image") is not None:
                return None, False
            raise UsageError(f"observations: the policy reads {name!r}, and it was not given")
        values = plain(given, self._kind)
        alone = values.ndim == 1 and self.n_envs == 1
        values = values[None] if alone else values
        if values.shape != (self.n_envs, width):
            raise UsageError(
                f"observations: {name} of shape {(self.n_envs, width)} is wanted (robots, numbers), "
                f"got {np.shape(given)}"
            )
        if not np.isfinite(values).all():
            robot, place = np.argwhere(~np.isfinite(values))[0]
            raise DataError(
                f"observations: {name} of robot {robot} has {values[robot, place]} at place {place}; "
                "a policy can't act on it, so stop the robot or leave the reading out"
            )
        return self._moved(values), alone

    def image(self, named: Mapping[str, Any]) -> tuple[Tensor | None, bool]:
        """Pictures ``(n_envs, height, width, 3)`` and whether it was one robot's alone; None without."""
        given = named.get("image")
        if self.spaces.image is None or given is None:
            return None, False
        pixels = np.asarray(given)
        alone = pixels.ndim == 3 and self.n_envs == 1
        pixels = pixels[None] if alone else pixels
        if pixels.shape != (self.n_envs, *self.spaces.image, 3) or pixels.dtype != np.uint8:
            raise UsageError(
                f"observations: image of shape {(self.n_envs, *self.spaces.image, 3)} uint8 is wanted, "
                f"got {pixels.shape} {pixels.dtype}"
            )
        return self._moved(plain(pixels)), alone

    def rewards(self, rewards: ArrayLike, began: Tensor) -> Tensor:
        """What was earned, ``(n_envs,)``; of a robot that ``began`` anew it does not matter."""
        values = plain(rewards, np.float64).reshape(-1)
        if len(values) != self.n_envs:
            raise UsageError(f"rewards: expected one for each of {self.n_envs} robots, got {len(values)}")
        if not np.isfinite(values).all():
            bad = ~np.isfinite(values) & ~began.cpu().numpy()
            if bad.any():
                robot = int(np.flatnonzero(bad)[0])
                raise DataError(
                    f"rewards: that of robot {robot} is {values[robot]}; its return to go would never be a "
                    "number again, so stop the robot or leave the rewards out"
                )
            values = np.nan_to_num(values)  # of robots that were reset since
        return self._moved(values.astype(self._kind, copy=False))

    def _moved(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)


def plain(given: ArrayLike, kind: DTypeLike | None = None) -> NDArray[Any]:
    """As torch wants it; a renderer's may be neither in order nor writable."""
    values = np.asarray(given, kind, order="C")
    return values if values.flags.writeable else values.copy()
