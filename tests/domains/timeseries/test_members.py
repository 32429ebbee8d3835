"""A forecaster of several networks: each trained as if alone, averaged, kept and blended as one."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.blocks import MoE
from mambakit.core.errors import UsageError
from mambakit.core.training import FitResult, GraphedLoss
from mambakit.domains.timeseries.backtesting.backtest import backtest
from mambakit.domains.timeseries.config import ForecasterConfig, LossConfig, ModelConfig
from mambakit.domains.timeseries.data import SeriesData, series_in, split_series
from mambakit.domains.timeseries.evaluation import evaluate
from mambakit.domains.timeseries.forecasting import forecast, to_frame
from mambakit.domains.timeseries.tables.table import series_of
from mambakit.domains.timeseries.task import ForecastLoss
from mambakit.domains.timeseries.training import make_values
from mambakit.domains.timeseries.window import WindowForecaster
from mambakit.domains.timeseries.window_data import Windows


@pytest.fixture(scope="module")
def pair(
    train, data: SeriesData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WindowForecaster, FitResult]:
    return train(data, tmp_path_factory.mktemp("pair") / "run", members=2, max_steps=60)


def with_trust(model: WindowForecaster, trust: float) -> WindowForecaster:
    model = copy.deepcopy(model)
    model.trust.fill_(trust)
    return model


def validation_mse(model: WindowForecaster, data: SeriesData, trust: float) -> float:
    values, model = make_values(data, model.tokenizer), with_trust(model, trust)
    return evaluate(model, data, "validation", values=values, lookback=48, horizon=24).rows[0]["mse"]


def test_forecasts_are_the_mean_of_the_members(pair, data):
    model, _ = pair
    batch = make_values(data, model.tokenizer).cut(torch.tensor([340, 360]), 48, 24)
    window = (batch.history, batch.phase, batch.series)
    with torch.no_grad():
        anchor = model.anchor(*window)
        one, other = (member(*window, anchor) for member in model.members)
        whole, trusting, plain = (
            make(*window) for make in (model, with_trust(model, 1.0), with_trust(model, 0.0))
        )
    assert (one - other).abs().max() > 1e-3  # they are not the same network twice
    mean = (one + other) / 2
    torch.testing.assert_close(trusting, mean)
    torch.testing.assert_close(model.point(plain), anchor[0].transpose(1, 2), rtol=1e-4, atol=1e-4)
    # closed form moves all levels alike; what lies between them is the members' own
    torch.testing.assert_close(whole.diff(dim=-1), mean.diff(dim=-1), rtol=1e-3, atol=1e-5)


def test_weights_and_trust_are_chosen_for_the_mean(pair, data):
    model, result = pair
    assert result.best_score == pytest.approx(validation_mse(model, data, 1.0), rel=1e-4)
    # drawn to a half as if four windows that don't overlap had asked for it: 40 validation rows hold 40 / 24
    prior = 4 * 24 / 40
    asked = min(1.0, max(0.0, float(model.trust) * (1 + prior) - 0.5 * prior))
    assert min(asked, 0.5) - 1e-6 <= float(model.trust) <= max(asked, 0.5) + 1e-6
    best = validation_mse(model, data, asked)
    for other in (asked - 0.1, asked + 0.1):
        if 0 <= other <= 1:
            assert validation_mse(model, data, other) > best
    alone = []
    for member in model.members:
        single = copy.deepcopy(model)
        single.members = torch.nn.ModuleList([member])
        alone.append(validation_mse(single, data, 1.0))
    assert result.best_score < np.mean(alone)


@pytest.mark.slow
def test_a_member_is_trained_as_if_it_were_alone(train, data, tmp_path):
    alone, _ = train(data, tmp_path / "one", members=1, max_steps=20)
    three, _ = train(data, tmp_path / "three", members=3, max_steps=20)
    again, _ = train(data, tmp_path / "again", members=3, max_steps=20)
    for name, weight in alone.members[0].state_dict().items():
        torch.testing.assert_close(three.members[0].state_dict()[name], weight, rtol=0, atol=0, msg=name)
    for name, weight in three.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_recorded_steps_have_the_gradients_of_plain_ones(pair, data, device):
    model = copy.deepcopy(pair[0]).to(device).train()
    loss = ForecastLoss(model, LossConfig()).to(device)
    graphed = GraphedLoss(loss)
    values = make_values(data, model.tokenizer).to(device)
    for i in range(5):  # the third call is recorded
        batch = values.cut(torch.arange(60 + i, 92 + i, device=device).view(2, 16), 48, 24)
        gradients = []
        for run in (loss, graphed):
            model.zero_grad()
            run(*batch).backward()
            gradients.append({name: one.grad.clone() for name, one in model.named_parameters()})
        for name, plain in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], plain, rtol=1e-4, atol=1e-6, msg=name)


def test_experts_are_kept_in_balance():
    torch.manual_seed(0)
    small = ModelConfig(
        patch_length=8, d_time=16, d_series=16, head_dim=8, dropout=0.0, members=2, series_blocks=["moe"]
    )
    model = WindowForecaster(ForecasterConfig(lookback=16, horizon=4, n_series=3, model=small)).train()
    history, future = torch.randn(2, 5, 16, 3), torch.randn(2, 5, 4, 3)
    inputs = history, future, torch.zeros(2, 5, dtype=torch.int64), torch.arange(3)
    total = ForecastLoss(model, LossConfig())(*inputs)
    asked = auxiliary_loss(model)
    assert asked > 0
    for block in model.modules():
        if isinstance(block, MoE):
            block.balance_weight = 0.0
    torch.testing.assert_close(ForecastLoss(model, LossConfig())(*inputs), total - asked)


def test_one_folder_holds_them_all(pair, data, tmp_path):
    model, _ = pair
    model.save_pretrained(tmp_path / "m")
    again = WindowForecaster.from_pretrained(tmp_path / "m")
    assert len(again.members) == again.config.model.members == 2
    series = series_in(data)
    pd.testing.assert_frame_equal(
        to_frame(forecast(model, series, 60)), to_frame(forecast(again, series, 60))
    )


def test_backtest_measures_them(pair, data):
    model, _ = pair
    series = series_in(data)
    found = backtest(lambda _: model, series, horizon=24, windows=2, least=48, season_length=24)
    scores = {row["forecaster"]: row["mase"] for row in found.rows}
    assert scores["mambakit"] < scores["naive"]


@pytest.mark.parametrize("mix", [True, False])
def test_each_member_reads_every_window_once_an_epoch_in_an_order_of_its_own(wide_table, mix):
    data = split_series("waves", series_of(wide_table()), season_length=24, mix=mix)
    windows = Windows(data, "train", lookback=48, horizon=24)
    batches = list(windows.loader(16, shuffle=True, members=3))
    assert [tuple(batch.shape) for batch in batches[:-1]] == [(3, 16)] * (len(batches) - 1)
    starts = torch.cat(batches, dim=1)
    every = windows.starts(np.arange(len(windows)))
    for row in starts:
        torch.testing.assert_close(row.sort().values, every)
    assert all((starts[i] != starts[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_series_apart_are_trained_by_several_members(train, tmp_path, wide_table):
    apart = split_series("apart", series_of(wide_table()), season_length=24, mix=False)
    model, _ = train(apart, tmp_path / "run", members=2, max_steps=10)
    made = forecast(model, series_in(apart), 24)
    assert all(np.isfinite(one.quantiles).all() for one in made)


def test_members_read_in_turn(pair):
    found = [(member.anchored, member.level_map is not None) for member in pair[0].members]
    assert found == [(False, False), (True, True)]


def test_only_those_told_of_the_level_see_it():
    torch.manual_seed(0)
    small = ModelConfig(patch_length=8, d_time=16, d_series=16, head_dim=8, members=4)
    model = WindowForecaster(ForecasterConfig(lookback=16, horizon=4, n_series=3, model=small)).eval()
    for member in model.members:
        torch.nn.init.normal_(member.head.proj.weight)
    history, rest = torch.randn(5, 16, 3), (torch.zeros(5, dtype=torch.int64), torch.arange(3))

    def forecast(member, level):
        window = history + level, *rest
        return member(*window, model.anchor(*window)) - level

    with torch.no_grad():
        moved = [float((forecast(one, 3.0) - forecast(one, 0.0)).abs().max()) for one in model.members]
    for i, by in enumerate(moved):
        assert by > 1e-2 if small.view(i).endswith("level") else by < 1e-4


def test_refuses_a_view_there_is_not():
    with pytest.raises(UsageError, match=r"views: expected some of window, .* got \['sideways'\]"):
        ModelConfig(views=["sideways"])


def test_refuses_no_members():
    with pytest.raises(UsageError, match="members: expected at least 1, got 0"):
        ModelConfig(members=0)
