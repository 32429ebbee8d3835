"""Why a model says what it says: hidden attention, integrated gradients, perturbation."""

from mambakit.core.attribution.hidden_attention import (
    HiddenAttention,
    hidden_attention,
)
from mambakit.core.attribution.layers import attention_rollout, hidden_attention_of_layers

__all__ = [
    "HiddenAttention",
    "attention_rollout",
    "hidden_attention",
    "hidden_attention_of_layers",
]
