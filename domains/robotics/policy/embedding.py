"""Control steps to tokens: return to go, state, picture, instruction and previous action on one time line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import Episode
from mambakit.domains.robotics.policy.config import SavedPolicyConfig
from mambakit.domains.robotics.policy.images import ConvolutionAdapter, ImageAdapter
from mambakit.domains.robotics.policy.seen import Seen
from mambakit.domains.robotics.policy.tokenizer import WordNumbers

FURTHEST = 8.0
_LEAST_DEVIATION = 1e-6


class Scale(nn.Module):
    """Mean 0 and deviation 1 over the training data, for each number.

    Args:
        width: Numbers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, values: Sequence[np.ndarray]) -> None:
        """Take mean and deviation of arrays ``(n, width)``; a number that never changes is only centred."""
        together = np.concatenate([np.asarray(one, dtype=np.float64) for one in values])
        deviation = together.std(0)
        still = deviation <= _LEAST_DEVIATION * (1 + np.abs(together.mean(0)))
        self.mean.copy_(torch.from_numpy(together.mean(0)))
        self.deviation.copy_(torch.from_numpy(np.where(still, 1.0, deviation)))

    def forward(self, values: Tensor) -> Tensor:
        """Scaled, and no further than 8 deviations off: nothing learned says what to do out there."""
        return ((values - self.mean) / self.deviation).clamp(-FURTHEST, FURTHEST)

    def undone(self, values: Tensor) -> Tensor:
        """Back to the data's own units."""
        return values * self.deviation + self.mean


