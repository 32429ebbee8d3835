"""Latency of one more event on the CPU, batch 1: the preset beside the same stack with attention.

    python benchmarks/recommendation_live.py --write

* ``step``: the network's step after 1,000 and 10,000 events: mamba2+mlp (the preset), and attention+mlp of
  the same sizes in two ways: with this project's attention block, which copies its cache at each step, and
  with the same weights, keys and values in buffers of full size that a step writes one row of
  (``scaled_dot_product_attention`` over a view of what is filled), which is the fair comparison. By the clock
  and by the thread's CPU time, which other work on the machine disturbs less.
* ``update``: all that ``mambakit recommendation update`` does in a running process: state out of a SQLite
  store, step, the best 10 of 3,416 items, state into the store.
* ``bulk``: events per second of ``update_all`` (one event each of many users; and 50 each), SQLite and Redis.

Ways are timed in turn, in several rounds; a row has the median of the rounds' medians. First, that both ways
of attention give the same numbers is asserted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from recommendation_store import redis_server
from torch import Tensor

from mambakit.core.adapters import TokenBatch
from mambakit.core.blocks.rotary import rotate
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.incoming import read_incoming
from mambakit.domains.recommendation.live import LiveRecommender
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.store import open_store
from mambakit.domains.recommendation.tokenizer import EventTokenizer
from mambakit.domains.recommendation.updating import update_all
from rows import row, write_rows

N_ITEMS = 3416
"""Of ML-1M with five events at least."""
HISTORIES = (1000, 10_000)
K = 10


def recommender(blocks: list[str]) -> Recommender:
    """A preset of random weights, with these blocks."""
    torch.manual_seed(0)
    config = dataclasses.replace(ModelConfig(), blocks=blocks)
    model = Recommender(RecommenderConfig(N_ITEMS, model=config))
    model.tokenizer = EventTokenizer([f"i{i}" for i in range(N_ITEMS)])
    return model.eval()


class BufferedAttention:
    """The step of attention+mlp layers with keys and values in buffers of full size, ``(1, heads, size, d)``.

    ``past`` is given once, as many rows of keys and values as the history has events.
    """

    def __init__(self, model: Recommender, past: Any, room: int) -> None:
        self.model, self.layers = model, []
        self.filled = int(past["0"]["key"].shape[1])
        self.start = self.filled
        backbone = model.backbone
        for name, norm, block in zip(past, backbone.norms, backbone.blocks, strict=True):
            kept = None
            if "key" in past[name]:
                kept = []
                for part in ("key", "value"):
                    own = past[name][part].transpose(1, 2)  # [1, h, l, d]
                    buffer = torch.zeros(1, own.shape[1], self.filled + room, own.shape[3])
                    buffer[:, :, : self.filled] = own
                    kept.append(buffer)
            self.layers.append((norm, block, kept))

    def step(self, event: Tensor, catalogue: Any) -> Tensor:
        """The hidden state behind one more event, ``(1, d_model)``."""
        x = self.model._embed(event[:, None], catalogue, None)[:, 0]
        at = self.filled
        position = torch.tensor([[at]])
        for norm, block, kept in self.layers:
            y = norm(x)
            if kept is None:
                y, _ = block.mix(y, None, None, None)
            else:
                q, k, v = block.in_proj(y).view(1, 3, block.n_heads, block.head_dim).unbind(1)  # [1, h, d]
                qk = rotate(torch.cat([q, k], 1)[:, None], position, block.rope_theta, block.n_rotated)
                q, k = qk[:, 0].chunk(2, 1)
                keys, values = kept
                keys[:, :, at], values[:, :, at] = k, v
                y = F.scaled_dot_product_attention(
                    q[:, :, None], keys[:, :, : at + 1], values[:, :, : at + 1], scale=block.scale
                )
                y = block.out_proj(y.flatten(1))
            x = x + y
        self.filled += 1
        return self.model.backbone.final_norm(x)

    def nbytes(self) -> int:
        """Bytes of the keys and values that are filled."""
        per_row = sum(b[:, :, 0].nbytes for _, _, kept in self.layers if kept for b in kept)
        return per_row * self.filled


def timed(step: Callable[[], object], n: int) -> NDArray[np.float64]:
    """Seconds of ``n`` calls, each: by the clock and of this thread's CPU time, ``(2, n)``."""
    took = np.zeros((2, n))
    for i in range(n):
        began = time.perf_counter(), time.thread_time()
        step()
        took[:, i] = time.perf_counter() - began[0], time.thread_time() - began[1]
    return took


@torch.no_grad()
def history_of(model: Recommender, length: int) -> Any:
    """The state after a random history."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(N_ITEMS, size=length), rng.integers(1, 30, length)], 1)
    values[0] = model.tokenizer.start, 0
    batch = TokenBatch(torch.from_numpy(values)[None], torch.tensor([length]))
    return model(batch, model.catalogue())[1].map(Tensor.contiguous)  # as it comes out of a store


@torch.no_grad()
def steps(rounds: int, n: int) -> list[dict[str, Any]]:
    """Rows of the network's step alone."""
    ours, peer = recommender(["mamba2", "mlp"]), recommender(["attention", "mlp"])
    event = torch.tensor([[5, 9]])
    made = []
    for length in HISTORIES:
        states = {"mamba2": history_of(ours, length), "copying": history_of(peer, length)}
        buffered = BufferedAttention(peer, states["copying"], room=rounds * n + 10)
        catalogues = {"mamba2": ours.catalogue(), "copying": peer.catalogue()}
        first, _ = peer.step(event, catalogues["copying"], states["copying"])
        torch.testing.assert_close(buffered.step(event, catalogues["copying"]), first, atol=1e-4, rtol=1e-4)

        def mamba(state: Any = states["mamba2"], catalogue: Any = catalogues["mamba2"]) -> None:
            ours.step(event, catalogue, state)

        def copying(state: Any = states["copying"], catalogue: Any = catalogues["copying"]) -> None:
            peer.step(event, catalogue, state)

        def in_buffers(own: BufferedAttention = buffered, catalogue: Any = catalogues["copying"]) -> None:
            own.step(event, catalogue)

        ways = {"mamba2": mamba, "attention, buffers": in_buffers, "attention, copying": copying}
        found: dict[str, list[NDArray[np.float64]]] = {way: [] for way in ways}
        for way in ways.values():
            timed(way, 5)
        for _ in range(rounds):
            for way, step in ways.items():
                buffered.filled = buffered.start
                found[way].append(timed(step, n))
        made += lines("step", length, found)
        nbytes = {"mamba2": states["mamba2"].nbytes, "attention, buffers": buffered.nbytes()}
        made.append(line(f"state-bytes/{length}", nbytes, "bytes"))
    return made


