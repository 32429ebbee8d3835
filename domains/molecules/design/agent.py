"""The language model that designs: samples molecules, and says how likely it is to write one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.adapters import SampleError, Tokens
from mambakit.core.generation import GenerationConfig, GraphedDecoder, generate
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.tokenizer import END, PAD

_TOKENS_AT_ONCE = 32_768
_LENGTHS = 16  # rows are padded to multiples of this


class Agent:
    """A language model with its tokenizer, on a device.

    Args:
        model: Always in evaluation mode: nothing is dropped while it learns, so that it and the prior differ
            by their weights alone.
        device: Where it computes.
    """

    def __init__(self, model: MoleculeModel, device: torch.device) -> None:
        self.model, self.tokenizer, self.device = model.to(device).eval(), model.tokenizer, device
        self._decoder = GraphedDecoder(self.model)  # recorded once, for all steps

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Agent:
        """The model in a folder of `mambakit molecules pretrain`.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        return cls(MoleculeModel.from_pretrained(folder), device)

    def prior(self) -> Agent:
        """A copy that does not learn."""
        model = copy.deepcopy(self.model)
        model.requires_grad_(False)
        return Agent(model, self.device)

    def sample(self, n: int, max_tokens: int, seed: int) -> list[tuple[str, list[int]]]:
        """Molecules as text, '' for one that did not end or has no text, with their ids from the first
        to END."""
        config = GenerationConfig(
            strategy="sample",
            n_samples=n,
            max_new_tokens=max_tokens,
            eos_ids=(END,),
            pad_id=PAD,
            seed=seed,
        )
        start = self.tokenizer.any_start()
        made = generate(self._decoder, [[start]], config, constraint=self.model.symbols_only())
        sampled = []
        for ids, ended in zip(made.sequences(), made.finished.tolist(), strict=True):
            text = ""
            if ended:
                with contextlib.suppress(SampleError):  # symbols that together are no molecule
                    text = self.tokenizer.decode(Tokens(torch.tensor(ids)))
            sampled.append((text, [start, *ids]))
        return sampled

    def encode(self, text: str) -> list[int] | None:
        """The ids of a molecule from the first to END; None if it has a token that the vocabulary lacks."""
        try:
            return [int(one) for one in self.tokenizer.encode_any(text).values]
        except SampleError:
            return None

    def log_likelihoods(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of each whole sequence in nats, ``(n,)`` float32; differentiable.

        Args:
            sequences: Ids from the first to END.
        """
        if not sequences:
            return torch.zeros(0, device=self.device)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        parts, begin = [], 0
        while begin < len(order):
            end = begin + 1
            while end < len(order) and (end + 1 - begin) * len(sequences[order[end]]) <= _TOKENS_AT_ONCE:
                end += 1
            parts.append(self._log_likelihoods([sequences[i] for i in order[begin:end]]))
            begin = end
        back = torch.tensor(order).argsort().to(self.device)
        return torch.cat(parts)[back]

    def _log_likelihoods(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        # few different lengths: what kernels compile, choose and keep for a shape serves the next update too
        longest = 1 + _LENGTHS * -(-(max(len(one) for one in sequences) - 1) // _LENGTHS)
        ids = torch.tensor([[*one, *[PAD] * (longest - len(one))] for one in sequences]).to(self.device)
        target = ids[:, 1:]
        # the model is causal: what stands behind a sequence changes nothing before
        logits, _ = self.model(ids[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
        return -nats.view_as(target).masked_fill(target == PAD, 0.0).sum(1)
