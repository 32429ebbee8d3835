"""Tasks whose answers are known, each of which some kind of network solves and another does not."""

from mambakit.core.known_tasks.arithmetic import ModularArithmetic
from mambakit.core.known_tasks.associative_recall import AssociativeRecall
from mambakit.core.known_tasks.drawn import NOTHING, Drawn, KnownTask
from mambakit.core.known_tasks.induction import Induction
from mambakit.core.known_tasks.measure import share_right
from mambakit.core.known_tasks.needle import Needle
from mambakit.core.known_tasks.parity import Parity
from mambakit.core.known_tasks.permuted_pixels import PermutedPixels
from mambakit.core.known_tasks.selective_copying import SelectiveCopying

__all__ = [
    "NOTHING",
    "AssociativeRecall",
    "Drawn",
    "Induction",
    "KnownTask",
    "ModularArithmetic",
    "Needle",
    "Parity",
    "PermutedPixels",
    "SelectiveCopying",
    "share_right",
]
