"""The two recorded data sets that have cards: a WidowX arm, and a human moving a simulated hand."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.robotics.episodes import (
    ActionSpace,
    EnvironmentRecord,
    Episode,
    Episodes,
    gathered,
    seen_actions,
)
from mambakit.domains.robotics.scores import reference_of
from mambakit.domains.robotics.tfrecord import Feature, read_examples

_DOOR = "AdroitHandDoor-v1"


def read_widowx(path: Path, name: str = "widowx") -> Episodes:
    """BridgeData's RLDS records: state (7), the first camera (64 x 64), the instruction, actions (7).

    Raises:
        DataError: If the file or a record can't be read.
    """
    episodes = [_bridge_episode(features) for features in read_examples(path)]
    found = gathered(name, episodes)
    record = EnvironmentRecord(
        "WidowX 250 (a real arm)", state_dim=7, action_space=seen_actions(found.episodes)
    )
    notes = [
        "recorded on a real arm: there is no environment to act in, only actions to compare with",
        "of its cameras, image_0 is used",
    ]
    return Episodes(found.name, found.episodes, record, notes, found.left_out)


def read_adroit(path: Path, name: str = "adroit-door-human") -> Episodes:
    """DAPG's demonstrations: state (39), actions (28) from -1 to 1, rewards.

    Raises:
        DataError: If the file is no pickle of arrays, or names anything but numpy's arrays.
    """
    episodes = []
    for place, path_ in enumerate(_restricted_load(path)):
        try:
            states = np.asarray(path_["observations"], dtype=np.float32)
            actions = np.asarray(path_["actions"], dtype=np.float32)
            rewards = np.asarray(path_["rewards"], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: demonstration {place} lacks observations, actions or rewards"
            ) from error
        episodes.append(Episode({"state": states}, actions, rewards, truncated=True, behaviour="human"))
    reference = reference_of(_DOOR)
    assert reference is not None
    record = EnvironmentRecord(
        _DOOR,
        state_dim=39,
        action_space=ActionSpace((-1.0,) * 28, (1.0,) * 28),
        reference_random=reference.random,
        reference_expert=reference.expert,
        reference_source=reference.source,
    )
    return gathered(name, episodes, record, ["recorded with an older MuJoCo: returns may differ here"])


def _bridge_episode(features: dict[str, Feature]) -> Episode:
    from PIL import Image

    def numbers(name: str, width: int) -> NDArray[np.float32]:
        return np.asarray(features[f"steps/{name}"], dtype=np.float32).reshape(-1, width)

    try:
        pictures = [
            np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in _texts(features["steps/observation/image_0"])
        ]
        actions = numbers("action", 7)
        rewards = numbers("reward", 1).ravel()
        said = _texts(features["steps/language_instruction"])[0].decode()
        states = numbers("observation/state", 7)
        ended = bool(np.any(features["steps/is_terminal"]))
    except (KeyError, ValueError, IndexError, OSError) as error:
        raise DataError(f"a record of BridgeData lacks or breaks {error}") from error
    return Episode(
        {"state": states, "image": np.stack(pictures).astype(np.uint8)},
        actions,
        rewards,
        terminated=ended,
        truncated=not ended,
        instruction=said or None,
        behaviour="human",
    )


def _texts(feature: Feature) -> list[bytes]:
    if not isinstance(feature, list):
        raise ValueError("expected bytes")
    return feature


class _ArraysOnly(pickle.Unpickler):
    """A pickle can name any function and have it called: this one may only build numpy's arrays."""

    _ALLOWED = ("ndarray", "dtype", "_reconstruct")

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self._ALLOWED:
            if name == "_reconstruct":
                from numpy._core.multiarray import _reconstruct

                return _reconstruct
            return getattr(np, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which is no array")


def _restricted_load(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="latin1").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
    ) as error:
        raise DataError(f"{path}: is no pickle of arrays ({error})") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of demonstrations, got {type(found).__name__}")
    return found
