"""torchaudio, also where its compiled library cannot load.

The package index holds wheels of torchaudio that are linked to CUDA: beside a torch for the CPU, ``import
torchaudio`` fails on libraries that are not there. All that is plain Python in it (transforms, functional
without ``forced_align`` and ``rnnt_loss``, Kaldi's features, models) works without them, once a stand-in for
the module that loads them is in place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from mambakit.core.errors import UserError

_LOADER = "torchaudio._extension"


def torchaudio() -> ModuleType:
    """The package: whole where its library loads, else without what is compiled.

    Raises:
        UserError: If it is not installed, or does not import even so.
    """
    if "torchaudio" in sys.modules:
        return sys.modules["torchaudio"]
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        if error.name == "torchaudio":
            raise UserError(
                "sound needs torchaudio; install it with pip install 'mambakit[speech]'"
            ) from error
        raise
    except (OSError, ImportError):
        return _without_extension()


def has_extension() -> bool:
    """Whether torchaudio's compiled functions (``forced_align``, ``rnnt_loss``) can be called."""
    torchaudio()
    return bool(getattr(sys.modules[_LOADER], "_IS_TORCHAUDIO_EXT_AVAILABLE", False))


def _without_extension() -> ModuleType:
    for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
        del sys.modules[name]  # what the failed import left half made
    stub = ModuleType(_LOADER)
    stub.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _IS_RIR_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=_failing,
        fail_if_no_rir=_failing,
    )
    sys.modules[_LOADER] = stub
    try:
        return importlib.import_module("torchaudio")
    except (OSError, ImportError) as error:
        del sys.modules[_LOADER]
        raise UserError(f"torchaudio cannot be imported ({error}); 2.11 works with torch 2.11 on") from error


def _failing(function: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"torchaudio's {function.__name__} needs its compiled library, which did not load")

    return refuse
