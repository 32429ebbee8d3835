"""A small language model of small NCI molecules, good enough to be steered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rdkit import Chem, RDConfig, rdBase

from mambakit.core.adapters import pad_batch
from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModelConfig
from mambakit.domains.molecules.design.agent import Agent
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.tokenizer import PAD, SmilesTokenizer

CPU = torch.device("cpu")


def nci(n: int, *, most_atoms: int = 100) -> list[Chem.Mol]:
    """The first structures of one component that lie in the rdkit package."""
    found: list[Chem.Mol] = []
    with rdBase.BlockLogs(), open(f"{RDConfig.RDDataDir}/NCI/first_5K.smi", encoding="utf-8") as stream:
        for line in stream:
            mol = Chem.MolFromSmiles(line.split()[0])
            if mol is not None and "." not in line.split()[0] and 3 <= mol.GetNumAtoms() <= most_atoms:
                found.append(mol)
            if len(found) == n:
                break
    return found


@pytest.fixture(scope="session")
def molecules() -> list[Chem.Mol]:
    return nci(150)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    smiles = [Chem.MolToSmiles(mol) for mol in nci(250, most_atoms=12)]
    tokenizer = SmilesTokenizer().fit(smiles)
    torch.manual_seed(0)
    backbone = BackboneConfig(d_model=64, layers=["gru"])
    model = MoleculeModel(LanguageModelConfig(tokenizer.n_ids, backbone))
    model.tokenizer = tokenizer
    batch = pad_batch([tokenizer.encode(one) for one in smiles]).values
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        rows = batch[torch.randperm(len(batch))[:64]]
        logits, _ = model(rows[:, :-1])
        loss = model.loss(logits, rows[:, 1:], rows[:, 1:] != PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("language") / "lm"
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture
def make_agent(model_folder: Path) -> Callable[[], Agent]:
    return lambda: Agent.load(model_folder, CPU)
