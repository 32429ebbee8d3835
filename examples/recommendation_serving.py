"""Serves a recommender that `mambakit recommendation export` wrote, without mambakit.

    pip install torch pyarrow
    python examples/recommendation_serving.py served 318@1763800000 296@1763800900

The events are ITEM@SECONDS in the order of time, or ITEM alone; prints the ten best items that come next.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch


class Server:
    """Scores items after histories."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "serving.json").read_text("utf-8"))
        self.step = torch.export.load(folder / "step.pt2").module()
        table = pq.read_table(folder / "items.parquet")
        self.items = table["item"].to_pylist()
        self.number = {name: i for i, name in enumerate(self.items)}
        vectors = table["vector"].combine_chunks().flatten().to_numpy()
        self.vectors = torch.tensor(vectors.reshape(len(self.items), -1))
        self.bias = torch.tensor(np.array(table["bias"]))

    def scores(self, items: list[str], times: list[float]) -> torch.Tensor:
        """``(n_items,)`` after these events; times in seconds, NaN where not known."""
        state = {
            name: torch.zeros(1, *tensor["shape"][1:]) for name, tensor in self.about["step"]["state"].items()
        }
        hidden, state = self._stepped(self.about["start"]["item"], self.about["start"]["gap"], state)
        known = [
            (self.number[item], time) for item, time in zip(items, times, strict=True) if item in self.number
        ]
        for i, (number, time) in enumerate(known):
            gap = self._gap(time - known[i - 1][1]) if i else (0 if math.isnan(time) else 1)
            hidden, state = self._stepped(number, gap, state)  # a server keeps the state, and steps once
        score = self.vectors @ hidden[0] + self.bias
        score[list({number for number, _ in known})] += self.about["repeat_shift"]
        return score

    def _stepped(
        self, item: int, gap: int, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            hidden, state = self.step(torch.tensor([item]), torch.tensor([gap]), state)
        return hidden, state

    @staticmethod
    def _gap(seconds: float) -> int:
        if math.isnan(seconds):
            return 0
        return 2 if seconds == 0 else min(35, 3 + math.floor(math.log2(max(1.0, seconds))))


def main() -> None:
    """The command line."""
    server = Server(Path(sys.argv[1]))
    events = [word.rpartition("@") if "@" in word else (word, "", "nan") for word in sys.argv[2:]]
    score = server.scores([item for item, _, _ in events], [float(time) for _, _, time in events])
    for item, _, _ in events:
        if item in server.number:
            score[server.number[item]] = -torch.inf
    best = score.topk(min(10, len(score)))
    for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if math.isfinite(value):  # else had before, or an item of which nothing is known
            print(f"{server.items[place]}  {value:.4f}")


if __name__ == "__main__":
    main()
