"""A checkpoint's weight files: safetensors in one file or in shards, and, on demand, ``pytorch_model.bin``.

No pickle is loaded from a user's path. ``pytorch_model.bin`` is one, and the only file that state-spaces' own
repositories ship; so it is read if the caller says so in as many words, and then by torch's restricted
unpickler, which builds tensors and containers and refuses every other class and function.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.folders import listing, read_json_object, some

SAFE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a checkpoint, read one at a time.

    Attributes:
        path: The file or index, for messages.
        shapes: Every tensor's shape, by name.
        get: The tensor of that name, on the CPU.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


def open_weights(folder: Path, stack: ExitStack, *, pickled: bool) -> WeightFiles:
    """The weights of a checkpoint.

    Args:
        folder: With ``model.safetensors``, or with shards and their index, or with ``pytorch_model.bin``;
            the first of these that is there counts.
        stack: Closes the files.
        pickled: Whether ``pytorch_model.bin`` may be read.

    Raises:
        DataError: If none is there, one is damaged, or only a pickle is there and ``pickled`` is false.
    """
    if (folder / SAFE_FILE).is_file():
        return _open_safe(folder / SAFE_FILE, {SAFE_FILE: None}, stack)
    if (folder / INDEX_FILE).is_file():
        return _open_safe(folder / INDEX_FILE, _shards(folder / INDEX_FILE), stack)
    if (folder / PICKLED_FILE).is_file():
        if not pickled:
            raise DataError(
                f"{folder} has its weights in {PICKLED_FILE} only, a pickle, which can carry code: if you "
                "trust where it comes from, pass pickled=True (torch's weights-only loading reads it then), "
                f"and write_checkpoint makes a {SAFE_FILE} of it"
            )
        return _open_pickled(folder / PICKLED_FILE)
    raise DataError(
        f"{folder} holds no weights: expected {SAFE_FILE}, {INDEX_FILE} with its shards or {PICKLED_FILE} "
        f"(it holds {listing(folder)})"
    )


def _shards(path: Path) -> dict[str, set[str] | None]:
    """The names that each shard should hold, of the index."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{path} should map names to shards under 'weight_map'")
    shards: dict[str, set[str] | None] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise DataError(f"{path}: {name} should lie in a file beside the index, not in {shard!r}")
        names = shards.setdefault(shard, set())
        assert names is not None
        names.add(name)
    return shards


def _open_safe(path: Path, shards: dict[str, set[str] | None], stack: ExitStack) -> WeightFiles:
    opened = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for shard, names in shards.items():
        file = path.parent / shard
        if not file.is_file():
            raise DataError(f"{path.parent}: the shard {shard}, which {path.name} names, is missing")
        try:
            handle = stack.enter_context(safe_open(str(file), framework="pt"))
            held = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"{file} is damaged or no safetensors file ({error}); fetch it again") from error
        lost = sorted((names or set()) - set(held))
        if lost:
            raise DataError(f"{file} lacks weights that {path.name} puts there: {some(lost)}")
        for name, shape in held.items():
            if name in shapes:
                raise DataError(f"{path.parent}: {name} is in two shards, {shard} is the second")
            shapes[name] = shape
            opened[name] = handle
    return WeightFiles(path, shapes, lambda name: opened[name].get_tensor(name))


def _open_pickled(path: Path) -> WeightFiles:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} holds more than tensors, and was not loaded ({reason})") from error
    except (RuntimeError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged or no file of torch.save ({error}); fetch it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path} should hold a mapping from names to tensors")
    return WeightFiles(
        path, {name: tuple(tensor.shape) for name, tensor in content.items()}, content.__getitem__
    )
