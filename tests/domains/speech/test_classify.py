"""Classification: learns sounds apart, says the same in any company, and measures as the definitions say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.speech.augment import AugmentConfig
from mambakit.domains.speech.classify.baselines import nearest_mean
from mambakit.domains.speech.classify.config import (
    ClassifyConfig,
    ClassifyLossConfig,
    ClassifyModelConfig,
    Network,
)
from mambakit.domains.speech.classify.data import Clips
from mambakit.domains.speech.classify.evaluation import evaluate, size_of
from mambakit.domains.speech.classify.metrics import (
    alarms,
    area,
    equal_error,
    hourly,
    keyword_trade,
    windows,
)
from mambakit.domains.speech.classify.model import Classifier, PaddedBatchNorm
from mambakit.domains.speech.classify.prediction import probabilities
from mambakit.domains.speech.classify.training import ClipParts, train_classifier
from mambakit.domains.speech.encoder import EncoderConfig

SMALL = EncoderConfig(d_model=16, channels=4, n_layers=1, d_state=8, head_dim=8, dropout=0.0)


def chirp(rising: bool, generator: torch.Generator) -> Tensor:
    """A sweep up or down: the mean spectrum of both is the same, only the order of time tells them apart."""
    n = int(torch.randint(1600, 3200, (), generator=generator))
    sweep = torch.linspace(300, 1500, n) if rising else torch.linspace(1500, 300, n)
    return 0.3 * torch.sin(2 * math.pi * sweep.cumsum(0) / 8000) + 0.01 * torch.randn(n, generator=generator)


def chirps(n: int, seed: int) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    return Clips([chirp(i % 2 == 0, generator) for i in range(n)], torch.tensor([i % 2 for i in range(n)]))


def test_learns_what_only_order_tells_apart(tmp_path: Path) -> None:
    parts = ClipParts(["up", "down"], chirps(80, 0), chirps(16, 1), chirps(40, 2), [])
    model, result = train_classifier(
        parts,
        RunFolder(tmp_path / "run"),
        name="chirps",
        model_config=ClassifyModelConfig(encoder=SMALL),
        loss_config=ClassifyLossConfig(),
        augment_config=AugmentConfig(),
        train_config=TrainConfig(max_epochs=8, batch_size=16, lr=1e-2, precision="32-true", device="cpu"),
    )
    rows = {row["classifier"]: row for row in evaluate(model, parts.test, train=parts.train).rows}
    assert float(str(rows["mambakit"]["accuracy"])) >= 0.95
    assert result.best_score < 0.5
    model.save_pretrained(tmp_path / "saved")
    again = Classifier.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(probabilities(again, parts.test.samples), probabilities(model, parts.test.samples))


@pytest.mark.parametrize("network", ["mamba", "cnn"])
def test_says_the_same_in_any_company(network: Network) -> None:
    torch.manual_seed(0)
    shape = ClassifyModelConfig(encoder=SMALL, network=network)
    model = Classifier(ClassifyConfig(["a", "b"], model=shape)).eval()
    clips = chirps(6, 3).samples
    together = probabilities(model, clips)
    alone = torch.cat([probabilities(model, [one]) for one in clips])
    assert torch.allclose(together, alone, atol=1e-5)


def test_baseline_has_as_many_parameters() -> None:
    classes = [str(i) for i in range(10)]
    ours, cnn = (
        size_of(Classifier(ClassifyConfig(classes, model=ClassifyModelConfig(network=network))))
        for network in ("mamba", "cnn")
    )
    assert abs(cnn / ours - 1) < 0.03
    assert ours < 130_000


def test_nearest_mean_finds_the_nearest() -> None:
    front_end = Classifier(ClassifyConfig(["a", "b"])).front_end
    train, test = chirps(20, 4), chirps(10, 5)
    assert torch.equal(nearest_mean(train, test, front_end, 2), test.labels)


def test_trade_by_hand() -> None:
    scores, is_keyword = np.array([0.9, 0.8, 0.7, 0.6, 0.1]), np.array([True, False, True, False, False])
    trade = keyword_trade(scores, is_keyword)
    assert trade.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6, 0.1]
    assert trade.misses.tolist() == [0.5, 0.5, 0, 0, 0]
    assert trade.false_alarms == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert equal_error(trade) == pytest.approx((1 / 3 + 0.5) / 2)
    assert area(trade) == pytest.approx(5 / 6)  # of six pairs of a keyword and another, five are in order


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_area_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    scores, is_keyword = (np.array(side) for side in zip(*pairs, strict=True))
    assume(is_keyword.any() and not is_keyword.all())
    ours, others = scores[is_keyword][:, None], scores[~is_keyword]
    share = ((ours > others) + 0.5 * (ours == others)).mean()
    assert area(keyword_trade(scores.astype(float), is_keyword)) == pytest.approx(share)


def test_alarms_an_hour_are_counted_at_the_thresholds_of_the_trade() -> None:
    trade = keyword_trade(np.array([0.9, 0.5, 0.2]), np.array([True, True, False]))
    heard = np.zeros(36_000)  # an hour
    heard[[100, 5000]], heard[9000] = 0.6, 0.95
    found = hourly(trade, heard, 0.1, 1.0)
    assert found.thresholds.tolist() == [0.9, 0.5, 0.2]
    assert found.false_alarms.tolist() == [1, 3, 3]
    assert found.misses.tolist() == [0.5, 0, 0]


def test_alarms_within_a_second_are_one() -> None:
    scores = np.zeros(50)
    scores[[3, 4, 12, 14, 30]] = 0.9
    assert alarms(scores, 0.5, 0.1) == pytest.approx([0.3, 1.4, 3.0])
    assert alarms(scores, 0.95, 0.1) == []


@pytest.mark.parametrize("n", [1, 10, 11, 25])
def test_windows_cover_everything(n: int) -> None:
    cut = windows(torch.arange(1.0, n + 1), 10, 4)
    assert set(range(1, n + 1)) <= set(cut.flatten().int().tolist())
    assert all(torch.equal(cut[i, 4:], cut[i + 1, :6]) for i in range(len(cut) - 1))


def test_labels_that_do_not_serve_are_named() -> None:
    from mambakit.domains.speech.classify.data import classes_of
    from mambakit.domains.speech.utterances import Split, Utterances, utterance_table

    table = utterance_table([{"path": "x", "label": one} for one in ["10", "9", "2", "11"]])
    places = np.arange(4)
    assert classes_of(Utterances("u", table), Split("s", places, places, places)) == ["2", "9", "10", "11"]
    with pytest.raises(DataError, match="validation has the label '11', which training has not"):
        classes_of(Utterances("u", table), Split("s", places[:3], places[3:], places[:0]))


@pytest.mark.parametrize("first", range(10))
def test_an_alarm_a_second_is_the_same_wherever_it_begins(first: int) -> None:
    scores = np.zeros(60)
    scores[first:] = 1.0
    assert alarms(scores, 0.5, 0.1) == pytest.approx([0.1 * i for i in range(first, 60, 10)])


def test_batch_norm_of_the_baseline_does_not_see_padding() -> None:
    torch.manual_seed(0)
    x, theirs, ours = torch.randn(3, 4, 50), torch.nn.BatchNorm1d(4), PaddedBatchNorm(4)
    longer = torch.nn.functional.pad(x, (0, 30), value=9.0)
    there = (torch.arange(80) < 50).expand(3, 1, 80)
    for _ in range(2):
        expected = theirs(x)
        torch.testing.assert_close(ours(longer, there)[..., :50], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=0.02)  # theirs is over n - 1
    ours, theirs = ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(longer, there)[..., :50], theirs(x), rtol=0.02, atol=0.02)
