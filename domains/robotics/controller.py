"""A policy at work: observations in, actions out, at the same cost at every step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mambakit.core.cuda_graph import record
from mambakit.core.errors import DataError, UsageError
from mambakit.core.state import State
from mambakit.core.threads import one_thread
from mambakit.domains.robotics.deadlines import CONTROL_HZ, DeadlineReport, deadline_report
from mambakit.domains.robotics.fast_step import FastStep
from mambakit.domains.robotics.memory import Memory, Snapshot
from mambakit.domains.robotics.policy.chunks import weighted
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.seen import Seen
from mambakit.domains.robotics.readings import Readings, plain

Observations = Mapping[str, ArrayLike] | ArrayLike

_TIMED = 100_000
_WARM_UP = 10


class Controller:
    """Drives ``n_envs`` robots (or simulations) at once, each with a memory of its own.

    ``step`` gives what ``Policy.actions`` gives of the whole episodes: only the memory of the layers is
    carried, which for state-space layers has the same size for ever.

        controller = Controller(Policy.from_pretrained("runs/hopper"))
        controller.reset(target_return=3000)
        while not done:
            action = controller.step(observation, reward)

    Args:
        policy: Trained.
        n_envs: Robots.
        deterministic: Act without chance; otherwise actions are drawn from the head.
        seed: Of the draws.
        graph: On a GPU, record the step as a CUDA graph; by default where that can be done.

    Raises:
        UsageError: On fewer than one robot.
    """

    def __init__(
        self,
        policy: Policy,
        n_envs: int = 1,
        *,
        deterministic: bool = True,
        seed: int = 0,
        graph: bool | None = None,
    ) -> None:
        if n_envs < 1:
            raise UsageError(f"n_envs: expected at least 1, got {n_envs}")
        self.policy = policy.eval()
        self.n_envs = n_envs
        self.deterministic = deterministic
        weight = next(policy.head.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._config, self._spaces = policy.config, policy.config.spaces
        self._readings = Readings(self._spaces, n_envs, self.device, self.dtype)
        self._tells_return = policy.embed.tells_return
        self._reads_instruction = "instruction" in policy.config.modalities
        self._seconds: deque[float] = deque(maxlen=_TIMED)
        can_graph = self.device.type == "cuda" and deterministic and self._spaces.image is None
        self._wants_graph = can_graph if graph is None else graph and can_graph
        self._graph: _Graph | None = None
        self._memory = self._fresh(n_envs)
        self._fast = FastStep.of(policy, self._memory) if n_envs == 1 else None
        self.reset()

    @torch.no_grad()
    def _fresh(self, n: int) -> Memory:
        policy, device, dtype = self._config.policy, self.device, self.dtype
        width = self._spaces.action_width
        if self._spaces.discrete:
            previous = torch.zeros(n, dtype=torch.int64, device=self.device)
        else:
            previous = torch.zeros(n, width, device=device, dtype=dtype)
        ensemble = policy.chunk if policy.ensemble is not None else 1
        return Memory(
            layers=self.policy.init_state(n, self.device, self.dtype).clone(),
            previous=previous,
            began=torch.ones(n, dtype=torch.bool, device=self.device),
            to_go=torch.zeros(n, device=device, dtype=dtype),
            said=torch.zeros(n, ensemble, ensemble, width, device=device, dtype=dtype),
            age=torch.zeros(n, dtype=torch.int64, device=self.device),
            told=torch.zeros(n, policy.d_model, device=device, dtype=dtype),
            instructed=torch.zeros(n, dtype=torch.bool, device=device),
        )

    @torch.inference_mode()
    def reset(
        self,
        env_ids: Sequence[int] | None = None,
        *,
        target_return: float | Sequence[float] | None = None,
        instruction: str | Sequence[str | None] | None = None,
    ) -> None:
        """Begin new episodes.

        Args:
            env_ids: Which robots; all by default. The others go on as if nothing had happened.
            target_return: What to earn, for a policy that is told it; one for all, or one each. By default
                what the policy was saved with.
            instruction: In words, for a policy that is told them; one for all, or one each; none by default.

        Raises:
            UsageError: On a robot that there is not, another number of targets or instructions than robots,
                or a target that is no number.
        """
        ids = list(range(self.n_envs)) if env_ids is None else [int(one) for one in env_ids]
        if len(set(ids)) != len(ids) or not all(0 <= one < self.n_envs for one in ids):
            raise UsageError(f"env_ids: expected different robots from 0 to {self.n_envs - 1}, got {ids}")
        if not ids:
            return
        new = self._fresh(len(ids))
        if self._tells_return:
            targets = self._targets(target_return, len(ids))
            new = replace(new, to_go=torch.tensor(targets, device=self.device, dtype=self.dtype))
        if self.policy.embed.is_told:
            told, instructed = self._instructed(instruction, len(ids))
            new = replace(new, told=told, instructed=instructed)
        self._keep(self._memory.state().put_rows(ids, new.state()))

    def _targets(self, given: float | Sequence[float] | None, n: int) -> list[float]:
        if given is None:
            given = self._config.target_return or 0.0
        values = [float(given)] * n if isinstance(given, (int, float)) else [float(one) for one in given]
        if len(values) != n:
            raise UsageError(f"target_return: expected one, or one for each of {n} robots, got {len(values)}")
        if not np.isfinite(values).all():
            raise UsageError(f"target_return: expected a number, got {given}")
        return values

    def _instructed(self, given: str | Sequence[str | None] | None, n: int) -> tuple[Tensor, Tensor]:
        texts = [given] * n if given is None or isinstance(given, str) else list(given)
        if len(texts) != n:
            raise UsageError(f"instruction: expected one, or one for each of {n} robots, got {len(texts)}")
        words = torch.from_numpy(np.stack([self.policy.numbers(text) for text in texts])).to(self.device)
        return self.policy.embed.told(words), (words > 0).any(-1)

    def _keep(self, state: State) -> None:
        """Take a state over; into the same memory where a graph or the fast step reads it."""
        if self._graph is None and self._fast is None:
            self._memory = Memory(**dict(state.items()))  # type: ignore[arg-type]
        else:
            for (_, own), (_, new) in zip(self._memory.state().tensors(), state.tensors(), strict=True):
                own.copy_(new)

    @torch.inference_mode()
    def correct(self, actions: ArrayLike) -> None:
        """Tell what the robots really did at the last step, where a limit or a person overruled the policy.

        Args:
            actions: ``(n_envs, action_dim)`` in the environment's own units, or ``(n_envs,)``.

        Raises:
            UsageError: On another shape, or a choice that there is not.
            DataError: If a number is NaN or infinite.
        """
        given = torch.from_numpy(plain(actions))
        if given.shape != self._memory.previous.shape:
            wanted = tuple(self._memory.previous.shape)
            raise UsageError(f"actions: expected shape {wanted}, got {tuple(given.shape)}")
        if not bool(given.isfinite().all()):
            raise DataError("actions: one is not finite; what is remembered would never be a number again")
        n = self._spaces.n_actions
        if n and not bool(((given >= 0) & (given < n)).all()):
            raise UsageError(f"actions: expected choices from 0 to {n - 1}, got {given.tolist()}")
        self._memory.previous.copy_(given)

    def snapshot(self) -> Snapshot:
        """All that is remembered now, to come back to with ``restore``: bit for bit."""
        return Snapshot(self._memory.state().clone(), self._generator.get_state())

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of a controller of the same policy and number of robots.

        Raises:
            UsageError: If it is of another one.
        """
        mine = [(name, tensor.shape) for name, tensor in self._memory.state().tensors()]
        if mine != [(name, tensor.shape) for name, tensor in snapshot.state.tensors()]:
            raise UsageError("snapshot: it is of another policy, or of another number of robots")
        self._keep(snapshot.state.to(self.device).clone())
        self._generator.set_state(snapshot.generator)

    @property
    def state_bytes(self) -> int:
        """Memory of all robots; of state-space layers it never grows."""
        return self._memory.state().nbytes

    @torch.inference_mode()
    def step(self, observations: Observations, rewards: ArrayLike | None = None) -> NDArray[Any]:
        """The next actions.

        Args:
            observations: By name ``state`` ``(n_envs, d)``, ``image`` ``(n_envs, height, width, 3)`` uint8,
                ``goal`` ``(n_envs, g)``; or the states alone. Of one robot, the first dimension may be
                left out. A policy with pictures acts without them, or without the state, where one of
                the two is left out.
            rewards: ``(n_envs,)``, what the actions before earned; they are taken off the return to go. The
                reward of a robot that was reset since does not matter. Without, the return to go stays.

        Returns:
            ``(n_envs, action_dim)`` in the environment's own units, or ``(n_envs,)`` int64; without the first
            dimension where the observations were without it.

        Raises:
            DataError: If a number is NaN or infinite; the message names robot and place. Nothing is
                remembered of such a step.
            UsageError: If an observation is missing, or of another shape than the policy's.
        """
        began = time.perf_counter()
        named: Mapping[str, Any] = (
            observations if isinstance(observations, Mapping) else {"state": observations}
        )
        state, alone = self._readings.vector(named, "state", self._spaces.state_dim)
        goal_dim = self._spaces.goal_dim if self.policy.embed.tells_goal else 0
        goal, _ = self._readings.vector(named, "goal", goal_dim)
        image, image_alone = self._readings.image(named)
        earned = None
        if self._tells_return and rewards is not None:
            earned = self._readings.rewards(rewards, self._memory.began)
        if self._wants_graph and self._graph is None and state is not None:
            self._graph = _Graph(self, state, goal)
        if self._graph is not None and state is not None:
            found = self._graph.run(state, goal, earned).cpu().numpy().copy()  # the caller's own
        else:
            with one_thread(where=image is None and self.device.type == "cpu"):
                if self._fast is not None:
                    found = self._advance_one(self._fast, state, goal, earned)
                else:
                    action, self._memory = self._advance(self._memory, state, goal, image, earned)
                    found = action.cpu().numpy().copy()
        self._seconds.append(time.perf_counter() - began)
        return found[0] if alone or image_alone else found

    def _advance(
        self,
        memory: Memory,
        state: Tensor | None,
        goal: Tensor | None,
        image: Tensor | None,
        earned: Tensor | None,
    ) -> tuple[Tensor, Memory]:
        to_go = memory.to_go
        if earned is not None:
            to_go = torch.where(memory.began, to_go, to_go - earned)
        seen = Seen(
            began=memory.began,
            previous=memory.previous,
            state=state,
            goal=goal,
            to_go=to_go,
            image=image,
            instructed=self._all_or_some(memory.instructed),
        )
        policy = self.policy
        output, layers = policy.step(seen, memory.layers, memory.told, inplace=self._graph is None)
        point, said = self._chosen(output, memory)
        action = policy.finished(point)
        return action, Memory(
            layers=layers,
            previous=action,
            began=torch.zeros_like(memory.began),
            to_go=to_go,
            said=said,
            age=memory.age + 1,
            told=memory.told,
            instructed=memory.instructed,
        )

    def _advance_one(
        self, fast: FastStep, state: Tensor | None, goal: Tensor | None, earned: Tensor | None
    ) -> NDArray[Any]:
        """``_advance`` of one robot, whose memory stays where it is."""
        memory = self._memory
        point, said = self._chosen(fast(state, goal, earned), memory)
        if said is not memory.said:
            memory.said.copy_(said)
        return fast.finished(point)

    def _chosen(self, output: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """This step's action, scaled, by what the head gives and the chunks before, and the chunks since."""
        head, said = self.policy.head, memory.said
        chunk = head.point(output) if self.deterministic else head.drawn(output, self._generator)
        if said.shape[1] == 1:
            return chunk[:, 0], said
        said = torch.cat([chunk[:, None], said[:, :-1]], dim=1)
        there = memory.age[:, None] >= torch.arange(said.shape[1], device=self.device)
        of_now = said.diagonal(dim1=1, dim2=2).transpose(1, 2)  # what step t - i said of step t
        return weighted(of_now, there, self._config.policy.ensemble or 0.0), said

    def _all_or_some(self, instructed: Tensor) -> Tensor | None:
        """None where that can be known to be all; a graph serves either."""
        if not self._reads_instruction or (self._graph is None and bool(instructed.all())):
            return None
        return instructed

    def warm_up(self, steps: int = _WARM_UP) -> None:
        """Take steps that are forgotten: the first ones load and compile what later ones use."""
        before = self.snapshot()
        made: dict[str, Any] = {"state": np.zeros((self.n_envs, self._spaces.state_dim), np.float32)}
        made["goal"] = np.zeros((self.n_envs, self._spaces.goal_dim), np.float32)
        if self._spaces.image is not None:
            made["image"] = np.zeros((self.n_envs, *self._spaces.image, 3), np.uint8)
        for _ in range(steps):
            self.step(made, np.zeros(self.n_envs))
        self.restore(before)
        self._seconds.clear()

    def deadlines(self, rates_hz: Sequence[float] = CONTROL_HZ) -> DeadlineReport:
        """How long the steps since the warm-up took (the last 100,000), and how many missed a deadline."""
        return deadline_report(list(self._seconds), self.n_envs, rates_hz)


class _Graph:
    """The step as a CUDA graph: inputs and memory lie where they were when it was recorded."""

    def __init__(self, controller: Controller, state: Tensor, goal: Tensor | None) -> None:
        self.state, self.goal = state.clone(), None if goal is None else goal.clone()
        self.earned = torch.zeros_like(controller._memory.to_go)
        memory = controller._memory
        before = memory.state().clone()
        controller._graph = self  # so that _advance leaves the memory where it is

        def run() -> Tensor:
            action, following = controller._advance(memory, self.state, self.goal, None, self.earned)
            for (_, own), (_, new) in zip(memory.state().tensors(), following.state().tensors(), strict=True):
                own.copy_(new)
            return action

        self.graph, self.action = record(run)
        for (_, own), (_, old) in zip(memory.state().tensors(), before.tensors(), strict=True):
            own.copy_(old)

    def run(self, state: Tensor, goal: Tensor | None, earned: Tensor | None) -> Tensor:
        self.state.copy_(state)
        if self.goal is not None and goal is not None:
            self.goal.copy_(goal)
        if earned is None:
            self.earned.zero_()
        else:
            self.earned.copy_(earned)
        self.graph.replay()
        return self.action
