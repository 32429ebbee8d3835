"""A policy's step for one robot on the CPU, all its tokens in one compiled call and a few small arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.compiled_stack import WholeStep
from mambakit.domains.robotics.memory import Memory
from mambakit.domains.robotics.policy.heads import FlowHead
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.scale import FURTHEST


class FastStep:
    """``Policy.step`` of one robot, where the policy is as ``of`` wants it: the same to rounding.

    What is remembered lies in one place for good, and is read and written there as arrays: on so few numbers,
    to make a tensor or ask a module for an attribute takes as long as to compute.

    Args:
        policy: Whose step it is; its weights may change in place, its scales and bounds not.
        whole: The compiled part, of the policy's tokens.
        memory: What is remembered.
    """

    def __init__(self, policy: Policy, whole: WholeStep, memory: Memory) -> None:
        self.policy, self.whole = policy, whole
        self._layers = memory.layers
        self._previous, self._began, self._to_go, self._told, self._instructed, self._age = (
            one.numpy()
            for one in (
                memory.previous, memory.began, memory.to_go, memory.told, memory.instructed, memory.age,
            )
        )  # fmt: skip
        embed = policy.embed
        self._tells_action = embed.tells_action
        self._numbered = embed.action is None
        scales = {"action": embed.action, "to_go": embed.to_go, "state": embed.state, "goal": embed.goal}
        self._scales = {name: scale for name, scale in scales.items() if scale is not None}
        self._into = self._parts(whole.inputs)
        if embed.interleave is None:
            self._into["there"][:] = 1.0
            self._added: list[Tensor | None] = [memory.told if embed.is_told else None]
        else:
            self._added = list(embed.interleave.modality.weight.detach())
        # of every number, so that all are scaled at once; flags and instructions stay as they are
        self._mean, self._deviation, self._furthest = (
            np.full_like(whole.features, value) for value in (0.0, 1.0, np.inf)
        )
        cuts = np.cumsum([len(one) for one in whole.inputs])[:-1]
        for array, value in ((self._mean, "mean"), (self._deviation, "deviation"), (self._furthest, None)):
            parts = self._parts(np.split(array, cuts))
            for name, scale in self._scales.items():
                if name in parts:
                    width = len(scale.mean)
                    parts[name][:width] = FURTHEST if value is None else getattr(scale, value).numpy()
        self._nearest = -self._furthest
        if embed.action is not None:
            self._action = embed.action.deviation.numpy(), embed.action.mean.numpy()
        self._low, self._high = (None if one is None else one.numpy() for one in (policy.low, policy.high))
        self._place = embed.modalities.index("instruction") if "instruction" in embed.modalities else None
        self._untold = [i for i in range(len(embed.modalities)) if i != self._place]
        with torch.no_grad():
            self._shape = policy.head(torch.zeros(1, policy.config.policy.d_model)).shape

    @classmethod
    def of(cls, policy: Policy, memory: Memory) -> FastStep | None:
        """The fast step; None for pictures, or layers of other kinds."""
        embed = policy.embed
        if embed.sees:
            return None
        head = policy.head
        last: nn.Module = head.condition if isinstance(head, FlowHead) else head.proj
        firsts = [None if name == "instruction" else embed.linear(name) for name in embed.modalities]
        whole = WholeStep.of(firsts, policy.backbone, last)
        return None if whole is None else cls(policy, whole, memory)

    def _parts(self, tokens: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Where in the tokens' numbers each modality's are, in the order of ``StepEmbedding``.

        An action's are followed by the flag of an episode's first step.
        """
        embed = self.policy.embed
        if embed.interleave is not None:
            return dict(zip(embed.modalities, tokens, strict=True))
        (features,), at = tokens, 0
        parts: dict[str, NDArray[np.float32]] = {}
        if embed.tells_action:
            parts["action"] = features[: embed.width + 1]
            at = embed.width + 1
        for name in ("to_go", "state", "goal"):
            if name in self._scales:
                width = len(self._scales[name].mean)
                parts[name] = features[at : at + width]
                at += width
            if name == "state":
                parts["there"] = features[at : at + 1]
                at += 1
        return parts

    def __call__(self, state: Tensor | None, goal: Tensor | None, earned: Tensor | None) -> Tensor:
        """What the head gives, as ``Policy.step`` of one row; the layers' next state is remembered."""
        into, features, began = self._into, self.whole.features, bool(self._began[0])
        if earned is not None and not began:
            self._to_go -= earned.numpy()
        if "to_go" in into:
            into["to_go"][0] = self._to_go[0]
        if "state" in into and state is not None:
            into["state"][:] = state.numpy()[0]
        if "goal" in into and goal is not None:
            into["goal"][:] = goal.numpy()[0]
        if self._tells_action:
            action = into["action"]
            action[-1] = began
            if self._numbered:
                action[:-1] = 0.0
                action[self._previous[0]] = 1.0
            else:
                action[:-1] = self._previous[0]
        there = None
        if self._place is not None:
            if self._instructed[0]:
                into["instruction"][:] = self._told[0]
            else:
                there = self._untold
        np.subtract(features, self._mean, out=features)
        np.divide(features, self._deviation, out=features)
        np.minimum(features, self._furthest, out=features)
        np.maximum(features, self._nearest, out=features)
        if began and self._tells_action:
            into["action"][:-1] = 0.0
        found = self.whole.run(self._layers, self._added, there)
        return torch.from_numpy(found.copy()).view(self._shape)

    def finished(self, points: Tensor) -> NDArray[Any]:
        """As ``Policy.finished``, and remembered: the step is over."""
        if self._numbered:
            actions = points.argmax(-1).numpy()
        else:
            deviation, mean = self._action
            actions = points.numpy() * deviation + mean
            if self._low is not None:
                np.maximum(actions, self._low, out=actions)
            if self._high is not None:
                np.minimum(actions, self._high, out=actions)
        self._previous[:] = actions
        self._began[0] = False
        self._age += 1
        return actions
