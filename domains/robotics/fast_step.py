"""A policy's step for one robot on the CPU, all its tokens in one compiled call and a few small arrays."""

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
        whole: The compiled part, of the policy's tokens.
    """

    def __init__(self, policy: Policy, whole: WholeStep) -> None:
        self.policy, self.whole = policy, whole
        embed = policy.embed
        self._scales = {
            name: _ScaledNumbers(scale)
            for name, scale in (("to_go", embed.to_go), ("state", embed.state), ("goal", embed.goal))
            if scale is not None
        }
        self._action = None if embed.action is None else _ScaledNumbers(embed.action)
        if embed.interleave is None:
            self._into = self._parts_of_fused(whole.inputs[0])
            self._added: list[Tensor | None] = [None]
        else:
            self._into = dict(zip(embed.modalities, whole.inputs, strict=True))
            self._added = list(embed.interleave.modality.weight.detach())
        self._place = embed.modalities.index("instruction") if "instruction" in embed.modalities else None
        self._untold = [i for i in range(len(embed.modalities)) if i != self._place]
        with torch.no_grad():
            self._shape = policy.head(torch.zeros(1, policy.config.policy.d_model)).shape

    @classmethod
    def of(cls, policy: Policy) -> FastStep | None:
        """The fast step; None for pictures, or layers of other kinds."""
        embed = policy.embed
        if embed.sees:
            return None
        head = policy.head
        last: nn.Module = head.condition if isinstance(head, FlowHead) else head.proj
        firsts = [None if name == "instruction" else embed.linear(name) for name in embed.modalities]
        whole = WholeStep.of(firsts, policy.backbone, last)
        return None if whole is None else cls(policy, whole)

    def _parts_of_fused(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Where in the one token's numbers each modality's are, in the order of ``StepEmbedding``."""
        embed, at = self.policy.embed, 0
        parts: dict[str, NDArray[np.float32]] = {}
        if embed.tells_action:
            parts["action"] = features[: embed.width + 1]
            at = embed.width + 1
        for name in ("to_go", "state", "goal"):
            if name in self._scales:
                width = self._scales[name].width
                parts[name] = features[at : at + width]
                at += width
            if name == "state":
                features[at] = 1.0  # it is there
                at += 1
        return parts

    def __call__(self, seen: Seen, state: State, told: Tensor) -> Tensor:
        """What the head gives, as ``Policy.step`` of one row; ``state`` is overwritten by the next."""
        embed, into = self.policy.embed, self._into
        if embed.tells_action:
            assert seen.previous is not None
            action, began = into["action"], bool(seen.began[0])
            if began or self._action is None:
                action[:-1] = 0.0
                if not began:
                    action[int(seen.previous[0])] = 1.0
            else:
                self._action(seen.previous.numpy()[0], action[:-1])
            action[-1] = began
        for name, scale in self._scales.items():
            given = getattr(seen, name)
            assert given is not None
            scale(given.numpy()[0], into[name])
        added, there = self._added, None
        if self._place is not None:
            if seen.instructed is None:
                into["instruction"][:] = told.numpy()[0]
            else:
                there = self._untold
        elif embed.is_told:
            added = [told]
        found = self.whole.run(state, added, there)
        return torch.from_numpy(found.copy()).view(self._shape)


class _ScaledNumbers:
    """``Scale`` on small arrays."""

    def __init__(self, scale: Scale) -> None:
        self.mean, self.deviation = scale.mean.numpy(), scale.deviation.numpy()
        self.width = len(self.mean)

    def __call__(self, values: NDArray[np.float32] | np.float32, into: NDArray[np.float32]) -> None:
        np.subtract(values, self.mean, out=into)
        np.divide(into, self.deviation, out=into)
        np.minimum(into, FURTHEST, out=into)
        np.maximum(into, -FURTHEST, out=into)
