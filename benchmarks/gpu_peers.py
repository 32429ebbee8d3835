"""The peers' Triton kernels tune themselves at their first call: here that is spread over all cores.

Their tuning lists stay whole. Processes compile a share of the candidates each into Triton's cache, and the
tuning itself then times every candidate for 20 ms instead of 100.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PEERS = ("mamba_ssm", "causal_conv1d", "fla")
_TUNING_MS = 20


def prepare_peers(share: tuple[int, int] | None = None) -> dict[str, str]:
    """Import what there is of the peers and shorten their tuning.

    Args:
        share: ``(i, n)``: keep only every n-th candidate from the i-th, and only compile it.

    Returns:
        Version of each peer, or why it cannot be imported.
    """
    found = {name: _version(name) for name in PEERS}
    _lift_fla_guard()
    for tuner in _autotuners():
        if share is None:
            tuner._do_bench = _quick_bench
        else:
            tuner.cache_results = False  # a share's winner is nobody's
            tuner.configs = tuner.configs[share[0] :: share[1]] or tuner.configs[:1]
            tuner._do_bench = _call_once
    return found


def forget_tuning() -> None:
    """Every kernel tunes itself anew at its next call."""
    for tuner in _autotuners():
        tuner.cache.clear()


def compile_ahead(command: Sequence[str], processes: int, limit_s: float) -> str:
    """Run ``command --share i/n`` for every i at once; says how it went."""
    begin = time.perf_counter()
    failed, last = 0, ""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(i)) for i in range(processes)]
        children = []
        for i, log in enumerate(logs):
            with log.open("w") as out:
                share = [sys.executable, *command, "--share", f"{i}/{processes}"]
                children.append(subprocess.Popen(share, stdout=out, stderr=subprocess.STDOUT))
        for child, log in zip(children, logs, strict=True):
            try:
                child.wait(max(1.0, begin + limit_s - time.perf_counter()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.returncode:
                lines = log.read_text(errors="replace").strip().splitlines()
                failed, last = failed + 1, (lines or ["no output"])[-1]
    took = f"{processes} processes compiled the peers' kernels in {time.perf_counter() - begin:.0f} s"
    return took + (f"; {failed} failed or ran out of time: {last}" if failed else "")


def _version(name: str) -> str:
    try:
        module = importlib.import_module(name)
        for inner in _USED.get(name, ()):
            importlib.import_module(inner)
    except Exception as error:  # noqa: BLE001 - whatever a foreign package raises, the others are still timed
        return f"not there ({type(error).__name__}: {error})"
    return str(getattr(module, "__version__", "?"))


_USED = {
    "mamba_ssm": ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.layernorm_gated"),
    "fla": ("fla.ops.simple_gla",),
}


def _lift_fla_guard() -> None:
    """fla refuses its gated backward on Hopper under Triton 3.4 to 3.7.0: it may be wrong. We check it."""
    module: Any = sys.modules.get("fla.ops.common.chunk_o")
    if module is not None:
        module.TRITON_ABOVE_3_7_1 = True


def _autotuners() -> Iterator[Any]:
    if not any(name.partition(".")[0] in PEERS for name in sys.modules):
        return
    from triton.runtime.autotuner import Autotuner

    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in PEERS:
            continue
        for value in list(vars(module).values()):
            while value is not None and not isinstance(value, Autotuner):
                value = value.__dict__.get("fn") if hasattr(value, "__dict__") else None
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield value


def _quick_bench(call: Any, quantiles: Any) -> Any:
    from triton.testing import do_bench

    return do_bench(call, warmup=_TUNING_MS // 4, rep=_TUNING_MS, quantiles=quantiles)


def _call_once(call: Any, quantiles: Any) -> list[float]:
    call()
    return [1.0] * len(quantiles)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
