"""Peak memory of reading and training on a table of ten million rows, the whole process counted.

    python benchmarks/timeseries_memory.py --write
    python benchmarks/timeseries_memory.py --lookback 720 --write

10,000 hourly series of 1,000 rows in a Parquet file, the network's frozen preset with one member, some steps
of training with validation on 512 series. Windows are numbers: nothing grows with lookback times windows.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

MAKE = "import sys; from timeseries_memory import make; make(sys.argv[1], int(sys.argv[2]))"


def make(path: str, n_series: int, length: int = 1000) -> None:
    """Write the table."""
    rng = np.random.default_rng(0)
    ids = pd.Categorical.from_codes(
        np.repeat(np.arange(n_series), length), [f"s{i:05d}" for i in range(n_series)]
    )
    stamps = np.tile(pd.date_range("2024-01-01", periods=length, freq="h").to_numpy(), n_series)
    day = np.sin(np.arange(length) * 2 * np.pi / 24)
    y = (10 + day[None] + 0.3 * rng.standard_normal((n_series, length))).ravel()
    pd.DataFrame({"unique_id": ids, "ds": stamps, "y": y}).to_parquet(path, index=False)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lookback", type=int, default=168)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        # in a process of its own, whose memory is not ours
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {MAKE}"]
        subprocess.run([*command, str(path), str(arguments.series)], check=True)
        began = time.monotonic()

        from mambakit.core.training import RunFolder
        from mambakit.domains.timeseries.config import PRESET_STREAM, PRESET_STREAM_LOSS, PRESET_STREAM_TRAIN
        from mambakit.domains.timeseries.data import load_data
        from mambakit.domains.timeseries.stream.training import train_stream

        data = load_data(str(path))
        print(f"read in {time.monotonic() - began:.1f} s, peak {peak():.0f} MiB", flush=True)
        train_stream(
            data.series,
            data.bounds,
            RunFolder(Path(folder) / "run"),
            lookback=arguments.lookback,
            horizon=24,
            season_length=data.season_length,
            mixed=False,
            model_config=dataclasses.replace(PRESET_STREAM, members=1),
            loss_config=dataclasses.replace(PRESET_STREAM_LOSS, validation_stride=24),
            train_config=dataclasses.replace(PRESET_STREAM_TRAIN, max_steps=arguments.steps, device="cpu"),
        )
    n = sum(len(one.values) for one in data.series)
    found = peak()
    print(f"{n} rows of {len(data.series)} series: {found:.0f} MiB at most, {time.monotonic() - began:.0f} s")
    if arguments.write:
        from rows import row, write_rows

        size = f"{n}-rows" if arguments.lookback == 168 else f"{n}-rows-L{arguments.lookback}"
        what = f"timeseries-memory/{size}/train/peak-mib"
        write_rows("timeseries-memory", [row(what, round(found), "MiB")])
    return 0


def peak() -> float:
    """Most memory this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
