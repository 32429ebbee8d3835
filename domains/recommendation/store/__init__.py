"""Per-user states that outlive a process; ``store.states`` makes bytes of a model's state, and back."""

from mambakit.domains.recommendation.store.base import Outcome, Record, Store
from mambakit.domains.recommendation.store.opening import open_store

__all__ = ["Outcome", "Record", "Store", "open_store"]
