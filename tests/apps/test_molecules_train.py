"""`mambakit molecules train`, `predict` and `evaluate`, as a person calls them, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mambakit.apps.molecules import main
from mambakit.core.training.report import Report
from mambakit.domains.molecules.data import resolved

SMALL = ["--model.members", "1", "--model.d_model", "16", "--model.n_layers", "1", "--model.features", "ecfp"]
SMALL += ["--model.d_hidden", "16", "--model.test_smiles", "2", "--model.trees", "10", "--device", "cpu"]
BUDGET = ["--train.max_epochs", "3", "--train.lr", "1e-2", "--train.batch_size", "16"]
LABELS = ["--tasks", "boils", "acid", "--units", "boils=K", *SMALL, *BUDGET]
pytestmark = pytest.mark.usefixtures("few_trees")
BAD = {"c1ccccc": "unclosed ring", "C(C)(C)(C)(C)C": "valence"}


def labelled() -> pd.DataFrame:
    """Chains of carbon with an end of three kinds: their boiling points roughly, and a class."""
    rows = []
    for n in range(1, 17):
        for end, shift in (("O", 60.0), ("N", 30.0), ("", 0.0)):
            rows.append((f"{end}{n}", "C" * n + end, 30.0 * n + shift, int(end == "O")))
    frame = pd.DataFrame(rows, columns=["id", "smiles", "boils", "acid"])
    frame.loc[frame.index % 5 == 0, "boils"] = None
    bad = pd.DataFrame([("bad", one, 1.0, 0) for one in BAD], columns=frame.columns)
    return pd.concat([frame.iloc[:10], bad, frame.iloc[10:]], ignore_index=True)


def training(folder: Path) -> list[str]:
    data, run = str(folder / "data.csv"), str(folder / "run")
    return ["train", "--data", data, "--output", run, "--split", "random", *LABELS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    labelled().to_csv(folder / "data.csv", index=False)
    assert main(training(folder)) == 0
    return folder


def test_run_folder_is_whole(folder: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.csv",
        "model.safetensors",
        "pictures/parity.png",
        "pictures/roc.png",
    ):
        assert (folder / "run" / name).stat().st_size > 0
    report = (folder / "run/report.html").read_text()
    for said in ("random forest", "training mean", "test molecules", "unclosed ring", "<td>K</td>"):
        assert said in report
    assert Report("").render()[:15] == report[:15]


def test_the_card_says_what_was_measured(folder: Path, check_card: Callable[[Path], str]) -> None:
    text = check_card(folder / "run")
    assert "random forest" in text
    assert str(folder) not in text


def test_spoilt_tokens_change_the_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "probe",
        "--model",
        str(folder / "run"),
        *("--device", "cpu"),
        "--output",
        str(tmp_path / "p.csv"),
    ]
    assert main([*words, "--plot", str(tmp_path / "p.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["perturbation"], row["level"]): row[found["metric"]] for row in found["results"]}
    assert {name for name, _ in rows} == {"clean", "drop", "replace", "shuffle", "dt"}
    table = pd.read_csv(tmp_path / "p.csv")
    assert table[found["metric"]].tolist() == pytest.approx(
        [row[found["metric"]] for row in found["results"]]
    )
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert main(["evaluate", "--model", str(folder / "run"), "--device", "cpu", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["results"]
    ours = next(row for row in evaluated if row["model"] == "mambakit" and row["task"] == "boils")
    assert rows["clean", None] == pytest.approx(ours["rmse"], rel=1e-6)
    assert rows["drop", 0.2] != rows["clean", None]


def test_a_membership_probe_tells_molecules_that_were_learned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "--model", str(folder / "run"), "--device", "cpu", "--attack", "membership"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["results"]
    assert row["members"] + row["others"] < 48  # validation is neither
    assert row["auc-lo"] <= row["auc"] <= row["auc-hi"]
    assert found["notes"] == []  # a random split
    assert main([*words, "--data", "esol"]) == 2
    assert "membership is of the training's data" in capsys.readouterr().err


def test_predicts_every_row_in_its_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["predict", "--model", str(folder / "run"), "--input", str(folder / "data.csv")]
    outputs = ["--output", str(folder / "out.csv"), "--embeddings", str(folder / "vectors.parquet")]
    assert main([*call, *outputs]) == 0
    assert "48 of 50 rows predicted, 2 have an error (the first, row 11" in capsys.readouterr().err
    given, made = labelled(), pd.read_csv(folder / "out.csv")
    pd.testing.assert_frame_equal(made[list(given.columns)], given)
    bad = made["error"].notna()
    assert made.index[bad].tolist() == [10, 11]
    for error, expected in zip(made["error"][bad], BAD.values(), strict=True):
        assert expected in error
    assert made.loc[~bad, "boils_predicted"].notna().all()
    assert made.loc[bad, "boils_predicted"].isna().all()
    assert made.loc[~bad, "acid_probability"].between(0, 1).all()
    assert (made["nearest_train_similarity"] == 1).sum() >= 38
    vectors = pd.read_parquet(folder / "vectors.parquet")
    assert vectors["row"].tolist() == [i + 1 for i in range(50) if i not in (10, 11)]


def test_evaluates_as_training_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", str(folder / "run"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in said["results"]} == {"mambakit", "random forest", "training mean"}
    assert said["n"] == 5
    ours = next(row for row in said["results"] if row["task"] == "boils")
    assert ours["unit"] == "K"
    assert 0 <= ours["coverage"] <= 1
    report = (folder / "run/report.html").read_text()
    assert f"{ours['rmse']:.4g}" in report  # the same molecules, the same numbers


def test_evaluates_another_file_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = labelled().iloc[20:40]
    later.to_csv(folder / "later.csv", index=False)
    call = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "later.csv"), "--json"]
    assert main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n"] == 20
    assert said["known_from_training"] > 10  # and it says so
    assert main([*call, "--part", "test"]) == 2


def test_a_finished_run_is_taken_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*training(folder), "--json"]) == 0
    assert "finished: its best weights are loaded" in capsys.readouterr().err
    assert main([*training(folder), "--model.d_hidden", "8"]) == 1
    assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["boils", "acid", "smiles"])
def test_a_run_of_data_that_changed_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    own, frame = tmp_path / "own", labelled()
    record = (own / "run/split.json").read_text().replace(str(folder), str(own))
    (own / "run/split.json").write_text(record)
    config = own / "run/config.yaml"
    config.write_text(config.read_text().replace(str(folder), str(own)))
    weights = (own / "run/model.safetensors").read_bytes()
    assert main(["evaluate", "--model", str(own / "run")]) == 0
    frame.loc[1, column] = {"boils": 31.0, "acid": 1, "smiles": "CN(C)C"}[column]
    frame.to_csv(own / "data.csv", index=False)
    assert main(training(own)) == 1
    assert "another config (content: 48 molecules, sha256 " in capsys.readouterr().err
    assert (own / "run/split.json").read_text() == record
    assert (own / "run/model.safetensors").read_bytes() == weights
    assert main(["evaluate", "--model", str(own / "run")]) == 1
    assert "no longer those that the model was trained on" in capsys.readouterr().err


def test_the_training_data_are_known_by_any_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written otherwise, the file is the same: its training molecules are no test."""
    monkeypatch.chdir(folder)
    for called in ("data.csv", "./data.csv", "run/../data.csv"):
        assert main(["evaluate", "--model", "run", "--data", called, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["n"], said["part"]) == (5, "test part of the random split")
    assert main(training(Path())) == 0  # no other run, either
    assert resolved("ESOL") == resolved("esol") == "esol"
    assert resolved("./esol") == str(folder / "esol")


def test_the_parts_are_those_of_the_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They come from the rows that were saved, not from a split made again."""
    path = folder / "run/split.json"
    record = json.loads(path.read_text())
    assert sum(len(rows) for rows in record["rows"].values()) == 48
    changed = {**record, "rows": {**record["rows"], "test": record["rows"]["train"]}}
    path.write_text(json.dumps(changed))
    assert main(["evaluate", "--model", str(folder / "run")]) == 1
    assert "its parts can't be found again" in capsys.readouterr().err
    path.write_text(json.dumps({**record, "seed": 5}))
    assert main(["evaluate", "--model", str(folder / "run"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    path.write_text(json.dumps(record))
    assert main(["evaluate", "--model", str(folder / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == again


def test_salts_are_read_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = labelled()[["smiles", "acid"]]
    frame.to_csv(tmp_path / "data.csv", index=False)
    words = [*training(tmp_path)[: -len(LABELS)], "--tasks", "acid", "--largest-component"]
    assert main([*words, *SMALL, *BUDGET]) == 0
    asked = pd.DataFrame({"smiles": ["CCCCCCCO.[Na+].[Cl-]", "CCCCCCCO"]})
    asked.to_csv(tmp_path / "salts.csv", index=False)
    out = tmp_path / "out.csv"
    call = ["predict", "--model", str(tmp_path / "run"), "--input", str(tmp_path / "salts.csv")]
    assert main([*call, "--output", str(out)]) == 0
    made = pd.read_csv(out)
    assert made["smiles"].tolist() == asked["smiles"].tolist()
    assert made["acid_probability"].nunique() == 1
    assert made["nearest_train_similarity"].nunique() == 1


def test_says_what_is_not_wrong_but_worth_knowing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New tokens with their rows, labels that may be of another kind, figures that don't exist."""
    frame = labelled()[["smiles", "acid"]]
    frame["part"] = [
        "test" if i in (0, 3, 6, 20) else "validation" if i % 4 == 1 else "train" for i in frame.index
    ]
    frame.loc[0, "smiles"], frame.loc[5, "smiles"] = "C[Se]C", "C[Te]C"
    frame.loc[frame["part"] == "test", "acid"] = 0
    frame.to_csv(tmp_path / "data.csv", index=False)
    words = [
        "train",
        "--data",
        str(tmp_path / "data.csv"),
        "--output",
        str(tmp_path / "run"),
        *SMALL,
        *BUDGET,
    ]
    words += ["--tasks", "acid", "--split-column", "part"]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    notes = json.loads(said.out)["notes"]
    one_class = "acid: all 4 labels are 0: areas under curves need both classes"
    unseen = "2 tokens are new to the model: [Se] (row 1), [Te] (row 6)"
    assert notes[0].endswith(
        "only 0 and 1, taken for classes: acid; where they are numbers, say kinds acid=regression"
    )
    assert notes[-2].endswith(unseen)
    assert notes[-1] == one_class
    assert unseen in said.err
    report = (tmp_path / "run/report.html").read_text()
    assert one_class in report
    assert "[Se] (row 1)" in report
    assert main(["evaluate", "--model", str(tmp_path / "run")]) == 0
    said_later = capsys.readouterr()
    assert f"note: {one_class}" in said_later.err
    assert "1 tokens are new to the model: [Se] (row 1)" in said_later.err
    assert main(["predict", "--model", str(tmp_path / "run"), "--input", str(tmp_path / "data.csv")]) == 0
    assert "note: 2 tokens are new to the model: [Se] (row 1), [Te] (row 6)" in capsys.readouterr().err
    assert main([*words, "--kinds", "acid=regression", "--overwrite", "--json"]) == 0
    assert {"rmse", "mae"} <= set(json.loads(capsys.readouterr().out)["results"][0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--model.d_model", "32", "--model.n_layers", "3"],
            "--model.d_model, --model.n_layers: the stack is",
        ),
        (["--model.sequence", "false"], "no SMILES is read"),
    ],
)
def test_options_that_a_language_model_overrides_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    labelled().to_csv(tmp_path / "data.csv", index=False)
    words = ["train", "--data", str(tmp_path / "data.csv"), "--output", str(tmp_path / "run")]
    assert main([*words, "--pretrained", str(tmp_path), *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "flags", "status", "said"),
    [
        ("", [], 1, "is empty"),
        ("name,value\na,1\n", [], 1, "no column is called smiles"),
        ("smiles,y\nxx,1\n", [], 1, "none of its 1 structures can be read"),
        ("smiles,y\n" + "".join(f"{'C' * n},1\n" for n in range(1, 30)), [], 1, "only one class (1)"),
        (
            "smiles,y\n" + "".join(f"{'C' * n},2.5\n" for n in range(1, 30)),
            [],
            1,
            "the same label everywhere",
        ),
        (
            "smiles,y\n" + "".join(f"{'C' * n},\n" for n in range(1, 30)),
            [],
            1,
            "nothing to learn: no column of labels was found (columns with nothing in them, "
            "not read as labels: y)",
        ),
        ("smiles,y\nC,1\nCC,2\n", ["--tasks", "z"], 1, "'z'"),
        ("smiles,y\nC,1\nCC,2\n", ["--split", "ibm-split"], 2, "only cards have an ibm-split"),
        ("smiles,y\nC,1\nCC,2\n", ["--units", "K"], 2, "expected TASK=UNIT"),
        ("smiles,y\nC,1\nCC,2\n", ["--alpha", "2"], 2, "share inside"),
        ("smiles,y\nC,1\nCC,2\n", ["--kinds", "y"], 2, "expected TASK=regression or TASK=classification"),
        ("smiles,y\nC,1\nCC,2\n", ["--kinds", "y=number"], 2, "expected regression or classification"),
        ("smiles,y\nC,1\nCC,-1\n", ["--kinds", "y=classification"], 1, "classes 0 and 1, got -1 in row 2"),
        (
            "smiles;y\nC;1,5\nCC;2\nCCC;3\n",
            [],
            1,
            "nothing to learn: no column of labels was found (column 'y' holds '1,5'",
        ),
        ("smiles,y\nC,1.5\nCC,>100\nCCC,3\n", [], 1, "holds '>100' in row 2"),
    ],
)
def test_says_in_one_sentence_what_is_wrong(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    flags: list[str],
    status: int,
    said: str,
) -> None:
    (tmp_path / "data.csv").write_text(content)
    words = ["train", "--data", str(tmp_path / "data.csv"), "--output", str(tmp_path / "run"), *SMALL]
    assert main([*words, "--split", "random", *flags]) == status
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_refuses_a_file_without_one_readable_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.smi").write_text("c1ccccc\nxx\n")
    out = folder / "bad.csv"
    call = [
        "predict",
        "--model",
        str(folder / "run"),
        "--input",
        str(folder / "bad.smi"),
        "--output",
        str(out),
    ]
    assert main(call) == 1
    assert "0 of 2 rows predicted" in capsys.readouterr().err
    assert len(pd.read_csv(out)) == 2  # the reasons are there all the same


@pytest.mark.slow
def test_help_waits_for_nothing_that_it_does_not_show() -> None:
    code = (
        "import sys; from mambakit.apps.molecules import main; assert main(['train', '--help']) == 0; "
        "assert not {'lightning', 'pandas', 'sklearn', 'rdkit'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--model.d_model" in done.stdout
