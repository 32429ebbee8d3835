"""Property models: what they read, what they say, and that training learns."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from torch.utils._python_dispatch import TorchDispatchMode

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import DataError, UsageError
from mambakit.core.language_model import LanguageModelConfig
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.molecules.config import LossConfig, ModelConfig
from mambakit.domains.molecules.features import ecfp_counts
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.model import DescriptorScaler, Network, PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Split, Task
from mambakit.domains.molecules.neighbours import TrainingSet
from mambakit.domains.molecules.prediction import in_units, inputs_of, outputs_of, predict
from mambakit.domains.molecules.task import MemberBatches, losses_of
from mambakit.domains.molecules.tokenizer import END, START, SmilesTokenizer
from mambakit.domains.molecules.training import train_properties, usable

SMALL = ModelConfig(
    members=2, d_model=16, n_layers=1, d_state=4, head_dim=8, features="ecfp", d_hidden=32, test_smiles=3,
    trees=0, dropout=0.0, head_dropout=0.0,
)  # fmt: skip
ALCOHOLS = ["C" * n + "O" for n in range(1, 13)]
ALKANES = ["C" * n for n in range(1, 13)]
AMINES = ["C" * n + "N" for n in range(1, 13)]


def some_molecules() -> tuple[Molecules, Split]:
    """Chain length as a number, whether there is oxygen as a class; some labels unknown."""
    smiles = ALCOHOLS + ALKANES + AMINES
    labels = np.array([[Chem.MolFromSmiles(one).GetNumHeavyAtoms(), "O" in one] for one in smiles], float)
    labels[::5, 0] = np.nan
    labels[2::7, 1] = np.nan
    n = np.arange(len(smiles))
    tasks = (Task("size", "regression", "atoms"), Task("oxygen", "classification"))
    molecules = Molecules("chains", n + 1, np.array(smiles), labels, tasks)
    return molecules, Split("random", n[n % 3 > 0], n[n % 3 == 0], n[:0])


def trained(folder: Path, **changes: object) -> PropertyModel:
    molecules, split = some_molecules()
    config = ModelConfig(**{**SMALL.__dict__, **changes})  # type: ignore[arg-type]
    budget = TrainConfig(max_epochs=12, batch_size=8, lr=2e-2, patience=0, device="cpu")
    model, _ = train_properties(
        molecules,
        split,
        RunFolder(folder),
        model_config=config,
        loss_config=LossConfig(),
        train_config=budget,
    )
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PropertyModel:
    return trained(tmp_path_factory.mktemp("run"))


def test_learns_both_kinds_with_blank_labels(model: PropertyModel) -> None:
    said = predict(model, inputs_of(model, ["CCCCO", "CCCCCCCCCC", "CCCCCCN"]))
    assert said.value[0, 1] > 3 * said.value[1:, 1].max()
    assert said.value[1, 0] > said.value[0, 0]  # in atoms, not scaled
    assert 3 < said.value[0, 0] < 9
    assert np.isnan(said.low[:, 1]).all()
    assert (said.low[:, 0] < said.value[:, 0]).all()
    assert (said.value[:, 0] < said.high[:, 0]).all()


def test_intervals_lie_around_their_values_and_widths_differ(model: PropertyModel) -> None:
    said = predict(model, inputs_of(model, [*ALKANES, *AMINES, "c1ccccc1", "[Na+].[Cl-]"]), alpha=0.2)
    value, low, high = said.value[:, 0], said.low[:, 0], said.high[:, 0]
    np.testing.assert_allclose((low + high) / 2, value)
    assert (low < value).all()
    assert (value < high).all()
    assert len(np.unique(high - low)) > 10
    molecules, split = some_molecules()
    held = split.validation[~np.isnan(molecules.labels[split.validation, 0])]
    said = predict(model, inputs_of(model, molecules.smiles[held].tolist()), alpha=0.2)
    labels = molecules.labels[held, 0]
    # of the molecules that calibrated it, just as many are inside as the rank says
    assert ((said.low[:, 0] <= labels) & (labels <= said.high[:, 0])).sum() == np.ceil(0.8 * (len(held) + 1))


class NoFloat64(TorchDispatchMode):
    """A device without float64, as mps is: every tensor there is refused."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor) and one.device.type == "meta" and one.dtype == torch.float64:
                raise TypeError(f"{func}: this device has no float64")
        return made


