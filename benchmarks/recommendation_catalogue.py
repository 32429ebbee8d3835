"""Memory and time of one training step of the recommender's preset on a catalogue of a million items.

    python benchmarks/recommendation_catalogue.py --write
    python benchmarks/recommendation_catalogue.py --device cuda --positions 65536 --write

Our cross-entropy, which never holds the logits of all items, beside the plain one on full logits and sampled
softmax. Each in a process of its own: its peak memory is the whole process's on a CPU, what torch allocated
on a GPU. AdamW's share is timed apart. With --limit-gib, what needs more memory on a CPU fails, and is a row
without a value.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.adapters import TokenBatch
from mambakit.domains.recommendation.config import LossConfig, RecommenderConfig
from mambakit.domains.recommendation.histories import pack_events
from mambakit.domains.recommendation.losses import next_item_loss
from mambakit.domains.recommendation.model import Catalogue, Recommender

OURS, FULL, SAMPLED = "cross-entropy in blocks", "cross-entropy on full logits", "sampled softmax"
ROW = 512

Loss = Callable[[Tensor, Tensor, Catalogue], Tensor]


def full(hidden: Tensor, target: Tensor, catalogue: Catalogue) -> Tensor:
    """What torch does by itself."""
    return F.cross_entropy(hidden @ catalogue.vectors.T + catalogue.bias, target)


def in_blocks(hidden: Tensor, target: Tensor, catalogue: Catalogue) -> Tensor:
    """Ours."""
    return next_item_loss(hidden, target, catalogue, LossConfig())


def sampled(hidden: Tensor, target: Tensor, catalogue: Catalogue) -> Tensor:
    """256 items drawn for all positions."""
    return next_item_loss(hidden, target, catalogue, LossConfig(loss="sampled-softmax"))


LOSSES: dict[str, Loss] = {OURS: in_blocks, FULL: full, SAMPLED: sampled}


def batch_of(n_items: int, positions: int) -> tuple[TokenBatch, Tensor]:
    """Rows full of events, and what comes next at each."""
    torch.manual_seed(0)
    n = -(-positions // ROW)
    item = torch.randint(n_items, (n * ROW,)).numpy()
    begin = torch.arange(0, n * ROW, ROW).numpy()
    batch = pack_events(item, item * 0 + 3, begin, begin + ROW, begin < 0, n_items, ROW)
    return batch, torch.randint(n_items, (n * ROW,))


def agree() -> None:
    """Ours is the plain cross-entropy, gradients too."""
    hidden, target = torch.randn(300, 32, requires_grad=True), torch.randint(5000, (300,))
    catalogue = Catalogue(torch.randn(5000, 32, requires_grad=True), torch.randn(5000, requires_grad=True))
    of = (hidden, *catalogue)
    pairs = [
        [loss := one(hidden, target, catalogue), *torch.autograd.grad(loss, of)] for one in (in_blocks, full)
    ]
    for ours, plain in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def measured(name: str, n_items: int, positions: int, device: str, repeats: int) -> dict[str, float]:
    """Peak MiB of forward and backward, its seconds, and then the seconds and the peak MiB of AdamW."""
    on_gpu = device.startswith("cuda")
    torch.manual_seed(0)
    model = Recommender(RecommenderConfig(n_items)).to(device).train()
    batch, target = batch_of(n_items, positions)
    batch, target = batch.to(device), target.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)

    def clock() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak() -> float:
        if on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def step() -> float:
        began = clock()
        catalogue = model.catalogue()
        hidden, _ = model(batch, catalogue)
        LOSSES[name](hidden.flatten(0, 1), target, catalogue).backward()
        return clock() - began

    empty = peak()
    took, memory = [step()], peak()
    updates = []
    for _ in range(repeats):
        began = clock()
        optimizer.step()
        updates.append(clock() - began)
        optimizer.zero_grad()
        took.append(step())
    # the first of both finds memory that later ones find again
    return {
        "model-mib": empty,
        "peak-mib": memory,
        "seconds": statistics.median(took[1:]),
        "adamw-seconds": statistics.median(updates[1:] or updates),
        "with-adamw-peak-mib": peak(),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit-gib", type=int, default=0, help="of memory, for each; none by default")
    parser.add_argument("--losses", nargs="*", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        if given.limit_gib:
            resource.setrlimit(resource.RLIMIT_DATA, (given.limit_gib << 30,) * 2)
        print(json.dumps(measured(given.child, given.items, given.positions, given.device, given.repeats)))
        return 0
    agree()
    found: dict[str, dict[str, float]] = {}
    options = ("items", "positions", "device", "repeats", "limit_gib")
    words = [word for one in options for word in (f"--{one.replace('_', '-')}", str(getattr(given, one)))]
    for name in given.losses:
        child = subprocess.run(
            [sys.executable, __file__, *words, "--child", name], capture_output=True, text=True
        )
        if child.returncode:  # out of memory: that is a result too
            last = (child.stderr.strip().splitlines() or [f"killed by signal {-child.returncode}"])[-1]
            print(f"{name}: failed: {last}", flush=True)
            continue
        found[name] = json.loads(child.stdout.splitlines()[-1])
        print(name, {what: round(value, 3) for what, value in found[name].items()}, flush=True)
    if given.write and OURS in found:
        from rows import row, write_rows

        def value(name: str, what: str) -> float | None:
            return round(found[name][what], 3 if "seconds" in what else 0) if name in found else None

        start = f"recommendation-catalogue/{given.items}-items/{given.positions}-positions/{given.device}"
        rows = [
            row(
                f"{start}/{what}",
                value(OURS, what),
                "s" if "seconds" in what else "MiB",
                peers={name: value(name, what) for name in given.losses if name != OURS},
                seeds=[0],
            )
            for what in found[OURS]
        ]
        print(write_rows("recommendation-catalogue", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
