"""Sequence mixers by name."""

from mambakit.core.blocks.attention import Attention
from mambakit.core.blocks.base import Block
from mambakit.core.blocks.bidirectional import Bidirectional
from mambakit.core.blocks.grid_scan import GridScan
from mambakit.core.blocks.mamba1 import Mamba1
from mambakit.core.blocks.mamba2 import Mamba2
from mambakit.core.blocks.mlp import MLP
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.registry import BLOCKS, block_class, block_options, build_block, register_block
from mambakit.core.blocks.sequence_scan import SequenceScan

__all__ = [
    "BLOCKS",
    "MLP",
    "Attention",
    "Bidirectional",
    "Block",
    "GridScan",
    "Mamba1",
    "Mamba2",
    "RMSNorm",
    "SequenceScan",
    "block_class",
    "block_options",
    "build_block",
    "register_block",
]