def test_needs_no_float64_on_the_device(tmp_path: Path) -> None:
    made = trained(tmp_path, sequence=False, features="both", members=1)
    batch = inputs_of(made, ["CCO", "CCN"]).batch([0, 1])
    here = made(batch)
    with NoFloat64():
        there = copy.deepcopy(made).to("meta")(batch.to("meta"))
    assert there.value.shape == here.value.shape
    assert there.value.device.type == "meta"


def test_mixed_members_read_fragments_in_turn(tmp_path: Path) -> None:
    made = trained(tmp_path, sequence=False, features="mixed", members=3)
    batch = inputs_of(made, ["CCO", "CCN"]).batch([0, 1])
    said = made(batch).value
    without = made(batch._replace(ecfp=torch.zeros_like(batch.ecfp))).value
    assert [bool((a != b).any()) for a, b in zip(said, without, strict=True)] == [True, False, True]


def test_the_forest_counts_as_validation_says(tmp_path: Path) -> None:
    made = trained(tmp_path, sequence=False, trees=5)
    assert made.forest is not None
    inputs = inputs_of(made, ["CCO", "CCCCN"])
    output, _ = outputs_of(made, inputs)
    alone, _ = in_units(made, output._replace(forest=None))
    trust = made.forest.trust
    expected = trust * alone + (1 - trust) * made.forest.predict(inputs.table)
    np.testing.assert_allclose(predict(made, inputs).value, expected)
    made.save_pretrained(tmp_path / "saved")
    again = PropertyModel.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(predict(again, inputs_of(again, ["CCO", "CCCCN"])).value, expected)


def test_embeddings_cost_no_second_pass(model: PropertyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    read = Network.read
    monkeypatch.setattr(Network, "read", lambda *args: passes.append(1) or read(*args))
    inputs = inputs_of(model, ["CCO"])
    said = predict(model, inputs, embed=True)
    assert len(passes) == SMALL.members * SMALL.test_smiles
    assert said.embeddings is not None
    ways = [model.embed(inputs.batch([0], [way])) for way in range(SMALL.test_smiles)]
    np.testing.assert_allclose(said.embeddings, torch.stack(ways).mean(0).detach(), rtol=1e-5, atol=1e-6)


def test_saved_model_says_the_same(model: PropertyModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    again = PropertyModel.from_pretrained(tmp_path / "m")
    asked = ["CCCO", "OCC.C", "[Na+].[Cl-]"]
    first, second = (predict(one, inputs_of(one, asked), embed=True) for one in (model, again))
    for name in ("value", "spread", "low", "high", "sets", "similarity", "embeddings"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_predictions_do_not_depend_on_company(model: PropertyModel) -> None:
    alone = predict(model, inputs_of(model, ["CCCO"])).value
    together = predict(model, inputs_of(model, ["C" * 60, "CCCO", "CN"])).value
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-5)


def test_members_differ_and_one_alone_has_no_spread(model: PropertyModel, tmp_path: Path) -> None:
    assert (predict(model, inputs_of(model, ["CCCCC"])).spread > 0).all()
    one = trained(tmp_path, members=1, sequence=False)
    assert (predict(one, inputs_of(one, ["CCCCC"])).spread == 0).all()


def test_similarity_is_rdkits() -> None:
    known, asked = ["CCO", "c1ccccc1O", "CC(=O)N"], ["CCCO", "c1ccccc1N", "[Na+]"]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)

    def bits(smiles: list[str]) -> list[DataStructs.ExplicitBitVect]:
        return [generator.GetFingerprint(Chem.MolFromSmiles(one)) for one in smiles]

    def counts(smiles: list[str]) -> np.ndarray:
        return ecfp_counts([Chem.MolFromSmiles(one) for one in smiles])

    expected = [max(DataStructs.BulkTanimotoSimilarity(one, bits(known))) for one in bits(asked)]
    assert TrainingSet.of(counts(known)).similarity(counts(asked)) == pytest.approx(expected)
    assert TrainingSet.of(counts(known)).similarity(counts(known)) == pytest.approx(1)


@pytest.mark.parametrize("smiles", ["CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O.[Na+]", "CCO.Cl>>CCCl"])
def test_every_way_of_writing_is_the_same_molecule(smiles: str) -> None:
    inputs = MoleculeInputs([smiles], SMALL, ways=8)
    assert smiles.count(">") == inputs.written(0, 1).count(">")
    sides = [one for one in smiles.split(">") if one]
    for way in range(8):
        there = [one for one in inputs.written(0, way).split(">") if one]
        assert [Chem.CanonSmiles(one) for one in there] == [Chem.CanonSmiles(one) for one in sides]
    assert len({inputs.written(0, way) for way in range(8)}) > 1


def test_long_molecules_are_cut_and_named() -> None:
    inputs = MoleculeInputs(["CC", "C" * 3000], ModelConfig(max_tokens=100, features="none"), ways=1)
    inputs.tokenizer = SmilesTokenizer().fit(["CC"])
    batch = inputs.batch([0, 1])
    assert batch.lengths.tolist() == [4, 100]
    assert batch.ids[1, 0] == START
    assert batch.ids[1, 99] == END
    assert inputs.cut == {1}


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 16), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_every_member_sees_every_molecule_once(n: int, members: int, batch_size: int, random) -> None:  # type: ignore[no-untyped-def]
    lengths = [random.randint(1, 50) for _ in range(n)]
    batches = MemberBatches(lengths, members, batch_size)
    made = [torch.tensor(batch) for batch in batches]
    assert len(made) == len(batches)
    seen = torch.cat(made)
    for member in range(members):
        assert sorted(seen[:, member].tolist()) == list(range(n))


