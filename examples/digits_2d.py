"""Handwritten digits read in several orders: ``python examples/digits_2d.py`` (needs scikit-learn).

A token is a patch of 2 x 2 of the 8 x 8 pixels; nothing but the order of reading says where it is.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.heads import ClassificationHead

SCANS: dict[str, dict[str, Any]] = {
    "rows, forth only": {"scan": "raster", "reverse": False},
    "rows, forth and back": {"scan": "raster"},
    "cross: rows and columns": {"scan": "cross"},
    "hilbert, forth and back": {"scan": "hilbert"},
}
Split = dict[str, tuple[Tensor, Tensor]]


def load(seed: int) -> Split:
    """Pixels ``(images, 64)`` in -1..1 and digits: 60 / 20 / 20 percent, each digit alike in all three."""
    pixels, digits = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(digits)), test_size=0.2, stratify=digits, random_state=seed)
    train, valid = train_test_split(rest, test_size=0.25, stratify=digits[rest], random_state=seed)
    x, y = torch.tensor(pixels / 8 - 1).float(), torch.tensor(digits)
    return {name: (x[part], y[part]) for name, part in (("train", train), ("valid", valid), ("test", test))}


class Reader(nn.Module):
    """Pixels ``(batch, 64)`` to logits ``(batch, 10)``: patches, scans, the mean over the tokens."""

    def __init__(self, scan: dict[str, Any]) -> None:
        super().__init__()
        inner = {"inner": "mamba2", "inner_options": {"head_dim": 16, "d_state": 16}, "share": "projections"}
        options = {"grid_scan": {"grid": [4, 4], **inner, **scan}}
        self.embed = nn.Linear(4, 32)
        self.backbone = Backbone(BackboneConfig(32, ["grid_scan"], repeat=2, block_options=options))
        self.head = ClassificationHead(d_model=32, n_classes=10)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = pixels.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.backbone(self.embed(patches))[0])


@torch.no_grad()
def accuracy(model: Reader, pixels: Tensor, digits: Tensor) -> float:
    """Share of digits recognised."""
    return (model(pixels).argmax(1) == digits).double().mean().item()


def fit(data: Split, scan: dict[str, Any], epochs: int, seed: int) -> dict[str, float]:
    """Train; the accuracies are those of the epoch that was best on the validation part."""
    torch.manual_seed(seed)
    model, start, best = Reader(scan), time.perf_counter(), {"valid": -1.0}
    x, y = data["train"]
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * -(-len(x) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = model.head.loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (valid := accuracy(model, *data["valid"])) > best["valid"]:
            best = {"valid": valid, "test": accuracy(model, *data["test"])}
    best["weights"] = sum(p.numel() for p in model.parameters())
    return {**best, "seconds": time.perf_counter() - start}


def main() -> None:
    """Print one line for each scan, and the baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = load(args.seed)
    print(f"{'scan':26} weights   valid    test  seconds")
    for name, scan in SCANS.items():
        run = fit(data, scan, args.epochs, args.seed)
        print(f"{name:26}{run['weights']:8}{run['valid']:8.3f}{run['test']:8.3f}{run['seconds']:9.1f}")
    linear = LogisticRegression(max_iter=1000).fit(*data["train"])
    valid, test = linear.score(*data["valid"]), linear.score(*data["test"])
    print(f"{'logistic regression':26}{linear.coef_.size + 10:8}{valid:8.3f}{test:8.3f}")


if __name__ == "__main__":
    main()
