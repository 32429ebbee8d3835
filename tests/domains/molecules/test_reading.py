"""Files of molecules: every row is a molecule or has a reason, and labels are what they say."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.duplicates import conflicts
from mambakit.domains.molecules.files import read_source
from mambakit.domains.molecules.reading import read_molecules

GOOD = ("CCO", "c1ccccc1", "CC(=O)O", "[Na+].[Cl-]", "C[C@H](N)C(=O)O", "C%10CC%10")
BAD = ("C1CC", "c1cccc1", "C(C)(C)(C)(C)C", "xyz", "CC O")


def table(tmp_path: Path, text: str, name: str = "my.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(GOOD + BAD), st.none() | st.integers(-9, 9)), min_size=2, max_size=12
    ),
    delimiter=st.sampled_from(",;\t|"),
)
def test_no_row_is_lost_and_labels_stay_with_their_structures(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]], delimiter: str
):
    rows = [("CCO", 3), *rows]
    lines = [delimiter.join(("SMILES", "y"))]
    lines += [delimiter.join((smiles, "" if y is None else str(y))) for smiles, y in rows]
    found = read_molecules(table(tmp_path_factory.mktemp("t"), "\n".join(lines)), tasks=["y"])
    assert sorted([*found.rows, *found.left_out["row"]]) == list(range(1, len(rows) + 1))
    for row, smiles, label in zip(found.rows, found.smiles, found.labels[:, 0], strict=True):
        assert (smiles, smiles in GOOD) == (rows[row - 1][0], True)
        expected = rows[row - 1][1]
        assert np.isnan(label) if expected is None else label == expected
    for row, smiles, reason in found.left_out.itertuples(index=False):
        assert (smiles, smiles in BAD) == (rows[row - 1][0], True)
        assert reason


def test_kinds_are_told_from_values_and_can_be_said(tmp_path: Path):
    path = table(
        tmp_path,
        "id,canonical_smiles,active,logd,flag,where\n1,CC,1,0.5,true,a\n2,CCC,,2,false,b\n3,C,0,,true,c\n",
    )
    found = read_molecules(path, units={"LogD": "logD"})
    assert [(one.name, one.kind, one.unit) for one in found.tasks] == [
        ("active", "classification", ""),
        ("logd", "regression", "logD"),
        ("flag", "classification", ""),
    ]
    assert np.array_equal(found.labels, [[1, 0.5, 1], [np.nan, 2, 0], [0, np.nan, 1]], equal_nan=True)
    assert any("'id' numbers the rows" in note for note in found.notes)
    assert any("where" in note for note in found.notes)
    assert found.table is not None
    assert found.table["where"].tolist() == ["a", "b", "c"]
    said = read_molecules(path, tasks=["active"], kinds={"active": "regression"})
    assert said.tasks[0].kind == "regression"
    assert read_molecules(path, tasks=()).labels.shape == (3, 0)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("smiles,y\n", {}, "has no rows"),
        ("drug,y\nCC,1\n", {}, "no column is called smiles"),
        ("drug,y\nCC,1\n", {"smiles_column": "drag"}, "SMILES column 'drag' is missing; did you mean 'drug'"),
        ("smiles,y\nCC,1\n", {"tasks": ["z"]}, "label column 'z' is missing"),
        ("smiles,y\nCC,1\nC1CC,2\nCCC,high\n", {"tasks": ["y"]}, "holds 'high' in row 3"),
        (
            "smiles;y\nCC;1,5\n",
            {"tasks": ["y"]},
            "holds '1,5' in row 1 .*numbers with a decimal point, or blank",
        ),
        ("smiles,y\nCC,1\nCCC,2,3\n", {}, "Expected 2 columns, got 3: CCC,2,3"),
        ("smiles,y\nCC,1\nCCC,inf\n", {"tasks": ["y"]}, "holds 'inf' in row 2"),
        ("smiles,y\nCC,\nCCC,\n", {"tasks": ["y"]}, "has no label in any row"),
        ("smiles,y\nCC,0\nCCC,2\n", {"kinds": {"y": "classification"}}, "classes 0 and 1, got 2 in row 2"),
        ("smiles,y\nC1CC,0\nxyz,2\n", {}, "none of its 2 structures can be read; the first, row 1, 'C1CC': "),
        ("smiles,y,y\nCC,0,1\n", {}, "column 'y' comes twice"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: str, options: dict, message: str):
    with pytest.raises(DataError, match="(?s)" + message.replace("(", r"\(")) as caught:
        read_molecules(table(tmp_path, text), **options)
    assert "my.csv" in str(caught.value)


def test_wrong_calls(tmp_path: Path):
    path = table(tmp_path, "smiles,y\nCC,1\nC,2\n")
    with pytest.raises(UsageError, match="column of structures"):
        read_molecules(path, tasks=["smiles"])
    with pytest.raises(UsageError, match=r"units: 'smiles' is not among the labels \(y\)"):
        read_molecules(path, units={"smiles": "m"})
    with pytest.raises(DataError, match=r"expected .csv, .parquet, .smi or .sdf, got '.xls'"):
        read_molecules(table(tmp_path, "x", "a.xls"))
    with pytest.raises(DataError, match="no such file"):
        read_molecules(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_molecules(tmp_path)


def test_text_among_labels_is_noted_where_no_column_was_asked_for(tmp_path: Path):
    found = read_molecules(table(tmp_path, "smiles,y,z\nCC,1.5,1\nCCC,>10,2.5\n"))
    assert [one.name for one in found.tasks] == ["z"]
    assert any("'y' holds '>10' in row 2" in note for note in found.notes)


def test_constant_labels_and_one_class_are_noted(tmp_path: Path):
    found = read_molecules(table(tmp_path, "smiles,y,z\nCC,1.5,1\nCCC,1.5,1\n"))
    assert any("'y' holds one value throughout, 1.5" in note for note in found.notes)
    assert any("'z' holds only one class, 1" in note for note in found.notes)


def test_one_structure_with_two_labels_is_reported_however_it_is_written(tmp_path: Path):
    found = read_molecules(table(tmp_path, "smiles,y\nCCO,1.5\nC,2\nOCC,2.5\nCC,1\nCC,1\nC(O)C,\n"))
    table_of = conflicts(found)
    assert table_of.to_dict("records") == [
        {"smiles": "CCO", "task": "y", "rows": [1, 3], "labels": [1.5, 2.5]}
    ]
    assert any("1 structures stand in several rows" in note and "rows 1, 3" in note for note in found.notes)
    assert len(found) == 6


def test_salts_stay_unless_the_largest_component_is_asked_for(tmp_path: Path):
    path = table(tmp_path, "smiles,y\nCCN.Cl,1\nCC,2.5\n")
    assert read_molecules(path).smiles.tolist() == ["CCN.Cl", "CC"]
    found = read_molecules(path, largest=True)
    assert found.smiles.tolist() == ["CCN", "CC"]
    assert any("of 1 salts and mixtures" in note for note in found.notes)
    reaction = table(tmp_path, "smiles,y\nCC.O>>CCO,3\n")
    assert read_molecules(reaction, largest=True).smiles.tolist() == ["CC.O>>CCO"]


def test_smi_files_have_rows_of_lines_names_and_perhaps_a_header(tmp_path: Path):
    found = read_molecules(table(tmp_path, "CCO ethanol\n\nC1CC broken ring\nCC\n", "my.smi"))
    assert (found.rows.tolist(), found.left_out["row"].tolist()) == ([1, 4], [3])
    assert found.tasks == ()
    assert found.table is not None
    assert found.table["name"].tolist() == ["ethanol", ""]
    headed = read_molecules(table(tmp_path, "smiles name\nCCO 7\nCC 9\n", "headed.smi"))
    assert (headed.rows.tolist(), headed.smiles.tolist()) == ([1, 2], ["CCO", "CC"])
    packed = tmp_path / "my.smi.gz"
    packed.write_bytes(gzip.compress(b"CCO\nCC\n"))
    assert read_molecules(packed).smiles.tolist() == ["CCO", "CC"]


def test_sd_files_give_structures_fields_and_reasons(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"
    found = read_molecules(path, tasks=["AMW"])
    assert (len(found), len(found.left_out)) == (200, 0)
    drawn = [line.split()[0] for line in path.with_name("first_5K.smi").read_text().splitlines()[:3]]
    assert found.smiles[:3].tolist() == [Chem.CanonSmiles(one) for one in drawn]
    assert found.labels[0, 0] == pytest.approx(122.12344)
    records = path.read_text().split("$$$$\n")
    broken = records[1].replace("M  END", "garbage\nM  END", 1).replace(" C  ", " Qq ", 1)
    mixed = table(tmp_path, "$$$$\n".join([records[0], broken, records[2], ""]), "mixed.sdf")
    capfd.readouterr()
    some = read_molecules(mixed, tasks=())
    assert (some.rows.tolist(), some.left_out["row"].tolist()) == ([1, 3], [2])
    assert some.left_out["reason"].iloc[0]
    assert capfd.readouterr() == ("", "")


def test_names_in_latin_1_are_read(tmp_path: Path):
    for name, text in (("my.csv", "smiles,name\nCC,caf\xe9ine\nC,x\n"), ("my.smi", "CC caf\xe9ine\nC x\n")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        found = read_molecules(tmp_path / name)
        assert found.table is not None
        assert found.table["name"].tolist() == ["caf\xe9ine", "x"]


def test_parquet_reads_as_csv_does(tmp_path: Path):
    frame = pd.DataFrame({"smiles": ["CC", None, "CCO"], "y": [1.5, 2.5, np.nan]})
    frame.to_parquet(tmp_path / "my.parquet")
    frame.to_csv(tmp_path / "my.csv", index=False)
    one, other = (read_molecules(tmp_path / name) for name in ("my.parquet", "my.csv"))
    assert one.smiles.tolist() == other.smiles.tolist() == ["CC", "CCO"]
    assert np.array_equal(one.labels, other.labels, equal_nan=True)
    assert one.left_out["reason"].tolist() == other.left_out["reason"].tolist() == ["there is no structure"]


def test_columns_of_two_values_are_doubted_unless_their_kind_is_said(tmp_path: Path):
    path = tmp_path / "two.csv"
    path.write_text("smiles,a,b,c\nC,0,1,1.5\nCC,1,2,2.5\nCCC,,2,3\n")
    notes = read_molecules(path).notes
    assert any("only 0 and 1, taken for classes: a; where they are numbers" in note for note in notes)
    assert any(
        "'b' holds only 1 and 2, taken for numbers; classes are written 0 and 1" in one for one in notes
    )
    assert len(notes) == 2
    assert read_molecules(path, kinds={"a": "regression", "b": "regression"}).notes == ()


def test_labels_that_cannot_be_squared_are_refused(tmp_path: Path):
    (tmp_path / "large.csv").write_text("smiles,y\nC,1\nCC,-1e300\nCCC,2\n")
    with pytest.raises(DataError, match="'y' holds -1e\\+300 in row 2; labels beyond 1e\\+100"):
        read_molecules(tmp_path / "large.csv")


def test_rows_of_one_structure_with_equal_labels_are_counted(tmp_path: Path):
    (tmp_path / "twice.csv").write_text("smiles,y\nCCO,1\nCC,2\nOCC,1\nCN,3\nNC,4\n")
    notes = read_molecules(tmp_path / "twice.csv").notes
    assert any("1 structures stand in several rows with different labels" in one for one in notes)
    assert any("1 structures stand in several rows without labels that differ, as 'CCO' in rows 1, 3" in one
               for one in notes)  # fmt: skip


def test_empty_lines_of_a_single_column_are_rows(tmp_path: Path):
    (tmp_path / "one.csv").write_text("smiles\nC\n\nCC\nxx\n")
    found = read_molecules(tmp_path / "one.csv", tasks=())
    assert found.rows.tolist() == [1, 3]
    assert found.left_out["row"].tolist() == [2, 4]


def test_bad_sd_records_keep_their_fields_and_fields_their_names(tmp_path: Path):
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))
    broken = "Broken" + block.replace("  3  2  0", "  x  2  0")
    mine, lot = ">  <smiles>\nmine\n\n", ">  <lot>\nA7\n\n"
    (tmp_path / "in.sdf").write_text(f"{block}{mine}$$$$\n{broken}{lot}$$$$\n")
    source = read_source(tmp_path / "in.sdf")
    assert source.smiles == ["CCO", ""]
    assert source.table["smiles"].tolist()[0] == "mine"
    assert source.table.loc[1, ["name", "lot"]].tolist() == ["Broken", "A7"]
    assert list(source.reasons) == [1]
