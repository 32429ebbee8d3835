"""Molecules to learn a language from: each once, written canonically, in three parts."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase

from mambakit.core.adapters import SampleError
from mambakit.core.errors import DataError
from mambakit.core.training.devices import n_cores
from mambakit.domains.molecules.language.config import CorpusConfig
from mambakit.domains.molecules.molecules import LEFT_OUT, Molecules
from mambakit.domains.molecules.processes import in_chunks
from mambakit.domains.molecules.structures import canonical, leaves
from mambakit.domains.molecules.tokenizer import TOKENIZERS, SmilesTokenizer

_CHUNK = 10_000


@dataclass(frozen=True, eq=False)
class Corpus:
    """Canonical SMILES, no molecule twice.

    Attributes:
        name: Of the data.
        train, validation, held_out: To learn from, to choose weights by, to compare samples with.
        left_out: Rows that are in none of them: ``row, smiles, reason``.
        tokenizer: Fitted on ``train``, or extended by it.
    """

    name: str
    train: list[str]
    validation: list[str]
    held_out: list[str]
    left_out: pd.DataFrame
    tokenizer: SmilesTokenizer


def make_corpus(
    molecules: Molecules, config: CorpusConfig, *, seed: int = 0, tokenizer: SmilesTokenizer | None = None
) -> Corpus:
    """Parts of some molecules, those of the source where it has parts, else drawn at random.

    Args:
        molecules: What was read.
        config: How much is held out, and what is too long.
        seed: Of the draw.
        tokenizer: One to extend by what is new, for transfer; by default one is fitted on the training part.

    Raises:
        DataError: If a part comes out empty.
    """
    if len(molecules) > _CHUNK:  # it takes minutes, before anything else is said
        print(f"{molecules.name}: {len(molecules):,} molecules are written canonically", file=sys.stderr)
    left_out = [molecules.left_out[list(LEFT_OUT)]]
    first: dict[str, int] = {}
    lost: list[tuple[int, str, str]] = []
    rows, drawn = molecules.rows.tolist(), molecules.smiles.tolist()
    for i, (row, smiles, written) in enumerate(zip(rows, drawn, _canonical_all(drawn), strict=True)):
        if written in first:
            lost.append((row, smiles, f"the same molecule as in row {molecules.rows[first[written]]}"))
        else:
            first[written] = i
    names, places = list(first), np.fromiter(first.values(), dtype=np.int64, count=len(first))
    part = _parts(molecules, places, config, seed)
    train = [name for name, one in zip(names, part, strict=True) if one == "train"]
    cutter = TOKENIZERS[config.notation]() if tokenizer is None else tokenizer
    unfit = {name: reason for name in names if (reason := _unfit(cutter, name, config.max_length))}
    vocabulary = [smiles for smiles in train if smiles not in unfit]
    if cutter.kind == "selfies":  # other ways of writing a molecule have other symbols
        vocabulary += [rewritten(smiles, 1 + i) for i, smiles in enumerate(vocabulary)]
        vocabulary = [smiles for smiles in vocabulary if not _unfit(cutter, smiles, config.max_length)]
    if tokenizer is None:
        cutter = cutter.fit(vocabulary)
        cutter.marks_rewritten = 0 < config.randomize < 1
    else:
        cutter.extend(vocabulary)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name, place, one in zip(names, places, part, strict=True):
        reason = unfit.get(name, "")
        if not reason and one != "train":  # the vocabulary has every token of training
            reason = _unknown(cutter, name)
        if reason:
            lost.append((int(molecules.rows[place]), str(molecules.smiles[place]), reason))
        else:
            parts[one].append(name)
    for one, members in parts.items():
        if not members:
            raise DataError(
                f"{molecules.name}: no {one} molecules are left of {len(molecules)} read ({len(lost)} are "
                "repeated, too long, or can't be written with this notation); give more molecules"
            )
    left_out.append(pd.DataFrame(lost, columns=list(LEFT_OUT)))
    return Corpus(
        name=molecules.name,
        train=parts["train"],
        validation=parts["validation"],
        held_out=parts["test"],
        left_out=pd.concat([one for one in left_out if len(one)] or left_out[:1], ignore_index=True),
        tokenizer=cutter,
    )


def rewritten(smiles: str, seed: int) -> str:
    """The same molecule from another atom on, in another order (Bjerrum 2017, arXiv:1703.07076).

    Reactions, several components, and what RDKit can't read stay as they are.

    Args:
        smiles: One or more components.
        seed: From 1; the same one gives the same SMILES.
    """
    if leaves(smiles)[1]:
        return smiles
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        return smiles
    return str(Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)[0])


def _canonical_all(smiles: list[str]) -> list[str]:
    made = in_chunks(_canonical_each, smiles, size=_CHUNK, n_jobs=min(8, n_cores()))
    return [one for chunk in made for one in chunk]


def _canonical_each(smiles: list[str]) -> list[str]:
    return [canonical(one) for one in smiles]


def _parts(molecules: Molecules, places: np.ndarray, config: CorpusConfig, seed: int) -> np.ndarray:
    """``train``, ``validation`` or ``test`` of each."""
    if molecules.parts is not None:
        return molecules.parts[places]
    n = len(places)
    n_held = max(1, min(config.max_held_out, round(config.held_out * n)))
    part = np.full(n, "train", dtype="<U10")
    order = np.random.default_rng(seed).permutation(n)
    part[order[:n_held]] = "validation"
    part[order[n_held : 2 * n_held]] = "test"
    return part


def _unfit(tokenizer: SmilesTokenizer, smiles: str, max_length: int) -> str:
    """Why no vocabulary can hold a molecule; '' if one can."""
    try:
        n = len(tokenizer.pieces(smiles))
    except SampleError as error:
        return error.reason
    return f"{n} tokens are more than max_length={max_length}" if n > max_length else ""


def _unknown(tokenizer: SmilesTokenizer, smiles: str) -> str:
    """Why this vocabulary can't hold a molecule; '' if it can."""
    try:
        tokenizer.encode(smiles)
    except SampleError as error:
        return error.reason
    return ""
