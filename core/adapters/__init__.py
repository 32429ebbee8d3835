"""The tokenizer-adapter layer: raw samples to tokens (data side), tokens to embeddings (model side)."""

from mambakit.core.adapters.adapter import Adapter, ContinuousAdapter, IdAdapter, TimeFeatures
from mambakit.core.adapters.collate import pack_batch, pad_batch
from mambakit.core.adapters.tokenizer import BadSample, Encoded, NotFittedError, SampleError, Tokenizer
from mambakit.core.adapters.tokens import NO_MODALITY, Padding, TokenBatch, Tokens

__all__ = [
    "NO_MODALITY",
    "Adapter",
    "BadSample",
    "ContinuousAdapter",
    "Encoded",
    "IdAdapter",
    "NotFittedError",
    "Padding",
    "SampleError",
    "TimeFeatures",
    "TokenBatch",
    "Tokenizer",
    "Tokens",
    "pack_batch",
    "pad_batch",
]
