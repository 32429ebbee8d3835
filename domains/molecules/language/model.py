"""A language model of molecules with its tokenizer and what it was trained on, as one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.adapters import pad_batch
from mambakit.core.adapters.vocabulary import N_SPECIAL
from mambakit.core.generation import AllowedIds
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.domains.molecules.about import LANGUAGE
from mambakit.domains.molecules.language.reference import Reference
from mambakit.domains.molecules.tokenizer import END, PAD, SmilesTokenizer, load_tokenizer

_NEW_STD = 0.02


class MoleculeModel(LanguageModel):
    """Logits of the next token of a molecule; see ``LanguageModel`` for calls and steps.

    Args:
        config: What to build.

    Attributes:
        tokenizer: What its ids are; saved with it.
        reference: What it was trained on, to compare samples with; saved with it, None if not known.
    """

    about = LANGUAGE

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        self.tokenizer = SmilesTokenizer()
        self.reference: Reference | None = None

    def save_extra(self, folder: Path) -> None:
        """Writes the tokenizer and the reference."""
        self.tokenizer.save(folder)
        if self.reference is not None:
            self.reference.save(folder)

    def load_extra(self, folder: Path) -> None:
        """Reads them."""
        self.tokenizer = load_tokenizer(folder)
        self.reference = Reference.load(folder)

    def log_likelihoods(self, smiles: Sequence[str]) -> Tensor:
        """Log-probability of each molecule as it is written, from START on, in nats, ``(n,)``.

        Raises:
            SampleError: If a molecule can't be encoded.
        """
        batch = pad_batch([self.tokenizer.encode(one) for one in smiles]).to(self.embedding.weight.device)
        logits, _ = self(batch.values, lengths=batch.lengths)
        losses, _ = token_losses(logits, batch.values)
        return -losses.sum(1)

    def symbols_only(self) -> AllowedIds:
        """For drawing: symbols and END may come, never PAD, START or the unknown id, which mean nothing."""
        allowed = torch.zeros(self.config.n_ids, dtype=torch.bool)
        allowed[N_SPECIAL : self.tokenizer.n_ids] = True
        allowed[END] = True
        return AllowedIds(allowed)

    def grown(self, tokenizer: SmilesTokenizer) -> MoleculeModel:
        """This model for a vocabulary that continues its own: new tokens begin as the mean of the old ones.

        Args:
            tokenizer: The model's own, extended.

        Raises:
            ValueError: If it has fewer tokens.
        """
        n_old, n_new = self.config.n_ids, tokenizer.n_ids
        if n_new < n_old:
            raise ValueError(f"tokenizer: expected at least the model's {n_old} ids, got {n_new}")
        larger = MoleculeModel(dataclasses.replace(self.config, n_ids=n_new))
        weights = dict(self.state_dict())
        for name in ("embedding.weight", "head.weight"):
            old = weights[name]
            new = old.mean(0) + _NEW_STD * torch.randn(n_new - n_old, old.shape[1]).to(old)
            weights[name] = torch.cat([old, new])
        if self.config.tie_embeddings:
            weights["head.weight"] = weights["embedding.weight"]
        larger.load_state_dict(weights)
        larger.tokenizer, larger.reference = tokenizer, self.reference
        return larger


def token_losses(logits: Tensor, values: Tensor, seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Nats of each token given those before it in its molecule, and where there is one to foretell.

    Args:
        logits: ``(rows, length, n_ids)`` of the batch.
        values: Its ids, ``(rows, length)``.
        seq_idx: Which molecule each is of, in packed rows.

    Returns:
        ``(rows, length - 1)`` losses, zero where nothing is foretold, and the bool mask of the same shape.
    """
    target = values[:, 1:]
    there = target != PAD
    if seq_idx is not None:
        there = there & (seq_idx[:, 1:] == seq_idx[:, :-1])
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten(), reduction="none")
    return torch.where(there, losses.view_as(target), 0.0), there
