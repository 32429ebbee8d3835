"""How a state starts, on a task of long memory: give back a signal as it was some time ago.

    python benchmarks/memory_init.py                                    # ten minutes of one core
    python benchmarks/memory_init.py --gpus 0 --jobs 12 --delay 1000 --length 4000 --band 60 --steps 5000

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
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from processes import Job, add_flags
from torch import Tensor, nn
from trials import measured

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.training import GraphedLoss, configure_optimizer
from mambakit.core.training.config import TrainConfig
from rows import machine, row

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


class Recall(nn.Module):
    """The mean square of what a network is off, from the delay on."""

    def __init__(self, model: Delayed, delay: int) -> None:
        super().__init__()
        self.model, self.delay = model, delay

    def forward(self, x: Tensor) -> Tensor:
        """Of signals ``(batch, length)``, a scalar."""
        return (self.model(x)[:, self.delay :] - x[:, : -self.delay]).square().mean()


def run_job(job: Job) -> Job:
    """Trains one network.

    Args:
        job: ``kind``, ``start``, ``seed``, ``steps``, ``length``, ``delay``, ``band`` and ``lr``.

    Returns:
        The job with ``before`` and ``after``, the root mean squares on held-out signals, and ``machine``.
    """
    torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loss = Recall(Delayed(job["kind"], job["start"]), job["delay"]).to(device)
    size = (job["length"], job["band"])
    held = signals(32, *size, torch.Generator().manual_seed(10_000)).to(device)
    generator = torch.Generator().manual_seed(job["seed"])
    made = configure_optimizer(loss, TrainConfig(lr=job["lr"], weight_decay=0.0), job["steps"])
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]

    @torch.no_grad()
    def held_out() -> float:
        return loss(held).sqrt().item()

    before, training = held_out(), GraphedLoss(loss)
    for _ in range(job["steps"]):
        value = training(signals(BATCH, *size, generator).to(device))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {**job, "before": before, "after": held_out(), "machine": machine()}


def tell(one: Job, seconds: float) -> None:
    """A line of a run that ended."""
    said = one.get("error") or f"{one['before']:.4f} -> {one['after']:.4f}"
    print(
        f"{seconds:6.0f} s  {one['kind']} {one['start'] or 'published'} seed {one['seed']}: {said}",
        flush=True,
    )


def rows_of(seeds: Sequence[int], found: Sequence[Job], command: str) -> list[dict[str, Any]]:
    """A row for every start of which all seeds are there."""
    made = []
    for kind, start in dict.fromkeys((one["kind"], one["start"]) for one in found):
        runs = [one for one in found if (one["kind"], one["start"]) == (kind, start)]
        if {one["seed"] for one in runs} == set(seeds):
            after = [one["after"] for one in runs]
            made.append(
                row(
                    f"core/memory-init/delay-{runs[0]['delay']}/nrmse/{kind}/{start or 'published'}",
                    round(statistics.mean(after), 4),
                    "of the signal's deviation",
                    peers={"before training": round(statistics.mean(one["before"] for one in runs), 4)},
                    spread=round(statistics.stdev(after), 4) if len(after) > 1 else None,
                    seeds=list(seeds),
                    command=command,
                )
                | {"machine": runs[0]["machine"]}
            )
    return made


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
    parser.add_argument("--trial", action="store_true", help="write no rows")
    add_flags(parser)
    arguments = parser.parse_args()
    common = {name: getattr(arguments, name) for name in ("steps", "length", "delay", "band", "lr")}
    jobs = [
        {"kind": kind, "start": start, "seed": seed, **common}
        for seed in arguments.seeds
        for kind in arguments.kinds
        for start in STARTS[kind]
    ]
    rows = partial(rows_of, arguments.seeds)
    return measured(run_job, jobs, arguments, rows, "core-memory", tell=tell, trial=arguments.trial)


if __name__ == "__main__":
    sys.exit(main())
