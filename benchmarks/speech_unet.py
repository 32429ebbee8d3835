"""Speech enhancement in a U beside the straight stack: as many weights, as many minutes of one core.

    python benchmarks/speech_unet.py --minutes 2 --seeds 0 1          # as many minutes a network and seed

Both stream. The U is a pair of blocks over time and frequency, one at half the frames and patches, and one
again at the full rate; the straight stack has three in a row and a larger state, which makes up for what the
U's resampling weighs. They learn from the same mixtures of synthetic voices in synthetic noise, at a constant
learning rate, and are measured on the same mixtures of other voices. Rows go into results/speech.json as
``speech/enhance-unet/...``. So short a run says which learns faster, and no more.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

import torch

from mambakit.domains.speech.chance import Chance
from mambakit.domains.speech.enhance.config import (
    PRESET_ENHANCE,
    PRESET_ENHANCE_LOSS,
    PRESET_MIX,
    EnhanceConfig,
)
from mambakit.domains.speech.enhance.data import Pools, load_pools
from mambakit.domains.speech.enhance.metrics import si_sdr
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.enhance.task import losses
from mambakit.domains.speech.mixtures import NoisyMixer, kept
from rows import machine, row, write_rows

U, STRAIGHT = "U", "straight"
CONFIGS: dict[str, EnhanceConfig] = {
    U: dataclasses.replace(PRESET_ENHANCE, levels=2, n_layers=1, time_factor=2),
    STRAIGHT: dataclasses.replace(PRESET_ENHANCE, block_options={"head_dim": 24, "d_state": 36}),
}
_BATCH, _SEGMENT_S, _LR, _VALIDATION_SEED, _PIECE_S, _STREAM_S = 4, 1.0, 2e-3, 11, 0.032, 10


def train(config: EnhanceConfig, pools: Pools, seed: int, minutes: float) -> tuple[Enhancer, int]:
    """A network and its steps; what making mixtures takes is not counted."""
    torch.manual_seed(seed)
    model = Enhancer(config).train()
    mixer = NoisyMixer(pools.train, [], dataclasses.replace(PRESET_MIX, segment_s=_SEGMENT_S))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.01)
    chance, spent, steps = Chance(generator=torch.Generator().manual_seed(seed)), 0.0, 0
    while spent < 60 * minutes:
        noisy, clean = mixer(_BATCH, chance)
        began = time.process_time()
        loss, _ = losses(model, PRESET_ENHANCE_LOSS, noisy, clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent += time.process_time() - began
        steps += 1
    return model.eval(), steps


@torch.no_grad()
def measure(model: Enhancer, pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    noisy, clean = pairs
    loss, said = losses(model, PRESET_ENHANCE_LOSS, noisy, clean)
    gain = (si_sdr(said, clean) - si_sdr(noisy, clean)).mean()
    return {"validation-loss": loss.item(), "si-sdr-gain": gain.item(), "real-time-factor": rtf(model)}


@torch.no_grad()
def rtf(model: Enhancer) -> float:
    """Seconds of one core for a second of a stream in short pieces, after a second to warm up."""
    piece = round(_PIECE_S * model.config.rate_hz)
    state, began = model.init_state(1), time.process_time()
    n = round(_STREAM_S / _PIECE_S)
    for i in range(n + round(1 / _PIECE_S)):
        if i == round(1 / _PIECE_S):
            began = time.process_time()
        _, state = model.step(0.1 * torch.randn(1, piece), state)
    return (time.process_time() - began) / (n * _PIECE_S)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="of one core, for each network and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--validation", type=int, default=24, help="mixtures that are measured")
    parser.add_argument("--trial", action="store_true", help="write no rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pools = load_pools("spoken-sentences", PRESET_ENHANCE.rate_hz)
    held = NoisyMixer(pools.validation, [], dataclasses.replace(PRESET_MIX, gain_db=0.0))
    pairs = kept(held, arguments.validation, _VALIDATION_SEED)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONFIGS}
    for seed in arguments.seeds:
        for name, config in CONFIGS.items():
            model, steps = train(config, pools, seed, arguments.minutes)
            weights = sum(one.numel() for one in model.parameters())
            found[name].append({**measure(model, pairs), "steps": steps, "parameters": weights})
            print(name, seed, found[name][-1], flush=True)
    units = {
        "validation-loss": "loss",
        "si-sdr-gain": "dB",
        "real-time-factor": "s of one core a second of sound",
        "steps": "steps",
        "parameters": "parameters",
    }
    made = []
    for what, unit in units.items():
        of = {name: [one[what] for one in runs] for name, runs in found.items()}
        means = {name: float(f"{statistics.mean(values):.6g}") for name, values in of.items()}
        spread = float(f"{statistics.stdev(of[U]):.2g}") if len(of[U]) > 1 else None
        made.append(
            row(
                f"speech/enhance-unet/{what}/{arguments.minutes:g}min",
                means[U],
                unit,
                peers={STRAIGHT: means[STRAIGHT]},
                spread=spread,
                seeds=arguments.seeds,
            )
        )
        print(what, means)
    print(machine())
    if not arguments.trial:
        print(f"wrote {write_rows('speech', made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
