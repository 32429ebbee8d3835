"""Separation of two FSDD speakers that training never heard, beside a Conv-TasNet of equal size, in one run.

    python benchmarks/speech_separation.py --seeds 0 1 2 --max-time 20m

Both are trained on the same mixtures for as long. The row is ``speech/fsdd-2mix/si-snri/unseen-pair``.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path


def run(seed: int, unseen: list[str], max_time: str | None) -> dict[str, float]:
    """SI-SNRi in dB of both networks."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.enhance.data import load_pools
    from mambakit.domains.speech.separate.config import (
        PRESET_PAIRS,
        PRESET_SEPARATE,
        PRESET_SEPARATE_TRAIN,
    )
    from mambakit.domains.speech.separate.training import (
        gains,
        test_mixtures,
        train_baseline,
        train_separator,
        with_unseen,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = dataclasses.replace(PRESET_SEPARATE_TRAIN, seed=seed, max_time=max_time, device=device)
    pairs = dataclasses.replace(PRESET_PAIRS, unseen=unseen)
    pools = with_unseen(load_pools("fsdd", PRESET_SEPARATE.rate_hz, task="separate"), unseen)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = train_separator(
            pools,
            RunFolder(Path(folder) / "ours"),
            model_config=PRESET_SEPARATE,
            pair_config=pairs,
            train_config=config,
        )
        beside = train_baseline(model, pools, Path(folder) / "theirs", pairs, config)
    mixtures = test_mixtures(pools, pairs, 200)
    return {
        name: statistics.mean(gains(net.to(device), mixtures))
        for name, net in (("mambakit", model), ("Conv-TasNet", beside))
    }


def main() -> int:
    """Runs every seed, prints the means and writes the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--unseen", nargs=2, default=["theo", "lucas"])
    parser.add_argument("--max-time", default=None)
    arguments = parser.parse_args()
    from rows import row, write_rows

    done = [run(seed, arguments.unseen, arguments.max_time) for seed in arguments.seeds]
    ours, theirs = ([one[name] for one in done] for name in ("mambakit", "Conv-TasNet"))
    made = row(
        "speech/fsdd-2mix/si-snri/unseen-pair",
        statistics.mean(ours),
        "dB",
        peers={"Conv-TasNet": statistics.mean(theirs)},
        spread=statistics.stdev(ours) if len(ours) > 1 else None,
        seeds=arguments.seeds,
    )
    print(made["what"], made["value"], made["peers"])
    print(f"1 row written to {write_rows('speech', [made])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
