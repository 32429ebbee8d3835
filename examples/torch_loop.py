"""A Mamba-2 block inside somebody else's torch module and training loop: cleaning a noisy vibration sensor.

    python examples/torch_loop.py

Nothing here but the block is mambakit's: no config, no trainer, no adapter. Trained on whole recordings, the
filter then runs live, one sample at a time, in constant memory, and gives the very same numbers.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from mambakit.core.blocks import Mamba2
from mambakit.core.state import State


class SensorFilter(nn.Module):
    """Two readings a sample in, the clean displacement out; sees only the past."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)
        self.memory = Mamba2(d_model=width, d_state=16, head_dim=16)
        self.outlet = nn.Linear(width, 1)

    def forward(self, readings: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``(batch, length, 2)`` to ``(batch, length)``, and the state after it."""
        h = self.inlet(readings)
        mixed, state = self.memory(self.norm(h), state)
        return self.outlet(h + mixed).squeeze(-1), state

    def step(self, reading: Tensor, state: State) -> tuple[Tensor, State]:
        """One sample ``(batch, 2)`` of a live stream."""
        h = self.inlet(reading)
        mixed, state = self.memory.step(self.norm(h), state)
        return self.outlet(h + mixed).squeeze(-1), state


def recordings(n: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two noisy sensors, and the sum of two sines that both of them measure."""
    t = torch.arange(length) / 100
    hz = 1 + 4 * torch.rand(n, 2, 1, generator=generator)
    phase = 6.28 * torch.rand(n, 2, 1, generator=generator)
    clean = (6.28 * hz * t + phase).sin().sum(1)
    return clean[..., None] + torch.randn(n, length, 2, generator=generator), clean


def main(steps: int = 300) -> dict[str, float]:
    """Train, then stream a new recording; returns the mean squared errors and the streaming difference."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = SensorFilter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        readings, clean = recordings(16, 128, generator)
        estimate, _ = model(readings)
        loss = (estimate - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4}  mean squared error {loss.item():.3f}")

    model.eval()
    readings, clean = recordings(4, 500, generator)  # longer than any in training
    with torch.inference_mode():
        whole, _ = model(readings)
        state, live = model.memory.init_state(4), []
        for reading in readings.unbind(1):
            estimate, state = model.step(reading, state)
            live.append(estimate)
    result = {
        "sensors": (readings.mean(-1) - clean).square().mean().item(),
        "filtered": (torch.stack(live, 1) - clean).square().mean().item(),
        "live against whole": (torch.stack(live, 1) - whole).abs().max().item(),
        "bytes of state a stream": state.nbytes / 4,
    }
    for name, value in result.items():
        print(f"{name}: {value:.3g}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
