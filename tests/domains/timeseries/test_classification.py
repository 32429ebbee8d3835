"""The classifier of series: what it learns, what it says, and what must not matter to it."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder
from mambakit.domains.timeseries.classification.augmentation import augment, mix, sample
from mambakit.domains.timeseries.classification.config import (
    PRESET_CLASSIFIER_TRAIN,
    AugmentConfig,
    ClassifierConfig,
    ClassifierModelConfig,
    SelectionConfig,
)
from mambakit.domains.timeseries.classification.evaluation import (
    confusion_figure,
    evaluate_classifier,
    nearest_neighbour,
    scores_of,
)
from mambakit.domains.timeseries.classification.network import (
    SeriesClassifier,
    classify,
    features,
    mean_log_probability,
    scale_of,
)
from mambakit.domains.timeseries.classification.task import MemberBatches
from mambakit.domains.timeseries.classification.training import (
    ClassifierResult,
    stratified_folds,
    train_classifier,
)
from mambakit.domains.timeseries.tables.labelled import (
    LabelledData,
    LabelledSeries,
    load_labelled,
    require_labels,
)

SMALL = ClassifierModelConfig(
    members=2, d_model=16, blocks=["mamba2"], d_state=8, head_dim=8, label_smoothing=0.0
)
FAST = dataclasses.replace(
    PRESET_CLASSIFIER_TRAIN, max_epochs=12, batch_size=16, lr=1e-2, ema_decay=0.8, device="cpu"
)
NO_AUGMENTATION = AugmentConfig(jitter=0, scale=0, shift=0)


def make_waves(n: int, seed: int) -> LabelledData:
    """Rising, falling and flat series of two channels, 6 to 14 rows, some values missing."""
    rng = np.random.default_rng(seed)
    series = []
    for i in range(n):
        label, length = i % 3, int(rng.integers(6, 15))
        trend = np.linspace(-1, 1, length) * (1, -1, 0)[label]
        values = 100 + 10 * np.stack([trend, rng.standard_normal(length)], axis=1)
        values[:, 0] += 2 * rng.standard_normal(length)
        values[rng.random(values.shape) < 0.05] = np.nan
        series.append(LabelledSeries(f"s{i}", values, ("rise", "fall", "flat")[label]))
    return LabelledData("waves", ("wave", "noise"), tuple(series), ("fall", "flat", "rise"))


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SeriesClassifier, ClassifierResult, LabelledData]:
    data = make_waves(48, seed=0)
    model, result = train_classifier(
        data,
        RunFolder(tmp_path_factory.mktemp("classifier") / "run"),
        model_config=SMALL,
        augment_config=dataclasses.replace(NO_AUGMENTATION, jitter=0.1, speed=0.1),
        selection_config=SelectionConfig(folds=3, least_steps=0),
        train_config=FAST,
    )
    return model, result, data


def test_learns_and_beats_both_baselines(trained) -> None:  # type: ignore[no-untyped-def]
    model, result, data = trained
    evaluation = evaluate_classifier(model, make_waves(60, seed=1), train=data)
    ours, neighbour, commonest = (row["accuracy"] for row in evaluation.rows)
    assert ours > 0.9
    assert ours > neighbour > commonest == pytest.approx(1 / 3)
    assert result.validation_accuracy > 0.8
    assert result.n_held_out == 32  # two of three folds, for two members
    assert evaluation.confusion.sum() == 60
    assert evaluation.confusion.trace() / 60 == pytest.approx(ours)
    assert evaluation.rows[0]["coverage"] > 0.8  # type: ignore[operator]
    figure = confusion_figure(evaluation)
    assert figure.axes[0].get_title(loc="left") == f"{round(60 * ours)} of 60 right"


def test_says_the_same_after_saving(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, _, data = trained
    model.save_pretrained(tmp_path / "saved")
    again = SeriesClassifier.from_pretrained(tmp_path / "saved")
    said = classify(model, data.series)
    assert again.config.classes == ["fall", "flat", "rise"]
    assert said.equals(classify(again, data.series))
    assert list(said.columns) == [
        "unique_id", "label", "probability", "p_fall", "p_flat", "p_rise", "set",
    ]  # fmt: skip
    assert said[["p_fall", "p_flat", "p_rise"]].sum(axis=1).to_numpy() == pytest.approx(1)
    assert (said["probability"] == said[["p_fall", "p_flat", "p_rise"]].max(axis=1)).all()
    wider = classify(model, data.series, alpha=0.01)["set"].str.split().str.len()
    assert (wider >= said["set"].str.split().str.len()).all()
    assert all(one in row.split() for one, row in zip(said["label"], said["set"], strict=True))
    assert (wider == 3).all()  # 32 held-out series can't promise one miss in a hundred


def test_neither_company_nor_padding_matters(trained) -> None:  # type: ignore[no-untyped-def]
    model, _, data = trained
    together = model.probabilities(data.series)
    alone = torch.cat([model.probabilities([one]) for one in data.series[:8]])
    torch.testing.assert_close(together[:8], alone, rtol=1e-5, atol=1e-6)
    padded = model.pad(data.series[:8])
    junk = padded.values.clone()
    for row, length in zip(junk, padded.lengths.tolist(), strict=True):
        row[length:] = 1e3
    torch.testing.assert_close(model(junk, padded.lengths), model(*padded), rtol=1e-5, atol=1e-6)


def test_channels_of_a_table_are_found_by_name(trained) -> None:  # type: ignore[no-untyped-def]
    model, _, data = trained
    swapped = [LabelledSeries(one.unique_id, one.values[:, ::-1]) for one in data.series]
    expected = classify(model, data.series)
    assert expected.equals(classify(model, swapped, channels=["noise", "wave"]))
    assert expected.equals(classify(model, data.series, channels=["channel 1", "channel 2"]))
    with pytest.raises(DataError, match="expected the channels wave, noise, got wave, hum"):
        classify(model, data.series, channels=["wave", "hum"])
    with pytest.raises(DataError, match=r"series 'x': expected one row or more of 2 channels"):
        classify(model, [LabelledSeries("x", np.zeros((4, 3)))])
    with pytest.raises(DataError, match="series 's0' has the label 'rise'; the classes are up"):
        require_labels(data, ["up"])


def test_missing_values_read_as_missing() -> None:
    values = torch.tensor([[[1.0, math.nan], [3.0, 2.0], [math.nan, 5.0]]])
    expected = [[1, 0, 1, 0, 0, 0], [3, 2, 1, 1, 2, 0], [0, 5, 0, 1, 0, 3]]
    assert features(values, changes=True)[0].tolist() == expected
    assert features(values, changes=False)[0].tolist() == [row[:4] for row in expected]


def test_scale_is_numpys_where_nothing_is_missing() -> None:
    data = make_waves(9, seed=2)
    rows = np.concatenate([one.values for one in data.series])
    mean, deviation = scale_of(data.series)
    np.testing.assert_allclose(mean, np.nanmean(rows, axis=0))
    np.testing.assert_allclose(deviation, np.nanstd(rows, axis=0))
    mean, deviation = scale_of([LabelledSeries("x", np.array([[3.0, np.nan], [3.0, np.nan]]))])
    assert (mean.tolist(), deviation.tolist()) == ([3.0, 0.0], [1.0, 1.0])


def test_mean_probability_of_some_members() -> None:
    logits = torch.randn(3, 5, 4, dtype=torch.float64)
    weight = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    p = logits.softmax(-1)
    expected = (p * weight[..., None]).sum(0) / weight.sum(0)[:, None]
    torch.testing.assert_close(mean_log_probability(logits, weight).exp(), expected)
    torch.testing.assert_close(mean_log_probability(logits).exp(), p.mean(0))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(2, 6), st.integers(0, 2**31))
def test_folds_share_every_class_evenly(labels: list[int], n_folds: int, seed: int) -> None:
    array = np.array(labels)
    folds = stratified_folds(array, n_folds, seed)
    for label in set(labels):
        mine = folds[array == label]
        if len(mine) == 1:
            assert mine[0] == -1
        else:
            counts = np.bincount(mine, minlength=n_folds)
            assert counts.max() - counts.min() <= 1
    counts = np.bincount(folds[folds >= 0], minlength=n_folds)
    assert counts.max() - counts.min() <= 1


def test_no_member_trains_on_what_it_holds_out() -> None:
    held_out = torch.from_numpy(stratified_folds(np.arange(20) % 2, 4, 0))[None] == torch.arange(3)[:, None]
    batches = MemberBatches(held_out, seed=0)
    seen = torch.stack([batches[i] for i in range(len(batches))])  # [n, members]
    for member in range(3):
        assert set(seen[:, member].tolist()) == set(held_out[member].logical_not().nonzero()[:, 0].tolist())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_stretched_lines_stay_lines(seed: int, length: int) -> None:
    torch.manual_seed(seed)
    lengths = torch.tensor([length, 9])
    rows = torch.arange(9.0)
    values = torch.stack([2 * rows + 1, -rows], dim=-1).expand(2, 9, 2)
    config = dataclasses.replace(NO_AUGMENTATION, speed=0.5, crop=0.5)
    made, new = augment(values, lengths, config)
    assert ((new >= 1) & (new <= 14)).all()
    for one, n, old in zip(made, new.tolist(), lengths.tolist(), strict=True):
        line = one[:n]
        assert line[:, 0].min() >= 1 - 1e-4
        assert line[:, 0].max() <= 2 * (old - 1) + 1 + 1e-4
        torch.testing.assert_close(line[:, 0], 1 - 2 * line[:, 1], rtol=1e-5, atol=1e-4)
        if n > 2:
            torch.testing.assert_close(line[:, 0].diff().diff(), torch.zeros(n - 2), atol=1e-4, rtol=0)


def test_sampling_hits_rows_and_keeps_what_is_missing() -> None:
    values = torch.tensor([[[0.0], [2.0], [math.nan], [6.0]]])
    at = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 1.5, 3.0, 9.0]])
    made = sample(values, at, torch.tensor([4]))[0, :, 0]
    torch.testing.assert_close(made, torch.tensor([0, 0, 1, 2, math.nan, 6, 6]), equal_nan=True)
    mixed = mix(values, torch.tensor([2]), torch.tensor([0]), torch.tensor([0.25]))
    torch.testing.assert_close(mixed[0, :2, 0], torch.tensor([0.0, 2.0]))


def test_scores_and_neighbours_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    target, guess = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    scores = scores_of(torch.from_numpy(guess), torch.from_numpy(target), 4)
    assert scores["accuracy"] == pytest.approx(accuracy_score(target, guess))
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, guess))
    assert scores["macro_f1"] == pytest.approx(f1_score(target, guess, average="macro"))
    known, asked = (rng.standard_normal((n, 7, 2)) for n in (20, 15))
    labels = rng.integers(0, 3, 20)
    found = nearest_neighbour(
        [LabelledSeries("", one) for one in known], labels, [LabelledSeries("", one) for one in asked]
    )
    theirs = KNeighborsClassifier(1).fit(known.reshape(20, -1), labels).predict(asked.reshape(15, -1))
    assert found.tolist() == theirs.tolist()


@pytest.mark.skipif("MAMBAKIT_DATA_MIRROR" not in os.environ, reason="MAMBAKIT_DATA_MIRROR is not set")
@pytest.mark.parametrize(
    ("name", "right", "n"), [("JapaneseVowels", 352, 370), ("ItalyPowerDemand", 983, 1029)]
)
def test_neighbour_is_right_as_published(name: str, right: int, n: int) -> None:
    train, test = load_labelled(name, "train"), load_labelled(name, "test")
    found = nearest_neighbour(train.series, require_labels(train), test.series)
    assert (int((found == require_labels(test)).sum()), len(test.series)) == (right, n)


def test_what_can_not_be_learned_is_refused(tmp_path: Path) -> None:
    data = make_waves(6, seed=0)
    run = RunFolder(tmp_path / "run")
    one = dataclasses.replace(data, series=tuple(s for s in data.series if s.label == "rise"))
    with pytest.raises(DataError, match="a classifier needs series of two classes or more, got 1"):
        train_classifier(one, run)
    with pytest.raises(DataError, match="every class has one series"):
        train_classifier(dataclasses.replace(data, series=data.series[:3]), run)
    with pytest.raises(UsageError, match=r"classes: expected two or more, got \['x'\]"):
        ClassifierConfig(["y"], ["x"], [0.0], [1.0])
    with pytest.raises(UsageError, match="members: expected at least 1, got 0"):
        ClassifierModelConfig(members=0)
