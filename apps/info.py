"""What this installation is and can do: versions, devices, backends.

mambakit info
mambakit info --json
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mambakit.core.cli import format_table, print_json, run_app

PACKAGES = ("mambakit", "torch", "triton", "numba", "lightning", "transformers")
OPS = ("selective_scan", "ssd", "causal_conv1d", "gated_rms_norm")


def info(*, json: bool = False) -> None:
    """Prints versions, devices, and which backend each op would use and why not another.

    Args:
        json: Print JSON for machines.

    Examples:
        mambakit info
        mambakit info --json
    """
    facts = gather()
    if json:
        print_json(facts)
        return
    print("versions")
    for name, number in facts["versions"].items():
        print(f"  {name:<12}  {number or 'not installed'}")
    print("\ndevices")
    for device in facts["devices"]:
        print(f"  {device['device']:<12}  {device['name']}")
    if facts["forced_backend"]:
        print(f"\nMAMBAKIT_BACKEND={facts['forced_backend']} overrides the choice of backend")
    print("\nops")
    rows = [
        {"op": op["op"], "device": op["device"], "backend": op["backend"] or "none"} for op in facts["ops"]
    ]
    print("\n".join("  " + line for line in format_table(rows, ["op", "device", "backend"]).splitlines()))
    reasons = dict.fromkeys(
        f"{backend} on {op['device']}: {why}"
        for op in facts["ops"]
        for backend, why in op["unavailable"].items()
    )
    if reasons:
        print("\nnot available")
        for reason in reasons:
            print(f"  {reason}")


def gather() -> dict[str, Any]:
    """The facts that ``info`` prints."""
    devices = _devices()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "devices": devices,
        "forced_backend": os.environ.get("MAMBAKIT_BACKEND") or None,
        "ops": [_op(op, device["device"]) for device in devices for op in OPS],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, str]]:
    import torch

    from mambakit.core.training.devices import n_cores

    cores, threads = n_cores(), torch.get_num_threads()
    devices = [{"device": "cpu", "name": f"{platform.machine()}, {cores} cores, {threads} threads"}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        devices.append({"device": f"cuda:{index}", "name": f"{properties.name}, {memory}, {bf16}"})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return devices


def _op(op: str, device_name: str) -> dict[str, Any]:
    import torch

    from mambakit.kernels.backend import BACKENDS, BackendUnavailableError, choose_backend, why_unavailable

    device = torch.device(device_name)
    unavailable = {backend: why_unavailable(backend, op, device) for backend in BACKENDS}
    chosen: str | None
    try:
        chosen = choose_backend(op, None, device)
    except (ValueError, BackendUnavailableError) as error:  # MAMBAKIT_BACKEND asks for what cannot be
        chosen = None
        unavailable["MAMBAKIT_BACKEND"] = str(error)
    return {
        "op": op,
        "device": device_name,
        "backend": chosen,
        "unavailable": {backend: why for backend, why in unavailable.items() if why is not None},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """``mambakit info``: one verb, so its name is left out."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_app("mambakit", {"info": info}, ["info", *words])
