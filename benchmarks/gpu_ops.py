"""Times the ops on one GPU beside the originals and attention, all in one run.

    pip install --no-build-isolation mamba_ssm causal_conv1d fla-core   # peers: whichever are there are timed
    python benchmarks/gpu_ops.py --write                                # everything
    python benchmarks/gpu_ops.py --only 'ssd/*H24*' --no-peers          # some of it, ours alone
    python benchmarks/gpu_ops.py --dry-run                              # tiny shapes, on the CPU

mamba_ssm's selective scan is in its wheel only if built with MAMBA_KEEP_CUDA_BUILD=TRUE. Inputs are bfloat16,
parameters and states float32.

Every candidate is first compared with float64, forward and backward, at the shape that is timed. "err" is the
relative root mean square error of the output, or of the gradient where that is largest. A wrong one is timed
too, and said to be wrong: its time goes into no row.

For each: median milliseconds (the L2 cache flushed between runs), times the floor, GB/s and TFLOP/s by least
counts, peak MiB above the inputs. The floor is the larger of least bytes over the copy rate and least flops
over the bf16 matmul rate, both measured here; attention is given the floor and counts of the op beside it.
"step" is one call with the cache flushed, "eager" and "graph" one of many calls in a row, without and within
a CUDA graph. fla's op is timed on the recurrence alone: what it leaves to others (softplus, dt * x, the skip,
B and C for every head) is done beforehand, and its gradients are not summed over heads.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch

from gpu_candidates import Candidate, Error, Problem, check, run_pass
from gpu_peers import compile_ahead, cores, forget_tuning, prepare_peers
from gpu_problems import Sizes, build_problem
from gpu_timing import Ceilings, graph_ms, latency_ms, measure_ceilings, median_ms, peak_mib
from rows import commit, machine, row, write_rows

OURS = "mambakit"
TRAINING = ("fwd", "fwd+bwd")
# the sizes of the dry run
_TINY = {"B": 2, "L": 70, "H": 4, "D": 24, "N": 16, "P": 16, "R": 50}
# a share of the peers' compiling runs these at most: the compiled code is the same
_SHARE_MOST = {"B": 2, "L": 4096}


class Case(NamedTuple):
    """What is timed: a problem at a size, in some passes, beside some peers (all if empty)."""

    kind: str
    sizes: Sizes
    passes: tuple[str, ...] = TRAINING
    peers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}/" + "-".join(f"{key}{value}" for key, value in self.sizes.items())


ATTENTION = ("torch_sdpa_flash", "torch_sdpa_cudnn")
CASES = (
    Case("ssd", {"B": 8, "L": 4096, "H": 80, "N": 128}),
    Case("ssd", {"B": 8, "L": 256, "H": 24, "N": 128}),
    Case("ssd", {"B": 8, "L": 4096, "H": 24, "N": 64}),
    Case("mamba3", {"B": 8, "L": 4096, "H": 80, "N": 128}),
    Case("selective_scan", {"B": 8, "L": 2048, "D": 1536, "N": 16}),
    Case("selective_scan", {"B": 8, "L": 8192, "D": 5120, "N": 16}),
    Case("ssd_step", {"B": 1, "H": 80, "N": 128}, ("eager", "graph")),
    Case("ssd_step", {"B": 64, "H": 80, "N": 128}, ("step",)),
    Case("causal_conv1d", {"B": 8, "L": 16384, "D": 1792}),
    Case("gated_rms_norm", {"R": 32768, "D": 1536}),
    Case("ssd", {"B": 1, "L": 131072, "H": 24, "N": 128}),
    Case("ssd", {"B": 8, "L": 16384, "H": 80, "N": 128}),
    Case("ssd", {"B": 8, "L": 256, "H": 80, "N": 128}, peers=ATTENTION),
    Case("ssd", {"B": 8, "L": 512, "H": 80, "N": 128}, peers=ATTENTION),
    Case("ssd", {"B": 8, "L": 1024, "H": 80, "N": 128}, peers=ATTENTION),
    Case("ssd", {"B": 8, "L": 2048, "H": 80, "N": 128}, peers=ATTENTION),
)


class Figures(NamedTuple):
    """One candidate in one pass: the error is that of the output, or of the worst gradient."""

    ms: float
    mib: float
    error: float
    is_right: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; status 1 if one of our own results was wrong or could not be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases to run, such as 'ssd/*L4096*'")
    parser.add_argument("--seconds", type=float, default=540.0, help="when to stop; the rest is named")
    parser.add_argument("--each", type=float, default=0.3, help="seconds of repeats for one figure")
    parser.add_argument("--errors", action="store_true", help="print the error of every tensor")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--processes", type=int, default=min(cores(), 16), help="that compile the peers")
    parser.add_argument("--write", action="store_true", help="write rows to benchmarks/results/gpu*.json")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU, ours alone")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    cases = [case for case in CASES if fnmatch(case.name, args.only)]
    if not cases:
        parser.error(f"--only: no case matches {args.only!r}; cases are {', '.join(c.name for c in CASES)}")
    if args.dry_run and args.write:
        parser.error("--write: a dry run's figures mean nothing")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("needs a CUDA device; --dry-run does without")
    if args.dry_run:
        cases = [next(case for case in cases if case.kind == kind) for kind in {c.kind: 0 for c in cases}]
        args.each = min(args.each, 0.02)
    if args.share:
        return _compile_share(cases, args.share)

    begin = time.monotonic()
    print(f"{machine()}; {_triton()}; commit {commit()}")
    with_peers = not (args.no_peers or args.dry_run)
    if with_peers:
        if args.processes > 1:
            command = [__file__, "--only", args.only]
            print(compile_ahead(command, args.processes, limit_s=args.seconds / 3), flush=True)
        for name, version in prepare_peers().items():
            print(f"{name}: {version}")
    ceilings = measure_ceilings(**({"copy_bytes": 1 << 24, "width": 64} if args.dry_run else {}))
    for ceiling in _ceiling_rows(ceilings):
        print(f"{ceiling['what']}: {ceiling['value']}", flush=True)
    if args.write:
        write_rows("gpu", _ceiling_rows(ceilings))
    wrong, skipped = [], []
    for case in cases:
        if time.monotonic() - begin > args.seconds:
            skipped.append(case.name)
            continue
        found = measure(
            case, ceilings, args.each, with_peers=with_peers, dry=args.dry_run, verbose=args.errors
        )
        if any(OURS not in figures or not figures[OURS].is_right for figures in found.values()):
            wrong.append(case.name)
        if args.write:
            headlines, details = case_rows(case, found)
            write_rows("gpu", headlines)
            write_rows("gpu-detail", details)
    if skipped:
        print(f"out of time, not measured: {', '.join(skipped)}")
    if wrong:
        print(f"ours wrong or failed: {', '.join(wrong)}")
    print(f"{time.monotonic() - begin:.0f} s")
    return 1 if wrong else 0


def measure(
    case: Case,
    ceilings: Ceilings,
    seconds: float,
    *,
    with_peers: bool,
    dry: bool = False,
    verbose: bool = False,
) -> dict[str, dict[str, Figures]]:
    """Checks, times and prints one case; figures by pass and candidate. What fails is printed and left out.

    Milliseconds of the floor stand beside them, under the name ``floor``.
    """
    problem = _build(case, dry)
    found: dict[str, dict[str, Figures]] = {}
    for which in case.passes:
        floor = ceilings.floor_ms(problem.n_bytes[which], problem.flops[which])
        found[which] = {"floor": Figures(floor, 0, 0, True)}
    print(f"{case.name}: " + ", ".join(f"{which} floor {f['floor'].ms:.4f} ms" for which, f in found.items()))
    all_errors: dict[str, dict[str, Error]] = {}
    for name, make in problem.candidates.items():
        if name != OURS and (not with_peers or (case.peers and name not in case.peers)):
            continue
        try:
            candidate = make()
            errors = all_errors[name] = check(candidate)
        except Exception as error:  # noqa: BLE001 - one that fails must not end the run
            print(f"  {name:16} {_reason(error)}", flush=True)
            continue
        for which in case.passes:
            try:
                ms, mib = _time(candidate, which, seconds)
            except Exception as error:  # noqa: BLE001 - as above
                print(f"  {name:16} {which:7} {_reason(error)}", flush=True)
                continue
            backward = which == "fwd+bwd"
            worst, rms = max(
                ((key, e.rms) for key, e in errors.items() if backward != key.startswith("out")),
                key=lambda pair: pair[1],
                default=("", math.nan),
            )
            # a forward pass may be right where the gradients are wrong
            right = all(e.is_fine for key, e in errors.items() if backward or key.startswith("out"))
            found[which][name] = Figures(ms, mib, rms, right)
            quality = f"err {rms:.1e} {worst if backward else ''}" if errors else "not checked"
            speeds = _speeds(problem, which, ms, found[which]["floor"].ms)
            print(
                f"  {name:16} {which:7} {speeds} {mib:6.0f} MiB {quality}{'' if right else ' WRONG'}",
                flush=True,
            )
        bad = [f"{key} {e.largest:.1e} > {e.allowed:.1e}" for key, e in errors.items() if not e.is_fine]
        if bad:
            print(f"  {name:16} wrong by the largest value: {', '.join(bad)}")
        if verbose and errors:
            print(f"  {name:16} " + " ".join(f"{key} {error.rms:.2e}" for key, error in errors.items()))
        del candidate
        _free()
    _compare_errors(all_errors)
    return found


def case_rows(
    case: Case, found: dict[str, dict[str, Figures]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of one case: milliseconds, and apart from these peak MiB, times the floor and errors."""
    headlines, details = [], []
    for which, by_name in found.items():
        floor = by_name["floor"].ms
        measured = {name: f for name, f in by_name.items() if name != "floor"}
        figures = _merge_attention({name: f for name, f in measured.items() if f.is_right})
        times = {name: f.ms for name, f in figures.items()}
        headlines.append(_row(f"gpu/{case.name}/{which}/ms", "ms", times))
        where = f"gpu-detail/{case.name}/{which}"
        if which in TRAINING:
            details.append(_row(f"{where}/mib", "MiB", {name: f.mib for name, f in figures.items()}))
        times = {name: f.ms / floor for name, f in figures.items()}
        details.append(_row(f"{where}/times-floor", "x", times))
        errors = {name: f.error for name, f in measured.items() if not math.isnan(f.error)}
        details.append(_row(f"{where}/rms-error", "relative", errors))
    return headlines, details


