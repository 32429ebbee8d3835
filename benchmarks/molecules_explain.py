"""Whether explanations of predictions find the atoms that truly make the property.

    python benchmarks/molecules_explain.py --write

Labels are sums over atoms by definition: Crippen's logP (Wildman & Crippen 1999, doi:10.1021/ci990307l) and
the topological polar surface (Ertl et al. 2000, doi:10.1021/jm000942e), of structures that come inside the
rdkit package. So it is known what each atom adds (hydrogens count with the atom that they are on), and a
network trained on the sums alone can be asked.

Reported: the correlation over the atoms of a molecule (Pearson; means over the test molecules whose atoms
have different true parts), of each method beside random numbers and beside the atom-removal similarity map
of a random forest on fragment counts (Riniker & Landrum 2013, doi:10.1186/1758-2946-5-43); and the same once
each element's mean is taken off in every molecule: what an explanation must know beyond which element an atom
is. Descriptors are not read: logP is one.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from mambakit.core.training import RunFolder
from mambakit.domains.molecules.atoms import without_atoms
from mambakit.domains.molecules.cards import load_molecules
from mambakit.domains.molecules.config import PRESET_LOSS, PRESET_MODEL, PRESET_TRAIN
from mambakit.domains.molecules.evaluation import evaluate
from mambakit.domains.molecules.explaining import METHODS, explain
from mambakit.domains.molecules.features import ecfp_counts
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Split, Task
from mambakit.domains.molecules.structures import structure
from mambakit.domains.molecules.training import train_properties
from rows import row, write_rows

Array = NDArray[np.float64]
FOREST, RANDOM = "forest-similarity-map", "random"
TASKS = (Task("crippen-logp", "regression", "log"), Task("tpsa", "regression", "square angstroms"))
MODELS = {
    "sequence+fragments": {"features": "ecfp"},
    "sequence": {"features": "none"},
}


def logp_of_atoms(mol: Chem.Mol) -> Array:
    """Crippen's part of each heavy atom with its hydrogens, ``(n_atoms,)``; their sum is RDKit's MolLogP."""
    whole = Chem.AddHs(mol)
    parts = np.array([logp for logp, _ in rdMolDescriptors._CalcCrippenContribs(whole)])
    found = parts[: mol.GetNumAtoms()].copy()
    for atom in list(whole.GetAtoms())[mol.GetNumAtoms() :]:
        found[atom.GetNeighbors()[0].GetIdx()] += parts[atom.GetIdx()]
    return found


def tpsa_of_atoms(mol: Chem.Mol) -> Array:
    """Each atom's part of the polar surface, ``(n_atoms,)``."""
    return np.array(rdMolDescriptors._CalcTPSAContribs(mol))


TRUTHS: tuple[Callable[[Chem.Mol], Array], ...] = (logp_of_atoms, tpsa_of_atoms)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=1600, help="molecules")
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--max-time", default="80s", help="of each training")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    molecules, split = labelled(arguments.train, arguments.test, arguments.seed)
    mols = [structure(one)[0] for one in molecules.smiles[split.test]]
    truths = [[true(mol) for mol in mols] for true in TRUTHS]
    rng = np.random.default_rng(arguments.seed)
    beside = {
        FOREST: forest_maps(molecules, split, mols, arguments.seed),
        RANDOM: [[rng.normal(size=len(one)) for one in of_task] for of_task in truths],
    }
    made = []
    for name in arguments.models:
        model, rmse = trained(molecules, split, MODELS[name], arguments)
        methods = [m for m in METHODS if model.config.model.sequence or m != "hidden-attention"]
        found = {method: [[] for _ in TASKS] for method in methods}
        gaps: list[float] = []
        for smiles in molecules.smiles[split.test]:
            for method in methods:
                for i, one in enumerate(explain(model, str(smiles), method=method)):
                    found[method][i].append(one.atoms)
                    if method == "gradients":
                        gaps.append(abs(one.residual) / abs(one.value - one.base))
        print(f"{name}: test RMSE {rmse}; gradients' residual, median {np.median(gaps):.1e} of the whole")
        for i, task in enumerate(TASKS):
            for what, measure in (("pearson", pearson), ("pearson-within-element", within_elements)):
                each = {who: measure(own[i], truths[i], mols) for who, own in {**found, **beside}.items()}
                means = {who: round(float(np.nanmean(one)), 4) for who, one in each.items()}
                own = each["gradients"][~np.isnan(each["gradients"])]
                print(f"  {task.name} {what} ({len(own)} molecules): {means}", flush=True)
                made.append(
                    row(
                        f"molecules-explain/{task.name}/{name}/{what}",
                        means.pop("gradients"),
                        "r",
                        peers=dict(means),
                        spread=round(float(np.std(own) / len(own) ** 0.5), 4),
                        seeds=[arguments.seed],
                    )
                )
            made.append(
                row(f"molecules-explain/{task.name}/{name}/rmse", rmse[task.name], task.unit, seeds=[0])
            )
    print(f"{time.monotonic() - began:.0f} s")
    if arguments.write:
        print(write_rows("molecules-explain", made))
    return 0


