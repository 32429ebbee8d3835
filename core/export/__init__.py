"""Models as programs of their own: torch.export, ONNX and AOTInductor packages; see ``programs``."""

from mambakit.core.export.files import load_step, save_program
from mambakit.core.export.layout import StateLayout
from mambakit.core.export.programs import export_forward, export_step, growing_block, traced

__all__ = [
    "StateLayout",
    "export_forward",
    "export_step",
    "growing_block",
    "load_step",
    "save_program",
    "traced",
]
