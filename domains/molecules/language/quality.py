"""Generated molecules beside held-out ones and the baseline's: what the reports show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import UsageError
from mambakit.domains.molecules.language.metrics import (
    MoleculeSet,
    kl_divergences,
    kl_score,
    scaffold_similarity,
    similarity_to_nearest,
)
from mambakit.domains.molecules.language.reference import Reference

SAMPLES, HELD_OUT, BASELINE = "mambakit", "held-out molecules", "6-gram"
UNIQUE_AT = 10_000
MEASURES_NOTE = (
    "valid: share that RDKit reads. unique: share of different ones among the first 10,000 valid. novel: "
    "share of the different ones that were not trained on. int-div: 1 - mean Tanimoto similarity (ECFP4) of "
    "all pairs. snn: mean similarity to the nearest molecule of the reference. scaf: cosine of the counts of "
    "Murcko scaffolds of two rings or more. These three are of all valid samples, repeats included. kl: mean "
    "exp(-KL) of nine descriptors and the similarity to the nearest of the same set, against training "
    "molecules, of different molecules; it depends on how many there are: compare rows of equal n."
)


@dataclass(frozen=True, eq=False)
class Quality:
    """What was measured.

    Attributes:
        rows: A mapping for the samples, the held-out molecules and the baseline each; a measure that means
            nothing there is NaN.
        divergences: KL of each descriptor, by the same names.
        sets: The molecules, by the same names, and ``training molecules``.
        notes: What to know when reading it.
    """

    rows: list[dict[str, Any]]
    divergences: dict[str, dict[str, float]]
    sets: dict[str, MoleculeSet]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"results": self.rows, "kl": self.divergences, "notes": list(self.notes)}


def measure(samples: Sequence[str], reference: Reference, *, most: int = UNIQUE_AT) -> Quality:
    """Samples beside what the model's reference holds, as many of each.

    Args:
        samples: SMILES as they were drawn.
        reference: Of the model.
        most: The first so many samples are measured.

    Raises:
        UsageError: If the reference holds no molecules, or there are no samples.
    """
    if not samples:
        raise UsageError("samples: there are none to measure")
    if not reference.train:
        raise UsageError("the model keeps no training molecules (n_reference 0) to compare samples with")
    samples = samples[:most]
    train = MoleculeSet(_spread(reference.train, most))
    like = MoleculeSet(_spread(reference.train, len(samples)))  # KL depends on the number
    held_out = MoleculeSet(_spread(reference.held_out, most))
    sets = {
        SAMPLES: MoleculeSet(samples),
        HELD_OUT: MoleculeSet(_spread(reference.held_out, len(samples))),
        BASELINE: MoleculeSet(reference.baseline[: len(samples)]),
    }
    rows, divergences = [], {}
    for name, members in sets.items():
        if not members.n:
            continue
        divergences[name] = kl_divergences(members, like)
        nothing = float("nan")
        rows.append(
            {
                "molecules": name,
                "n": members.n,
                "valid": members.validity,
                "unique@10k": members.uniqueness(UNIQUE_AT),
                "novel": _share(~reference.seen(members.names)),
                "int-div": members.internal_diversity,
                "kl": kl_score(divergences[name]),
                "snn-train": similarity_to_nearest(members, train),
                "scaf-train": scaffold_similarity(members, train),
                "snn-held-out": nothing if name == HELD_OUT else similarity_to_nearest(members, held_out),
                "scaf-held-out": nothing if name == HELD_OUT else scaffold_similarity(members, held_out),
            }
        )
    notes = [
        f"{len(train.unique):,} training and {len(held_out.unique):,} held-out molecules are compared with"
    ]
    if len(reference.hashes) > len(train.unique):
        notes.append(f"novelty is against all {len(reference.hashes):,} training molecules")
    if len(sets[HELD_OUT].unique) < len(samples):
        notes.append("there are fewer held-out molecules than samples: the kl of the two can't be compared")
    return Quality(rows, divergences, {**sets, "training molecules": like}, tuple(notes))


def _spread(members: Sequence[str], most: int) -> list[str]:
    """At most so many, from everywhere in the list."""
    if len(members) <= most:
        return list(members)
    return [members[i] for i in np.linspace(0, len(members) - 1, most).round().astype(int)]


def _share(which: NDArray[np.bool_]) -> float:
    return float(which.mean()) if len(which) else float("nan")
