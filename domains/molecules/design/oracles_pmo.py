r"""The 20 oracles of the PMO benchmark that need RDKit alone, each between 0 and 1.

PMO (Gao et al. 2022, arXiv:2206.12411) has 23; drd2, gsk3b and jnk3 are classifiers kept as pickles, and are
not here. The others are GuacaMol's goal-directed tasks (Brown et al. 2019, J. Chem. Inf. Model. 59, 1096,
supporting information) as TDC scores them (Huang et al. 2021, arXiv:2102.09548): similarity tasks are linear
up to 0.75, rediscoveries are plain ECFP4 similarities, every MPO is a geometric mean, and deco_hop and
scaffold_hop are arithmetic means. A trap: TDC's first isomer oracles counted the letters of a SMILES in place
of its atoms; the mended ones are here, whose values TDC's issue 244 states. TDC's versions differ in the term
for all atoms together too: isomers, sitagliptin_mpo and zaleplon_mpo have it here, as GuacaMol defines them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rdkit.Chem import Mol

from mambakit.domains.molecules.design import shaping
from mambakit.domains.molecules.design.oracles import (
    Oracle,
    aromatic_rings,
    bertz,
    geometric_mean,
    isomer,
    logp,
    median,
    qed,
    read_target,
    rediscovery,
    rings,
    similarity,
    smarts,
    tpsa,
)

ALBUTEROL = "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1"
AMLODIPINE = r"Clc1ccccc1C2C(=C(/N/C(=C2/C(=O)OCC)COCCN)C)\C(=O)OC"
CAMPHOR = "CC1(C)C2CCC1(C)C(=O)C2"
CELECOXIB = "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F"
FEXOFENADINE = "CC(C)(C(=O)O)c1ccc(cc1)C(O)CCCN2CCC(CC2)C(O)(c3ccccc3)c4ccccc4"
MENTHOL = "CC(C)C1CCC(C)CC1O"
MESTRANOL = "COc1ccc2[C@H]3CC[C@@]4(C)[C@@H](CC[C@@]4(O)C#C)[C@@H]3CCc2c1"
OSIMERTINIB = "COc1cc(N(C)CCN(C)C)c(NC(=O)C=C)cc1Nc2nccc(n2)c3cn(C)c4ccccc34"
PERINDOPRIL = "O=C(OCC)C(NC(C(=O)N1C(C(=O)O)CC2CCCCC12)C)CCC"
RANOLAZINE = "COc1ccccc1OCC(O)CN2CCN(CC(=O)Nc3c(C)cccc3C)CC2"
SILDENAFIL = "CCCC1=NN(C2=C1N=C(NC2=O)C3=C(C=CC(=C3)S(=O)(=O)N4CCN(CC4)C)OCC)C"
SITAGLIPTIN = "Fc1cc(c(F)cc1F)CC(N)CC(=O)N3Cc2nnc(n2CC3)C(F)(F)F"
TADALAFIL = "O=C1N(CC(N2C1CC3=C(C2C4=CC5=C(OCO5)C=C4)NC6=C3C=CC=C6)=O)C"
THIOTHIXENE = "CN(C)S(=O)(=O)c1ccc2Sc3ccccc3C(=CCCN4CCN(C)CC4)c2c1"
TROGLITAZONE = "Cc1c(C)c2OC(C)(COc3ccc(CC4SC(=O)NC4=O)cc3)CCc2c(C)c1O"
ZALEPLON = "O=C(C)N(CC)C1=CC=CC(C2=CC=NC3=C(C=NN23)C#N)=C1"
HOP = "CCCOc1cc2ncnc(Nc3ccc4ncsc4c3)c2cc1S(=O)(=O)C(C)(C)C"  # what the two hops start from
HOP_SCAFFOLD = "[#7]-c1n[c;h1]nc2[c;h1]c(-[#8])[c;h0][c;h1]c12"


def shaped(oracle: Oracle, kind: str, **values: float) -> Oracle:
    """An oracle behind a transform of ``shaping.py``."""
    transform = shaping.make_transform({"kind": kind, **values}, kind)
    return lambda mol: float(transform(np.array([oracle(mol)]))[0])


def clipped(target: str, fingerprint: str, full: float) -> Oracle:
    """Similarity in parts of what is enough, at most 1."""
    return shaped(similarity(target, fingerprint), "linear", low=0.0, high=full)


def all_of(*parts: Oracle) -> Oracle:
    """Their geometric mean."""
    return lambda mol: geometric_mean([part(mol) for part in parts])


def mean_of(*parts: Oracle) -> Oracle:
    """Their arithmetic mean."""
    return lambda mol: float(np.mean([part(mol) for part in parts]))


def fluorines(mol: Mol) -> float:
    """Atoms of fluorine."""
    return float(sum(atom.GetAtomicNum() == 9 for atom in mol.GetAtoms()))


def osimertinib_mpo() -> Oracle:
    """Like osimertinib in its features (FCFP4) but not too like it (ECFP6), TPSA over 100, logP under 1."""
    return all_of(
        clipped(OSIMERTINIB, "fcfp4", 0.8),
        shaped(similarity(OSIMERTINIB, "ecfp6"), "min_gaussian", mu=0.85, sigma=0.1),
        shaped(tpsa, "max_gaussian", mu=100, sigma=10),
        shaped(logp, "min_gaussian", mu=1, sigma=1),
    )


def fexofenadine_mpo() -> Oracle:
    """A less greasy fexofenadine: TPSA over 90, logP under 4."""
    return all_of(
        clipped(FEXOFENADINE, "ap", 0.8),
        shaped(tpsa, "max_gaussian", mu=90, sigma=10),
        shaped(logp, "min_gaussian", mu=4, sigma=1),
    )


def ranolazine_mpo() -> Oracle:
    """A more polar and greasier ranolazine with one fluorine."""
    return all_of(
        clipped(RANOLAZINE, "ap", 0.7),
        shaped(logp, "max_gaussian", mu=7, sigma=1),
        shaped(tpsa, "max_gaussian", mu=95, sigma=20),
        shaped(fluorines, "gaussian", mu=1, sigma=1),
    )


def perindopril_mpo() -> Oracle:
    """Perindopril with two aromatic rings."""
    return all_of(similarity(PERINDOPRIL), shaped(aromatic_rings, "gaussian", mu=2, sigma=0.5))


def amlodipine_mpo() -> Oracle:
    """Amlodipine with three rings."""
    return all_of(similarity(AMLODIPINE), shaped(rings, "gaussian", mu=3, sigma=0.5))


def sitagliptin_mpo() -> Oracle:
    """Sitagliptin's formula, logP and TPSA in a molecule that does not look like it."""
    like = read_target(SITAGLIPTIN, "sitagliptin")
    return all_of(
        shaped(similarity(SITAGLIPTIN), "gaussian", mu=0, sigma=0.1),
        shaped(logp, "gaussian", mu=logp(like), sigma=0.2),
        shaped(tpsa, "gaussian", mu=tpsa(like), sigma=5),
        isomer("C16H15F6N5O"),
    )


