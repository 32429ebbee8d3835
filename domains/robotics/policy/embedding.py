"""Control steps to tokens: previous action, return to go, goal, instruction, picture and state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.adapters import ContinuousAdapter, Embedded, Interleave, TimeLine
from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import Episode
from mambakit.domains.robotics.policy.config import SavedPolicyConfig
from mambakit.domains.robotics.policy.images import ConvolutionAdapter, ImageAdapter
from mambakit.domains.robotics.policy.instructions import InstructionAdapter
from mambakit.domains.robotics.policy.scale import Scale
from mambakit.domains.robotics.policy.seen import Seen
from mambakit.domains.robotics.policy.tokenizer import WordNumbers


class StepEmbedding(nn.Module):
    """Embeds what is seen at control steps.

    Fused, everything goes through one linear map into one token, to which pictures and instructions are
    added as adapters of their own embed them; what is missing is replaced by a learned vector, or by zeros
    and a flag. Else each modality is a token of its own in the order of ``SavedPolicyConfig.modalities``,
    interleaved by the core's ``Interleave``; what is missing has no token.

    Args:
        config: The policy.
    """

    def __init__(self, config: SavedPolicyConfig) -> None:
        super().__init__()
        policy, spaces = config.policy, config.spaces
        self.modalities = config.modalities
        self.width = spaces.action_width
        self.tells_action = policy.tells_action
        self.tells_return = "return" in config.conditions
        self.tells_goal = "goal" in config.conditions
        self.state = Scale(spaces.state_dim) if spaces.state_dim else None
        self.goal = Scale(spaces.goal_dim) if self.tells_goal else None
        self.action = Scale(spaces.action_dim) if spaces.action_dim else None
        self.to_go = Scale(1) if self.tells_return else None
        widths = {
            "action": self.width + 1 if self.tells_action else 0,
            "to_go": int(self.tells_return),
            "state": spaces.state_dim,
            "goal": spaces.goal_dim if self.tells_goal else 0,
        }
        adapters: dict[str, nn.Module] = {}
        if "instruction" in config.conditions:
            numbers = WordNumbers.of(policy, spaces.instructions)
            adapters["instruction"] = InstructionAdapter(numbers.size, policy.d_model)
        if spaces.image is not None:
            adapters["image"] = _pictures(config)
        self.interleave: Interleave | None = None
        self.fused: nn.ModuleDict | None = None
        if self.modalities == ["fused"]:
            adapters["fused"] = ContinuousAdapter(sum(widths.values()) + 1, policy.d_model)
            self.fused = nn.ModuleDict(adapters)
            if spaces.image is not None:
                self.no_image = nn.Parameter(torch.zeros(policy.d_model))
        else:
            adapters |= {
                name: ContinuousAdapter(width, policy.d_model) for name, width in widths.items() if width
            }
            self.interleave = Interleave({name: adapters[name] for name in self.modalities})

    @property
    def adapters(self) -> nn.ModuleDict:
        """What embeds each modality, by name."""
        found = self.fused if self.interleave is None else self.interleave.adapters
        assert found is not None
        return found

    @property
    def is_told(self) -> bool:
        """Whether there are instructions."""
        return "instruction" in self.adapters

    @property
    def sees(self) -> bool:
        """Whether there are pictures."""
        return "image" in self.adapters

    def linear(self, name: str) -> nn.Linear:
        """The linear map of numbers to a token; ``fused`` or a modality."""
        return cast(ContinuousAdapter, self.adapters[name]).linear

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Take the scales of states, goals, actions and returns to go from the training episodes."""
        for name, scale in (("state", self.state), ("goal", self.goal)):
            if scale is not None:
                scale.fit([one.observations[name][: len(one)] for one in episodes])
        if self.action is not None:
            self.action.fit([one.actions for one in episodes])
        if self.to_go is not None:
            self.to_go.fit([one.returns_to_go()[:, None] for one in episodes])

    def told(self, words: Tensor) -> Tensor:
        """Embedding of instructions ``(..., n)`` int64, ``(..., d_model)``."""
        return self.adapters["instruction"](words)

    def forward(self, seen: Seen, seq_idx: Tensor | None = None) -> tuple[Tensor, TimeLine | None]:
        """All that was seen as rows of tokens, ``(batch, n_tokens, d_model)``.

        Args:
            seen: ``(batch, length)``.
            seq_idx: ``(batch, length)`` int32 of packed rows.

        Returns:
            The tokens, and where each of them is; None of fused ones, of which there is one a step.

        Raises:
            UsageError: If something is not there that the policy reads.
        """
        if self.interleave is None:
            return self._fused(seen, *self._instruction(seen, None)), None
        return self.interleave.merge(self._tokens(seen, None), seq_idx=seq_idx)

    def step(self, seen: Seen, told: Tensor | None = None) -> list[Embedded]:
        """The tokens of one step in their order, ``(n_envs, d_model)`` each.

        Args:
            seen: ``(n_envs,)``.
            told: What ``told`` made of the instructions, ``(n_envs, d_model)``, where that is known already.

        Raises:
            UsageError: If something is not there that the policy reads.
        """
        if self.interleave is None:
            return [Embedded(self._fused(seen, *self._instruction(seen, told)))]
        return self.interleave.step(self._tokens(seen, told))

    def _tokens(self, seen: Seen, told: Tensor | None) -> dict[str, Embedded]:
        """Every modality that there is."""
        told, instructed = self._instruction(seen, told)
        tokens: dict[str, Embedded] = {}
        if self.tells_action:
            tokens["action"] = Embedded(self.linear("action")(self._previous(seen)))
        if self.to_go is not None:
            tokens["to_go"] = Embedded(self.linear("to_go")(self._to_go(seen, self.to_go)))
        if self.goal is not None:
            tokens["goal"] = Embedded(self.linear("goal")(self.goal(_there("goal", seen.goal))))
        if told is not None:
            tokens["instruction"] = Embedded(told, instructed)
        if self.sees and seen.image is not None:
            tokens["image"] = self._picture(seen.image, seen.image_there, told)
        if self.state is not None and not self._lacks_state(seen):
            state = self.state(_there("state", seen.state))
            tokens["state"] = Embedded(self.linear("state")(state), seen.state_there)
        return tokens

    def _fused(self, seen: Seen, told: Tensor | None, instructed: Tensor | None) -> Tensor:
        features = [self._previous(seen)] if self.tells_action else []
        if self.to_go is not None:
            features.append(self._to_go(seen, self.to_go))
        features.append(self._flagged_state(seen))
        if self.goal is not None:
            features.append(self.goal(_there("goal", seen.goal)))
        token = self.linear("fused")(torch.cat(features, dim=-1))
        if told is not None:
            token = token + told  # a learned vector where there is no instruction
        if not self.sees:
            return token
        if seen.image is None:
            return token + self.no_image
        picture, there = self._picture(seen.image, seen.image_there, told)
        return token + (picture if there is None else torch.where(there[..., None], picture, self.no_image))

    def _instruction(self, seen: Seen, told: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Its embedding, and where there is one."""
        if not self.is_told:
            return None, None
        if told is not None:
            return told, seen.instructed
        words = _there("words", seen.words)
        told, instructed = self.told(words), (words > 0).any(-1)
        if seen.instruction is None:
            return told, instructed
        return told[seen.instruction], instructed[seen.instruction]

    def _previous(self, seen: Seen) -> Tensor:
        """The action before, and whether there was none: an episode's first step has the token, too."""
        previous = _there("previous", seen.previous)
        none = seen.began.unsqueeze(-1)
        if self.action is None:
            scaled = F.one_hot(previous, self.width).to(self.linear(self.modalities[0]).weight.dtype)
        else:
            scaled = self.action(previous)
        return torch.cat([scaled.masked_fill(none, 0.0), none.to(scaled.dtype)], dim=-1)

    @staticmethod
    def _to_go(seen: Seen, scale: Scale) -> Tensor:
        return scale(_there("to_go", seen.to_go).unsqueeze(-1))

    def _lacks_state(self, seen: Seen) -> bool:
        return seen.state is None and seen.image is not None

    def _flagged_state(self, seen: Seen) -> Tensor:
        """The state, and whether it is there."""
        flag = torch.ones_like(seen.began, dtype=self.linear("fused").weight.dtype).unsqueeze(-1)
        if self.state is None:
            return flag
        if self._lacks_state(seen):
            return torch.cat([flag.new_zeros(*seen.began.shape, len(self.state.mean)), 0 * flag], dim=-1)
        scaled = self.state(_there("state", seen.state))
        if seen.state_there is None:
            return torch.cat([scaled, flag], dim=-1)
        there = seen.state_there.unsqueeze(-1)
        return torch.cat([scaled.masked_fill(~there, 0.0), there.to(scaled.dtype)], dim=-1)

    def _picture(self, image: Tensor, there: Tensor | None, told: Tensor | None) -> Embedded:
        """Only the pictures that are there cost anything."""
        embed = self.adapters["image"]
        if there is None:
            return Embedded(embed(image, told))
        found = embed(image[there], None if told is None else told[there])
        whole = found.new_zeros(*there.shape, found.shape[-1])
        return Embedded(whole.masked_scatter(there.unsqueeze(-1), found), there)


def _pictures(config: SavedPolicyConfig) -> ImageAdapter | ConvolutionAdapter:
    policy, size = config.policy, config.spaces.image
    assert size is not None
    if policy.pictures == "cnn":
        return ConvolutionAdapter(size=(size[0], size[1]), d_model=policy.d_model)
    return ImageAdapter(
        size=(size[0], size[1]),
        patch=policy.patch,
        d_model=policy.d_model,
        width=policy.image_width,
        n_layers=policy.image_layers,
        dropout=policy.dropout,
        told="instruction" in config.conditions,
    )


def _there(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise UsageError(f"{name}: the policy reads it, and it was not given")
    return value
