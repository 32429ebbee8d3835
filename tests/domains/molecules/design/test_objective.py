"""Transforms, aggregates and objective files; user functions that misbehave."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.design import shaping
from mambakit.domains.molecules.design.function_oracle import FunctionOracle
from mambakit.domains.molecules.design.objective import aggregated
from mambakit.domains.molecules.design.objective_file import load_objective, make_objective

ROOT = 1 / 3


def scored(objective, smiles: list[str]):
    return objective(smiles, [Chem.MolFromSmiles(one) for one in smiles])


def test_saturns_part_1_gives_the_rewards_of_its_published_run() -> None:
    # rows of oracle_history.csv in schwallergroup/saturn, experimental_reproduction/part_1
    rows = {
        "c1cccc(Nc2nc(N)nc(C)c2)c1C(=O)NCc1cc(F)ccc1F": 0.00033444274,
        "[C@H]1(O)[C@H](O)[C@](CO)(O)[C@@H]1n1cnc2c1ncnc2NC1CC1": 0.65273136,
        "COC(c1ccc(NC(=O)c2cc3c(cc2)OCC(=O)N3)c(C)c1)=O": 0.5684272,
        "C(/C(=C/CCc1ccc(C)o1)C)(=O)NCC#C": 0.0,
        "C1COC2(C1)CCCC1(CCO1)CC2": 0.4315865,
    }
    scores = scored(load_objective("saturn-part1"), list(rows))
    np.testing.assert_allclose(scores.reward, list(rows.values()), rtol=2e-5, atol=1e-9)


def test_transforms_are_the_formulas_of_reinvent() -> None:
    x = np.linspace(-20, 120, 29)
    np.testing.assert_allclose(
        shaping.sigmoid(x, low=10, high=60, k=0.3), 1 / (1 + 10 ** (10 * 0.3 * (x - 35) / (10 - 60)))
    )
    np.testing.assert_allclose(
        shaping.reverse_sigmoid(x, low=10, high=60, k=0.3), 1 / (1 + 10 ** (0.3 * (x - 35) * 10 / (60 - 10)))
    )
    rise, fall = 10 ** (15 * x / 100), 10 ** (20 * x / 100)
    double = rise / (rise + 10 ** (15 * 10 / 100)) - fall / (fall + 10 ** (20 * 60 / 100))
    np.testing.assert_allclose(
        shaping.double_sigmoid(x, low=10, high=60, coef_div=100, coef_si=20, coef_se=15), double, atol=1e-12
    )
    assert shaping.step(np.array([1.9, 2, 5, 5.1]), low=2, high=5).tolist() == [0, 1, 1, 0]
    assert shaping.right_step(np.array([1.9, 2]), low=2).tolist() == [0, 1]
    assert shaping.left_step(np.array([2, 2.1]), high=2).tolist() == [1, 0]
    assert shaping.linear(np.array([0, 1, 3, 9]), low=5, high=1).tolist() == [1, 1, 0.5, 0]


@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e3, 1e3),
    st.floats(0.1, 1e3),
    st.sampled_from(sorted(shaping.TRANSFORMS)),
)
def test_no_transform_leaves_zero_and_one(x: float, low: float, width: float, kind: str) -> None:
    values = {"low": low, "high": low + width, "k": 0.3, "mu": low, "sigma": width}
    names = shaping.TRANSFORMS[kind].__kwdefaults__ or {}
    wanted = [
        name for name in shaping.TRANSFORMS[kind].__annotations__ if name in values and name not in names
    ]
    transform = shaping.make_transform({"kind": kind, **{name: values[name] for name in wanted}}, "t")
    assert -1e-9 <= transform(np.array([x]))[0] <= 1


def test_aggregates_by_hand() -> None:
    shaped, weights = np.array([[0.5, 0.25], [1.0, 0.0]]), np.array([1.0, 3.0])
    np.testing.assert_allclose(aggregated(shaped, weights, "product"), [0.5 * 0.25**3, 0])
    np.testing.assert_allclose(aggregated(shaped, weights, "geometric"), [(0.5 * 0.25**3) ** 0.25, 0])
    np.testing.assert_allclose(aggregated(shaped, weights, "arithmetic"), [(0.5 + 0.75) / 4, 0.25])


STEP = {"kind": "step", "low": 1, "high": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "expected a mapping with components"),
        ({"component": []}, "component: there is no such key; .* did you mean components"),
        ({"components": []}, "components: expected a list of at least one"),
        ({"aggregate": "sum", "components": [{"oracle": "qed"}]}, "aggregate: expected one of product"),
        ({"components": [{"oracle": "qad"}]}, r"components\[0\].oracle: .* got 'qad'; did you mean qed"),
        ({"components": [{"oracle": "qed"}, "sa"]}, r"components\[1\]: expected a mapping"),
        ({"components": [{"oracle": "tpsa"}]}, r"components\[0\].transform: tpsa is not between 0 and 1"),
        (
            {"components": [{"oracle": "qed", "weight": 0}]},
            r"components\[0\].weight: expected a positive number",
        ),
        ({"components": [{"oracle": "qed", "wieght": 2}]}, r"components\[0\].wieght: .* did you mean weight"),
        ({"components": [{"oracle": "similarity"}]}, r"components\[0\].target: it is needed"),
        ({"components": [{"oracle": "rediscovery", "target": "C1"}]}, r"components\[0\].target: RDKit can't"),
        ({"components": [{"oracle": "mw", "transform": {"kind": "steps"}}]}, r"transform.kind: .* mean step"),
        (
            {"components": [{"oracle": "mw", "transform": {"kind": "step", "low": 3}}]},
            r"components\[0\].transform.high: step needs it",
        ),
        (
            {"components": [{"oracle": "mw", "transform": {**STEP, "hi": 3}}]},
            "transform.hi: step has no such",
        ),
        (
            {"components": [{"oracle": "mw", "transform": {**STEP, "low": "x"}}]},
            "transform.low: expected a number",
        ),
        (
            {"components": [{"oracle": "mw", "transform": {"kind": "sigmoid", "low": 2, "high": 1, "k": 1}}]},
            "low has to be below high, got low 2 and high 1",
        ),
        ({"components": [{"oracle": "function", "function": "mine"}]}, "function: expected FILE.py:FUNCTION"),
        (
            {"components": [{"oracle": "function", "function": "m.py:f", "timeout_s": -1}]},
            "timeout_s: expected a positive number",
        ),
        (
            {"components": [{"oracle": "similarity", "target": "CC", "fingerprint": [1]}]},
            r"components\[0\].fingerprint: expected one of ecfp4, .* got \[1\]",
        ),
        ({"components": [{"oracle": "median", "targets": ["CC", "C1"]}]}, r"targets\[1\]: RDKit can't read"),
        ({"components": [{"oracle": "qed", "name": "reward"}]}, r"\[0\].name: 'reward' can't be a column"),
        ({"components": [{"oracle": "qed", "name": "a:shaped"}]}, r"\[0\].name: 'a:shaped' can't be"),
        (
            {"components": [{"oracle": "qed"}, {"oracle": "qed", "name": "qed-2"}, {"oracle": "qed"}]},
            r"components\[1\].name: 'qed-2' can't be a column of its own",
        ),
    ],
)
def test_impossible_files_name_the_key(tmp_path: Path, spec: object, message: str) -> None:
    path = tmp_path / "objective.yaml"
    path.write_text(yaml.safe_dump(spec))
    with rdBase.BlockLogs(), pytest.raises(UsageError, match=message):
        load_objective(str(path))


def test_names_and_files_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"objective: expected a YAML file or one of .* did you mean median2"
    ):
        load_objective("median")
    with pytest.raises(DataError, match=r"nowhere.yaml can't be read"):
        load_objective(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "bad.yml").write_text("components: [")
    with pytest.raises(DataError, match=r"bad.yml is no YAML"):
        load_objective(str(tmp_path / "bad.yml"))


MINE = """
import os, sys, time

