"""The language model that designs: samples molecules, and says how likely it is to write one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.adapters import SampleError, Tokens
from mambakit.core.generation import GenerationConfig, GraphedDecoder, generate
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.tokenizer import END, PAD

_TOKENS_AT_ONCE = 32_768


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
            return self.tokenizer.ids_of_any(text)
        except SampleError:
            return None

    def log_likelihoods(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of each whole sequence in nats, ``(n,)`` float32; differentiable.

        Args:
            sequences: Ids from the first to END.
        """
        order: list[int] = []
        parts = [torch.zeros(0, device=self.device)]
        for places, ids in self.batches(sequences):
            parts.append(log_likelihoods(self.model, ids)[: len(places)])
            order += places
        return torch.cat(parts)[torch.tensor(order, dtype=torch.int64).argsort().to(self.device)]

    def batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Sequences of like lengths together: their places, and their ids ``(rows, length)``, padded.

        On a GPU there may be rows of padding alone behind: what kernels compile, choose and keep for a shape,
        and what is recorded of it, serves the next update too where there are few shapes.
        """
        gpu = self.device.type == "cuda"
        row_multiple, multiple = (32, 32) if gpu else (1, 16)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        begin = 0
        while begin < len(order):
            end = begin + 1
            while end < len(order) and (end + 1 - begin) * len(sequences[order[end]]) <= _TOKENS_AT_ONCE:
                end += 1
            places = order[begin:end]
            longest = 1 + multiple * -(-(len(sequences[places[-1]]) - 1) // multiple)
            rows = [[*sequences[i], *[PAD] * (longest - len(sequences[i]))] for i in places]
            rows += [[PAD] * longest] * (-len(rows) % row_multiple)
            yield places, torch.tensor(rows).to(self.device)
            begin = end


def log_likelihoods(model: nn.Module, ids: Tensor) -> Tensor:
    """Log-probability of each row in nats, ``(rows,)`` float32, 0 of padding; differentiable.

    Args:
        model: Logits ``(rows, length, n_ids)`` of ids.
        ids: ``(rows, length)`` int64, padded behind.
    """
    target = ids[:, 1:]
    # the model is causal: what stands behind a sequence changes nothing before
    logits, _ = model(ids[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
    return -nats.view_as(target).masked_fill(target == PAD, 0.0).sum(1)