def lines(what: str, length: int, found: dict[str, list[NDArray[np.float64]]]) -> list[dict[str, Any]]:
    """Median and 99th percentile of each way after a history: medians over rounds of ``timed``."""
    made = []
    for clock, unit in enumerate(("seconds", "cpu-seconds")):
        for quantile, name in ((0.5, "median"), (0.99, "p99")):
            each = {
                way: [float(np.quantile(one[clock], quantile)) for one in runs] for way, runs in found.items()
            }
            value = {way: statistics.median(runs) for way, runs in each.items()}
            first = next(iter(each.values()))
            spread = statistics.stdev(first) if len(first) > 1 else None
            made.append(line(f"{what}-{unit}/{length}/{name}", value, "s", spread))
    return made


def line(what: str, value: dict[str, float], unit: str, spread: float | None = None) -> dict[str, Any]:
    """A row of the first way, the others as its peers."""
    (first, own), *others = value.items()
    print(
        f"{what} [{unit}] {first} {own:.6g}  "
        + "  ".join(f"{k}: {v:.6g} ({v / own:.2f}x)" for k, v in others),
        flush=True,
    )
    return row(f"recommendation/live/{what}", own, unit, peers=dict(others), spread=spread)


def updates(folder: Path, rounds: int, n: int) -> list[dict[str, Any]]:
    """Rows of whole updates of one event, and of its parts."""
    model = recommender(["mamba2", "mlp"])
    live = LiveRecommender(model)
    made = []
    rng = np.random.default_rng(0)
    for length in HISTORIES:
        catalogue_items = rng.integers(N_ITEMS, size=length)
        user = live.after_all([live.begin()], [catalogue_items], [np.arange(length, dtype=np.float64)])[0]
        runs = []
        for turn in range(rounds):
            with open_store(folder / f"one-{length}-{turn}.db", live.fingerprint) as store:
                store.put("42", live.write(user), [f"e{i}" for i in range(length)], time=float(length))
                count = iter(range(length, length + n + 10))

                def one(store: Any = store, count: Any = count) -> None:
                    at = next(count)
                    outcome = store.update(
                        "42", f"e{at}", lambda past: live.moved(past, f"i{at % N_ITEMS}", at), time=at
                    )
                    live.top(live.read(outcome.record.state), K)

                timed(one, 3)
                runs.append(timed(one, n))
        made += lines("update", length, {"SQLite": runs})
    return made


def bulk(folder: Path, redis_url: str | None, rounds: int) -> list[dict[str, Any]]:
    """Rows of events per second in bulk."""
    live = LiveRecommender(recommender(["mamba2", "mlp"]))
    rng = np.random.default_rng(0)
    made = []
    for n_users, each in ((1000, 1), (200, 50)):
        frame = pd.DataFrame(
            {
                "user": np.repeat([f"u{i}" for i in range(n_users)], each),
                "item": [f"i{i}" for i in rng.integers(N_ITEMS, size=n_users * each)],
                "timestamp": 1e9 + np.arange(n_users * each),
            }
        )
        urls = {"SQLite": str(folder / f"bulk-{each}.db")} | ({"Redis": redis_url} if redis_url else {})
        rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in urls}
        for turn in range(rounds + 1):
            for kind, url in urls.items():
                # users who have a state already: every round goes on from the one before
                events = read_incoming(frame.assign(timestamp=frame["timestamp"] + 1e6 * turn))
                with open_store(url, live.fingerprint, anew=turn == 0) as store:
                    began = time.perf_counter(), time.process_time()
                    done = update_all(live, store, events, K)
                    took = time.perf_counter() - began[0], time.process_time() - began[1]
                assert done.counts() == {"applied": len(events)}
                if turn:  # the first compiles
                    rates[kind].append((len(events) / took[0], len(events) / took[1]))
        for clock, unit in enumerate(("second", "cpu-second")):
            value = {kind: statistics.median(one[clock] for one in runs) for kind, runs in rates.items()}
            spread = statistics.stdev(one[clock] for one in rates["SQLite"]) if rounds > 1 else None
            made.append(line(f"bulk-events-per-{unit}/{each}-a-user", value, f"events/{unit}", spread))
    return made


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of each way in a round")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()}, {torch.get_num_threads()} threads", flush=True)
    made = steps(arguments.rounds, arguments.steps)
    with ExitStack() as stack:
        # here, as a temporary folder may be in memory
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        made += updates(folder, arguments.rounds, arguments.steps)
        url = stack.enter_context(redis_server(folder)) if shutil.which("redis-server") else None
        made += bulk(folder, url, arguments.rounds)
    print(f"load {os.getloadavg()}", flush=True)
    if arguments.write:
        print(write_rows("recommendation-live", made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