def test_descriptors_become_ordinary_numbers() -> None:
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(5, 2, 200), np.exp(rng.normal(0, 8, 200)), np.full(200, 3.0)], 1)
    x[:20, 0] = np.nan
    scaler = DescriptorScaler(3).fit(torch.from_numpy(x))
    scaled = scaler(torch.from_numpy(x))
    assert scaled[:, :2].std(0).tolist() == pytest.approx([1, 1], abs=0.15)
    assert scaled[:, 2].abs().max() == 0
    assert scaled[0, 0] == 0  # what is unknown is the mean
    new = scaler(torch.tensor([[np.inf, -np.inf, 1e30]], dtype=torch.float64))
    assert new.isfinite().all()


def test_blank_labels_have_no_loss_and_no_gradient() -> None:
    value = torch.zeros(2, 2, requires_grad=True)
    target = torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])
    losses_of(value, target, torch.tensor([False, True])).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[-2.0, 0.0], [0.0, -0.5]]


def test_begins_with_just_what_a_language_model_knows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = SmilesTokenizer().fit(["CCN"])
    stack = BackboneConfig(d_model=16, layers=["mamba2", "mlp"], block_options={"mamba2": {"head_dim": 8}})
    language = MoleculeModel(LanguageModelConfig(tokenizer.n_ids, stack)).eval()
    language.tokenizer = tokenizer
    language.save_pretrained(tmp_path / "lm")
    molecules, split = some_molecules()
    no_training = TrainConfig(max_epochs=1, lr=0.0, device="cpu")
    model, _ = train_properties(
        molecules,
        split,
        RunFolder(tmp_path / "run"),
        model_config=SMALL,
        loss_config=LossConfig(),
        train_config=no_training,
        pretrained=tmp_path / "lm",
    )
    ids = tokenizer.encode("CCCN").values[None]
    expected, _ = language.backbone(language.embedding(ids))
    for member in model.members:
        actual, _ = member.backbone(member.embedding(ids))
        torch.testing.assert_close(actual, expected)


def test_says_why_nothing_can_be_learned() -> None:
    molecules, split = some_molecules()
    labels = molecules.labels.copy()
    labels[split.train, 1] = 1.0
    one_class = Molecules("x", molecules.rows, molecules.smiles, labels, molecules.tasks)
    kept, said = usable(one_class, split)
    assert [task.name for task in kept.tasks] == ["size"]
    assert said == ["oxygen has only one class (1) in the training part"]
    labels[split.train, 0] = np.nan
    nothing = Molecules("x", molecules.rows, molecules.smiles, labels, molecules.tasks)
    with pytest.raises(DataError, match="size has no label in the training part; oxygen has only one class"):
        usable(nothing, split)


def test_refuses_a_model_that_reads_nothing() -> None:
    with pytest.raises(UsageError, match="nothing to read"):
        ModelConfig(sequence=False, features="none")
