"""The property model: structures read both ways, features beside them, and one output for each property.

    tokens of SMILES or SELFIES -> embedding
    atoms of a graph            -> embedding, features -> messages along bonds
                                -> Mamba-2 layers, both directions -> mean and last of the real tokens
    descriptors, scaled      -> linear map
    counts of ECFP fragments -> logarithm -> linear map
    all of it together -> hidden layers -> a value (or logit) for each property, and quantiles around it
    average over the members: such networks begun and trained apart  (Lakshminarayanan et al. 2017)
    average with a random forest on the same features, weighted by validation

Graph networks gain from descriptors in the same way: Yang et al. 2019, arXiv:1904.01561, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.distributions import DistributionHead, forecast_head
from mambakit.core.heads import QuantileHead, pool_tokens
from mambakit.core.hub import HubModel
from mambakit.domains.molecules.about import PROPERTIES
from mambakit.domains.molecules.config import PropertyConfig
from mambakit.domains.molecules.graph import GraphBatch
from mambakit.domains.molecules.neighbourhood import Neighbourhood
from mambakit.domains.molecules.neighbours import TrainingSet
from mambakit.domains.molecules.notations import PropertyTokenizer, load_notation
from mambakit.domains.molecules.trees import Trees

# The pair of quantiles that intervals begin from; conformal calibration widens or narrows it.
LEVELS = (0.05, 0.5, 0.95)
# Scaled descriptors beyond are as good as here: a molecule unlike all of training must not throw the network.
_FARTHEST = 5.0


class Batch(NamedTuple):
    """Molecules as a network reads them.

    Attributes:
        ids: ``(batch, length)`` int64; anything at padding.
        lengths: Real tokens of each, ``(batch,)`` int64.
        descriptors: As RDKit computes them, ``(batch, n_descriptors)`` float64; NaN where undefined.
        ecfp: Counts of fragments, ``(batch, n_ecfp)`` float32; of reactions also differences.
        graph: What atoms are and are bonded to, where ids are those of atoms.
    """

    ids: Tensor
    lengths: Tensor
    descriptors: Tensor
    ecfp: Tensor
    graph: GraphBatch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """On another device, all but the descriptors: not every device has their float64.

        Once they are scaled, the network takes them to the rest.
        """
        return Batch(
            self.ids.to(device),
            self.lengths.to(device),
            self.descriptors,
            self.ecfp.to(device),
            None if self.graph is None else self.graph.to(device),
        )


class Output(NamedTuple):
    """What networks say of scaled labels.

    Attributes:
        value: Scaled values, or logits of classifications, ``(..., batch, n_tasks)``.
        quantiles: Of the scaled values at ``LEVELS``, ``(..., batch, n_tasks, 3)``; None without.
        forest: What the forest beside says, in the labels' units or probabilities, ``(batch, n_tasks)``.
    """

    value: Tensor
    quantiles: Tensor | None
    forest: NDArray[np.float64] | None = None


class DescriptorScaler(nn.Module):
    """Descriptors to numbers of ordinary size: ``asinh((x - median) / spread)``, standardised, bounded.

    Descriptors have tails over many orders of magnitude; asinh is linear near the median and logarithmic far
    from it. Undefined ones become the mean, constant ones zero.

    It stays on the CPU in float64 wherever the model goes: mps has no float64.
    """

    median: Tensor
    spread: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, n_descriptors: int) -> None:
        super().__init__()
        for name in ("median", "mean"):
            self.register_buffer(name, torch.zeros(n_descriptors, dtype=torch.float64))
        for name in ("spread", "deviation"):
            self.register_buffer(name, torch.ones(n_descriptors, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return self

    @torch.no_grad()
    def fit(self, x: Tensor) -> Self:
        """Take the scales of the training molecules, ``(n, n_descriptors)`` float64."""
        x = torch.where(x.isfinite(), x, torch.nan)
        low, middle, high = x.nanquantile(torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype), dim=0)
        self.median.copy_(middle.nan_to_num())
        # a descriptor that is mostly one value has no quartiles apart; its range then
        width = torch.where(high > low, (high - low) / 1.349, (x - middle).abs().nan_to_num().amax(0))
        self.spread.copy_(torch.where(width > 0, width, 1.0).nan_to_num(1.0))
        bent = torch.asinh((x - self.median) / self.spread)
        there = (~bent.isnan()).sum(0).clamp(min=1)
        self.mean.copy_(bent.nan_to_num().sum(0) / there)
        square = ((bent - self.mean) ** 2).nan_to_num().sum(0) / there
        # infinite for constants: whatever a new molecule has there, training says nothing about it
        self.deviation.copy_(torch.where(square > 1e-12, square.sqrt(), torch.inf))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, n_descriptors)`` to the same shape, float32 and finite."""
        bent = torch.asinh((x - self.median) / self.spread)
        scaled = ((bent - self.mean) / self.deviation).nan_to_num(0.0, _FARTHEST, -_FARTHEST)
        return scaled.clamp(-_FARTHEST, _FARTHEST).float()