class StepEmbedding(nn.Module):
    """Embeds what is seen at control steps.

    Fused, everything goes through one linear map into one token. Else each modality is a token with a
    linear map of its own, in the order of ``SavedPolicyConfig.modalities``. Pictures and instructions are
    embedded by adapters of their own and added to the fused token (pictures being a token else, and
    instructions part of the state's). What is missing is replaced by a learned vector, or by zeros and a
    flag.

    Args:
        config: The policy.
    """

    def __init__(self, config: SavedPolicyConfig) -> None:
        super().__init__()
        policy, spaces = config.policy, config.spaces
        self.modalities = config.modalities
        self.discrete = spaces.discrete
        self.width = spaces.action_width
        self.tells_action = policy.tells_action
        self.tells_return = "return" in config.conditions
        self.tells_goal = "goal" in config.conditions
        d_model = policy.d_model
        self.state = Scale(spaces.state_dim) if spaces.state_dim else None
        self.goal = Scale(spaces.goal_dim) if self.tells_goal else None
        self.action = Scale(spaces.action_dim) if spaces.action_dim else None
        self.to_go = Scale(1) if self.tells_return else None
        of_action = self.width + 1 if self.tells_action else 0
        of_state = spaces.state_dim + 1 + (spaces.goal_dim if self.tells_goal else 0)
        self.fused = self.modalities == ["fused"]
        if self.fused:
            self.maps = nn.ModuleDict(
                {"fused": nn.Linear(of_action + int(self.tells_return) + of_state, d_model)}
            )
        else:
            widths = {"action": of_action, "to_go": 1, "state": of_state}
            self.maps = nn.ModuleDict(
                {name: nn.Linear(widths[name], d_model) for name in self.modalities if name in widths}
            )
        self.image: ImageAdapter | ConvolutionAdapter | None = None
        if spaces.image is not None:
            size = (spaces.image[0], spaces.image[1])
            self.image = (
                ConvolutionAdapter(size=size, d_model=d_model)
                if policy.pictures == "cnn"
                else ImageAdapter(
                    size=size,
                    patch=policy.patch,
                    d_model=d_model,
                    width=policy.image_width,
                    n_layers=policy.image_layers,
                    dropout=policy.dropout,
                    told="instruction" in config.conditions,
                )
            )
            self.no_image = nn.Parameter(torch.zeros(d_model))
        self.words: nn.Embedding | None = None
        if "instruction" in config.conditions:
            numbers = WordNumbers.of(policy, spaces.instructions)
            self.words = nn.Embedding(numbers.size, d_model, padding_idx=0)
            self.no_words = nn.Parameter(torch.zeros(d_model))
            self.said = nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model))

    @property
    def maps_dtype(self) -> torch.dtype:
        """What is computed in."""
        return next(self.maps.parameters()).dtype

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
        """Embedding of instructions ``(..., n)`` int64, ``(..., d_model)``: the mean of their words', mixed.

        Word order is not seen.
        """
        assert self.words is not None
        there = (words > 0).unsqueeze(-1)
        mean = (self.words(words) * there).sum(-2) / there.sum(-2).clamp(min=1)
        return torch.where(there.any(-2), self.said(mean), self.no_words)

    def forward(self, seen: Seen, told: Tensor | None = None) -> Tensor:
        """``(..., n_tokens, d_model)``, of one step or many.

        Args:
            seen: What is seen, with leading shape ``(...)``.
            told: What ``told`` made of the instructions, ``(..., d_model)``, where that is known already.

        Raises:
            UsageError: If something is not there that the policy reads.
        """
        features: dict[str, list[Tensor]] = {name: [] for name in self.maps}
        of = (lambda _: features["fused"]) if self.fused else features.__getitem__
        if self.tells_action:
            of("action").extend(self._previous(seen))
        if self.to_go is not None:
            of("to_go").append(self.to_go(_there("to_go", seen.to_go).unsqueeze(-1)))
        of("state").extend(self._state(seen))
        if self.goal is not None:
            of("state").append(self.goal(_there("goal", seen.goal)))
        tokens = {name: linear(torch.cat(features[name], dim=-1)) for name, linear in self.maps.items()}
        last = "fused" if self.fused else "state"
        if self.words is not None:
            if told is None:
                told = self.told(_there("words", seen.words))
                told = told if seen.instruction is None else told[seen.instruction]
            tokens[last] = tokens[last] + told
        if self.image is not None:
            picture = self._picture(seen, tokens[last], told)
            if self.fused:
                tokens[last] = tokens[last] + picture
            else:
                tokens["image"] = picture
        return torch.stack([tokens[name] for name in self.modalities], dim=-2)

    def _previous(self, seen: Seen) -> list[Tensor]:
        previous = _there("previous", seen.previous)
        none = seen.began.unsqueeze(-1)
        if self.action is None:
            scaled = F.one_hot(previous, self.width).to(self.maps_dtype)
        else:
            scaled = self.action(previous)
        return [scaled.masked_fill(none, 0.0), none.to(scaled.dtype)]

    def _state(self, seen: Seen) -> list[Tensor]:
        if self.state is None:  # a token of pictures has a read-out all the same
            return [torch.ones_like(seen.began, dtype=self.maps_dtype).unsqueeze(-1)]
        scaled = self.state(_there("state", seen.state))
        if seen.state_there is None:
            return [scaled, torch.ones_like(scaled[..., :1])]
        there = seen.state_there.unsqueeze(-1)
        return [scaled.masked_fill(~there, 0.0), there.to(scaled.dtype)]

    def _picture(self, seen: Seen, like: Tensor, told: Tensor | None) -> Tensor:
        assert self.image is not None
        if seen.image is None:
            return self.no_image.expand_as(like)
        if seen.image_there is None:
            return self.image(seen.image, told)
        if not bool(seen.image_there.any()):
            return self.no_image.expand_as(like)
        # only the pictures that are there cost anything
        found = self.image(seen.image[seen.image_there], None if told is None else told[seen.image_there])
        return self.no_image.expand_as(like).masked_scatter(seen.image_there.unsqueeze(-1), found)


def _there(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise UsageError(f"{name}: the policy reads it, and it was not given")
    return value
