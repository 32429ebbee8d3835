"""Sequence mixers by name."""

from mambakit.core.blocks.attention import Attention, SlidingAttention
from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.bidirectional import Bidirectional
from mambakit.core.blocks.conv import ConvModule
from mambakit.core.blocks.conv_attention import ConvAttention
from mambakit.core.blocks.graph import GraphMix, check_edges
from mambakit.core.blocks.grid_scan import GridScan
from mambakit.core.blocks.layers import build_layer
from mambakit.core.blocks.mamba1 import Mamba1
from mambakit.core.blocks.mamba2 import Mamba2
from mambakit.core.blocks.mamba3 import Mamba3
from mambakit.core.blocks.mlp import MLP
from mambakit.core.blocks.moe import MoE
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.recurrent import GRU, LSTM
from mambakit.core.blocks.registry import (
    BLOCKS,
    block_class,
    block_options,
    build_block,
    kind_of,
    register_block,
)
from mambakit.core.blocks.sequence_scan import SequenceScan
from mambakit.core.blocks.unet import UNet
from mambakit.core.blocks.zamba import Zamba

__all__ = [
    "BLOCKS",
    "GRU",
    "LSTM",
    "MLP",
    "Attention",
    "Bidirectional",
    "Block",
    "Context",
    "ConvAttention",
    "ConvModule",
    "GraphMix",
    "GridScan",
    "Mamba1",
    "Mamba2",
    "Mamba3",
    "MoE",
    "RMSNorm",
    "SequenceScan",
    "SlidingAttention",
    "UNet",
    "Zamba",
    "block_class",
    "block_options",
    "build_block",
    "build_layer",
    "check_edges",
    "kind_of",
    "register_block",
]
