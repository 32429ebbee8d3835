"""Mamba-2 beside attention, equal in parameters, as the lookback of a forecaster grows to 100,000 rows.

    python benchmarks/timeseries_scaling.py --write

A token a row, four layers of width 128 (the mixer, and an MLP that makes up the difference in parameters),
bfloat16, one series: a training step (forward and backward) and its memory, a forward pass, and one more
row of a stream with the state that it needs. Attention runs in torch's fused kernels. Both in one run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

LENGTHS = [1024, 4096, 16384, 32768, 65536, 102400]
WIDTH, LAYERS = 128, 4


def build(mixer: str, hidden: int, device: torch.device) -> nn.Module:
    """A stack of the mixer and an MLP of so many hidden units."""
    from mambakit.core.backbone import Backbone, BackboneConfig

    options: dict[str, dict[str, Any]] = {
        "mamba2": {"d_state": 64, "head_dim": 64},
        "attention": {"n_heads": 2},
    }
    config = BackboneConfig(
        d_model=WIDTH,
        layers=[mixer, "mlp"],
        repeat=LAYERS,
        block_options={mixer: options[mixer], "mlp": {"d_hidden": hidden}},
    )
    torch.manual_seed(0)
    return Backbone(config).to(device)


def count(model: nn.Module) -> int:
    """Parameters."""
    return sum(one.numel() for one in model.parameters())


def seconds(run: Callable[[], None], device: torch.device, repeats: int = 5) -> float:
    """The median of some runs after two of warming up."""
    times = []
    for i in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(model: nn.Module, length: int, device: torch.device) -> dict[str, float | None]:
    """Milliseconds and MiB; None where the memory does not suffice."""
    found: dict[str, float | None] = dict.fromkeys(
        ("train/ms", "train/mib", "fwd/ms", "step/ms", "state/mib")
    )
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    x = torch.randn(1, length, WIDTH, device=device)

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=cuda):
            return model(x)[0]

    def train() -> None:
        model.zero_grad(set_to_none=True)
        forward().float().square().mean().backward()

    def infer() -> None:
        with torch.no_grad():
            forward()

    try:
        found["train/ms"] = 1e3 * seconds(train, device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            train()
            found["train/mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        model.zero_grad(set_to_none=True)
        found["fwd/ms"] = 1e3 * seconds(infer, device)
        with torch.no_grad():
            _, state = model(x)
            found["state/mib"] = state.nbytes / 2**20
            row = x[:, 0]
            found["step/ms"] = 1e3 * seconds(lambda: model.step(row, state), device, 20)  # type: ignore[operator]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/timeseries-scaling.json"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = build("mamba2", 256, device)
    hidden = min(range(128, 768, 8), key=lambda n: abs(count(build("attention", n, device)) - count(ours)))
    attention = build("attention", hidden, device)
    print(f"parameters: mamba2 {count(ours)}, attention {count(attention)} (MLP of {hidden})")
    rows = []
    for length in arguments.lengths:
        a, b = measure(ours, length, device), measure(attention, length, device)
        for name, value in a.items():
            other = b[name]
            print(f"L {length:>6}  {name:<9} mamba2 {value if value is None else round(value, 3)}  attention "
                  f"{other if other is None else round(other, 3)}", flush=True)  # fmt: skip
            if arguments.write and value is not None:
                from rows import row

                peers = {"attention": None if other is None else float(f"{other:.4g}")}
                what = f"timeseries-scaling/L{length}/{name}"
                unit = "ms" if name.endswith("ms") else "MiB"
                rows.append(
                    row(
                        what,
                        float(f"{value:.4g}"),
                        unit,
                        peers=peers,
                        command="python benchmarks/timeseries_scaling.py --write",
                    )
                )
    if arguments.write:
        from rows import write_rows

        print(f"{len(rows)} rows written to {write_rows('timeseries-scaling', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
