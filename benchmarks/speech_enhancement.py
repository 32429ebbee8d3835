"""Enhancement beside log-MMSE: trained on synthetic voices and noise, measured on 20 VoiceBank-DEMAND pairs.

    python benchmarks/speech_enhancement.py --seeds 0 1 2 --max-time 20m --set model.n_layers=4

The pairs are of the public corpus' test part and are never trained on. Rows go into results/speech.json as
``speech/voicebank-20/pesq``, ``.../stoi`` and ``.../si-sdr``: the mean over seeds, and their deviation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

UNITS = {"pesq": "MOS-LQO", "stoi": "", "si_sdr": "dB"}


def run(
    seed: int, data: str, max_time: str | None, changes: dict[str, dict[str, Any]]
) -> list[dict[str, object]]:
    """Trains one model; the means of every score for noisy, log-MMSE and ours."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.enhance.config import (
        PRESET_ENHANCE,
        PRESET_ENHANCE_LOSS,
        PRESET_ENHANCE_TRAIN,
        PRESET_MIX,
    )
    from mambakit.domains.speech.enhance.data import load_noises, load_pairs, load_pools
    from mambakit.domains.speech.enhance.evaluation import evaluate
    from mambakit.domains.speech.enhance.training import train_enhancer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model_config = dataclasses.replace(PRESET_ENHANCE, **changes.get("model", {}))
    train_config = dataclasses.replace(
        PRESET_ENHANCE_TRAIN, **changes.get("train", {}), seed=seed, max_time=max_time, device=device
    )
    pools = load_pools(data, model_config.rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = train_enhancer(
            pools.train,
            pools.validation,
            load_noises("noise", model_config.rate_hz),
            RunFolder(Path(folder) / "run"),
            model_config=model_config,
            mix_config=dataclasses.replace(PRESET_MIX, **changes.get("mix", {})),
            loss_config=dataclasses.replace(PRESET_ENHANCE_LOSS, **changes.get("loss", {})),
            train_config=train_config,
            name=data,
        )
    return evaluate(model.to(device), load_pairs("voicebank-demand-20", model_config.rate_hz)).means()


def main() -> int:
    """Runs every seed, prints the means and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="spoken-sentences")
    parser.add_argument("--max-time", default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="PART.NAME=VALUE", help="values are JSON")
    arguments = parser.parse_args()
    changes: dict[str, dict[str, Any]] = {}
    for one in arguments.set:
        name, _, value = one.partition("=")
        part, _, option = name.partition(".")
        changes.setdefault(part, {})[option] = json.loads(value)
    from rows import row, write_rows

    done = [
        {str(one["model"]): one for one in run(seed, arguments.data, arguments.max_time, changes)}
        for seed in arguments.seeds
    ]
    made = []
    for score, unit in UNITS.items():
        values = [float(one["this model"][score]) for one in done if score in one["this model"]]  # type: ignore[arg-type]
        if not values:
            continue
        peers = {name: float(done[0][name][score]) for name in ("noisy", "log-MMSE")}  # type: ignore[arg-type]
        spread = statistics.stdev(values) if len(values) > 1 else None
        what = f"speech/voicebank-20/{score.replace('_', '-')}"
        made.append(
            row(what, statistics.mean(values), unit, peers=peers, spread=spread, seeds=arguments.seeds)
        )
        print(what, made[-1]["value"], peers)
    print(f"{len(made)} rows written to {write_rows('speech', made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
