"""Generating ids from any causal model: greedy, sampled, beam search, constrained, streamed."""

from mambakit.core.generation.config import GenerationConfig
from mambakit.core.generation.constraints import AllowedIds, Automaton, Constraint, MaskFunction, PrefixTrie
from mambakit.core.generation.decoder import Decoder
from mambakit.core.generation.generate import Generated, generate, stream
from mambakit.core.generation.graphs import GraphedDecoder
from mambakit.core.generation.refill import Drawn, in_order, sample_stream
from mambakit.core.generation.rows import Step
from mambakit.core.generation.warpers import warp

__all__ = [
    "AllowedIds",
    "Automaton",
    "Constraint",
    "Decoder",
    "Drawn",
    "Generated",
    "GenerationConfig",
    "GraphedDecoder",
    "MaskFunction",
    "PrefixTrie",
    "Step",
    "generate",
    "in_order",
    "sample_stream",
    "stream",
    "warp",
]
