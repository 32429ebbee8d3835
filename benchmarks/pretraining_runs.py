"""One run of benchmarks/pretraining.py: text as bytes, networks of equal size, training with validation."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.training import GraphedLoss, RunFolder, TrainConfig, fit, seed_everything
from mambakit.core.training.optim import configure_optimizer

Job = dict[str, Any]
Bytes = NDArray[np.uint8]
SUFFIXES = (".rst", ".md", ".txt")
N_IDS, END = 257, 256  # bytes, and what stands between documents
NETWORKS = ("mamba1", "mamba2", "mamba3", "hybrid", "attention")
_VALIDATION_SHARE = 0.05
_MOST_OF_FILE = 200_000  # of a table of megabytes the rest is more of the same, and would be most of the text
_VALIDATION_WINDOWS = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the networks are, and what a step reads."""

    d_model: int
    """Width."""
    n_layers: int
    """Layers, each a mixer of tokens and a gated MLP."""
    head_dim: int
    """Of attention, Mamba-2 and Mamba-3."""
    d_state: int
    """Of Mamba-2 and Mamba-3; Mamba-1 has 16."""
    length: int
    """Bytes in a window."""
    batch: int
    """Windows in a step."""
    tokens: int
    """Bytes that are read in all."""
    lr: float
    """Peak learning rate."""


SIZES = {
    "tiny": Size(64, 2, 16, 16, 128, 8, 200_000, 4e-3),
    "small": Size(384, 6, 64, 64, 1024, 64, 100_000_000, 2e-3),
}


class Text(NamedTuple):
    """A folder's text as ids, ``(n,)`` each, documents apart by END."""

    train: NDArray[np.int16]
    validation: NDArray[np.int16]
    files: int


