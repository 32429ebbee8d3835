"""What environments show, under the names that policies know: ``state``, ``image`` and ``goal``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mambakit.core.errors import UsageError

# Ours by name: which keys of the environment's dictionary it is (None: all that is seen), and their space.
Parts = dict[str, tuple[str | tuple[str, ...] | None, spaces.Space[Any]]]


class NamedObservations(gymnasium.Wrapper[dict[str, Any], Any, Any, Any]):
    """Observations as dictionaries with ``state``, ``image`` and ``goal``, named by ``parts_of``.

    They are copies: an environment may write what is seen next into the same array.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], image_size: int | None = None) -> None:
        super().__init__(env)
        self._image_size = image_size
        self._parts = parts_of(env.observation_space)
        named: dict[str, spaces.Space[Any]] = {
            ours: part if ours == "image" else vector_of(part) for ours, (_, part) in self._parts.items()
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
            value = _chosen(seen, keys)
            if ours == "image":
                named[ours] = np.array(value, dtype=np.uint8)
            elif isinstance(part, spaces.Box):
                named[ours] = np.array(value, dtype=np.float32).ravel()
            else:
                named[ours] = np.array(spaces.flatten(part, value), dtype=np.float32)
        if self._image_size is not None:
            named["image"] = _resized(self.env.render(), self._image_size)
        return named


def parts_of(space: spaces.Space[Any]) -> Parts:
    """Which parts of what an environment shows are ``state``, ``image`` and ``goal``.

    A picture alone is the image, anything else alone the state. Of a dictionary ``desired_goal`` (or
    ``goal``) is the goal, ``image`` or else the first picture by name the image, and ``observation``, or else
    all that is no picture, the state.

    Raises:
        UsageError: If ``image`` is no picture.
    """
    if _is_picture(space):
        return {"image": (None, space)}
    if not isinstance(space, spaces.Dict):
        return {"state": (None, space)}
    if "image" in space.spaces and not _is_picture(space["image"]):
        raise UsageError(
            f"image: expected a picture of (h, w, 3) bytes, the environment gives {space['image']}"
        )
    parts: Parts = {}
    pictures = sorted(name for name, part in space.spaces.items() if _is_picture(part))
    if pictures:
        image = "image" if "image" in pictures else pictures[0]
        parts["image"] = (image, space[image])
    goal = next((name for name in ("desired_goal", "goal") if name in space.spaces), None)
    if goal is not None:
        parts["goal"] = (goal, space[goal])
    if "observation" in space.spaces and "observation" not in pictures:
        return {**parts, "state": ("observation", space["observation"])}
    rest = tuple(name for name in space.spaces if name not in (*pictures, goal, "achieved_goal"))
    if rest:
        parts["state"] = (rest, spaces.Dict({name: space[name] for name in rest}))
    return parts


def named_rows(parts: Parts, seen: Any) -> dict[str, NDArray[Any]]:
    """Recorded observations, as ``NamedObservations`` would have shown each of them.

    Args:
        parts: As ``parts_of`` gives them.
        seen: What the environment showed, n times: arrays with n rows, in the dictionaries and tuples of
            the space.

    Returns:
        By name ``(n, d)`` float32, of ``image`` ``(n, h, w, 3)`` uint8.
    """
    return {
        ours: np.asarray(_chosen(seen, keys), dtype=np.uint8)
        if ours == "image"
        else _flat_rows(part, _chosen(seen, keys)).astype(np.float32)
        for ours, (keys, part) in parts.items()
    }


def vector_of(space: spaces.Space[Any]) -> spaces.Box:
    """The space of what is seen as one vector of float32.

    Raises:
        UsageError: If it is of a kind that can't be.
    """
    try:
        flat: spaces.Space[Any] = spaces.flatten_space(space)
    except NotImplementedError:
        flat = space
    if not isinstance(flat, spaces.Box):
        raise UsageError(f"observations of the kind {space} are not served: what can be one vector is")
    return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def _chosen(seen: Any, keys: str | tuple[str, ...] | None) -> Any:
    if isinstance(keys, tuple):
        return {key: seen[key] for key in keys}
    return seen if keys is None else seen[keys]


def _flat_rows(space: spaces.Space[Any], values: Any) -> NDArray[Any]:
    """``spaces.flatten`` of many at once: (n, d)."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flat_rows(part, values[name]) for name, part in space.spaces.items()], axis=1)
    if isinstance(space, spaces.Tuple):
        rows = [_flat_rows(part, value) for part, value in zip(space.spaces, values, strict=True)]
        return np.concatenate(rows, axis=1)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(values, dtype=np.int64) - int(space.start)]
    if isinstance(space, spaces.Box):
        return np.asarray(values).reshape(len(values), -1)
    return np.stack([np.asarray(spaces.flatten(space, value)) for value in values])


def _is_picture(space: spaces.Space[Any]) -> bool:
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 3
        and space.shape[2] == 3
        and space.dtype == np.uint8
    )


def _resized(picture: Any, size: int) -> NDArray[np.uint8]:
    picture = np.asarray(picture, dtype=np.uint8)
    if picture.shape[:2] == (size, size):
        return np.array(picture)
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX), dtype=np.uint8)
