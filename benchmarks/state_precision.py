"""What is lost when states are stored in bfloat16, int8 or low rank: character models on Python's own manual.

    python benchmarks/state_precision.py --write                  # about five minutes on two cores
    python benchmarks/state_precision.py --write --models mamba2 --stores rank-2 rank-4 rank-8 rank-8-int8

Each model is trained on three quarters of the pages of ``pydoc_data.topics``, which every Python brings, as
streams with a carried state. On the other pages, one a row, the state is stored and restored once, before the
last 256 characters, or after every k-th character from there on. Then, over those characters: the divergence
from the model that was not interrupted (KL, nats a character) and the change of the text's cross-entropy.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.state import State
from mambakit.core.state_low_rank import low_rank
from mambakit.core.state_storage import SCALES, compress, decompress
from mambakit.core.training import DocumentStreams, begin_rows, configure_optimizer
from mambakit.core.training.config import TrainConfig
from rows import machine, row, write_rows

D_MODEL, LENGTH, AFTER = 96, 768, 512
MODELS = {
    "mamba1": (["mamba1"], 3, {"mamba1": {"d_state": 16}}),
    "mamba2": (["mamba2"], 3, {"mamba2": {"d_state": 64, "head_dim": 32}}),
    "hybrid": (
        ["mamba2", "attention"],
        2,
        {"mamba2": {"d_state": 64, "head_dim": 32}, "attention": {"n_heads": 3}},
    ),
}
STORES: dict[str, Callable[[State], State]] = {"bfloat16": lambda state: compress(state, "bfloat16")}
for _scale in SCALES:
    STORES[f"int8-{_scale}"] = lambda state, scale=_scale: compress(state, "int8", scale)  # type: ignore[misc]
for _rank in (2, 4, 8):
    STORES[f"rank-{_rank}"] = lambda state, rank=_rank: low_rank(state, rank)  # type: ignore[misc]
STORES["rank-8-int8"] = lambda state: compress(low_rank(state, 8), "int8")
WHEN: dict[str, int | None] = {"once": None, "every-64": 64, "every-16": 16, "every-1": 1}


def corpus() -> tuple[list[Tensor], Tensor, int]:
    """Training pages, held-out rows ``(pages, LENGTH + 1)``, and the number of characters known."""
    pages = [text for _, text in sorted(topics.items())]
    known = {letter: i for i, letter in enumerate(sorted(set("".join(pages))))}
    ids = [torch.tensor([known[letter] for letter in page]) for page in pages]
    held_out = [page[: LENGTH + 1] for page in ids[::4] if len(page) > LENGTH]
    return [page for i, page in enumerate(ids) if i % 4], torch.stack(held_out), len(known)


def train(kind: str, documents: list[Tensor], n_ids: int, steps: int, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    layers, repeat, options = MODELS[kind]
    config = BackboneConfig(D_MODEL, layers, repeat=repeat, block_options=options)
    model = LanguageModel(LanguageModelConfig(n_ids, config))
    made = configure_optimizer(model, TrainConfig(lr=4e-3), steps)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    if "attention" in layers:  # its cache holds the whole document, so that long ones would take the memory
        documents = [part for document in documents for part in document.split(1024)]
    streams = DocumentStreams(documents, n_streams=16, piece_length=128, seed=seed)
    state, done = None, 0
    while done < steps:
        for piece in streams:
            logits, state = model(piece.values, begin_rows(model, state, piece.fresh), seq_idx=piece.seq_idx)
            state = state.detach()
            loss = model.loss(logits, piece.targets, piece.mask)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            done += 1
            if done == steps:
                break
    return model.eval()


@torch.inference_mode()
def log_probabilities(
    model: LanguageModel, ids: Tensor, store: Callable[[State], State], every: int | None
) -> Tensor:
    """``(rows, LENGTH - AFTER, n_ids)`` after ``AFTER``, with the state stored there and every so many."""
    _, state = model(ids[:, :AFTER])
    state = decompress(store(state))
    size = every or LENGTH - AFTER
    found = []
    for begin in range(AFTER, LENGTH, size):
        if size == 1:
            logits, state = model.step(ids[:, begin], state)
            logits = logits[:, None]
        else:
            logits, state = model(ids[:, begin : min(begin + size, LENGTH)], state)
        if every:
            state = decompress(store(state))
        found.append(logits.double().log_softmax(-1))
    return torch.cat(found, 1)


def measure(
    model: LanguageModel, rows: Tensor, stores: list[str]
) -> tuple[float, dict[str, dict[str, float]]]:
    """Cross-entropy of the model itself, and ``{what: {kl, change}}``; low rank not after every character."""
    ids, targets = rows[:, :LENGTH], rows[:, AFTER + 1 : LENGTH + 1]

    def cross_entropy(logp: Tensor) -> float:
        return -logp.gather(-1, targets[..., None]).mean().item()

    exact = log_probabilities(model, ids, lambda state: state, None)
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        _, state = model(ids[:, :AFTER])
    found["float32"] = {"bytes": state.nbytes / len(ids)}
    for name in stores:
        store = STORES[name]
        found[name] = {"bytes": store(state).nbytes / len(ids)}
        for when, every in WHEN.items():
            if every == 1 and name.startswith("rank"):
                continue
            logp = log_probabilities(model, ids, store, every)
            divergence = F.kl_div(logp, exact, reduction="none", log_target=True).sum(-1)
            found[f"{name}/{when}"] = {
                "kl": divergence.mean().item(),
                "change": cross_entropy(logp) - cross_entropy(exact),
            }
    return cross_entropy(exact), found


def table(kind: str, results: list[tuple[float, dict[str, dict[str, float]]]], seeds: list[int]) -> list[Any]:
    """Print one model's figures, means over seeds, and return them as rows."""
    nats = statistics.mean(entropy for entropy, _ in results)
    print(f"\n{kind}: {nats:.4f} nats a character uninterrupted, seeds {seeds}")
    made = []
    for what in results[0][1]:
        columns = {key: [found[what][key] for _, found in results] for key in results[0][1][what]}
        means = {key: statistics.mean(values) for key, values in columns.items()}
        print(f"  {what:24}" + "".join(f"  {key} {mean:11.3e}" for key, mean in means.items()), flush=True)
        for key, values in columns.items():
            unit = "bytes a row" if key == "bytes" else "nats a character"
            spread = statistics.stdev(values) if len(values) > 1 and key != "bytes" else None
            peers = {} if key == "bytes" else {"cross-entropy uninterrupted": float(f"{nats:.5g}")}
            made.append(
                row(
                    f"state-precision/{kind}/{what}/{key}",
                    float(f"{means[key]:.4g}"),
                    unit,
                    spread=None if spread is None else float(f"{spread:.2g}"),
                    peers=dict(peers),
                    seeds=seeds,
                )
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--stores", nargs="+", default=list(STORES), choices=list(STORES))
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--write", action="store_true", help="write rows to benchmarks/results/state-precision.json"
    )
    args = parser.parse_args()
    documents, rows, n_ids = corpus()
    print(machine())
    print(f"{sum(map(len, documents))} characters to train on, {len(rows)} held-out rows of {LENGTH}")
    for kind in args.models:
        results = [
            measure(train(kind, documents, n_ids, args.steps, seed), rows, args.stores) for seed in args.seeds
        ]
        made = table(kind, results, args.seeds)
        if args.write:
            print(f"wrote {write_rows('state-precision', made)}")


if __name__ == "__main__":
    main()