def _compare_errors(errors: dict[str, dict[str, Error]]) -> None:
    """Prints where ours is further from float64 than an original on the same inputs."""
    for name, theirs in errors.items():
        ours = errors.get(OURS, {})
        if name == OURS or name in ATTENTION or not theirs.keys() <= ours.keys():
            continue
        larger = [
            f"{key} {ours[key].rms:.2e} > {e.rms:.2e}"
            for key, e in theirs.items()
            if ours[key].rms > 1.02 * e.rms
        ]
        print(f"  errors of {OURS} above {name}'s: {', '.join(larger) or 'none'}")


def _row(what: str, unit: str, values: dict[str, float]) -> dict[str, Any]:
    rounded: dict[str, float | None] = {name: float(f"{value:.4g}") for name, value in values.items()}
    ours = rounded.pop(OURS, None)
    return row(what, ours, unit, peers=rounded, seeds=[0])


def _ceiling_rows(ceilings: Ceilings) -> list[dict[str, Any]]:
    return [
        row("gpu/ceilings/copy/GB-per-s", round(ceilings.copy_bytes_s / 1e9), "GB/s"),
        row("gpu/ceilings/matmul-bf16/TFLOP-per-s", round(ceilings.matmul_flop_s / 1e12), "TFLOP/s"),
    ]


