"""Models as Hugging Face hub folders: ``config.json`` and ``model.safetensors``, never a pickle.

class Forecaster(nn.Module, HubModel):
    def __init__(self, config: ForecasterConfig): ...

model.save_pretrained("runs/etth1")
model = Forecaster.from_pretrained("runs/etth1")
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast, get_type_hints

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor, nn

from mambakit.core.adaptation.files import remove_adapter, save_adapter
from mambakit.core.adaptation.places import add_places, added_places
from mambakit.core.adaptation.record import record_of
from mambakit.core.calibration.files import JSON_FILE as CALIBRATION_FILE
from mambakit.core.calibration.files import Calibrator, load_calibration, save_calibration
from mambakit.core.errors import DataError, UsageError
from mambakit.core.folders import listing, read_json_object, replaced, some
from mambakit.core.from_json import from_json
from mambakit.core.trust.about import About
from mambakit.core.trust.model_card import RunFacts, is_written, model_card

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Ties the weights to the config they were saved with; see save_pretrained.
_SAVE_ID = "_save_id"
# What an adapted model has beyond what its config builds; see core.adaptation.
_PLACES = "_adapted"
_ADAPTER = "adapter"
_NEVER_FETCHED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz"]

CARD_FILE = "README.md"


class HubModel(PyTorchModelHubMixin, library_name="mambakit"):
    """Mixin for an ``nn.Module`` whose constructor takes ``config`` (a dataclass) or JSON-able arguments.

    Differs from huggingface_hub's own mixin: loading is strict and says what is wrong, a folder that
    isn't there is an error and no network call, a save that is killed leaves the old model, no pickle
    is read, and dataclasses inside dataclasses come back from JSON.

    What was calibrated on the finished model is saved and loaded with it: ``model.calibrators["interval"] =
    SplitConformal().fit(...)``. A subclass that keeps more beside the weights (a tokenizer) overrides
    ``save_extra`` and ``load_extra``. Where the constructor takes ``config``, only that is saved: hand
    further arguments to ``from_pretrained`` again.

    Attributes:
        about: What the card of every model of the class says: what it is for, and its limits.
    """

    about: ClassVar[About] = About()

    @property
    def calibrators(self) -> dict[str, Any]:
        """Fitted calibrators by name, see ``core.calibration``; fit them again after more training."""
        held: dict[str, Any] = self.__dict__.setdefault("_calibrators", {})
        return held

    @calibrators.setter
    def calibrators(self, calibrators: Mapping[str, Calibrator]) -> None:
        self.__dict__["_calibrators"] = dict(calibrators)

    def save_extra(self, folder: Path) -> None:
        """Write further files into ``folder``; they become visible together with the model's own."""

    def load_extra(self, folder: Path) -> None:
        """Read what ``save_extra`` wrote; the weights are loaded already."""

    def hub_config(self) -> dict[str, Any]:
        """The constructor's arguments as they go into ``config.json``."""
        config: Any = self._hub_mixin_config or {}
        return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)  # type: ignore[arg-type]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write ``config.json``, ``model.safetensors``, the model's card ``README.md``, and extras.

        Those are the ``calibrators``, and what ``save_extra`` writes. Calibrators that lie in the folder are
        of the model that was there, and go with it. Of a model that was adapted, and merged, the difference
        to its base is in a folder ``adapter`` besides. A ``README.md`` that a person wrote stays.

        Everything is written into a hidden folder first, then moved in: a save that is killed while
        it writes leaves the old model whole. One that is killed between the moves of an overwritten
        model is noticed by ``from_pretrained``. Other files in the folder stay.

        Args:
            save_directory: The folder; made if missing.
            config: Takes the place of the constructor's arguments in ``config.json``.
            repo_id: Name on the hub, with ``push_to_hub``; the folder's name by default.
            push_to_hub: Uploads the folder too.
            model_card_kwargs: What ``generate_model_card`` takes: ``run``, the run that trained it
                (``RunFolder.save`` gives it).
            push_to_hub_kwargs: Passed on to ``push_to_hub``.

        Returns:
            The address of the commit, with ``push_to_hub``.

        Raises:
            UserError: If the path is a file, or can't be written.
            TypeError: If the config can't be written as JSON, or a calibrator is none.
            RuntimeError: If a calibrator was not fitted.
            UsageError: If the model is adapted and not merged.
        """
        folder = Path(save_directory)
        adapted = record_of(cast(nn.Module, self))
        if adapted is not None and not adapted.merged:
            raise UsageError("save_pretrained: the model is adapted; merge it first, or use save_adapter")
        if adapted is None:
            remove_adapter(folder / _ADAPTER)  # of the model that was there
        if config is None:
            content = self.hub_config()
        else:
            content = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)  # type: ignore[arg-type]
        # the weights first and the config last: a break between the moves shows in the save id
        with replaced(folder, {WEIGHTS_FILE: 0, CONFIG_FILE: 2}) as staging:
            if self.calibrators or (folder / CALIBRATION_FILE).exists():
                save_calibration(staging, self.calibrators)
            card = folder / CARD_FILE
            self._write_all(
                staging, content, with_card=not card.exists() or is_written(card), card=model_card_kwargs
            )
        if push_to_hub:
            return self.push_to_hub(
                repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
            )
        return None

    def generate_model_card(self, *args: Any, run: RunFacts | None = None, **kwargs: Any) -> ModelCard:
        """The card of this model; see ``core.trust.model_card``.

        Args:
            args, kwargs: None; huggingface_hub's own mixin declares them.
            run: What is known of the run that trained it.

        Raises:
            TypeError: On an argument beside it.
        """
        if args or kwargs:
            raise TypeError(f"model_card_kwargs: expected run alone, got {', '.join(kwargs) or args}")
        return model_card(cast(nn.Module, self), self.about, run)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        from_hub: bool = False,
        map_location: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **model_kwargs: Any,
    ) -> Self:
        """Load a model that ``save_pretrained`` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A local folder; with ``from_hub`` the name of a repository.
            from_hub: Downloads from the Hugging Face hub. Nothing goes over the network without it.
            map_location: The device to load to.
            revision, token, cache_dir, force_download, local_files_only: As in huggingface_hub, for
                ``from_hub``.
            model_kwargs: Take the place of saved constructor arguments.

        Raises:
            DataError: If the folder or one of its files is missing or damaged, the config doesn't fit
                the class, or weights are missing, left over or of another shape; the message names them.
        """
        if from_hub:
            folder = Path(
                snapshot_download(
                    str(pretrained_model_name_or_path),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    ignore_patterns=_NEVER_FETCHED,
                )
            )
        else:
            folder = Path(pretrained_model_name_or_path)
            _check_folder(folder)
        config = read_json_object(folder / CONFIG_FILE)
        save_id, places = config.pop(_SAVE_ID, None), config.pop(_PLACES, {})
        arguments = _constructor_arguments(cls, config, model_kwargs, folder / CONFIG_FILE)
        try:
            model = cls(**arguments)
            add_places(cast(nn.Module, model), places)
        except (TypeError, ValueError) as error:
            raise DataError(f"{folder / CONFIG_FILE} doesn't fit {cls.__name__}: {error}") from error
        module = cast(nn.Module, model)
        load_weights(module, folder / WEIGHTS_FILE, save_id=save_id)
        module.to(map_location).eval()
        model.calibrators = load_calibration(folder)
        model.load_extra(folder)
        return model

    def _write_all(
        self, folder: Path, config: dict[str, Any], *, with_card: bool, card: dict[str, Any] | None
    ) -> None:
        self.save_extra(folder)
        module = cast(nn.Module, self)
        if record_of(module) is not None:
            save_adapter(module, folder / _ADAPTER)
        if places := added_places(module):
            config = {**config, _PLACES: places}
        try:
            text = json.dumps(config, sort_keys=True, default=_plain)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"config: can't be written as JSON ({error}); use plain values and dataclasses"
            ) from error
        digest = hashlib.sha256(text.encode())
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
        save_id = digest.hexdigest()[:16]
        content = json.dumps({**config, _SAVE_ID: save_id}, sort_keys=True, indent=2, default=_plain)
        (folder / CONFIG_FILE).write_text(content + "\n", encoding="utf-8")
        save_model(module, str(folder / WEIGHTS_FILE), {"format": "pt", _SAVE_ID: save_id})
        if with_card:
            self.generate_model_card(**(card or {})).save(folder / CARD_FILE)


def load_weights(model: nn.Module, path: Path, *, save_id: str | None = None) -> None:
    """Load a safetensors file into a model; every weight must be there, fit, and be wanted.

    Args:
        model: Filled in place. Tied weights need to be in the file once.
        path: The file.
        save_id: The mark in ``config.json``, compared with the one in the file.

    Raises:
        DataError: If the file is missing or damaged, of another save than the config, or its weights
            don't fit; the message names them.
    """
    if not path.is_file():
        raise DataError(
            f"{path.parent} is no saved model: {path.name} is missing (it holds {listing(path.parent)})"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise DataError(
            f"{path} is damaged or no safetensors file ({error}); save the model again"
        ) from error
    if save_id is not None and metadata.get(_SAVE_ID, save_id) != save_id:
        raise DataError(
            f"{path.parent}: {CONFIG_FILE} and {WEIGHTS_FILE} come from two saves, "
            "the later one was interrupted; save the model again"
        )
    wanted = model.state_dict()
    aliases = _aliases(wanted)
    missing = [name for name in wanted if not any(alias in weights for alias in aliases[name])]
    extra = [name for name in weights if name not in wanted]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in weights
        if name in wanted and weights[name].shape != wanted[name].shape
    ]
    faults = [("missing", missing), ("not in the model", extra), ("of another shape", shapes)]
    said = [f"{len(names)} weights are {what}: {some(names)}" for what, names in faults if names]
    if said:
        raise DataError(f"{path} doesn't fit {type(model).__name__}: {'; '.join(said)}")
    model.load_state_dict(weights, strict=False)  # strictness is above; this lets tied weights be


def _constructor_arguments(
    cls: type, config: dict[str, Any], given: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Constructor arguments from ``config.json``, as the annotations say."""
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    arguments = dict(given)
    try:
        if "config" in parameters:
            if "config" not in arguments:
                arguments["config"] = from_json(hints.get("config", dict), config)
            return arguments
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        unknown = sorted(set(config) - set(parameters))
        if unknown and not takes_any:
            raise ValueError(f"unknown argument {', '.join(unknown)}")
        for name, value in config.items():
            arguments.setdefault(name, from_json(hints.get(name, Any), value))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path} doesn't fit {cls.__name__}: {error}; was it saved by another version or another model?"
        ) from error
    return arguments


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(
            f"{folder} is a file; a saved model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    looks_remote = len(folder.parts) == 2 and not folder.is_absolute()
    hint = "; to download a model from the Hugging Face hub, pass from_hub=True" if looks_remote else ""
    raise DataError(f"no saved model at {folder}: the folder does not exist{hint}")


def _plain(value: object) -> object:
    """What ``from_json`` turns back by its annotation."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def _aliases(state: dict[str, Tensor]) -> dict[str, list[str]]:
    """For each name the names of the same tensor (tied weights), itself among them."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
        groups.setdefault(key, []).append(name)
    return {name: group for group in groups.values() for name in group}
