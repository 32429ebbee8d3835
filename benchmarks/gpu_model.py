"""Times whole models on one GPU: a 130M Mamba-2 beside the original, and the domains' presets.

    pip install --no-build-isolation mamba_ssm causal_conv1d    # the original; without it transformers' model
    python benchmarks/gpu_model.py --write
    python benchmarks/gpu_model.py --only 'mamba2-130m/decode*' --no-peers
    python benchmarks/gpu_model.py --dry-run                    # tiny models, on the CPU

Both Mamba-2 models hold the same weights, and their logits agree before they are timed. Training is forward,
cross entropy, backward and a fused AdamW step on float32 weights under bfloat16 autocast (the losses are each
model's own logits, in float32). Decoding is one token greedily after another with bfloat16 weights and a
float32 recurrent state in both; the original keeps its state in bfloat16 unless told otherwise, which is the
further peer. Memory is the peak of the whole run, model and optimizer included. A domain's preset is trained
in float32 and with CUDA graphs, as for its published figures; beside it, without graphs, and without them on
the portable backend.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F

from gpu_language import SHARE, SMALL, Model, Size, agreement, original, ours, transformers_model
from gpu_peers import compile_ahead, cores, prepare_peers
from gpu_timing import captured, latency_ms, synchronize
from rows import commit, machine, row, write_rows

# the logits of two bfloat16 computations of 24 layers, relative root mean square
_AGREEMENT = 0.05


def time_training(step: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Seconds a step takes, and the peak MiB of everything that is allocated."""
    for _ in range(5):  # what records graphs does so at the third
        step()
    synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin, steps = time.perf_counter(), 0
    while steps < 5 or time.perf_counter() - begin < seconds:
        step()
        steps += 1
        if steps % 5 == 0:
            synchronize()  # else the host would run ahead of the clock
    synchronize()
    each = (time.perf_counter() - begin) / steps
    return each, torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def language_training(model: Model, size: Size, device: torch.device) -> Callable[[], object]:
    tokens = torch.randint(size.vocab, (size.batch, size.length + 1), device=device)
    parameters = model.module.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.1, fused=device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model.logits(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timeseries_training(device: torch.device, *, small: bool, graphed: bool) -> Callable[[], object]:
    """A training step of the frozen preset, at its batch size, on windows of the Weather set's shape."""
    # a domain needs more packages than the core: where they lack, only its own figure does
    from mambakit.core.training import GraphedLoss, parameter_groups
    from mambakit.domains.timeseries.config import PRESET_LOSS, PRESET_MODEL, PRESET_TRAIN, ForecasterConfig
    from mambakit.domains.timeseries.task import ForecastLoss
    from mambakit.domains.timeseries.window import WindowForecaster

    torch.manual_seed(0)
    batch, n_series, season = 2 if small else PRESET_TRAIN.batch_size, 21, 144
    config = ForecasterConfig(
        lookback=96, horizon=96, n_series=n_series, season_length=season, model=PRESET_MODEL
    )
    model = ForecastLoss(WindowForecaster(config), PRESET_LOSS).to(device)
    loss = GraphedLoss(model) if graphed else model
    groups = parameter_groups(model, PRESET_TRAIN.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=PRESET_TRAIN.lr, fused=device.type == "cuda")
    members = PRESET_MODEL.members
    rows = torch.randn(members, batch, config.lookback + config.horizon, n_series, device=device)
    history, future = rows.split([config.lookback, config.horizon], dim=2)
    phase = torch.randint(season, (members, batch), device=device)
    series = torch.arange(n_series, device=device)

    def step() -> None:
        loss(history, future, phase, series).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Every op on that backend."""
    before = os.environ.get("MAMBAKIT_BACKEND")
    if name is not None:
        os.environ["MAMBAKIT_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MAMBAKIT_BACKEND", None)
        else:
            os.environ["MAMBAKIT_BACKEND"] = before


class Bench:
    """The runs, their options and the rows that came of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device("cpu" if args.dry_run else "cuda")
        self.size = SMALL if args.dry_run else Size()
        self.args = args
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        self.deadline = time.monotonic() + args.seconds
        makers = {"mambakit": ours, "mamba_ssm": original}
        if args.no_peers or args.dry_run:
            del makers["mamba_ssm"]
        elif not _importable("mamba_ssm"):
            makers["transformers"] = transformers_model
        self.makers: dict[str, Callable[..., Model]] = makers

    def wanted(self, what: str) -> bool:
        if not fnmatch(what, self.args.only):
            return False
        if time.monotonic() > self.deadline:
            print(f"{what}: out of time, not measured")
            return False
        return True

    def each(
        self, what: str, unit: str, run: Callable[[str], dict[str, float]], names: Sequence[str]
    ) -> None:
        """Runs and prints ``run(name)``, figures by the last part of their rows' names, for every name."""
        if not self.wanted(what):
            return
        found: dict[str, dict[str, float]] = {}
        for name in names:
            try:
                found[name] = run(name)
            except Exception as error:  # noqa: BLE001 - one that fails must not end the run
                lines = str(error).strip().splitlines() or [""]
                print(f"{what:28} {name:20} failed: {type(error).__name__}: {lines[0][:160]}", flush=True)
                self.failed = self.failed or name == "mambakit"
                continue
            shown = "  ".join(f"{value:10.4g} {key}" for key, value in found[name].items())
            print(f"{what:28} {name:20} {shown}", flush=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for key in dict.fromkeys(key for figures in found.values() for key in figures):
            values = {name: float(f"{f[key]:.4g}") for name, f in found.items() if key in f}
            measured = "MiB" if key == "peak-mib" else "ms" if key == "ms" else unit
            mine = values.pop("mambakit", None)
            self.rows.append(row(f"gpu/model/{what}/{key}", mine, measured, peers=values, seeds=[0]))
        if self.args.write:
            write_rows("gpu", self.rows)

    def train(self, name: str) -> dict[str, float]:
        model = self.makers[name](self.size, self.device)
        if name != "mambakit":
            difference = agreement(model, self.size, self.device)
            if not difference < _AGREEMENT:
                raise AssertionError(f"logits differ from ours by {difference:.1e}")
        seconds, mib = time_training(language_training(model, self.size, self.device), self.args.each)
        return {"tokens-per-s": self.size.batch * self.size.length / seconds, "peak-mib": mib}

    def decode(self, name: str, batch: int, mode: str) -> dict[str, float]:
        options = {}
        if name == "mamba_ssm_bf16_state":
            name, options = "mamba_ssm", {"state_dtype": torch.bfloat16}
        model = self.makers[name](self.size, self.device, **options)
        if model.decoder is None:
            raise NotImplementedError("its decoding is not timed")
        model.module.eval().to(torch.bfloat16)
        tokens = torch.randint(self.size.vocab, (batch,), device=self.device)
        with torch.inference_mode():
            step = model.decoder(tokens, mode == "graph")
            step()
            run = captured(step).replay if mode == "graph" and self.device.type == "cuda" else step
            return {"ms": latency_ms(run, self.args.each)}

    def timeseries(self, name: str) -> dict[str, float]:
        with backend("portable" if name == "mambakit_portable" else None):
            graphed = name == "mambakit"
            step = timeseries_training(self.device, small=self.args.dry_run, graphed=graphed)
            seconds, mib = time_training(step, self.args.each)
        return {"steps-per-s": 1 / seconds, "peak-mib": mib}

    def run(self) -> None:
        self.each("mamba2-130m/train", "tokens/s", self.train, list(self.makers))
        decoding = [name for name in self.makers if name != "transformers"]
        if "mamba_ssm" in decoding:
            decoding.append("mamba_ssm_bf16_state")
        for batch in (1, 64):
            for mode in ("eager", "graph"):
                self.each(
                    f"mamba2-130m/decode-B{batch}/{mode}",
                    "ms",
                    lambda name, batch=batch, mode=mode: self.decode(name, batch, mode),
                    decoding,
                )
        self.each(
            "timeseries-preset/train",
            "steps/s",
            self.timeseries,
            ["mambakit", "mambakit_eager", "mambakit_portable"],
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; status 1 if one of our own figures could not be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="such as 'mamba2-130m/decode*'")
    parser.add_argument("--seconds", type=float, default=300.0, help="when to stop; the rest is named")
    parser.add_argument("--each", type=float, default=4.0, help="seconds of repeats for one figure")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--processes", type=int, default=min(cores(), 16), help="that compile the peers")
    parser.add_argument("--write", action="store_true", help="write rows to benchmarks/results/gpu.json")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on the CPU, ours alone")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.dry_run and args.write:
        parser.error("--write: a dry run's figures mean nothing")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("needs a CUDA device; --dry-run does without")
    if args.share:
        index, _, count = args.share.partition("/")
        prepare_peers((int(index), int(count)))
        device = torch.device("cuda")
        language_training(original(SHARE, device), SHARE, device)()
        return 0
    if args.dry_run:
        args.each = min(args.each, 0.05)
    begin = time.monotonic()
    print(f"{machine()}; commit {commit()}")
    if not (args.no_peers or args.dry_run) and _importable("mamba_ssm"):
        if args.processes > 1 and fnmatch("mamba2-130m/train", args.only):
            print(compile_ahead([__file__], args.processes, limit_s=args.seconds / 3), flush=True)
        print(f"mamba_ssm {prepare_peers()['mamba_ssm']}")
    bench = Bench(args)
    bench.run()
    print(f"{time.monotonic() - begin:.0f} s")
    return 1 if bench.failed else 0


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except Exception:  # noqa: BLE001 - whatever a foreign package raises, it cannot be used
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
