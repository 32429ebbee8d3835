"""Predictions mixed with what followed the nearest hidden states of the training data."""

from mambakit.core.retrieval.neighbours import Mix, Neighbours, grid

__all__ = ["Mix", "Neighbours", "grid"]
