"""What the loop is made of: measures, the filter, the memory, the history."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from mambakit.core.errors import DataError
from mambakit.domains.molecules.design.diversity import DiversityFilter, bucket
from mambakit.domains.molecules.design.history import History
from mambakit.domains.molecules.design.measures import auc_top, hits, top_mean
from mambakit.domains.molecules.design.memory import Memory, Remembered, rewritings
from mambakit.domains.molecules.design.objective import Scores
from mambakit.domains.molecules.design.pictures import running_top


def test_auc_by_hand_and_as_pmo_counts_it() -> None:
    # one call of reward 1 in a budget of 4, a point a call: a trapezium of 1/2, then 3 calls at 1
    assert auc_top([1.0], 4, k=1, every=1) == pytest.approx((0.5 + 3) / 4)
    assert auc_top([1.0], 4, k=1, every=1, extrapolate=False) == pytest.approx(0.5 / 4)
    assert auc_top([], 10) == 0
    # 250 calls of 0.5 in a budget of 1000: from 0 to 0.5 over the first hundred, then 0.5
    assert auc_top([0.5] * 250, 1000) == pytest.approx((25 + 75 + 375) / 1000)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=350), st.integers(1, 12))
def test_running_top_and_auc_agree_with_sorting(rewards: list[float], k: int) -> None:
    running = running_top(np.array(rewards), k)
    for n in {1, len(rewards) // 2 or 1, len(rewards)}:
        assert running[n - 1] == pytest.approx(top_mean(rewards[:n], k), abs=1e-12)
    area = auc_top(rewards, len(rewards), k=k)
    assert 0 <= area <= max(rewards) + 1e-12


def test_hits() -> None:
    found = hits([0.1, 0.7, 0.9, 0.69], ["a", "b", "b", "c"], 0.7)
    assert found == {"hits": 2, "scaffolds": 1, "first": 2, "tenth": None, "hundredth": None}


def test_a_bucket_rewards_so_many_and_repeats_fill_it() -> None:
    diversity = DiversityFilter(2)
    # a batch is counted after its rewards, and a bucket is full only once it holds more than its size
    rewards = [0.5, 0.6, 0.7, 0.8]
    assert diversity.filtered(["a", "b", "a", "b"], np.array(rewards)).tolist() == rewards
    assert diversity.full(["a", "b"]) == set()
    assert diversity.filtered(["a", "c", "a", "a"], np.array(rewards)).tolist() == rewards
    assert diversity.full(["a", "b", "c"]) == {"a"}
    assert diversity.filtered(["b", "a"], np.array([0.5, 0.6])).tolist() == [0.5, 0]
    assert DiversityFilter(0).filtered(["a"] * 9, np.ones(9)).tolist() == [1.0] * 9


def test_buckets_tell_stereochemistry_apart_and_chains_stand_for_themselves() -> None:
    def of(smiles: str) -> str:
        return bucket(smiles, Chem.MolFromSmiles(smiles))

    cis, trans = "CC1CC[C@H]2CCCC[C@H]2C1", "CC1CC[C@@H]2CCCC[C@H]2C1"
    assert of(cis) != of(trans)
    assert of(cis) == of("O" + cis)
    assert of("CCO") == "CCO"


def test_memory_keeps_the_best_once_and_forgets_closed_scaffolds() -> None:
    memory = Memory(2)
    memory.add(
        [Remembered(name, name, name[0], reward) for name, reward in (("a1", 0.3), ("a2", 0.9), ("b1", 0.5))]
    )
    assert [one.smiles for one in memory.best] == ["a2", "b1"]
    memory.add([Remembered("a2", "a2", "a", 0.1), Remembered("c1", "c1", "c", 0.0)])
    assert [(one.smiles, one.reward) for one in memory.best] == [("b1", 0.5), ("a2", 0.1)]
    memory.purge({"b"})
    assert [one.smiles for one in memory.drawn(5, np.random.default_rng(0))] == ["a2"]


def test_rewritings_are_the_same_molecule_written_otherwise() -> None:
    smiles = "CC(=O)Oc1ccccc1C(=O)O"
    ways = rewritings(smiles, 20, np.random.default_rng(0))
    assert {Chem.CanonSmiles(one) for one in ways} == {smiles}
    assert len(set(ways)) > 10
    assert ways == rewritings(smiles, 20, np.random.default_rng(0))


def scores(*rewards: float, reason: str = "") -> Scores:
    values = np.array(rewards)[:, None]
    return Scores(values, values, np.array(rewards), [reason] * len(rewards))


def test_history_survives_a_torn_line_and_refuses_another_objective(tmp_path: Path) -> None:
    path = tmp_path / "molecules.csv"
    history = History(path, ["x"])
    history.append(["CC", "CO"], ["", ""], scores(0.25, 1 / 3))
    history.append(["c1ccccc1"], ["c1ccccc1"], scores(0.0, reason='x: said "no,\nnever"'))
    whole = path.read_bytes()
    path.write_bytes(whole + b"4,CCN,,0.9")
    again = History(path, ["x"])
    assert path.read_bytes() == whole
    assert again.calls == history.calls
    assert again.rewards.tolist() == [0.25, 1 / 3, 0.0]
    assert again["c1ccccc1"].reason == 'x: said "no, never"'
    assert "CCN" not in again
    again.append(["CCN"], [""], scores(0.5))
    assert [row["call"] for row in csv.DictReader(path.open())] == ["1", "2", "3", "4"]
    with pytest.raises(DataError, match="of another objective"):
        History(path, ["y"])
    path.write_bytes(whole.replace(b"2,CO", b"7,CO"))
    with pytest.raises(DataError, match="row 2 is damaged"):
        History(path, ["x"])