def zaleplon_mpo() -> Oracle:
    """Zaleplon with the formula C19H17N3O2, which is not its own."""
    return all_of(similarity(ZALEPLON), isomer("C19H17N3O2"))


def valsartan_smarts() -> Oracle:
    """Valsartan's biphenyl amide in a molecule of sitagliptin's logP, TPSA and complexity."""
    like = read_target(SITAGLIPTIN, "sitagliptin")
    return all_of(
        smarts("CN(C=O)Cc1ccc(c2ccccc2)cc1"),
        shaped(logp, "gaussian", mu=logp(like), sigma=0.2),
        shaped(tpsa, "gaussian", mu=tpsa(like), sigma=5),
        shaped(bertz, "gaussian", mu=bertz(like), sigma=30),
    )


def deco_hop() -> Oracle:
    """Other decorations on the same scaffold, pharmacophores kept."""
    return mean_of(
        clipped(HOP, "phco", 0.85),
        smarts("CS([#6])(=O)=O", absent=True),
        smarts("[#7]-c1ccc2ncsc2c1", absent=True),
        smarts(HOP_SCAFFOLD),
    )


def scaffold_hop() -> Oracle:
    """Another scaffold under the same decorations, pharmacophores kept."""
    return mean_of(
        clipped(HOP, "phco", 0.75),
        smarts("[#6]-[#6]-[#6]-[#8]-[#6]~[#6]~[#6]~[#6]~[#6]-[#7]-c1ccc2ncsc2c1"),
        smarts(HOP_SCAFFOLD, absent=True),
    )


PMO: dict[str, Callable[[], Oracle]] = {
    "albuterol_similarity": lambda: clipped(ALBUTEROL, "fcfp4", 0.75),
    "amlodipine_mpo": amlodipine_mpo,
    "celecoxib_rediscovery": lambda: rediscovery(CELECOXIB),
    "deco_hop": deco_hop,
    "fexofenadine_mpo": fexofenadine_mpo,
    "isomers_c7h8n2o2": lambda: isomer("C7H8N2O2"),
    "isomers_c9h10n2o2pf2cl": lambda: isomer("C9H10N2O2PF2Cl"),
    "median1": lambda: median([CAMPHOR, MENTHOL], "ecfp4"),
    "median2": lambda: median([TADALAFIL, SILDENAFIL], "ecfp6"),
    "mestranol_similarity": lambda: clipped(MESTRANOL, "ap", 0.75),
    "osimertinib_mpo": osimertinib_mpo,
    "perindopril_mpo": perindopril_mpo,
    "qed": lambda: qed,
    "ranolazine_mpo": ranolazine_mpo,
    "scaffold_hop": scaffold_hop,
    "sitagliptin_mpo": sitagliptin_mpo,
    "thiothixene_rediscovery": lambda: rediscovery(THIOTHIXENE),
    "troglitazone_rediscovery": lambda: rediscovery(TROGLITAZONE),
    "valsartan_smarts": valsartan_smarts,
    "zaleplon_mpo": zaleplon_mpo,
}
