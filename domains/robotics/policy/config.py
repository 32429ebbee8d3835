"""What a policy is made of: the network, what it reads and gives, and the presets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig

Kind = Literal["decision-mamba", "bc", "decision-transformer", "bc-mlp", "iql"]
Tokens = Literal["fused", "three"]
HeadKind = Literal["gaussian", "mixture", "flow", "categorical"]
Condition = Literal["return", "goal", "instruction"]
Words = Literal["hash", "vocabulary"]
Pictures = Literal["scan", "cnn"]

MEMORYLESS = ("bc-mlp", "iql")
ALL_STEPS = 0
"""``horizon`` of training on whole episodes."""


@dataclass(frozen=True)
class PolicyConfig:
    """The network of a policy, and how it is trained on episodes; see each field."""

    kind: Kind = "decision-mamba"
    """decision-mamba (Ota 2024, arXiv:2403.19925): state-space layers, told the return to go; bc: the same
    layers without the return; decision-transformer (Chen et al. 2021, arXiv:2106.01345): attention over the
    last `window` control steps and MLPs, told the return to go; bc-mlp: no memory at all; iql: as bc-mlp, but
    actions count by their advantage (Kostrikov et al. 2022, arXiv:2110.06169)."""
    tokens: Tokens = "fused"
    """fused: all that is told at a control step is one token; three: previous action, return to go and state
    are a token each, the state's the last (and so are a goal, an instruction and a picture, before it)."""
    head: HeadKind | None = None
    """gaussian, mixture of Gaussians, or flow for continuous actions, categorical for numbered ones; by
    default what the actions are: gaussian or categorical."""
    chunk: int = 1
    """Actions that are predicted at every step: this one and those after it (Zhao et al. 2023,
    arXiv:2304.13705)."""
    ensemble: float | None = 0.01
    """Of a chunk, decay of the weights exp(-ensemble * i) of the predictions made for one step, the oldest's
    being i = 0 (temporal ensembling, the same paper); null acts on the newest alone."""
    horizon: int = ALL_STEPS
    """Steps of the windows that training cuts episodes into; 0 trains on whole episodes, packed."""
    conditioning: list[Condition] | None = None
    """What it is told beside states: return, goal, instruction; by default return as the kind has it, and
    goals and instructions where the data have them."""
    previous_action: bool | None = None
    """Whether it is told its previous action; by default where it has a memory. It tells which of several
    ways to act is being followed; but to go on as before can also be a good guess of what was recorded and a
    bad way to act (Schmied et al. 2024, arXiv:2410.22391): try false where sensors are missing."""
    advantage: float | None = None
    """How much more an action counts that was better than usual: exp(advantage * (Q - V)), as implicit
    Q-learning works them out before the training; null for none, but 3 for iql. It serves any kind."""
    action_dropout: float = 0.1
    """Share of training steps whose previous action is hidden, where it is told."""
    d_model: int = 128
    """Width."""
    n_layers: int = 3
    """Layers; of decision-transformer pairs of attention and MLP."""
    d_state: int = 64
    """State size per head of state-space layers."""
    head_dim: int = 64
    """Channels per head of state-space layers and of attention."""
    window: int = 20
    """Control steps that decision-transformer looks back, itself among them, at every layer."""
    dropout: float = 0.1
    """Share of each layer's output that is dropped while training."""
    n_components: int = 5
    """Of a mixture."""
    flow_steps: int = 8
    """Euler steps of a flow's sampling."""
    pictures: Pictures = "scan"
    """How pictures are read: scan, state-space layers over patches that look for what the instruction asks;
    or cnn, three convolutions (Mnih et al. 2015), which baselines have."""
    patch: int = 8
    """Side of a picture's patches, in pixels."""
    image_width: int = 48
    """Width of patches; even."""
    image_layers: int = 1
    """Layers that scan a picture's patches in four orders."""
    words: Words = "hash"
    """How the words of instructions become rows of a table: by a hash, which takes any word; or vocabulary,
    those of the training instructions, others being one unknown word."""
    n_words: int = 512
    """Rows of the table of hashed words."""
    modality_dropout: float = 0.1
    """Share of training episodes without their pictures, of those without their instruction, and of those
    without their state where there are pictures: so that each may be missing when the policy acts."""

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("tokens", Tokens), ("words", Words), ("pictures", Pictures)):
            _check_choice(name, getattr(self, name), get_args(known))
        if self.head is not None:
            _check_choice("head", self.head, get_args(HeadKind))
        for condition in self.conditioning or ():
            _check_choice("conditioning", condition, get_args(Condition))
        check_least(self, 1, "chunk", "d_model", "n_layers", "d_state", "head_dim", "window", "n_components")
        check_least(self, 1, "flow_steps", "patch", "image_width", "image_layers", "n_words")
        check_least(self, 0, "horizon", "ensemble", "advantage")
        check_shares(self, "action_dropout", "dropout", "modality_dropout", below_one=True)
        if self.kind in MEMORYLESS and self.tokens == "three":
            raise UsageError(
                f"tokens: {self.kind} has no memory, so that it needs everything in one token: fused"
            )

    @property
    def tells_action(self) -> bool:
        """Whether the policy is told its previous action."""
        return self.kind not in MEMORYLESS if self.previous_action is None else self.previous_action

    @property
    def beta(self) -> float:
        """Of the advantages' weights; 0 for none."""
        return (3.0 if self.kind == "iql" else 0.0) if self.advantage is None else self.advantage

    @property
    def told_return(self) -> bool:
        """Whether the kind is told the return to go by default."""
        return self.kind in ("decision-mamba", "decision-transformer")

    def backbone(self, tokens_a_step: int) -> BackboneConfig:
        """The layers, for a time line with so many tokens a control step."""
        inner_heads = {"d_state": self.d_state, "head_dim": min(self.head_dim, 2 * self.d_model)}
        attention = {"window": self.window * tokens_a_step, "head_dim": min(self.head_dim, self.d_model)}
        layers, options = {
            "decision-transformer": (["attention", "mlp"], {"attention": attention}),
            "bc-mlp": (["mlp"], {}),
            "iql": (["mlp"], {}),
        }.get(self.kind, (["mamba2"], {"mamba2": inner_heads}))
        return BackboneConfig(
            d_model=self.d_model,
            layers=layers,
            repeat=self.n_layers,
            block_options=options,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class Spaces:
    """What a policy reads and gives: fixed by the data it is trained on."""

    state_dim: int = 0
    """Numbers of a state; 0 without."""
    action_dim: int = 0
    """Numbers of a continuous action; 0 where actions are numbered."""
    n_actions: int = 0
    """Numbered actions; 0 where they are continuous."""
    low: list[float] | None = None
    """Least continuous action; None where it has no bound."""
    high: list[float] | None = None
    """Largest."""
    image: list[int] | None = None
    """Height and width of pictures; None without."""
    goal_dim: int = 0
    """Numbers of a goal; 0 without."""
    instructions: list[str] = field(default_factory=list)
    """The different instructions of the training data."""

    def __post_init__(self) -> None:
        if (self.action_dim > 0) == (self.n_actions > 0):
            raise UsageError("spaces: actions are either continuous (action_dim) or numbered (n_actions)")
        if not self.state_dim and self.image is None:
            raise UsageError("spaces: a policy needs states or pictures to act on")

    @property
    def discrete(self) -> bool:
        """Whether actions are numbered."""
        return self.n_actions > 0

    @property
    def action_width(self) -> int:
        """Numbers that an action is told in: itself, or one for each numbered action."""
        return self.n_actions or self.action_dim


@dataclass(frozen=True)
class SavedPolicyConfig:
    """What ``config.json`` of a saved policy holds."""

    policy: PolicyConfig
    """The network."""
    spaces: Spaces
    """What it reads and gives."""
    trained_on: str = ""
    """Name of the data."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Of the data, where known: id, kwargs, control_hz, mujoco_version, reference returns."""
    best_return: float | None = None
    """The best of the training episodes."""
    mean_return: float | None = None
    """The mean of the training episodes."""
    target_return: float | None = None
    """What a policy that is told a return is asked for by default."""

    @property
    def environment_id(self) -> str | None:
        """gymnasium's id of the data's environment; None without, as of a real robot, called so in words."""
        found = str(self.environment.get("id") or "")
        return found if re.fullmatch(r"[\w:./-]+", found) else None

    @property
    def conditions(self) -> list[Condition]:
        """What the policy is told beside states and actions."""
        if self.policy.conditioning is not None:
            return list(self.policy.conditioning)
        told: list[Condition] = ["return"] if self.policy.told_return else []
        told += ["goal"] if self.spaces.goal_dim else []
        return [*told, "instruction"] if self.spaces.instructions else told

    @property
    def head(self) -> HeadKind:
        """The head's kind, chosen by the actions where it is not named."""
        return self.policy.head or ("categorical" if self.spaces.discrete else "gaussian")

    @property
    def modalities(self) -> list[str]:
        """The tokens of a control step in their order; one, fused, or one for each."""
        if self.policy.tokens == "fused":
            return ["fused"]
        names = ["action"] if self.policy.tells_action else []
        names += ["to_go"] if "return" in self.conditions else []
        names += [name for name in ("goal", "instruction") if name in self.conditions]
        names += ["image"] if self.spaces.image is not None else []
        return [*names, "state"] if self.spaces.state_dim else names

    def __post_init__(self) -> None:
        if (self.head == "categorical") != self.spaces.discrete:
            kind = "numbered" if self.spaces.discrete else "continuous"
            raise UsageError(f"head: {self.head} does not fit the data's actions, which are {kind}")
        if "goal" in self.conditions and not self.spaces.goal_dim:
            raise UsageError("conditioning: the data have no goals")
        if "instruction" in self.conditions and not self.spaces.instructions:
            raise UsageError("conditioning: the data have no instructions")


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name}: expected {', '.join(known)}, got {value!r}")


PRESET_POLICY = PolicyConfig()
# a batch is 8 rows of some 256 control steps (32 with pictures), and an epoch 100 batches or more
PRESET_TRAIN = TrainConfig(
    max_epochs=20, batch_size=8, final_lr_fraction=0.05, ema_decay=0.99, patience=0, precision="32-true"
)
