"""Policies that are written down, not learned: where the task's geometry gives the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import UsageError, UserError
from mambakit.domains.robotics.episodes import base_name

Act = Callable[[NDArray[Any]], NDArray[np.float32]]

# Reacher's links, in metres (gymnasium's reacher.xml; the second up to the fingertip)
_FIRST_LINK_M, _SECOND_LINK_M = 0.1, 0.11
# Gains by hand: torque for each radian off, and against each radian a second
_STIFFNESS, _DAMPING = 0.3, 0.05
# Force against the cart's place, the pole's angle and their velocities
_PENDULUM_GAINS = (0.5, 20.0, 1.0, 3.0)


def reacher(state: NDArray[Any]) -> NDArray[np.float32]:
    """Reacher: the joint angles that put the fingertip on the target (two-link inverse kinematics),
    approached by a spring and damper. State: cosines, sines, target (m), velocities (rad/s), offset (m)."""
    cos_1, cos_2, sin_1, sin_2, x, y, speed_1, speed_2 = (float(value) for value in state[:8])
    first, second = math.atan2(sin_1, cos_1), math.atan2(sin_2, cos_2)
    reach = (x * x + y * y - _FIRST_LINK_M**2 - _SECOND_LINK_M**2) / (2 * _FIRST_LINK_M * _SECOND_LINK_M)
    bend = math.acos(min(max(reach, -1.0), 1.0))
    ways = []
    for elbow in (bend, -bend):
        lean = math.atan2(_SECOND_LINK_M * math.sin(elbow), _FIRST_LINK_M + _SECOND_LINK_M * math.cos(elbow))
        turn = math.remainder(math.atan2(y, x) - lean - first, 2 * math.pi)
        ways.append((abs(turn) + abs(elbow - second), turn, elbow - second))
    _, turn_1, turn_2 = min(ways)
    torque = (_STIFFNESS * turn_1 - _DAMPING * speed_1, _STIFFNESS * turn_2 - _DAMPING * speed_2)
    return np.clip(torque, -1.0, 1.0).astype(np.float32)


def inverted_pendulum(state: NDArray[Any]) -> NDArray[np.float32]:
    """InvertedPendulum: linear feedback of all four numbers. State: cart (m), pole (rad), m/s, rad/s."""
    return np.clip([np.dot(_PENDULUM_GAINS, state[:4])], -3.0, 3.0).astype(np.float32)


SCRIPTED: dict[str, Act] = {
    "Reacher": reacher,
    "InvertedPendulum": inverted_pendulum,
    "mambakit/ColouredReach": reacher,
}


def scripted(environment_id: str, kwargs: Mapping[str, Any] | None = None) -> Act | None:
    """The scripted policy of an environment; None where there is none.

    Meta-World's own are used for ``Meta-World/MT1`` with ``env_name`` in ``kwargs``.

    Raises:
        UsageError: If Meta-World has no policy of that name.
        UserError: If Meta-World is not installed.
    """
    plain = base_name(environment_id)
    if plain.startswith("Meta-World"):
        return _of_metaworld(str((kwargs or {}).get("env_name", "")))
    return SCRIPTED.get(plain)


def instruction_of(environment_id: str, kwargs: Mapping[str, Any] | None = None) -> str | None:
    """What is asked for in an environment, in words, where its name says so (``door-open-v3``)."""
    if not base_name(environment_id).startswith("Meta-World"):
        return None
    return base_name(str((kwargs or {}).get("env_name", ""))).replace("-", " ") or None


def _of_metaworld(name: str) -> Act:
    if find_spec("metaworld") is None:
        raise UserError("Meta-World needs metaworld; install it with pip install 'mambakit[robotics-suites]'")
    policies = import_module("metaworld.policies").ENV_POLICY_MAP
    if name not in policies:
        raise UsageError(
            f"env_name: Meta-World has no scripted policy for {name!r}; it has {', '.join(policies)}"
        )
    policy = policies[name]()

    def act(state: NDArray[Any]) -> NDArray[np.float32]:
        action = policy.get_action(np.asarray(state, dtype=np.float64))
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return act