def labelled(n_train: int, n_test: int, seed: int) -> tuple[Molecules, Split]:
    """Structures of 6 to 40 atoms with both sums, and a random split; a tenth of training chooses weights."""
    given = load_molecules("nci")
    kept, labels = [], []
    with rdBase.BlockLogs():
        for place in np.random.default_rng(seed).permutation(len(given)):
            mol, _ = structure(str(given.smiles[place]))
            if mol is not None and 6 <= mol.GetNumAtoms() <= 40:
                kept.append(place)
                labels.append([true(mol).sum() for true in TRUTHS])
            if len(kept) == n_train + n_train // 10 + n_test:
                break
    molecules = dataclasses.replace(
        given,
        rows=given.rows[kept],
        smiles=given.smiles[kept],
        labels=np.array(labels),
        tasks=TASKS,
        table=None,
        parts=None,
        notes=(),
    )
    train, validation, test = np.split(np.arange(len(kept)), [n_train, n_train + n_train // 10])
    return molecules, Split("random", train, validation, test)


def trained(
    molecules: Molecules, split: Split, changes: dict[str, object], arguments: argparse.Namespace
) -> tuple[PropertyModel, dict[str, float]]:
    """A model, and its RMSE on the test molecules."""
    shape = dataclasses.replace(PRESET_MODEL, members=arguments.members, trees=0, **changes)
    limits = {"max_epochs": arguments.epochs, "max_time": arguments.max_time}
    train = dataclasses.replace(PRESET_TRAIN, **limits, seed=arguments.seed, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        model, _ = train_properties(
            molecules, split, RunFolder(Path(folder) / "run"), model_config=shape, loss_config=PRESET_LOSS,
            train_config=train,
        )  # fmt: skip
    said = evaluate(model, molecules, split.test, {}).predicted.value
    errors = np.sqrt(((said - molecules.labels[split.test]) ** 2).mean(0))
    return model.eval(), {task.name: round(float(e), 3) for task, e in zip(TASKS, errors, strict=True)}


def forest_maps(molecules: Molecules, split: Split, mols: list[Chem.Mol], seed: int) -> list[list[Array]]:
    """By how much a forest's prediction falls without the fragments of an atom, by task and molecule."""
    from sklearn.ensemble import RandomForestRegressor

    training = ecfp_counts([structure(one)[0] for one in molecules.smiles[split.train]])
    found = []
    for i in range(len(TASKS)):
        forest = RandomForestRegressor(100, max_features=1 / 3, random_state=seed)
        forest.fit(training, molecules.labels[split.train, i])
        maps = []
        for mol in mols:
            whole = forest.predict(ecfp_counts([mol]))
            maps.append(whole - forest.predict(without_atoms(mol)))
        found.append(maps)
    return found


def pearson(said: list[Array], true: list[Array], mols: list[Chem.Mol]) -> Array:
    """Of each molecule; NaN where the truth is the same for all atoms."""
    return np.array([_correlation(a, b) for a, b in zip(said, true, strict=True)])


def within_elements(said: list[Array], true: list[Array], mols: list[Chem.Mol]) -> Array:
    """Of each molecule once every element's mean is taken off, from what is said and from the truth."""
    found = []
    for mol, *both in zip(mols, said, true, strict=True):
        element = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
        rest = []
        for one in both:
            rest.append(one.copy())
            for kind in set(element.tolist()):
                rest[-1][element == kind] -= one[element == kind].mean()
        found.append(_correlation(*rest))
    return np.array(found)


def _correlation(said: Array, true: Array) -> float:
    if true.std() < 1e-9:
        return np.nan
    return 0.0 if said.std() < 1e-12 else float(np.corrcoef(said, true)[0, 1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
