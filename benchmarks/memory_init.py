"""How a state starts, on a task of long memory: give back a signal as it was some time ago.

    python benchmarks/memory_init.py                                    # ten minutes of one core
    python benchmarks/memory_init.py --device cuda --delay 1000 --length 4000 --band 60 --steps 20000

The input is white noise without its fast part (frequencies up to ``--band`` cycles in ``--length`` steps),
the target the input ``--delay`` steps before, as in HiPPO's and S4D's studies of starts (Gu et al. 2020,
arXiv:2008.07669; 2022, arXiv:2206.11893; their settings are larger). A network is two layers of a kind
between two linear maps; starts of one kind differ in nothing else (but that others than the published one put
biases into mamba3's in_proj). The error is the root of the mean square over the signal's deviation, from the
delay on, on signals not learned from: 1 is to know nothing. Rows ``core/memory-init/...``, with the error
before training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.training import configure_optimizer
from mambakit.core.training.config import TrainConfig
from rows import machine, row, write_rows

D_MODEL, D_STATE, BATCH = 16, 32, 8
STARTS: dict[str, list[str | None]] = {
    "mamba1": ["s4d-real", "hippo-legs", "random"],
    "mamba2": ["uniform", "s4d-real", "random"],
    "mamba3": [None, "s4d-real", "s4d-lin", "s4d-inv", "s4d-legs", "random"],
}
OPTIONS = {
    "mamba1": {"d_state": D_STATE},
    "mamba2": {"d_state": D_STATE, "head_dim": 8},
    "mamba3": {"d_state": D_STATE, "head_dim": 8, "rope_fraction": 1.0},
}


class Delayed(nn.Module):
    """One number a step to one number a step."""

    def __init__(self, kind: str, start: str | None) -> None:
        super().__init__()
        options = {kind: {**OPTIONS[kind], "A_init": start}}
        self.into, self.out = nn.Linear(1, D_MODEL), nn.Linear(D_MODEL, 1)
        self.backbone = Backbone(BackboneConfig(D_MODEL, [kind], repeat=2, block_options=options))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, length)`` to the same."""
        return self.out(self.backbone(self.into(x[..., None]))[0])[..., 0]


def signals(batch: int, length: int, band: int, generator: torch.Generator) -> Tensor:
    """Noise of deviation 1, ``(batch, length)``, without frequencies above ``band`` cycles in the length."""
    spectrum = torch.fft.rfft(torch.randn(batch, length, generator=generator))
    spectrum[:, band + 1 :] = 0
    x = torch.fft.irfft(spectrum, n=length)
    return x / x.std(1, keepdim=True)


def error(model: Delayed, x: Tensor, delay: int) -> Tensor:
    """Mean square from the delay on."""
    return (model(x)[:, delay:] - x[:, :-delay]).square().mean()


def run(kind: str, start: str | None, seed: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Root mean squares on held-out signals, before and after training."""
    torch.manual_seed(seed)
    model = Delayed(kind, start).to(arguments.device)
    size = (arguments.length, arguments.band)
    held = signals(32, *size, torch.Generator().manual_seed(10_000)).to(arguments.device)
    generator = torch.Generator().manual_seed(seed)
    made = configure_optimizer(model, TrainConfig(lr=arguments.lr, weight_decay=0.0), arguments.steps)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]

    @torch.no_grad()
    def measured() -> float:
        return error(model, held, arguments.delay).sqrt().item()

    before = measured()
    for _ in range(arguments.steps):
        loss = error(model, signals(BATCH, *size, generator).to(arguments.device), arguments.delay)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return before, measured()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--delay", type=int, default=24)
    parser.add_argument("--band", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trial", action="store_true", help="write no rows")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    task, began = f"delay-{arguments.delay}", time.monotonic()
    for kind in arguments.kinds:
        made = []
        for start in STARTS[kind]:
            name = start or "published"
            found = [run(kind, start, seed, arguments) for seed in arguments.seeds]
            before, after = ([one[i] for one in found] for i in (0, 1))
            made.append(
                row(
                    f"core/memory-init/{task}/nrmse/{kind}/{name}",
                    round(statistics.mean(after), 4),
                    "of the signal's deviation",
                    peers={"before training": round(statistics.mean(before), 4)},
                    spread=round(statistics.stdev(after), 4) if len(after) > 1 else None,
                    seeds=arguments.seeds,
                )
            )
            print(f"{time.monotonic() - began:6.0f} s {kind} {name}: {before} -> {after}", flush=True)
        if not arguments.trial:  # a kind at a time: a run that is stopped has given what it has
            print(f"wrote {write_rows('core-memory', made)}")
    print(machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
