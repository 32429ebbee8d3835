"""A task for eyes and words: discs of several colours lie about, and an instruction says which to reach.

The arm is that of gymnasium's Reacher, seen from above. Where the discs lie is not in the state: only a
picture shows it (``environments.make(..., image_size=64)``). Some pairs of colour and wording are kept from
training, so that one can ask whether a policy has understood both.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from mambakit.core.errors import UsageError

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.1),
    "blue": (0.15, 0.25, 1.0),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.6, 0.1, 0.8),
    "white": (1.0, 1.0, 1.0),
}
WORDINGS = ("reach the {} one", "go to the {} disc", "touch {}", "move the arm to {}")
Pairs = Literal["train", "unseen", "all"]

_RADIUS_M = 0.025
_HELD_STEPS = 5
_NEAREST_M, _FARTHEST_M, _APART_M = 0.08, 0.19, 0.08
_AWAY = (0.0, 0.0, -1.0)
_DISC = (
    '<body name="{name}" mocap="true" pos="0 0 -1"><geom type="cylinder" size="{radius} .004" '
    'rgba="{red} {green} {blue} 1" contype="0" conaffinity="0"/></body>'
)
_SCENE = """
<mujoco model="coloured reach">
  <compiler angle="radian" inertiafromgeom="true"/>
  <option timestep="0.01" integrator="RK4"/>
  <default><joint armature="1" damping="1"/><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <light pos="0 0 2" dir="0 0 -1" directional="true" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <camera name="top" pos="0 0 0.62" fovy="45"/>
    <geom type="plane" size="1 1 10" rgba="0.45 0.45 0.45 1"/>
    {discs}
    <body name="body0" pos="0 0 .015">
      <joint name="joint0" type="hinge" axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0 0.1 0 0" size=".009" rgba="0.1 0.1 0.1 1"/>
      <body name="body1" pos="0.1 0 0">
        <joint name="joint1" type="hinge" axis="0 0 1" limited="true" range="-3 3"/>
        <geom type="capsule" fromto="0 0 0 0.1 0 0" size=".009" rgba="0.2 0.2 0.2 1"/>
        <body name="fingertip" pos="0.11 0 0"><geom type="sphere" size=".009" rgba="0.95 0.5 0.1 1"/></body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="joint0" gear="200" ctrllimited="true" ctrlrange="-1 1"/>
    <motor joint="joint1" gear="200" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""

ENVIRONMENT_ID = "mambakit/ColouredReach-v0"
STEPS = 50


def register() -> None:
    """Makes the task known to gymnasium, once."""
    if ENVIRONMENT_ID not in gymnasium.registry:
        # by name: a spec that holds a class can't be written into a data set
        entry = f"{ColouredReach.__module__}:{ColouredReach.__name__}"
        gymnasium.register(ENVIRONMENT_ID, entry, max_episode_steps=STEPS)


def is_unseen(colour: str, wording: str) -> bool:
    """Whether a pair is kept from training: a quarter; every colour and wording is trained on."""
    return (list(COLOURS).index(colour) + WORDINGS.index(wording)) % len(WORDINGS) == 0


class ColouredReach(MujocoEnv):
    """Reach the disc that the instruction names and stay on it for five steps.

    State: cosines and sines of both joints, their velocities (rad/s). ``info`` says ``instruction``,
    ``is_success``, and under ``expert_sees`` what only an expert may know: Reacher's state, with the target.
    Reward: minus the distance to the disc's middle (m) minus a tenth of the squared torques.

    Args:
        pairs: Which pairs of colour and wording are asked for: those of training, the unseen, or all.
        n_discs: How many lie there, of colours that differ; one of them is asked for.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, pairs: Pairs = "train", n_discs: int = 3, **kwargs: Any) -> None:
        if pairs not in get_args(Pairs):
            raise UsageError(f"pairs: expected one of {', '.join(get_args(Pairs))}, got {pairs!r}")
        if not 1 <= n_discs <= len(COLOURS):
            raise UsageError(f"n_discs: expected 1 to {len(COLOURS)}, got {n_discs}")
        self._pairs = [
            (colour, wording)
            for colour in COLOURS
            for wording in WORDINGS
            if pairs == "all" or is_unseen(colour, wording) == (pairs == "unseen")
        ]
        self._n_discs, self._held = n_discs, 0
        self.colour, self.instruction = "", ""
        seen = spaces.Box(-np.inf, np.inf, (6,), np.float64)
        # a path that exists, which the class asks for; the scene is made below
        super().__init__("reacher.xml", 2, seen, camera_name="top", **kwargs)

    def _initialize_simulation(self) -> tuple[Any, Any]:
        discs = "".join(
            _DISC.format(name=name, radius=_RADIUS_M, red=red, green=green, blue=blue)
            for name, (red, green, blue) in COLOURS.items()
        )
        model = mujoco.MjModel.from_xml_string(_SCENE.format(discs=discs))
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def reset_model(self) -> NDArray[np.float64]:
        rng = self.np_random
        self.colour, wording = self._pairs[rng.integers(len(self._pairs))]
        self.instruction, self._held = wording.format(self.colour), 0
        others = [name for name in COLOURS if name != self.colour]
        there = [self.colour, *rng.choice(others, self._n_discs - 1, replace=False)]
        for place, (x, y) in zip(there, self._places(len(there)), strict=True):
            self.data.mocap_pos[self._disc(place)] = (x, y, 0.004)
        for name in set(COLOURS) - set(there):
            self.data.mocap_pos[self._disc(name)] = _AWAY
        self.set_state(rng.uniform(-0.1, 0.1, 2), rng.uniform(-0.005, 0.005, 2))
        return self._seen()

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
        self.do_simulation(action, self.frame_skip)
        distance = float(np.linalg.norm(self.get_body_com("fingertip")[:2] - self.target))
        self._held = self._held + 1 if distance < _RADIUS_M else 0
        info = {**self._get_reset_info(), "is_success": self._held >= _HELD_STEPS, "distance_m": distance}
        reward = -distance - 0.1 * float(np.square(action).sum())
        return self._seen(), reward, False, False, info

    @property
    def target(self) -> NDArray[np.float64]:
        """Where the disc lies that is asked for, x and y in metres."""
        return self.data.mocap_pos[self._disc(self.colour)][:2].copy()

    def _get_reset_info(self) -> dict[str, Any]:
        known = np.concatenate([self._seen()[:4], self.target, self._seen()[4:]])
        return {"instruction": self.instruction, "expert_sees": known}

    def _seen(self) -> NDArray[np.float64]:
        joints = self.data.qpos[:2]
        return np.concatenate([np.cos(joints), np.sin(joints), self.data.qvel[:2]])

    def _disc(self, colour: str) -> int:
        return int(self.model.body(colour).mocapid[0])

    def _places(self, count: int) -> list[NDArray[np.float64]]:
        found: list[NDArray[np.float64]] = []
        while len(found) < count:
            place = self.np_random.uniform(-_FARTHEST_M, _FARTHEST_M, 2)
            inside = _NEAREST_M <= np.linalg.norm(place) <= _FARTHEST_M
            if inside and all(np.linalg.norm(place - other) >= _APART_M for other in found):
                found.append(place)
        return found
