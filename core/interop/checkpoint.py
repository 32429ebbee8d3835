"""Reading and writing the checkpoints of other projects, by the tables in the files beside this one.

model = read_checkpoint("downloads/mamba-130m-hf")
write_checkpoint(model, "exports/mamba-130m", format="mamba_ssm")
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file

from mambakit.core.errors import DataError, UserError
from mambakit.core.folders import read_json_object, replaced
from mambakit.core.hub import CONFIG_FILE
from mambakit.core.interop.fields import Fields
from mambakit.core.interop.files import PICKLED_FILE, SAFE_FILE, open_weights
from mambakit.core.interop.format import Format
from mambakit.core.interop.layout import read_weights, written_weights
from mambakit.core.interop.mamba_ssm import MAMBA_SSM
from mambakit.core.interop.transformers_bamba import BAMBA, GRANITE
from mambakit.core.interop.transformers_jamba import JAMBA
from mambakit.core.interop.transformers_mamba import FALCON_MAMBA, MAMBA, MAMBA2_MODEL
from mambakit.core.interop.transformers_nemotron import NEMOTRON_H
from mambakit.core.language_model import LanguageModel

TRANSFORMERS: dict[str, Format] = {
    "mamba": MAMBA,
    "mamba2": MAMBA2_MODEL,
    "falcon_mamba": FALCON_MAMBA,
    "jamba": JAMBA,
    "bamba": BAMBA,
    "nemotron_h": NEMOTRON_H,
    "granitemoehybrid": GRANITE,
}
"""By transformers' ``model_type``."""
FORMATS: dict[str, Format] = {"mamba_ssm": MAMBA_SSM, **TRANSFORMERS}


def read_checkpoint(
    folder: str | os.PathLike[str], *, pickled: bool = False, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """A language model, of a checkpoint of mamba_ssm or of transformers.

    Args:
        folder: With ``config.json`` and the weights; nothing goes over the network.
        pickled: Whether ``pytorch_model.bin`` may be read where there are no safetensors. It is a pickle;
            torch's weights-only loading reads it, which refuses everything but tensors.
        dtype: Of the model's parameters, whatever the checkpoint's are.

    Returns:
        The model in evaluation mode. Its logits are those of the original, over a padded vocabulary too.

    Raises:
        DataError: If files are missing or damaged, the format is unknown, its config asks for what the
            blocks here do not compute, or weights are missing, left over or of another shape; the message
            names them.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"no checkpoint at {path}: expected a folder with {CONFIG_FILE} and weights")
    fields = Fields(read_json_object(path / CONFIG_FILE), path / CONFIG_FILE)
    kind = FORMATS[_recognize(fields)]
    fields.only("quantization_config", None, default=None, why="quantized checkpoints can't be read")
    try:
        config = kind.read(fields)
        with torch.device("meta"):
            model = LanguageModel(config)
    except ValueError as error:
        raise DataError(f"{fields.path} describes a model that can't be built: {error}") from error
    with ExitStack() as files, torch.no_grad():
        read_weights(model, kind.layout(config, fields), open_weights(path, files, pickled=pickled), dtype)
    assert not any(tensor.is_meta for tensor in model.buffers()), "a buffer that no checkpoint holds"
    return model.eval()


def write_checkpoint(
    model: LanguageModel, folder: str | os.PathLike[str], format: str = "transformers"
) -> None:
    """Write a language model as another project's checkpoint.

    Args:
        model: Whose layers the format has a place for.
        folder: Made if missing; other files in it stay.
        format: ``"mamba_ssm"``, a ``model_type`` of transformers (``"mamba"``, ``"mamba2"``, ...), or
            ``"transformers"`` for the first of those that fits. For mamba_ssm the weights are written
            twice, as safetensors and as the ``pytorch_model.bin`` that alone it opens.

    Raises:
        TypeError: If it is no ``LanguageModel``.
        ValueError: If there is no such format.
        UserError: If the format has no place for what the model computes, or the folder can't be written.
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(f"model: expected a LanguageModel, got {type(model).__name__}")
    name, content = _choose(model, format)
    path = Path(folder)
    layout = FORMATS[name].layout(model.config, Fields(content, path / CONFIG_FILE))
    weights = written_weights(model, layout)
    content["torch_dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    with replaced(path, {SAFE_FILE: 0, PICKLED_FILE: 0, CONFIG_FILE: 2}) as staging:
        save_file(weights, staging / SAFE_FILE, {"format": "pt"})
        if name == "mamba_ssm":
            torch.save(weights, staging / PICKLED_FILE)
        (staging / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _recognize(fields: Fields) -> str:
    """The format's name, of what the config holds.

    A config that transformers converted may carry mamba_ssm's fields too; its weights have the new names.

    Raises:
        DataError: If it is none that is known here.
    """
    kind = fields.values.get("model_type")
    if fields.has("hidden_size") and kind in TRANSFORMERS:
        return str(kind)
    if fields.has("d_model") and fields.has("n_layer"):
        return "mamba_ssm"
    if kind in TRANSFORMERS:
        raise DataError(f"{fields.path} has no hidden_size, which the model's shape depends on")
    known = ", ".join(TRANSFORMERS)
    got = f"its model_type is {kind!r}" if kind else "it has no model_type"
    raise DataError(
        f"{fields.path}: {got}; known are transformers' {known}, "
        "and mamba_ssm's configs (with d_model and n_layer)"
    )


def _choose(model: LanguageModel, format: str) -> tuple[str, dict[str, object]]:
    if format in FORMATS:
        return format, FORMATS[format].write(model.config)
    if format != "transformers":
        raise ValueError(f"format: expected 'transformers' or one of {', '.join(FORMATS)}, got {format!r}")
    reasons = []
    for name, kind in TRANSFORMERS.items():
        try:
            return name, kind.write(model.config)
        except UserError as error:
            reasons.append(str(error).removeprefix("model: "))
    raise UserError(f"model: no format of transformers holds it: {'; '.join(reasons)}")
