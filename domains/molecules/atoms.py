"""Which atoms a token of a SMILES and a circular fragment belong to.

Tokens (of SMILES as ``SmilesTokenizer`` cuts them):

- an atom, with all that its brackets say (charge, hydrogens, isotope, stereo): that atom
- a ring digit, and a bond symbol before it: the atom behind which it stands; the ring bond's other end has
  a digit of its own
- any other bond symbol (``/`` and ``\\`` of double-bond stereo are such): half to each atom that it binds
- ``(`` and ``)``: the atom that the branch hangs from
- ``.``: half to the atom before and half to the one behind it, which it keeps apart

Fragments of an ECFP: each occurrence in equal parts to all atoms within its radius, not to its centre alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator

_BONDS = frozenset(["-", "=", "#", "$", ":", "/", "\\", "~", "->", "<-"])


def atoms_of_tokens(pieces: Sequence[str], n_atoms: int) -> NDArray[np.float64]:
    """Shares of the atoms in each token, ``(n_tokens, n_atoms)``, whose rows sum to one.

    Atoms are counted as they are written. Where the tokens are not of so many atoms (a SMILES that could not
    be cut is one token), each belongs to all alike.

    Args:
        pieces: Tokens of one SMILES, in its order.
        n_atoms: Of the molecule.
    """
    shares = np.zeros((len(pieces), n_atoms))
    if n_atoms != sum(map(_is_atom, pieces)):
        return np.full_like(shares, 1 / max(n_atoms, 1))
    last, seen = 0, 0  # the atom that the next one binds to; atoms so far
    branches: list[int] = []
    for place, piece in enumerate(pieces):
        owners = [last]
        if _is_atom(piece):
            owners = [last := seen]
            seen += 1
        elif piece == "(":
            branches.append(last)
        elif piece == ")":
            owners = [last := branches.pop()]
        elif piece == "." or (piece in _BONDS and not _is_ring(pieces, place + 1)):
            owners = [last, seen]
        for owner in owners:
            shares[place, owner] += 1 / len(owners)
    return shares


def atoms_of_fragments(
    mol: Chem.Mol, *, size: int = 2048, radius: int = 2
) -> dict[int, list[NDArray[np.int64]]]:
    """Of each place of the fingerprint that is set, the atoms of every occurrence that sets it.

    Args:
        mol: The molecule.
        size, radius: As ``features.ecfp_counts`` has them: a place's count is the number of its occurrences.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)
    output = rdFingerprintGenerator.AdditionalOutput()
    output.AllocateBitInfoMap()
    with rdBase.BlockLogs():
        generator.GetCountFingerprint(mol, additionalOutput=output)
    near = Chem.GetDistanceMatrix(mol)
    return {
        int(bit): [np.flatnonzero(near[centre] <= within) for centre, within in occurrences]
        for bit, occurrences in output.GetBitInfoMap().items()
    }


def fragment_shares(mol: Chem.Mol, *, size: int = 2048, radius: int = 2) -> NDArray[np.float64]:
    """Shares of the atoms in each place of the fingerprint, ``(size, n_atoms)``.

    Rows of places that are set sum to one: every occurrence has the same part, and its atoms have the same
    parts of that. Other rows are zero.
    """
    shares = np.zeros((size, mol.GetNumAtoms()))
    for bit, occurrences in atoms_of_fragments(mol, size=size, radius=radius).items():
        for atoms in occurrences:
            shares[bit, atoms] += 1 / (len(atoms) * len(occurrences))
    return shares


def without_atoms(mol: Chem.Mol, *, size: int = 2048, radius: int = 2) -> NDArray[np.float32]:
    """Counts of the fragments that don't hold an atom, for each atom, ``(n_atoms, size)``."""
    counts = np.zeros((mol.GetNumAtoms(), size), dtype=np.float32)
    for bit, occurrences in atoms_of_fragments(mol, size=size, radius=radius).items():
        counts[:, bit] = len(occurrences)
        for atoms in occurrences:
            counts[atoms, bit] -= 1
    return counts


def _is_atom(piece: str) -> bool:
    return piece.startswith("[") or piece == "*" or piece.isalpha()


def _is_ring(pieces: Sequence[str], place: int) -> bool:
    return place < len(pieces) and (pieces[place].isdigit() or pieces[place].startswith("%"))
