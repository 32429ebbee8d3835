"""The k nearest neighbours of hidden states, and how much what followed them says (``mambakit[ann]``).

    p(y | x) = share * sum_{i in kNN(x)} softmax(-d_i / temperature) 1[y = v_i] + (1 - share) * p_model(y | x)

with d_i the squared distance of hidden states (Khandelwal et al. 2020, "Generalization through Memorization:
Nearest Neighbor Language Models", arXiv:1911.00172, equations 2 and 3). Of forecasts it is the mean that is
mixed. Distances are divided by what neighbours in the store are apart, so that temperatures mean the same for
every model. The index is FAISS's: all keys are compared, or from 50,000 on those of the nearest cells.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import DataError, UserError
from mambakit.core.fingerprint import fingerprint
from mambakit.core.folders import read_json_object, replaced
from mambakit.core.from_json import from_json

FOLDER = "neighbours"
_INDEX, _VALUES, _CONFIG = "index.faiss", "values.safetensors", "neighbours.json"
_MODEL = "model_fingerprint"
_EXACT, _PROBES, _POINTS_PER_CELL = 50_000, 32, 64
_SAMPLE, _APART = 256, 16


@dataclass(frozen=True)
class Mix:
    """How neighbours are mixed in."""

    k: int = 16
    """Neighbours."""
    temperature: float = 1.0
    """Of the softmax over minus their squared distances, as multiples of what neighbours are apart."""
    share: float = 0.0
    """What they count; the model counts the rest."""

    def __post_init__(self) -> None:
        check_least(self, 1, "k")
        check_least(self, 1e-6, "temperature")
        check_shares(self, "share")


def grid(n: int) -> Iterator[Mix]:
    """What is tried on validation data: k to 64 (at most n), temperatures around one, shares from none on."""
    ks = sorted({min(k, n) for k in (4, 16, 64)})
    yield Mix(share=0.0, k=ks[-1])
    for k, temperature, share in itertools.product(ks, (0.1, 1.0, 10.0), (0.05, 0.1, 0.2, 0.35, 0.5)):
        yield Mix(k, temperature, share)


class Neighbours:
    """Hidden states, and what followed each.

    Args:
        keys: The hidden states, ``(n, d)``.
        values: What followed them, ``(n, ...)``.
        mix: How they are mixed in.

    Attributes:
        scale: Mean squared distance of a key to its 16 nearest others.

    Raises:
        ValueError: If there are no keys, or not as many values.
        UserError: If FAISS isn't installed.
    """

    def __init__(self, keys: Tensor, values: Tensor, mix: Mix | None = None) -> None:
        if keys.dim() != 2 or not len(keys) or len(keys) != len(values):
            raise ValueError(
                f"keys, values: expected (n, d) and (n, ...), got {keys.shape} and {values.shape}"
            )
        self.values, self.mix = values.detach().cpu(), mix or Mix()
        rows = keys.detach().float().cpu().contiguous().numpy()
        self._index = _indexed(rows)
        sample = torch.arange(0, len(rows), max(1, len(rows) // _SAMPLE)).numpy()
        near, _ = self._index.search(rows[sample], min(len(rows), _APART + 1))
        apart = torch.from_numpy(near[:, 1:])  # the first is the key itself
        self.scale = float(apart[apart < 1e30].double().mean()) if apart.numel() else 1.0
        self.scale = self.scale if self.scale > 0 else 1.0

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """Squared distances over ``scale``, and places of the nearest keys, nearest first.

        Args:
            queries: ``(..., d)``, on any device.
            k: How many; by default the mix's.

        Returns:
            ``(..., k)`` float32 and int64 on the CPU; infinity where there are fewer.
        """
        k = min(k or self.mix.k, len(self))
        flat = queries.detach().float().cpu().reshape(-1, queries.shape[-1]).contiguous().numpy()
        distance, place = (torch.from_numpy(one) for one in self._index.search(flat, k))
        distance = (distance / self.scale).masked_fill(place < 0, torch.inf)
        shape = (*queries.shape[:-1], k)
        return distance.reshape(shape), place.clamp(min=0).reshape(shape)

    def weights(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax over minus the distances, ``(..., k)``, and the places of the keys."""
        distance, place = self.search(queries)
        return weights_of(distance, self.mix), place

    def with_mix(self, mix: Mix) -> Neighbours:
        """The same store, mixed in otherwise."""
        other = object.__new__(Neighbours)
        other.__dict__.update(self.__dict__, mix=mix)
        return other

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write index, values and mix into a folder, and which model's hidden states they are."""
        with replaced(folder, {_CONFIG: 2}) as staging:
            _faiss().write_index(self._index, str(staging / _INDEX))
            save_file({"values": self.values.contiguous()}, str(staging / _VALUES))
            content: dict[str, Any] = {**dataclasses.asdict(self.mix), "scale": self.scale}
            content[_MODEL] = fingerprint(model)
            (staging / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, model: nn.Module) -> Neighbours | None:
        """Read what ``save`` wrote of this model; None where there is nothing, or it is of other weights.

        Raises:
            DataError: If a file is missing or damaged.
            UserError: If FAISS isn't installed.
        """
        if not folder.is_dir():
            return None
        content = read_json_object(folder / _CONFIG)
        if content.pop(_MODEL, None) != fingerprint(model):
            print(f"note: {folder} is of other weights, and not used; build it again", file=sys.stderr)
            return None
        found = object.__new__(cls)
        try:
            found.scale = float(content.pop("scale"))
            found.mix = from_json(Mix, content)
            found.values = load_file(str(folder / _VALUES))["values"]
            found._index = _faiss().read_index(str(folder / _INDEX))
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder} holds no neighbours that can be read ({error})") from error
        if len(found.values) != len(found):
            raise DataError(
                f"{folder}: {len(found)} keys and {len(found.values)} values don't belong together"
            )
        return found


def weights_of(distance: Tensor, mix: Mix) -> Tensor:
    """The softmax over minus the first k of some distances, nearest first, ``(..., k)``."""
    return (-distance[..., : mix.k] / mix.temperature).softmax(-1)


def mixed_log_probabilities(scores: Tensor, weights: Tensor, labels: Tensor, share: float) -> Tensor:
    """The mixture's log-probabilities, ``(n, n_classes)``.

    Args:
        scores: The model's logits, ``(n, n_classes)``.
        weights: Of the neighbours, ``(n, k)``.
        labels: What followed them, ``(n, k)`` int64.
        share: What they count.
    """
    p = (1 - share) * scores.float().softmax(-1)
    return p.scatter_add(-1, labels.to(p.device), (share * weights).to(p)).log()


def _indexed(rows: Any) -> Any:
    faiss = _faiss()
    n, d = rows.shape
    if n <= _EXACT:
        index = faiss.IndexFlatL2(d)
    else:
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, round(math.sqrt(n)), faiss.METRIC_L2)
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _POINTS_PER_CELL
        index.train(rows)
        index.nprobe = _PROBES
    index.add(rows)
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError('retrieval needs FAISS: pip install "mambakit[ann]"') from None
    return faiss