def read_text(folder: Path, most: int | None = None) -> Text:
    """All .rst, .md and .txt files below a folder, each once, of large ones the first 200,000 bytes.

    About every twentieth file, by its hash, validates.

    Args:
        folder: Where to look.
        most: Bytes that are read at most, in the order of the files' hashes.

    Raises:
        ValueError: If there is too little text.
    """
    found: dict[str, Bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            with path.open("rb") as file:
                content = file.read(_MOST_OF_FILE)
            if content:  # licences lie in many packages: the same bytes count once
                found.setdefault(hashlib.sha256(content).hexdigest(), np.frombuffer(content, np.uint8))
    parts: dict[str, list[NDArray[np.int16]]] = {"train": [], "validation": []}
    total = 0
    for digest in sorted(found, key=lambda one: one[::-1]):
        if most is not None and total >= most:
            break
        total += len(found[digest])
        part = "validation" if int(digest[:8], 16) < _VALIDATION_SHARE * (1 << 32) else "train"
        parts[part].append(np.append(found[digest].astype(np.int16), np.int16(END)))
    if not parts["train"] or not parts["validation"]:
        raise ValueError(f"text: {folder} holds {len(found)} files of text, too few to train and validate on")
    return Text(np.concatenate(parts["train"]), np.concatenate(parts["validation"]), len(found))


def network_config(network: str, size: Size) -> LanguageModelConfig:
    """A network with as many parameters as attention has with an MLP of 8/3 its width, to about a per cent.

    Every layer is a mixer and a gated MLP, whose width makes the parameters equal; in ``hybrid`` every fourth
    mixer, but at least the last, is attention and the others Mamba-2.
    """
    wanted = parameters_of(_config("attention", size, _multiple(size.d_model * 8 / 3)))
    few, more = (parameters_of(_config(network, size, width)) for width in (8, 16))
    # the parameters are linear in the width
    return _config(network, size, max(8, _multiple(8 + 8 * (wanted - few) / (more - few))))


def parameters_of(config: LanguageModelConfig) -> int:
    """Numbers that learn."""
    with torch.device("meta"):
        return sum(one.numel() for one in LanguageModel(config).parameters())


def _multiple(width: float) -> int:
    return 8 * round(width / 8)


def _config(network: str, size: Size, d_hidden: int) -> LanguageModelConfig:
    heads = {"head_dim": size.head_dim, "d_state": size.d_state}
    options: dict[str, dict[str, Any]] = {
        "mamba1": {"d_state": 16},
        "mamba2": heads,
        "mamba3": heads,
        "attention": {"n_heads": size.d_model // size.head_dim},
        "mlp": {"d_hidden": d_hidden},
    }
    layers = []
    for i in range(size.n_layers):
        last = i % 4 == 3 or i == size.n_layers - 1 < 4
        mixer = network if network != "hybrid" else "attention" if last else "mamba2"
        layers += [mixer, "mlp"]
    kept = {kind: options[kind] for kind in dict.fromkeys(layers)}
    return LanguageModelConfig(N_IDS, BackboneConfig(d_model=size.d_model, layers=layers, block_options=kept))


class Windows(Dataset[Tensor]):
    """Windows at places of chance, as many as an epoch reads: by torch's seed, so alike for all networks."""

    def __init__(self, ids: NDArray[np.int16], length: int, count: int) -> None:
        if len(ids) <= length:
            raise ValueError(f"text: {len(ids)} bytes to train on, a window has {length + 1}")
        self.ids, self.length, self.count = ids, length, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        start = int(torch.randint(len(self.ids) - self.length, ()))
        return torch.from_numpy(self.ids[start : start + self.length + 1].astype(np.int64))


def validation_windows(ids: NDArray[np.int16], length: int) -> Tensor:
    """Up to 64 windows, evenly spread, ``(n, length + 1)``."""
    n = min(_VALIDATION_WINDOWS, max(1, len(ids) // (length + 1)))
    starts = np.linspace(0, max(0, len(ids) - length - 1), n).astype(np.int64)
    return torch.from_numpy(np.stack([ids[at : at + length + 1] for at in starts]).astype(np.int64))


class NextByte(nn.Module):
    """Mean nats of the next byte."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Of windows ``(batch, length + 1)``, a scalar."""
        return self.model.loss(self.model(ids[:, :-1])[0], ids[:, 1:])


class Pretraining(pl.LightningModule):
    """Trains a language model on windows of bytes."""

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        super().__init__()
        self.loss, self.config = NextByte(model), config
        self._loss = GraphedLoss(self.loss)

    def training_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        loss = self._loss(ids)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(ids))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = self.loss(batch[0])
        found = {"val/loss": loss, "val/bits_per_byte": loss / math.log(2)}
        self.log_dict(found, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self, self.config, int(self.trainer.estimated_stepping_batches))


def run_job(job: Job) -> Job:
    """Trains one network; a run that is there goes on.

    Args:
        job: ``network``, ``seed``, ``size`` (fields of ``Size``), ``text`` (a folder), ``most`` (bytes),
            ``points`` (validations) and ``keep`` (where runs lie).

    Returns:
        The job with ``curve``, rows of ``tokens``, ``seconds`` (training alone) and ``bits_per_byte``;
        ``parameters``, ``bytes_per_second``, ``machine`` and ``date``.
    """
    from rows import machine

    size = Size(**job["size"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    text = read_text(Path(job["text"]), job["most"])
    steps = max(job["points"], size.tokens // (size.batch * size.length))
    per_epoch = steps // job["points"]
    # An epoch ends with a validation and a checkpoint, and draws by its own seed: a run that was killed goes
    # on from there with the windows that it would have read.
    config = TrainConfig(
        max_epochs=job["points"], batch_size=size.batch, lr=size.lr, weight_decay=0.1, patience=0,
        warmup_fraction=0.05, final_lr_fraction=0.1, seed=job["seed"], device=device,
    )  # fmt: skip
    seed_everything(job["seed"])
    task = Pretraining(LanguageModel(network_config(job["network"], size)), config)
    run = RunFolder(Path(job["keep"]) / f"{job['network']}-{job['seed']}")
    run.start({**{k: v for k, v in job.items() if k != "keep"}, "train": config}, seed=job["seed"])
    if device == "cuda":
        _warm_up(task, size)
    train = Windows(text.train, size.length, per_epoch * size.batch)
    validation = TensorDataset(validation_windows(text.validation, size.length))
    fit(task, DataLoader(train, size.batch), DataLoader(validation, size.batch), config, run)
    task.loss.model.save_pretrained(run.path)
    curve = list(_curve(run.metrics_path, size))
    return {
        **job,
        "curve": curve,
        "parameters": sum(one.numel() for one in task.parameters()),
        "bytes_per_second": _speed(curve),
        "corpus": {"files": text.files, "train": len(text.train), "validation": len(text.validation)},
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }


def _warm_up(task: Pretraining, size: Size) -> None:
    """Compiles and tunes the kernels, which is no part of any network's time."""
    task.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        task.loss(torch.zeros(size.batch, size.length + 1, dtype=torch.int64, device="cuda")).backward()
    task.zero_grad()
    torch.cuda.synchronize()
    task.cpu()


def _curve(metrics: Path, size: Size) -> Iterator[dict[str, float]]:
    with metrics.open(newline="", encoding="utf-8") as file:
        for one in csv.DictReader(file):
            if one["val/bits_per_byte"]:
                yield {
                    "tokens": int(one["step"]) * size.batch * size.length,
                    "seconds": float(one["training_seconds"]),
                    "bits_per_byte": round(float(one["val/bits_per_byte"]), 4),
                }


def _speed(curve: list[dict[str, float]]) -> float:
    """Bytes a second after the first validation, before which a CPU compiles."""
    first, last = curve[0], curve[-1]
    seconds = last["seconds"] - first["seconds"]
    return round((last["tokens"] - first["tokens"]) / seconds, 1) if seconds > 0 else math.nan
