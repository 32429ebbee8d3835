"""Checkpoints of mamba_ssm and of transformers, read into our language model and written from it."""

from mambakit.core.interop.checkpoint import FORMATS, read_checkpoint, write_checkpoint

__all__ = ["FORMATS", "read_checkpoint", "write_checkpoint"]
