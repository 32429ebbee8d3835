"""Parity, which needs a state that turns: Mamba-3 learns it, Mamba-2 and a Mamba-3 that cannot turn do not.

A real decay between 0 and 1 keeps a sum or forgets it, and a sum of 40 bits has to be told even from odd by
what is read; a channel pair that turns by pi at every 1 is the parity (Lahoti et al. 2026, arXiv:2603.15569;
Grazzi et al. 2024, arXiv:2411.12537).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig

LENGTH = 40
WIDTH = 16
STEPS = 300
# a turn by pi takes a step of about 1
SIZE = {"d_state": 8, "head_dim": 16, "dt_min": 0.5, "dt_max": 1.0}


class Reader(nn.Module):
    """Two logits after every bit; one layer."""

    def __init__(self, kind: str, options: dict[str, object]) -> None:
        super().__init__()
        self.embed = nn.Embedding(2, WIDTH)
        config = BackboneConfig(d_model=WIDTH, layers=[kind], block_options={kind: {**SIZE, **options}})
        self.backbone = Backbone(config)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, bits: Tensor) -> Tensor:
        return self.head(self.backbone(self.embed(bits))[0])


def last_parity_right(kind: str, options: dict[str, object]) -> float:
    """How often the parity of 40 bits is right after training on as many, from short to long."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    reader = Reader(kind, options)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, STEPS)
    for step in range(STEPS):
        length = min(LENGTH, 2 + 2 * LENGTH * step // STEPS)
        bits = torch.randint(0, 2, (64, length), generator=draw)
        loss = F.cross_entropy(reader(bits).flatten(0, 1), (bits.cumsum(1) % 2).flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    bits = torch.randint(0, 2, (1024, LENGTH), generator=draw)
    with torch.no_grad():
        guess = reader(bits)[:, -1].argmax(-1)
    return (guess == bits.sum(1) % 2).double().mean().item()


@pytest.mark.slow
def test_mamba3_learns_parity():
    assert last_parity_right("mamba3", {"rope_fraction": 1.0}) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("mamba2", {}), ("mamba3", {"rope_fraction": 0.0})])
def test_a_real_decay_does_not(kind, options):
    # a guess is right within 0.5 +- 0.05 (three standard errors of 1024)
    assert last_parity_right(kind, options) < 0.6
