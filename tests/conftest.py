"""Without a GPU, Triton's kernels run in its interpreter; torch shares the cores with other workers.

Triton reads its variable as it meets the first kernel, OpenMP its own as torch loads: both are set before any
test module is imported. OpenMP's threads wait by spinning: workers with a thread for every core each would
stand in each other's way for minutes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("torchaudio") is not None:
    # transformers imports torchaudio, whose wheels need this beside a CPU build of torch
    from mambakit.core.torchaudio_parts import torchaudio

    torchaudio()


@pytest.fixture(scope="session", autouse=True)
def quick_pictures() -> Iterator[None]:
    """Pictures are drawn whole, but not laid out: matplotlib's layout takes longer than the drawing.

    Of what an app's test of a training run takes, that is a fifth.
    """
    if importlib.util.find_spec("matplotlib") is None:
        yield
        return
    from matplotlib.figure import Figure

    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        save(figure, *arguments, **{**options, "bbox_inches": None})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", savefig)
        yield