class Network(nn.Module):
    """One member of a property model.

    Args:
        config: The network and the properties it is for.
        member: Its number from 0: members may read different features.
    """

    def __init__(self, config: PropertyConfig, member: int = 0) -> None:
        super().__init__()
        model = config.model
        width = config.backbone.d_model
        self.dropout = nn.Dropout(model.head_dropout)
        parts = 0
        if model.sequence:
            self.embedding = nn.Embedding(config.n_ids, width)
            nn.init.normal_(self.embedding.weight, std=0.02)
            if config.tokenizer == "graph":
                self.neighbourhood = Neighbourhood(
                    d_model=width,
                    n_layers=model.n_neighbour_layers,
                    n_walks=model.n_walks,
                    dropout=model.dropout,
                )
            self.backbone = Backbone(config.backbone)
            self.from_tokens = nn.Linear(2 * width, model.d_hidden)
            parts += 1
        if config.n_descriptors:
            self.from_descriptors = nn.Linear(config.n_descriptors, model.d_hidden)
            parts += 1
        if config.n_ecfp and model.member_reads_ecfp(member):
            self.from_ecfp = nn.Linear(config.n_ecfp, model.d_hidden)
            parts += 1
        widths = [parts * model.d_hidden] + [model.d_hidden] * model.n_hidden
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.value = nn.Linear(widths[-1], len(config.tasks))
        self.interval: QuantileHead | DistributionHead | None = None
        if model.uncertainty != "none" and any(task.kind == "regression" for task in config.tasks):
            self.interval = forecast_head(
                model.uncertainty, d_model=widths[-1], quantiles=LEVELS, d_output=len(config.tasks)
            )
            self.interval.begin_at_normal(1.0)

    def forward(self, batch: Batch, descriptors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values or logits ``(batch, n_tasks)``, and what the interval's head says of them."""
        return self.outputs(self.read(batch, descriptors))

    def outputs(self, read: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ``forward``, from what ``read`` gives."""
        # intervals learn from what the values made of the molecule, and do not change it
        said = None if self.interval is None else self.interval(read.detach())
        return self.value(read), said

    def read(self, batch: Batch, descriptors: Tensor) -> Tensor:
        """The vector that the outputs are read from, ``(batch, d_hidden)``.

        Args:
            batch: Molecules.
            descriptors: Scaled, ``(batch, n_descriptors)``.
        """
        parts = []
        if hasattr(self, "embedding"):
            embedded = self.embedding(batch.ids)
            if batch.graph is not None:
                embedded = self.neighbourhood(embedded, batch.graph)
            tokens, _ = self.backbone(embedded, lengths=batch.lengths)
            pooled = [pool_tokens(tokens, pool, batch.lengths) for pool in ("mean", "last")]
            parts.append(self.from_tokens(self.dropout(torch.cat(pooled, -1))))
        if hasattr(self, "from_descriptors"):
            parts.append(self.from_descriptors(self.dropout(descriptors.to(batch.ids.device))))
        if hasattr(self, "from_ecfp"):
            parts.append(self.from_ecfp(self.dropout(batch.ecfp.sign() * batch.ecfp.abs().log1p())))
        x = torch.relu(torch.cat(parts, -1))
        for layer in self.hidden:
            x = torch.relu(layer(self.dropout(x)))
        return self.dropout(x)


class PropertyModel(nn.Module, HubModel):
    """Values and probabilities of properties: the mean of the members'.

    What it was trained on lies beside the weights: the tokenizer, and the fingerprints of the training
    molecules, which say how near a new molecule is to them.

    Args:
        config: The network and the properties it is for.
    """

    about = PROPERTIES

    members: Sequence[Network]
    tokenizer: PropertyTokenizer
    trained: TrainingSet
    forest: Trees | None = None

    def __init__(self, config: PropertyConfig) -> None:
        super().__init__()
        self.config = config
        self.scaler = DescriptorScaler(config.n_descriptors)
        self.members = nn.ModuleList(  # type: ignore[assignment]
            Network(config, member) for member in range(config.model.members)
        )

    def forward(self, batch: Batch) -> Output:
        """What each member says; ``quantiles`` of whichever head."""
        return self.outputs(self.read(batch))

    def read(self, batch: Batch) -> list[Tensor]:
        """The vectors that each member's outputs are read from, ``(batch, d_hidden)`` each."""
        descriptors = self.scaler(batch.descriptors)
        return [member.read(batch, descriptors) for member in self.members]

    def outputs(self, read: Sequence[Tensor]) -> Output:
        """As ``forward``, from what ``read`` gives."""
        values, quantiles = [], []
        for member, vector in zip(self.members, read, strict=True):
            value, said = member.outputs(vector)
            values.append(value)
            if member.interval is not None and said is not None:
                quantiles.append(member.interval.to_quantiles(said))
        return Output(torch.stack(values), torch.stack(quantiles) if quantiles else None)

    def embed(self, batch: Batch) -> Tensor:
        """The vectors that the members' outputs are read from, one behind the other, ``(batch, d)``."""
        return torch.cat(self.read(batch), -1)

    def save_extra(self, folder: Path) -> None:
        """Writes the tokenizer and the fingerprints of the training molecules."""
        self.tokenizer.save(folder)
        self.trained.save(folder)
        if self.forest is not None:
            self.forest.save(folder)

    def load_extra(self, folder: Path) -> None:
        """Reads them."""
        self.tokenizer = load_notation(folder)
        self.trained = TrainingSet.load(folder)
        if self.config.has_forest:
            self.forest = Trees.load(folder)


def combined(output: Output, is_class: Tensor) -> Tensor:
    """The members as one, ``(batch, n_tasks)``: mean value, or the logit of the mean probability."""
    mean = output.value.mean(0)
    if len(output.value) == 1:
        return mean
    p = output.value.cpu().double().sigmoid().mean(0)  # mps has no float64
    return torch.where(is_class, torch.logit(p, eps=1e-12).to(mean), mean)