def _merge_attention(figures: dict[str, Figures]) -> dict[str, Figures]:
    """Attention's backends as one peer, the faster."""
    kept = {name: f for name, f in figures.items() if name not in ATTENTION}
    attention = [figures[name] for name in ATTENTION if name in figures]
    return kept | ({"torch_sdpa": min(attention)} if attention else {})


def _build(case: Case, dry: bool) -> Problem:
    if not dry:
        return build_problem(case.kind, case.sizes, torch.device("cuda"), torch.bfloat16)
    sizes = {key: min(value, _TINY[key]) for key, value in case.sizes.items()} | {"P": _TINY["P"]}
    return build_problem(case.kind, sizes, torch.device("cpu"), torch.float32)


def _time(candidate: Candidate, which: str, seconds: float) -> tuple[float, float]:
    """Milliseconds and peak MiB of one pass."""
    run = run_pass(candidate, which)
    run()
    mib = peak_mib(run)
    if which == "eager":
        return latency_ms(run, seconds), mib
    if which == "graph" and torch.cuda.is_available():
        return graph_ms(run, seconds), mib
    return median_ms(run, seconds), mib


def _speeds(problem: Problem, which: str, ms: float, floor: float) -> str:
    flops = problem.flops[which]
    rate = f"{flops / ms / 1e9:4.0f} TFLOP/s" if flops else ""
    return f"{ms:8.4f} ms {ms / floor:6.2f}x {problem.n_bytes[which] / ms / 1e6:5.0f} GB/s {rate:12}"


def _compile_share(cases: Sequence[Case], share: str) -> int:
    """Runs every peer on small inputs, with a part of its tuning list."""
    index, _, count = share.partition("/")
    prepare_peers((int(index), int(count)))
    done = []
    for case in cases:
        small = {key: min(value, _SHARE_MOST.get(key, value)) for key, value in case.sizes.items()}
        if case.peers or (case.kind, small) in done:
            continue
        done.append((case.kind, small))
        # a size that is tuned already may still compile anew, for it divides otherwise
        forget_tuning()
        problem = build_problem(case.kind, small, torch.device("cuda"), torch.bfloat16)
        for name in ("mamba_ssm", "fla"):
            for which in case.passes if name in problem.candidates else ():
                try:
                    run_pass(problem.candidates[name](), which)()
                except Exception as error:  # noqa: BLE001 - the run itself says so, with the reason
                    print(f"{case.name} {name}: {_reason(error)}", file=sys.stderr)
        _free()
    return 0


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:160]}"


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "no triton"
    return f"triton {triton.__version__}"


if __name__ == "__main__":
    sys.exit(main())
