"""Why a model says what it says: hidden attention, integrated gradients, perturbation."""

from mambakit.core.attribution.attribute import METHODS, attribute
from mambakit.core.attribution.gradients import (
    IntegratedGradients,
    complete_integrated_gradients,
    gradient_times_input,
    integrated_gradients,
)
from mambakit.core.attribution.held import coefficients_held
from mambakit.core.attribution.hidden_attention import HiddenAttention, hidden_attention
from mambakit.core.attribution.layers import (
    attention_rollout,
    contributions_of_layers,
    hidden_attention_of_layers,
)
from mambakit.core.attribution.perturbation import DeletionInsertion, deletion_insertion, perturbation
from mambakit.core.attribution.result import Attribution

__all__ = [
    "METHODS",
    "Attribution",
    "DeletionInsertion",
    "HiddenAttention",
    "IntegratedGradients",
    "attention_rollout",
    "attribute",
    "coefficients_held",
    "complete_integrated_gradients",
    "contributions_of_layers",
    "deletion_insertion",
    "gradient_times_input",
    "hidden_attention",
    "hidden_attention_of_layers",
    "integrated_gradients",
    "perturbation",
]
