"""The cards of molecules: read as their pages promise, in both protocols, never from forbidden columns."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from mambakit.core.data import Card, load_card, render_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules import cards
from mambakit.domains.molecules.cards import load_molecules, molecule_cards
from mambakit.domains.molecules.leaks import leaks
from mambakit.domains.molecules.splits import split_molecules

real = pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")

SETS = ("esol", "freesolv", "lipophilicity", "bbbp", "bace", "clintox", "tox21")


def test_nci_comes_with_rdkit():
    found = load_molecules("NCI")
    card = load_card("nci")
    assert (len(found), len(found.left_out)) == (4991, card.unreadable)
    assert [(one.name, one.kind, one.unit) for one in found.tasks] == [
        ("tpsa", "regression", "square angstrom")
    ]
    assert found.labels[0, 0] == pytest.approx(34.14)  # Ertl's own program, beside the structures
    assert "valence" in found.left_out["reason"].iloc[0]
    with pytest.raises(UsageError, match="nci has no ibm-split"):
        load_molecules("nci", protocol="ibm-split")


@real
@pytest.mark.parametrize(
    "name",
    ["freesolv", "bbbp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("esol", "clintox"))],
)
def test_both_protocols_hold_what_the_card_says(name: str):
    card = load_card(name)
    assert card.rows is not None
    own = card.protocols["ibm-split"]
    found = load_molecules(name)
    assert (len(found) + len(found.left_out), len(found.left_out)) == (card.rows, card.unreadable)
    split = load_molecules(name, protocol="ibm-split")
    assert (len(split.left_out), len(split) + len(split.left_out)) == (own.unreadable, sum(own.rows.values()))
    assert found.parts is None
    assert split.parts is not None
    lost = split.left_out["row"].to_numpy()
    ends = np.cumsum(list(own.rows.values()))
    of_part = np.bincount(np.searchsorted(ends, lost - 1, side="right"), minlength=3)
    counts = [int((split.parts == part).sum()) for part in own.rows]
    assert counts == [rows - gone for rows, gone in zip(own.rows.values(), of_part.tolist(), strict=True)]
    assert [one.name for one in found.tasks] == list(card.labels)
    assert [one.unit for one in found.tasks] == [card.units[label] for label in card.labels]


@real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "known", "ringed", "structures"),
    [
        ("bbbp", 104, 182, 10),
        ("bace", 97, 151, 0),
        ("clintox", 74, 140, 1),
        ("tox21", 406, 626, 0),
        ("esol", 59, 85, 3),
        ("freesolv", 30, 32, 0),
        ("lipophilicity", 208, 418, 0),
    ],
)
def test_leaks_of_the_ibm_split_are_those_on_the_cards(name: str, known: int, ringed: int, structures: int):
    molecules = load_molecules(name, protocol="ibm-split")
    found = leaks(molecules, split_molecules(molecules, "ibm-split"))
    assert (found.on_known_scaffolds, found.ringed, found.structures) == (known, ringed, structures)
    assert f"{known} of the {ringed} test molecules with rings" in " ".join(load_card(name).text.split())


@real
@pytest.mark.slow
def test_lipophilicity_says_that_its_second_protocol_is_in_other_units():
    raw, scaled = load_molecules("lipophilicity"), load_molecules("lipophilicity", protocol="ibm-split")
    assert (raw.tasks[0].unit, scaled.tasks[0].unit) == ("logD", "z of logD (mean 2.196, sd 1.196)")
    back = np.sort(scaled.labels[:, 0] * 1.1957607 + 2.1962768)
    assert np.abs(back - np.sort(raw.labels[:, 0])).max() < 1e-6
    assert scaled.labels[scaled.parts == "train"].mean() == pytest.approx(0, abs=1e-6)


@real
def test_labels_that_a_card_does_not_name_cannot_be_had():
    for name, forbidden in (
        ("freesolv", "calc"),
        ("esol", "Molecular Weight"),
        ("bace", "AlogP"),
    ):  # no file read
        with pytest.raises(UsageError, match=f"'{forbidden}' is no label of {name}; its labels: "):
            load_molecules(name, tasks=[forbidden])
    assert load_molecules("freesolv", tasks=()).labels.shape == (642, 0)


@real
@pytest.mark.slow
def test_bace_means_its_class_and_has_its_strength():
    assert [one.name for one in load_molecules("bace").tasks] == ["Class"]
    both = load_molecules("bace", tasks=["class", "pIC50"], protocol="ibm-split")
    assert [(one.name, one.kind) for one in both.tasks] == [
        ("Class", "classification"),
        ("pIC50", "regression"),
    ]


@real
@pytest.mark.slow
def test_tox21_masks_blanks():
    found = load_molecules("tox21", tasks=["SR-p53", "NR-AR"])
    assert [one.name for one in found.tasks] == ["SR-p53", "NR-AR"]
    assert set(np.unique(found.labels[~np.isnan(found.labels)])) == {0, 1}
    assert 0.05 < np.isnan(found.labels).mean() < 0.3


@real
@pytest.mark.slow
def test_zinc_is_read_without_asking_rdkit_about_each_line():
    found = load_molecules("zinc250k")
    assert (len(found), found.tasks, found.smiles[0]) == (
        249455,
        (),
        "CC(C)(C)c1ccc2occ(CC(=O)Nc3ccccc3F)c2c1",
    )


@real
def test_a_card_that_promises_something_else(monkeypatch: pytest.MonkeyPatch):
    def other(name: str) -> Card:
        return dataclasses.replace(load_card(name), rows=641)

    monkeypatch.setattr(cards, "load_card", other)
    with pytest.raises(DataError, match="freesolv: its card promises 641 rows, its file holds 642"):
        load_molecules("freesolv")


def test_cards_say_units_and_protocols():
    assert set(SETS) | {"nci", "zinc250k"} == set(molecule_cards())
    text = render_card(load_card("lipophilicity"))
    assert "exp (logD)" in text
    assert "train 3,360, validation 420, test 420; y (z of logD (mean 2.196, sd 1.196))" in text
    for name in SETS:
        card = load_card(name)
        assert all(card.units.get(label) for label, kind in card.labels.items() if kind == "regression")


def test_names_paths_and_options_that_are_wrong(tmp_path: Path):
    path = tmp_path / "my.csv"
    path.write_text("smiles,y\nCC,1.5\nCCC,2\n")
    assert len(load_molecules(path, tasks=["y"])) == 2
    for source, more, message in (
        ("esool", {}, "no data card called 'esool'; did you mean esol"),
        ("ETTh1", {}, "ETTh1 is a data set of timeseries, not of molecules"),
        ("nci", {"smiles_column": "x"}, "nci has a card, which says its columns"),
        (path, {"protocol": "ibm-split"}, "only cards have an ibm-split"),
    ):
        with pytest.raises(UsageError, match=message):
            load_molecules(source, **more)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no such file: .*none\.csv"):
        load_molecules(tmp_path / "none.csv")
