"""The tokenizer-adapter layer: raw samples to tokens (data side), tokens to embeddings (model side)."""

from mambakit.core.adapters.adapter import Adapter, ContinuousAdapter, IdAdapter, TimeFeatures
from mambakit.core.adapters.collate import pack_batch, pad_batch
from mambakit.core.adapters.continuous import ContinuousTokenizer
from mambakit.core.adapters.interleave import Embedded, Interleave, TimeLine
from mambakit.core.adapters.registry import (
    AdapterPluginError,
    AdapterSpec,
    adapter_names,
    get_adapter,
    register_adapter,
)
from mambakit.core.adapters.tokenizer import BadSample, Encoded, NotFittedError, SampleError, Tokenizer
from mambakit.core.adapters.tokens import NO_MODALITY, Padding, TokenBatch, Tokens
from mambakit.core.adapters.vocabulary import VocabularyTokenizer

__all__ = [
    "NO_MODALITY",
    "Adapter",
    "AdapterPluginError",
    "AdapterSpec",
    "BadSample",
    "ContinuousAdapter",
    "ContinuousTokenizer",
    "Embedded",
    "Encoded",
    "IdAdapter",
    "Interleave",
    "NotFittedError",
    "Padding",
    "SampleError",
    "TimeFeatures",
    "TimeLine",
    "TokenBatch",
    "Tokenizer",
    "Tokens",
    "VocabularyTokenizer",
    "adapter_names",
    "get_adapter",
    "pack_batch",
    "pad_batch",
    "register_adapter",
]
