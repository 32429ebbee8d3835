"""Structures that come inside the rdkit package: examples that need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rdkit import RDConfig
from rdkit.Chem import rdMolDescriptors

from mambakit.core.errors import DataError
from mambakit.domains.molecules.files import Source, read_source
from mambakit.domains.molecules.structures import structure


def load(provider: str) -> Source:
    """The rows of a card's ``embedded`` provider.

    Raises:
        DataError: If the provider is unknown, or this build of rdkit carries no data.
    """
    if provider != "rdkit.nci":
        raise DataError(f"no embedded set of molecules is called {provider!r}; there is: rdkit.nci")
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    if not path.exists():
        raise DataError(f"nci comes with rdkit's wheels, but {path} is not there; install rdkit with pip")
    source = read_source(path)
    table = source.table.assign(tpsa=[_tpsa(one) for one in source.smiles])
    return Source(source.rows, table[["smiles", "name", "tpsa"]], "smiles", source.names)


def _tpsa(smiles: str) -> float:
    mol, _ = structure(smiles)
    return np.nan if mol is None else float(rdMolDescriptors.CalcTPSA(mol))
