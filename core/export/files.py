"""Programs in files: written in one move, and steps read back to be called alike.

    step.pt2         torch.export.load; any machine with torch
    step.aoti.pt2    compiled by AOTInductor for this machine; wants a C++ compiler to be written, none to run
    step.onnx        any ONNX runtime; inputs ``x``, ``state.NAME`` and further ones, outputs ``y`` and
                     ``next.NAME``

A stream begins from ``init_state(1)``, which ``State.save`` writes as a safetensors file: zeros, as a rule.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mambakit.core.errors import DataError, UsageError, UserError

PACKAGE = ".aoti.pt2"
Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def save_program(
    program: ExportedProgram,
    path: Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> str:
    """Write a program; what the file is follows from its name.

    Args:
        program: For ONNX and packages of torch's own operators alone.
        path: ``NAME.pt2``, ``NAME.aoti.pt2`` or ``NAME.onnx``.
        input_names, output_names: What ONNX calls them, in order; by default as ``export_step``'s programs
            are read back.

    Returns:
        What was written: ``"torch.export"``, ``"AOTInductor"`` or ``"ONNX"``.

    Raises:
        UsageError: On another name.
        UserError: If packages or a compiler are missing, or the program holds ``mambakit::`` ops and the file
            is to run without them.
    """
    write: Callable[..., None]
    if path.name.endswith(PACKAGE):
        kind, write = "AOTInductor", _write_package
    elif path.suffix == ".pt2":
        kind, write = "torch.export", _write_program
    elif path.suffix.lower() == ".onnx":
        kind, write = "ONNX", _write_onnx
    else:
        raise UsageError(f"path: expected a name that ends in .pt2, {PACKAGE} or .onnx, got {path.name}")
    ours = sorted({str(node.target) for node in program.graph.nodes if "mambakit" in str(node.target)})
    if ours and kind != "torch.export":
        raise UserError(
            f"export: {path.name}: {kind} knows nothing of the op {ours[0]}, which a forward pass for any "
            "length holds; export a step, or a .pt2 file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(program, partial, input_names, output_names)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return kind


def load_step(path: Path) -> Step:
    """``(x, state, more) -> (y, state)`` from a file that holds ``export_step``'s program.

    Raises:
        DataError: If there is no such file.
        UserError: If its runtime is not installed.
    """
    if not path.is_file():
        raise DataError(f"path: no program at {path}")
    if path.suffix.lower() == ".onnx":
        return _onnx_step(path)
    called: Step
    if path.name.endswith(PACKAGE):
        called = torch._inductor.aoti_load_package(str(path))
    else:
        called = torch.export.load(path).module()
    return lambda x, state, more=None: called(x.contiguous(), _dense(state), _dense(more or {}))


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A package does not look at strides."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _write_program(program: ExportedProgram, path: Path, *names: Sequence[str] | None) -> None:
    torch.export.save(program, path)


def _write_package(program: ExportedProgram, path: Path, *names: Sequence[str] | None) -> None:
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else ["g++", "clang++", "c++"])):
        raise UserError(
            f"export: {path.name} is compiled, and there is no C++ compiler ({asked or 'g++ or clang++'}); "
            "install one, or export a .pt2 or .onnx file"
        )
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _write_onnx(
    program: ExportedProgram, path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> None:
    _need("onnx", "onnxscript")
    arguments, results = _names(program) or (None, None)
    # four lines about torchvision, which no block has anything of
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
        torch.onnx.export(
            program, (), path, dynamo=True, verbose=False, external_data=False,
            input_names=inputs or arguments, output_names=outputs or results,
        )  # fmt: skip


def _need(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"export: ONNX needs {' and '.join(missing)}, not installed here; "
            'pip install "mambakit[onnx]", or export a .pt2 file'
        )


def _names(program: ExportedProgram) -> tuple[list[str], list[str]] | None:
    """``x``, ``state.NAME``, ...; ``y``, ``next.NAME``, ... of ``export_step``'s programs."""
    arguments, _ = program.example_inputs
    if len(arguments) != 3 or not isinstance(arguments[1], dict):
        return None
    _, state, more = arguments
    return ["x", *(f"state.{name}" for name in state), *more], ["y", *(f"next.{name}" for name in state)]


def _onnx_step(path: Path) -> Step:
    _need("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}  # what plays no part is not an input
    given = [one.name for one in session.get_outputs()]

    def step(
        x: Tensor, state: Mapping[str, Tensor], more: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tensors = {"x": x, **{f"state.{name}": tensor for name, tensor in state.items()}, **(more or {})}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name in taken}
        y, *after = (torch.from_numpy(one) for one in session.run(given, arrays))
        return y, {name.removeprefix("next."): one for name, one in zip(given[1:], after, strict=True)}

    return step
