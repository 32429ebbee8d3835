"""Tell two organisms apart by single reads: ``python -m dna_quality.train``."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from dna_quality.reads import simulate_reads
from dna_quality.tokenizer import Read
from mambakit.core.adapters import TokenBatch, get_adapter, pad_batch
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.heads import ClassificationHead


class ReadClassifier(nn.Module):
    """Adapter, backbone and head; the adapter is found by its name."""

    def __init__(self, d_model: int = 32) -> None:
        super().__init__()
        self.adapter = get_adapter("dna-quality").adapter.from_config({"d_model": d_model})
        options = {"mamba2": {"head_dim": 16, "d_state": 16}}
        self.backbone = Backbone(BackboneConfig(d_model=d_model, layers=["mamba2"], block_options=options))
        self.head = ClassificationHead(d_model=d_model, n_classes=2, pool="mean")

    def forward(self, batch: TokenBatch) -> Tensor:
        """Logits, ``(batch, 2)``."""
        y, _ = self.backbone(self.adapter.embed(batch), **batch.layout())
        logits: Tensor = self.head(y, batch.lengths)
        return logits


def train(n_steps: int = 60, batch_size: int = 32, seed: int = 0) -> tuple[ReadClassifier, list[float]]:
    """A trained classifier and the loss of each step."""
    torch.manual_seed(seed)
    tokenizer = get_adapter("dna-quality").tokenizer()
    reads, organisms = simulate_reads(n_steps * batch_size, seed)
    tokens, _ = tokenizer.encode_many(reads)
    targets = torch.tensor(organisms)
    model = ReadClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for start in range(0, len(tokens), batch_size):
        batch = pad_batch(tokens[start : start + batch_size])
        loss = model.head.loss(model(batch), targets[start : start + batch_size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


@torch.no_grad()
def accuracy(model: ReadClassifier, reads: list[Read], organisms: list[int]) -> float:
    """Share of reads put to the right organism."""
    tokenizer = get_adapter("dna-quality").tokenizer()
    batch = pad_batch(tokenizer.encode_many(reads).tokens)
    return float((model(batch).argmax(dim=-1) == torch.tensor(organisms)).float().mean())


def main() -> None:
    """Train, print the loss every ten steps, and the accuracy on new reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, losses = train(arguments.steps, seed=arguments.seed)
    for step in range(0, len(losses), 10):
        print(f"step {step:4d}  loss {losses[step]:.3f}")
    print(f"accuracy on 500 new reads: {accuracy(model, *simulate_reads(500, seed=arguments.seed + 1)):.3f}")


if __name__ == "__main__":
    main()
