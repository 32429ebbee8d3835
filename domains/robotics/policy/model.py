"""A policy: control steps to tokens, layers over the time line, and a head that reads actions out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.robotics.about import POLICY
from mambakit.domains.robotics.policy.chunks import ensembled
from mambakit.domains.robotics.policy.config import SavedPolicyConfig
from mambakit.domains.robotics.policy.embedding import StepEmbedding
from mambakit.domains.robotics.policy.heads import build_head
from mambakit.domains.robotics.policy.seen import PolicyBatch, Seen
from mambakit.domains.robotics.policy.tokenizer import WordNumbers


class Policy(nn.Module, HubModel):
    """Whole episodes in parallel (``forward``), or one control step at a time (``step``): the same.

    Args:
        config: The network, and what it reads and gives.
    """

    about = POLICY

    def __init__(self, config: SavedPolicyConfig) -> None:
        super().__init__()
        self.config = config
        policy = config.policy
        self.embed = StepEmbedding(config)
        self.n_tokens = len(config.modalities)
        self.attends = policy.kind == "decision-transformer"
        self.backbone = Backbone(policy.backbone(self.n_tokens))
        self.head = build_head(
            config.head,
            d_model=policy.d_model,
            chunk=policy.chunk,
            width=config.spaces.action_width,
            n_components=policy.n_components,
            flow_steps=policy.flow_steps,
        )
        self.numbers = WordNumbers.of(policy, config.spaces.instructions)
        low, high = config.spaces.low, config.spaces.high
        self.register_buffer("low", None if low is None else torch.tensor(low), persistent=False)
        self.register_buffer("high", None if high is None else torch.tensor(high), persistent=False)

    low: Tensor | None
    high: Tensor | None

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The layers' state before the first step."""
        return self.backbone.init_state(batch, device, dtype)

    def forward(self, seen: Seen, seq_idx: Tensor | None = None) -> Tensor:
        """What the head gives of every step.

        Args:
            seen: ``(batch, length)``.
            seq_idx: ``(batch, length)`` int32 of packed rows; a piece begins without memory.
        """
        tokens, line = self.embed(seen, seq_idx)
        if line is None:
            return self.head(self.backbone(tokens, seq_idx=seq_idx)[0])
        hidden, _ = self.backbone(tokens, **line.layout())
        return self.head(line.read_out(hidden, *line.positions))  # the last token of each step

    def step(
        self, seen: Seen, state: State, told: Tensor | None = None, *, inplace: bool = False
    ) -> tuple[Tensor, State]:
        """What the head gives of one step of several robots, and the layers' next state.

        Args:
            seen: ``(n_envs,)``.
            state: Of ``n_envs`` rows.
            told: ``embed.told`` of the robots' instructions.
            inplace: The state's tensors may be overwritten.
        """
        tokens = self.embed.step(seen, told)
        if len(tokens) > 1 and self.attends and all(there is None for _, there in tokens):
            # attention reads several tokens as fast as one
            of_all, state = self.backbone(torch.stack([x for x, _ in tokens], dim=1), state)
            return self.head(of_all[:, -1]), state
        hidden = tokens[0].x
        for x, there in tokens:
            found, after = self.backbone.step(x, state, inplace=inplace and there is None)
            if there is None:
                hidden, state = found, after
            else:  # rows without this token stay as they were
                hidden, state = torch.where(there[:, None], found, hidden), state.where_rows(there, after)
            inplace = True
        return self.head(hidden), state

    def loss(self, batch: PolicyBatch) -> Tensor:
        """What training minimises."""
        target = batch.target
        if self.embed.action is not None:
            target = self.embed.action(target)
        return self.head.loss(self(batch.seen, batch.seq_idx), target, batch.counted, batch.weight)

    @torch.no_grad()
    def actions(self, seen: Seen, seq_idx: Tensor | None = None) -> Tensor:
        """The actions that acting without chance takes at every step of recorded episodes.

        ``(batch, length, action_dim)`` in the data's own units, or ``(batch, length)`` int64. Chunks are put
        together as the controller does it.
        """
        points = self.head.point(self(seen, seq_idx))
        if self.config.policy.ensemble is None:
            return self.finished(points[:, :, 0])
        return self.finished(ensembled(points, seq_idx, self.config.policy.ensemble))

    def finished(self, points: Tensor) -> Tensor:
        """Scaled actions ``(..., action_width)`` in the data's own units, inside their bounds."""
        if self.embed.action is None:
            return points.argmax(-1)
        actions = self.embed.action.undone(points)
        if self.low is not None or self.high is not None:
            actions = actions.clamp(self.low, self.high)
        return actions
