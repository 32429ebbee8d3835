"""What a property model is made of, and the preset that small sets are trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mambakit.core.backbone import BackboneConfig
from mambakit.core.backbone_config import sizes_of_heads
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.molecules.molecules import Task

Features = Literal["none", "descriptors", "ecfp", "both", "mixed"]
Uncertainty = Literal["none", "quantiles", "normal"]
Notation = Literal["smiles", "selfies", "graph"]
Order = Literal["degree", "canonical"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network; the defaults are the preset."""

    members: int = 4
    """Networks, begun and trained apart, that are averaged; how far they differ is the uncertainty of not
    having seen enough. Each costs as much as another."""
    sequence: bool = True
    """Read the SMILES; without, only the features are looked at."""
    d_model: int = 64
    """Width of the stack that reads SMILES."""
    blocks: list[str] = field(default_factory=lambda: ["mamba2"])
    """Kinds of block in a layer."""
    n_layers: int = 2
    """How many times they are stacked."""
    d_state: int = 32
    """State size of the Mamba blocks."""
    head_dim: int = 32
    """Channels a head of the Mamba blocks."""
    features: Features = "mixed"
    """What is read beside the structure: RDKit descriptors, counts of circular fragments (ecfp), both, none;
    or mixed: the members in turn read both and descriptors alone."""
    trees: int = 100
    """Trees of a random forest on the same features, averaged with the networks as validation says; 0 for
    none. Without features there is none."""
    d_hidden: int = 256
    """Width of what the features become, and of the layers before the outputs."""
    n_hidden: int = 1
    """Layers between what was read and the outputs."""
    dropout: float = 0.1
    """Share of each block's output that is dropped while training."""
    head_dropout: float = 0.0
    """Share of features and hidden activations that is dropped while training."""
    uncertainty: Uncertainty = "quantiles"
    """How the width of a regression's interval is learned; none has one width for all molecules."""
    test_smiles: int = 8
    """Ways of writing each molecule that a prediction is averaged over, the canonical one first; 1 is off."""
    max_tokens: int = 512
    """Longer SMILES are cut there for the sequence model; features see the whole molecule."""
    order: Order = "degree"
    """With the graph tokenizer: atoms of many bonds last, those of equally many in an order of chance; or
    canonical, the order of the canonical SMILES, of which there is one."""
    n_neighbour_layers: int = 3
    """With the graph tokenizer: how many bonds far an atom hears before atoms are read as a sequence."""
    n_walks: int = 8
    """With the graph tokenizer: steps of the random walks that say where in the molecule an atom stands."""

    def __post_init__(self) -> None:
        sizes = ("members", "d_model", "n_layers", "d_state", "head_dim", "d_hidden", "test_smiles")
        check_least(self, 1, *sizes)
        check_least(self, 0, "n_hidden", "trees", "n_neighbour_layers", "n_walks")
        check_least(self, 2, "max_tokens")
        check_shares(self, "dropout", "head_dropout", below_one=True)
        for name, kind in (("features", Features), ("uncertainty", Uncertainty), ("order", Order)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(
                    f"{name}: expected one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        if not self.sequence and self.features == "none":
            raise UsageError("sequence, features: a model without both has nothing to read")

    @property
    def reads_descriptors(self) -> bool:
        """Whether descriptors are read."""
        return self.features in ("descriptors", "both", "mixed")

    @property
    def reads_ecfp(self) -> bool:
        """Whether fragment counts are read."""
        return self.features in ("ecfp", "both", "mixed")

    def member_reads_ecfp(self, member: int) -> bool:
        """Whether a member, counted from 0, reads fragment counts."""
        return self.reads_ecfp and (self.features != "mixed" or member % 2 == 0)

    def backbone(self) -> BackboneConfig:
        """The stack that reads SMILES, both ways."""
        return BackboneConfig(
            d_model=self.d_model,
            layers=list(self.blocks),
            repeat=self.n_layers,
            block_options=sizes_of_heads(self.blocks, d_state=self.d_state, head_dim=self.head_dim),
            bidirectional=True,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class PropertyConfig:
    """A network and the properties it is for: what ``config.json`` holds."""

    tasks: list[Task]
    """The properties, in the order of the outputs."""
    mean: list[float]
    """Of each property's training labels; 0 for a classification."""
    deviation: list[float]
    """Standard deviation of each property's training labels; 1 for a classification."""
    n_ids: int
    """Size of the vocabulary."""
    backbone: BackboneConfig
    """The stack that reads SMILES."""
    n_descriptors: int = 0
    """Descriptors that are read."""
    n_ecfp: int = 0
    """Counts of circular fragments that are read."""
    trained_on: str = ""
    """Name of the data."""
    n_trained: int = 0
    """Molecules of the training split."""
    largest_component: bool = False
    """Whether only the largest component of salts and mixtures is read."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The shape of the rest."""
    tokenizer: Notation = "smiles"
    """How structures are read."""
    form: str = "molecule"
    """What a row's structures are: a molecule, a reaction, or several of these joined by semicolons."""
    components: list[str] = field(default_factory=list)
    """The columns that held a row's structures, where there were several."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError("tasks: expected one or more")
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) != len(self.tasks):
                raise UsageError(
                    f"{name}: expected one for each of {len(self.tasks)} tasks, "
                    f"got {len(getattr(self, name))}"
                )

    @property
    def has_forest(self) -> bool:
        """Whether a forest stands beside the networks."""
        return bool(self.model.trees and (self.n_descriptors or self.n_ecfp))


@dataclass(frozen=True)
class LossConfig:
    """What training minimises, and what is done to the molecules."""

    random_smiles: float = 0.9
    """Share of the molecules of a step that are written in another way than the canonical one."""
    hidden_tokens: float = 0.02
    """Share of the tokens that a step does not know, as it does those that training had not."""
    feature_noise: float = 0.0
    """Deviation of the noise on the scaled descriptors."""
    interval_weight: float = 0.2
    """Weight of the quantiles' (or normal distribution's) loss beside that of the value itself."""
    pretrained_lr: float = 0.3
    """The stack of a pretrained language model learns at this share of the learning rate."""

    def __post_init__(self) -> None:
        check_shares(self, "random_smiles", "hidden_tokens")
        check_least(self, 0, "feature_noise", "interval_weight", "pretrained_lr")


# Small enough for a CPU. Chosen on training rows cut in two, over seven sets of MoleculeNet by two protocols:
# descriptors alone are better on regressions, counts of fragments beside them on most classifications, and
# members of both kinds are near the better of the two everywhere. Dropout in the head costs regressions up to
# a fifth of their squared error, and brings classifications next to nothing.
PRESET_MODEL = ModelConfig()
PRESET_LOSS = LossConfig()
PRESET_TRAIN = TrainConfig(
    max_epochs=30, weight_decay=0.05, warmup_fraction=0.1, ema_decay=0.99, patience=10, precision="32-true"
)
