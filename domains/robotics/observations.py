"""What environments show, under the names that policies know: ``state``, ``image`` and ``goal``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mambakit.core.errors import UsageError


class NamedObservations(gymnasium.Wrapper[dict[str, Any], Any, Any, Any]):
    """Observations as dictionaries with ``state``, ``image`` and ``goal``.

    Where the environment gives a dictionary itself, ``observation`` is the state and ``desired_goal`` the
    goal; of others, all but ``image`` and ``goal`` is the state. What is no vector is flattened as
    gymnasium does: choices become one-hot.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], image_size: int | None = None) -> None:
        super().__init__(env)
        self._image_size = image_size
        self._parts = _parts(env.observation_space)
        named: dict[str, spaces.Space[Any]] = {
            ours: part if ours == "image" else _vector(part) for ours, (_, part) in self._parts.items()
        }
        if image_size is not None:
            named["image"] = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(named)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        return self._named(seen), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        return self._named(seen), float(reward), bool(terminated), bool(truncated), info

    def _named(self, seen: Any) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for ours, (keys, part) in self._parts.items():
            if isinstance(keys, tuple):
                value = {key: seen[key] for key in keys}
            else:
                value = seen if keys is None else seen[keys]
            if ours == "image":
                named[ours] = np.asarray(value, dtype=np.uint8)
            elif isinstance(part, spaces.Box):
                named[ours] = np.asarray(value, dtype=np.float32).ravel()
            else:
                named[ours] = np.asarray(spaces.flatten(part, value), dtype=np.float32)
        if self._image_size is not None:
            named["image"] = _resized(self.env.render(), self._image_size)
        return named


# Ours by name: which keys of the environment's dictionary it is (None: all that is seen), and their space.
_Parts = dict[str, tuple[str | tuple[str, ...] | None, spaces.Space[Any]]]


def _parts(space: spaces.Space[Any]) -> _Parts:
    if _is_picture(space):
        return {"image": (None, space)}
    if not isinstance(space, spaces.Dict):
        return {"state": (None, space)}
    if "observation" in space.spaces:
        parts: _Parts = {"state": ("observation", space["observation"])}
        if "desired_goal" in space.spaces:
            parts["goal"] = ("desired_goal", space["desired_goal"])
        return parts
    parts = {name: (name, space[name]) for name in ("image", "goal") if name in space.spaces}
    if "image" in parts and not _is_picture(space["image"]):
        raise UsageError(
            f"image: expected a picture of (h, w, 3) bytes, the environment gives {space['image']}"
        )
    rest = tuple(name for name in space.spaces if name not in parts)
    if rest:
        parts["state"] = (rest, spaces.Dict({name: space[name] for name in rest}))
    return parts


def _is_picture(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def _vector(space: spaces.Space[Any]) -> spaces.Box:
    try:
        flat: spaces.Space[Any] = spaces.flatten_space(space)
    except NotImplementedError:
        flat = space
    if not isinstance(flat, spaces.Box):
        raise UsageError(f"observations of the kind {space} are not served: what can be one vector is")
    return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def _resized(picture: Any, size: int) -> np.ndarray[Any, Any]:
    picture = np.asarray(picture, dtype=np.uint8)
    if picture.shape[:2] == (size, size):
        return np.ascontiguousarray(picture)
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX), dtype=np.uint8)
