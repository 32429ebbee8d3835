"""Times one Mamba-1 and one Mamba-2 block on the CPU beside the peers, each case in a process of its own.

    python benchmarks/cpu_blocks.py --write                # the whole table, about half an hour
    python benchmarks/cpu_blocks.py --lengths 1024         # the README's rows alone

Every implementation gets the same weights, and agrees with ours at length 64 before it is timed.
Seconds are the median of the repeats; peak MiB is what the process's resident set grew by.
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.blocks import build_block
from rows import machine, row, write_rows

D_MODEL, BATCH = 256, 4
HEADLINE_LENGTH = 1024
IMPLEMENTATIONS = {
    "mamba1": ("mambakit", "transformers", "mambapy"),
    "mamba2": ("mambakit", "transformers"),
}


def ours(kind: str) -> nn.Module:
    options = {"mamba1": {"d_state": 16}, "mamba2": {"d_state": 64, "head_dim": 64}}[kind]
    return build_block(kind, D_MODEL, options)


def renamed(kind: str, block: nn.Module) -> dict[str, Tensor]:
    """Our block's weights under the names both peers give them (those of the original)."""
    weights = dict(block.state_dict())
    weights["conv1d.weight"] = weights.pop("conv_weight").unsqueeze(1)
    weights["conv1d.bias"] = weights.pop("conv_bias")
    if kind == "mamba2":
        weights["norm.weight"] = weights.pop("norm_weight")
    return weights


def transformers_block(kind: str) -> nn.Module:
    if kind == "mamba1":
        from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

        return MambaMixer(MambaConfig(hidden_size=D_MODEL, state_size=16), layer_idx=0)
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    config = Mamba2Config(
        hidden_size=D_MODEL, num_heads=8, head_dim=64, state_size=64, n_groups=1, chunk_size=256
    )
    return Mamba2Mixer(config, layer_idx=0)


def mambapy_block(kind: str) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=D_MODEL, n_layers=1, d_state=16))


def build(kind: str, implementation: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The block, holding the seed's weights, and its forward as a function of the input alone."""
    torch.manual_seed(0)
    block = ours(kind)
    if implementation == "mambakit":
        return block, lambda x: block(x)[0]
    peer = {"transformers": transformers_block, "mambapy": mambapy_block}[implementation](kind)
    peer.load_state_dict(renamed(kind, block))
    x = torch.randn(2, 64, D_MODEL)
    with torch.no_grad():
        difference = (peer(x) - block(x)[0]).abs().max().item()
    if not difference < 1e-4:
        raise SystemExit(f"{implementation} {kind} differs from ours by {difference:.2e}: not timed")
    return peer, peer


def resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, implementation: str, mode: str, length: int, seconds: float) -> dict[str, float]:
    """Time one case in this process; ``seconds`` is how long the repeats may take together."""
    block, forward = build(kind, implementation)
    if mode == "step":
        return {"s": time_step(block, seconds), "mib": 0.0}
    x = torch.randn(BATCH, length, D_MODEL, requires_grad=mode == "fwd+bwd")
    warm = x.detach()[:, :16].requires_grad_(x.requires_grad)

    def run(inputs: Tensor) -> None:
        if mode == "fwd":
            with torch.inference_mode():
                forward(inputs)
        else:
            forward(inputs).sum().backward()

    run(warm)  # compiles and allocates what a first call does, at next to no memory
    before = resident_mib()
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < 50):
        start = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - start)
    steady = times[1:] or times
    return {"s": statistics.median(steady), "mib": resident_mib() - before}


def time_step(block: nn.Module, seconds: float) -> float:
    x = torch.randn(1, D_MODEL)
    times = []
    with torch.inference_mode():
        state = block.init_state(1)
        for _ in range(200):
            _, state = block.step(x, state)
        while sum(times) < seconds:
            start = time.perf_counter()
            for _ in range(100):
                _, state = block.step(x, state)
            times.append((time.perf_counter() - start) / 100)
            if len(times) >= 100:
                break
    return statistics.median(times)


def measure_apart(case: list[str], limit: float) -> dict[str, float] | str:
    """Run one case in a fresh process: its peak memory is its own, and a crash costs that case alone."""
    command = [sys.executable, str(Path(__file__)), "--case", *case]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"over {limit:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return "out of memory" if "alloc" in done.stderr or done.returncode < 0 else (lines or ["failed"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--kinds", nargs="+", default=list(IMPLEMENTATIONS), choices=list(IMPLEMENTATIONS))
    parser.add_argument("--seconds", type=float, default=5.0, help="for the repeats of one case")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which one case is given up")
    parser.add_argument("--write", action="store_true", help="write rows to benchmarks/results/cpu.json")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        kind, implementation, mode, length = args.case
        # address space, so that a case too large for the machine fails instead of taking it down
        resource.setrlimit(resource.RLIMIT_AS, (22 << 30, 22 << 30))
        print(json.dumps(measure(kind, implementation, mode, int(length), args.seconds)))
        return

    print(machine())
    print(f"d_model {D_MODEL}, batch {BATCH}, float32, {torch.get_num_threads()} threads")
    heading = "".join(f"{name:>26}" for name in IMPLEMENTATIONS["mamba1"])
    print(f"{'block':8} {'pass':8} {'length':>7}  {heading}")
    headlines, by_length = [], []
    for kind in args.kinds:
        for mode in ("fwd", "fwd+bwd", "step"):
            given_up: set[str] = set()
            for length in sorted(args.lengths) if mode != "step" else [1]:
                found: dict[str, dict[str, float] | str] = {}
                for name in IMPLEMENTATIONS[kind] if mode != "step" else ("mambakit",):
                    if name in given_up:
                        found[name] = "not tried"
                        continue
                    found[name] = measure_apart([kind, name, mode, str(length)], args.limit)
                    if isinstance(found[name], str):
                        given_up.add(name)  # a longer one would take longer still
                cells = [
                    f"{cell:>26}" if isinstance(cell, str) else f"{cell['s']:14.5f} s {cell['mib']:6.0f} MiB"
                    for cell in found.values()
                ]
                print(f"{kind:8} {mode:8} {length:7}  " + "".join(cells), flush=True)
                if mode == "step" or length == HEADLINE_LENGTH:
                    headlines += case_rows(f"cpu/{kind}-block/{mode}", mode, found)
                if mode != "step":
                    by_length += case_rows(f"cpu-lengths/{kind}-block/{mode}/L{length}", mode, found)
    if args.write:
        print(f"wrote {write_rows('cpu', headlines)} and {write_rows('cpu-lengths', by_length)}")


def case_rows(where: str, mode: str, found: dict[str, dict[str, float] | str]) -> list[dict[str, Any]]:
    """The case as result rows: seconds and peak memory, ours as the value and each peer under its name."""
    made = []
    for key, unit in [("s", "s")] if mode == "step" else [("s", "s"), ("mib", "MiB")]:
        values = {
            name: None if isinstance(cell, str) else float(f"{cell[key]:.4g}") for name, cell in found.items()
        }
        made.append(row(f"{where}/{unit}", values.pop("mambakit"), unit, peers=values))
    return made


if __name__ == "__main__":
    main()
