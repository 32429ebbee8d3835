"""A policy's step for one robot on the CPU, in one compiled call and a few small arrays."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.compiled_stack import WholeStep
from mambakit.core.state import State
from mambakit.domains.robotics.policy.heads import FlowHead
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.scale import FURTHEST, Scale
from mambakit.domains.robotics.policy.seen import Seen


class FastStep:
    """``Policy.step`` of one robot, where the policy is as ``of`` wants it: the same to rounding.

    Args:
        policy: Whose step it is; its weights may change in place.
        whole: The compiled part.
    """

    def __init__(self, policy: Policy, whole: WholeStep) -> None:
        self.policy, self.whole = policy, whole
        embed = policy.embed
        self._features = np.zeros(whole.n_in, dtype=np.float32)
        self._action, self._state = _ScaledNumbers.of(embed.action), _ScaledNumbers.of(embed.state)
        self._goal, self._to_go = _ScaledNumbers.of(embed.goal), _ScaledNumbers.of(embed.to_go)
        with torch.no_grad():
            self._shape = policy.head(torch.zeros(1, policy.config.policy.d_model)).shape

    @classmethod
    def of(cls, policy: Policy) -> FastStep | None:
        """The fast step; None for pictures, several tokens a step, or layers of other kinds."""
        embed = policy.embed
        if embed.fused is None or embed.sees:
            return None
        head = policy.head
        last: nn.Module = head.condition if isinstance(head, FlowHead) else head.proj
        whole = WholeStep.of(embed.linear("fused"), policy.backbone, last)
        return None if whole is None else cls(policy, whole)

    def __call__(self, seen: Seen, state: State, told: Tensor) -> Tensor:
        """What the head gives, as ``Policy.step`` of one row; ``state`` is overwritten by the next."""
        embed, features, at = self.policy.embed, self._features, 0
        if embed.tells_action:
            assert seen.previous is not None
            began = bool(seen.began[0])
            if began or self._action is None:
                features[: embed.width] = 0.0
                if not began:
                    features[int(seen.previous[0])] = 1.0
            else:
                self._action(seen.previous.numpy()[0], features[: embed.width])
            features[embed.width] = began
            at = embed.width + 1
        if self._to_go is not None:
            assert seen.to_go is not None
            self._to_go(seen.to_go.numpy(), features[at : at + 1])
            at += 1
        if self._state is not None:
            assert seen.state is not None
            width = self._state.width
            self._state(seen.state.numpy()[0], features[at : at + width])
            features[at + width] = 1.0
            at += width + 1
        if self._goal is not None:
            assert seen.goal is not None
            self._goal(seen.goal.numpy()[0], features[at : at + self._goal.width])
        found = self.whole.run(features, told if embed.is_told else None, state)
        return torch.from_numpy(found.copy()).view(self._shape)


class _ScaledNumbers:
    """``Scale`` on small arrays."""

    def __init__(self, scale: Scale) -> None:
        self.mean, self.deviation = scale.mean.numpy(), scale.deviation.numpy()
        self.width = len(self.mean)

    @classmethod
    def of(cls, scale: Scale | None) -> _ScaledNumbers | None:
        return None if scale is None else cls(scale)

    def __call__(self, values: NDArray[np.float32], into: NDArray[np.float32]) -> None:
        np.subtract(values, self.mean, out=into)
        np.divide(into, self.deviation, out=into)
        np.minimum(into, FURTHEST, out=into)
        np.maximum(into, -FURTHEST, out=into)
