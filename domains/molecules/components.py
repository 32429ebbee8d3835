"""Rows of several structures: what form they have, and their features.

The form of a row is what its structures are, in their order: ``molecule``, ``reaction``, or several joined by
``;``. All rows that one model reads have one form.

Features of components stand beside each other. Of a reaction they are those of its reactants, what the
products have more than the reactants, and those of its agents; a side is one mixture, and zero if it is
empty. Differences of fragment counts are fingerprints of the reaction itself (Schneider et al. 2015,
doi:10.1021/ci5006614).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from mambakit.domains.molecules.structures import (
    SEPARATOR,
    components,
    is_reaction,
    readable,
    sides,
)

ONE_MOLECULE = "molecule"
_REACTION = "reaction"

Features = Callable[[Sequence[Chem.Mol]], NDArray[np.floating]]


def form_of(smiles: str) -> str:
    """What a row's structures are."""
    return SEPARATOR.join(_REACTION if is_reaction(one) else ONE_MOLECULE for one in components(smiles))


def in_words(form: str, called: Sequence[str] = ()) -> str:
    """A form for a sentence: ``one molecule``, ``a reaction``, ``2 components (solute, solvent)``."""
    kinds = form.split(SEPARATOR)
    if len(kinds) == 1:
        return "a reaction (reactants>agents>products)" if kinds[0] == _REACTION else "one molecule"
    return f"{len(kinds)} components ({', '.join(called or kinds)})"


def commonest_form(smiles: Sequence[str]) -> str:
    """The form of most; of equally many the one that comes first."""
    forms = [form_of(one) for one in smiles]
    return max(dict.fromkeys(forms), key=forms.count, default=ONE_MOLECULE)


def first_component(smiles: str) -> str:
    """What stands for a row where one molecule must: its first component, the reactants of a reaction.

    Of a reaction without reactants its first side that is not empty.
    """
    first = components(smiles)[0]
    return next((side for side in sides(first) if side), first) if is_reaction(first) else first


def features_by_component(
    smiles: Sequence[str], mols: Sequence[Chem.Mol], form: str, features: Features
) -> NDArray[np.floating]:
    """Features of rows of one form, ``(n, blocks * n_features)``.

    Args:
        smiles: Rows of that form that RDKit can read.
        mols: The same, as mixtures: just what is looked at where the form is one molecule.
        form: Of all of them.
        features: Of molecules, ``(n, n_features)``.
    """
    if form == ONE_MOLECULE:
        return features(mols)
    blocks: list[NDArray[np.floating]] = []
    for place, kind in enumerate(form.split(SEPARATOR)):
        texts = [components(one)[place] for one in smiles]
        if kind == _REACTION:
            reactants, agents, products = (
                _of_distinct([sides(text)[side] for text in texts], features) for side in range(3)
            )
            blocks += [reactants, products - reactants, agents]
        else:
            blocks.append(_of_distinct(texts, features))
    return np.concatenate(blocks, axis=1)


def _of_distinct(texts: list[str], features: Features) -> NDArray[np.floating]:
    """Each structure once, as a solvent stands in many rows; zero where there is none."""
    distinct = [one for one in dict.fromkeys(texts) if one]
    found = features(readable(distinct) or [Chem.MolFromSmiles("C")])
    places = {one: place for place, one in enumerate(distinct)}
    nothing = np.zeros_like(found[:1])
    with_nothing = np.concatenate([found[: len(distinct)], nothing])
    return with_nothing[[places.get(text, len(distinct)) for text in texts]]