def misbehaving(smiles):
    print("this goes to stderr")
    for one in smiles:
        if "Br" in one: raise KeyError("bromine")
        if "I" in one: time.sleep(60)
        if "S" in one: os._exit(3)
        if "P" in one: sys.exit("phosphorus")
    if any("F" in one for one in smiles): return [0.5] * (len(smiles) + 1)
    return [float("nan") if "Cl" in one else len(one) / 10 for one in smiles]

def always(smiles):
    raise RuntimeError("no licence")

def large(smiles):
    return [7.0] * len(smiles)
"""


def test_a_function_at_fault_costs_only_the_molecules_at_fault(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    spec = {"oracle": "function", "function": "mine.py:misbehaving", "timeout_s": 1.0}
    objective = make_objective({"components": [spec]}, tmp_path)
    smiles = ["CC", "CCBr", "CCl", "CI", "CS", "CP", "CF", "CCCC"]
    began = time.monotonic()
    try:
        scores = scored(objective, smiles)
    finally:
        objective.close()
    assert time.monotonic() - began < 20
    np.testing.assert_allclose(scores.reward, [0.2, 0, 0, 0, 0, 0, 0, 0.4])
    assert scores.reasons[0] == scores.reasons[7] == ""
    expected = ["KeyError: 'bromine'", "returned nan", "took longer than 1 s", "ended by itself (status 3)"]
    expected += ["SystemExit: phosphorus", "it returned 2 values for 1 molecule"]
    for reason, part in zip(scores.reasons[1:7], expected, strict=True):
        assert part in reason
        assert reason.startswith("misbehaving: ")


def test_a_function_that_can_not_be_used_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    for function, message in (
        ("mine.py:scor", "it has no function 'scor', but misbehaving, always, large"),
        ("broken.py:score", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("none.py:score", "there is no such file"),
    ):
        with pytest.raises(DataError, match=message):
            make_objective({"components": [{"oracle": "function", "function": function}]}, tmp_path)


def test_a_function_that_hangs_is_not_waited_for_molecule_by_molecule(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import time\n\ndef hangs(smiles):\n    time.sleep(60)\n")
    spec = {"oracle": "function", "function": "mine.py:hangs", "timeout_s": 0.2}
    objective = make_objective({"components": [spec]}, tmp_path)
    asked, ask = [], FunctionOracle._ask

    def counted(self: FunctionOracle, smiles: list[str]) -> list[float]:
        asked.append(len(smiles))
        return ask(self, smiles)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FunctionOracle, "_ask", counted)
            scores = scored(objective, ["C" * n for n in range(1, 17)])
    finally:
        objective.close()
    assert asked == [16, 1, 1, 1]
    assert [reason.count("took longer than 0.2 s") for reason in scores.reasons] == [1] * 16
    assert [reason.count("not asked for") for reason in scores.reasons] == [0] * 3 + [1] * 13


def test_a_predictor_that_is_not_there_is_told_before_its_libraries_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mambakit.domains.molecules.prediction", None)
    spec = {"oracle": "predictor", "model": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match=r"components\[0\].model: .*nowhere holds no property model"):
        make_objective({"components": [spec]})


def test_failing_all_the_time_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    for function, reason in (("always", "no licence"), ("large", "7 is not between 0 and 1; give the comp")):
        spec = {"oracle": "function", "function": f"mine.py:{function}"}
        objective = make_objective({"components": [spec]}, tmp_path)
        try:
            assert scored(objective, ["CC"] * 99).reward.sum() == 0
            with pytest.raises(DataError, match=f"{function} has failed on 100 molecules in a row.*{reason}"):
                scored(objective, ["CCO"])
        finally:
            objective.close()


@pytest.mark.slow
def test_a_saved_property_model_scores_as_it_predicts(
    tmp_path: Path, molecules: list[Chem.Mol], capsys: pytest.CaptureFixture[str]
) -> None:
    from mambakit.apps.molecules import main

    smiles = [Chem.MolToSmiles(mol) for mol in molecules]
    data = tmp_path / "data.csv"
    rows = [f"{one},{len(one) / 10},{i % 2}" for i, one in enumerate(smiles)]
    data.write_text("\n".join(["smiles,size,odd", *rows]))
    model = tmp_path / "model"
    call = ["train", "--data", data, "--split", "random", "--output", model, "--train.max_epochs", 1]
    call += ["--model.members", 2, "--model.d_model", 16, "--model.n_layers", 1, "--tasks", "size", "odd"]
    assert main([str(word) for word in call]) == 0
    table = tmp_path / "predicted.csv"
    assert main(["predict", "--model", str(model), "--input", str(data), "--output", str(table)]) == 0
    predicted = pd.read_csv(table)
    spec = {"oracle": "predictor", "model": str(model), "task": "size"}
    shape = {"kind": "sigmoid", "low": 0, "high": 5, "k": 0.3}
    values = scored(make_objective({"components": [{**spec, "transform": shape}]}), smiles[:20]).values[:, 0]
    column = next(name for name in predicted if "size" in name and name != "size")
    np.testing.assert_allclose(values, predicted[column][:20], rtol=1e-3, atol=1e-3)
    for change, message in (
        ({"task": "weight"}, "predicts size, odd, got 'weight'"),
        ({"task": None}, "task: .* predicts several, name one of size, odd"),
        ({}, "transform: this property is not between 0 and 1"),
    ):
        with pytest.raises(UsageError, match=message):
            make_objective({"components": [{**spec, **change}]})
