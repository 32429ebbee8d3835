"""Temperature scaling, adaptive conformal inference, and calibrators inside a model's folder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError

from mambakit.core.backbone import BackboneConfig
from mambakit.core.calibration import (
    AdaptiveConformal,
    ConformalSets,
    SplitConformal,
    TemperatureScaling,
    load_calibration,
    save_calibration,
)
from mambakit.core.errors import DataError, UserError
from mambakit.core.hub import HubModel
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.state import State
from mambakit.core.testing import assert_states_close

NAN, INF = math.nan, math.inf


def logits_and_targets(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Honest logits, and targets drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 5, generator=generator)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, target = logits_and_targets(8000)
    scaling = TemperatureScaling().fit(temperature * logits, target)
    assert scaling.temperature == pytest.approx(temperature, rel=0.05)
    ece = MulticlassCalibrationError(5)
    assert float(ece(scaling(temperature * logits).softmax(-1), target)) < 0.02


def test_it_is_the_least_cross_entropy_and_masks_count_out() -> None:
    logits, target = logits_and_targets(500)
    fitted = TemperatureScaling().fit(3 * logits, target)
    losses = {
        t: float(F.cross_entropy(3 * logits.double() / t, target))
        for t in (fitted.temperature * 0.999, fitted.temperature, fitted.temperature * 1.001)
    }
    assert min(losses, key=losses.__getitem__) == fitted.temperature
    padded = torch.cat([target, torch.full((10,), -100)])
    nonsense = torch.cat([3 * logits, torch.full((10, 5), NAN)])
    assert TemperatureScaling().fit(nonsense[None], padded[None]).temperature == fitted.temperature


def test_samples_that_say_nothing_keep_it_bounded() -> None:
    right = 5 * torch.eye(4)
    assert 0.01 <= TemperatureScaling().fit(right, torch.arange(4)).temperature < 0.5
    assert TemperatureScaling().fit(right, torch.arange(4).roll(1)).temperature == 100
    with pytest.raises(ValueError, match="target: there is not one that counts"):
        TemperatureScaling().fit(right, torch.full((4,), -100))
    with pytest.raises(ValueError, match=r"target: expected shape \(4,\), got \(3,\)"):
        TemperatureScaling().fit(right, torch.arange(3))
    with pytest.raises(ValueError, match=r"target: 7 is no class of 0\.\.2"):
        TemperatureScaling().fit(torch.randn(2, 3), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        TemperatureScaling(0)


def assert_same(actual: State, expected: State, atol: float = 0) -> None:
    """As ``assert_states_close``, with NaN, which stands for no score yet, equal to itself."""
    assert_states_close(actual.map(no_nan), expected.map(no_nan), atol=atol)


def no_nan(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(nan=-1.0)


def stream(
    adaptive: AdaptiveConformal, prediction: Tensor, target: Tensor, state: State
) -> tuple[Tensor, Tensor, State]:
    """Misses and widths at every step ``(steps, batch, ...)``, and the state after them."""
    missed, widths = [], []
    for p, y in zip(prediction, target, strict=True):
        low, high = adaptive.interval(p, state)
        missed.append(~((low <= y) & (y <= high)))
        widths.append(high - low)
        state = adaptive.update(p, y, state)
    return torch.stack(missed).double(), torch.stack(widths), state


@settings(max_examples=8, deadline=None)
@given(
    alpha=st.sampled_from([0.05, 0.1, 0.3]),
    gamma=st.sampled_from([0.01, 0.05, 0.3]),
    kind=st.sampled_from(["shift", "growth", "steps", "constant", "adversary"]),
    seed=st.integers(0, 99),
)
def test_the_share_of_misses_is_bounded_whatever_comes(
    alpha: float, gamma: float, kind: str, seed: int
) -> None:
    """Proposition 4.1 of Gibbs & Candes 2021, after every number of steps."""
    steps = 150
    noise = torch.randn(steps, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = torch.arange(steps, dtype=torch.float64)[:, None]
    target = {
        "shift": torch.where(t < 50, noise, 40 * noise),
        "growth": noise * 1.05**t,
        "steps": noise + 100 * (t // 20),
        "constant": torch.zeros_like(noise),
        "adversary": 2.0**t,
    }[kind]
    adaptive = AdaptiveConformal(alpha, gamma, window=40)
    missed, _, _ = stream(adaptive, torch.zeros_like(target), target, adaptive.init_state(1))
    counts = torch.arange(1, steps + 1)
    share = missed[:, 0].cumsum(0) / counts
    assert ((share - alpha).abs() <= (max(alpha, 1 - alpha) + gamma) / (gamma * counts) + 1e-9).all()


def shifting(steps: int = 1200) -> Tensor:
    """The noise grows fivefold halfway."""
    noise = torch.randn(steps, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.cat([noise[: steps // 2], 5 * noise[steps // 2 :]])


@pytest.mark.parametrize("gamma", [0.05, [0.005, 0.02, 0.08]], ids=str)
def test_coverage_comes_back_after_a_shift(gamma: float | list[float]) -> None:
    target = shifting()
    zero = torch.zeros_like(target)
    adaptive = AdaptiveConformal(0.1, gamma, window=300).fit(zero[:300, 0], target[:300, 0])
    missed, widths, state = stream(adaptive, zero[300:], target[300:], adaptive.init_state(1))
    fixed = SplitConformal().fit(zero[:300], target[:300]).interval(zero[300:], 0.1)
    fixed_missed = (target[300:].abs() > fixed[1]).double()
    assert fixed_missed[500:].mean() > 0.5
    assert missed[500:].mean() == pytest.approx(0.1, abs=0.05)
    assert missed[:300].mean() == pytest.approx(0.1, abs=0.06)
    finite = widths[500:][widths[500:].isfinite()]
    assert finite.mean() == pytest.approx(2 * 1.645 * 5, rel=0.3)
    assert float(state["weight"].sum()) == pytest.approx(1.0)


def test_several_gammas_favour_the_one_that_fits() -> None:
    """After a jump the fast one gains weight; while nothing changes the slow one does not lose it."""
    target = shifting(600)
    zero = torch.zeros_like(target)
    adaptive = AdaptiveConformal(0.1, [0.0001, 0.1], window=100).fit(zero[:100, 0], target[:100, 0])
    begin = adaptive.init_state(1)
    _, _, jumped = stream(adaptive, zero[300:400], target[300:400], begin)
    _, _, steady = stream(adaptive, zero[100:200], target[100:200], begin)
    assert jumped["weight"][0, 1] > 0.6
    assert steady["weight"][0, 1] < 0.5


def test_one_step_by_hand() -> None:
    adaptive = AdaptiveConformal(0.25, 0.1, window=3).fit(torch.zeros(3), torch.tensor([3.0, 1.0, 2.0]))
    state = adaptive.init_state(2)
    low, high = adaptive.interval(torch.tensor([0.0, 10.0]), state)
    assert high.tolist() == [3.0, 13.0]  # the third of three
    assert low.tolist() == [-3.0, 7.0]
    state = adaptive.update(torch.tensor([0.0, 10.0]), torch.tensor([2.5, 14.0]), state)
    assert adaptive.alpha_now(state).tolist() == pytest.approx([0.25 + 0.1 * 0.25, 0.25 + 0.1 * (0.25 - 1)])
    assert state["scores"].tolist() == [[1.0, 2.0, 2.5], [1.0, 2.0, 4.0]]
    # alpha 0.275: ceil(4 * 0.725) = 3rd; alpha 0.175: 4th of 3
    assert adaptive.interval(torch.zeros(2), state)[1].tolist() == [2.5, INF]


def test_a_missing_target_changes_nothing_and_rows_are_apart(tmp_path: Path) -> None:
    adaptive = AdaptiveConformal(0.2, [0.05, 0.2], score="quantile", window=8)
    generator = torch.Generator().manual_seed(0)
    pair = torch.tensor([-0.1, 0.1]).expand(20, 3, 2, 2).double()
    target = torch.randn(20, 3, 2, generator=generator, dtype=torch.float64)
    target[5:9, 1] = NAN
    state = adaptive.init_state(3, (2,))
    for p, y in zip(pair, target, strict=True):
        after = adaptive.update(p, y, state)
        gone = y.isnan().all(1).nonzero().squeeze(1)
        assert_same(after.index_select(gone), state.index_select(gone))
        state = after
    state.save(tmp_path / "stream")
    state = State.load(tmp_path / "stream")
    for row in range(3):
        alone = adaptive.init_state(1, (2,))
        for p, y in zip(pair[:, row : row + 1], target[:, row : row + 1], strict=True):
            alone = adaptive.update(p, y, alone)
        assert_same(state.index_select([row]), alone, atol=1e-12)


def test_bad_streams_are_named() -> None:
    adaptive = AdaptiveConformal().fit(torch.zeros(5, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"predictions of shape \(1, 3\), got one for \(1, 2\)"):
        adaptive.interval(torch.zeros(1, 3), adaptive.init_state(1))
    with pytest.raises(ValueError, match=r"output_shape: expected \(2,\) as fitted, got \(3,\)"):
        adaptive.init_state(1, (3,))
    with pytest.raises(ValueError, match="gamma: expected positive numbers, got 0"):
        AdaptiveConformal(0.1, 0)
    with pytest.raises(ValueError, match="window, memory: expected at least 1"):
        AdaptiveConformal(window=0)


class Model(nn.Module, HubModel):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def save_extra(self, folder: Path) -> None:
        (folder / "words.txt").write_text("a b")


def test_calibrated_once_and_saved_with_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    logits, target = logits_and_targets(200)
    y = torch.randn(50, 2)
    groups = torch.randint(2, (50,))
    model.calibrators = {
        "temperature": TemperatureScaling().fit(3 * logits, target),
        "interval": SplitConformal(n_groups=2, pooled=[0]).fit(torch.zeros(50, 2), y, groups=groups),
        "quantile": SplitConformal("quantile").fit(torch.zeros(50, 2, 2), y),
        "sets": ConformalSets("raps", free_ranks=1).fit(logits.softmax(-1), target),
        "live": AdaptiveConformal(0.2, [0.01, 0.1], window=30).fit(torch.zeros(50, 2), y),
        "live-unfitted": AdaptiveConformal(0.3, 0.1, window=3),
    }
    model.save_pretrained(tmp_path / "model")
    assert not [path for path in (tmp_path / "model").iterdir() if path.suffix in (".pkl", ".pt", ".bin")]
    loaded = Model.from_pretrained(tmp_path / "model").calibrators
    ours = model.calibrators
    assert list(loaded) == list(ours)
    assert torch.equal(loaded["temperature"](logits), ours["temperature"](logits))
    for name, inputs in (("interval", {"groups": groups}), ("quantile", {})):
        p = torch.randn((50, 2, 2) if name == "quantile" else (50, 2))
        for a, e in zip(
            loaded[name].interval(p, 0.1, **inputs), ours[name].interval(p, 0.1, **inputs), strict=True
        ):
            assert torch.equal(a, e)
    assert torch.equal(
        loaded["sets"].sets(logits.softmax(-1), 0.1), ours["sets"].sets(logits.softmax(-1), 0.1)
    )
    for name in ("live", "live-unfitted"):
        assert loaded[name].options() == ours[name].options()
        assert_same(loaded[name].init_state(2), ours[name].init_state(2))
    # a model saved anew without any leaves none behind
    Model().save_pretrained(tmp_path / "model")
    assert Model.from_pretrained(tmp_path / "model").calibrators == {}
    # one more for a model that is saved already
    save_calibration(str(tmp_path / "model"), {"t": TemperatureScaling(2.0)})
    again = Model.from_pretrained(tmp_path / "model")
    assert again.calibrators["t"](logits).equal(logits / 2)
    assert Model().calibrators == {}
    again.calibrators["interval"] = SplitConformal()
    with pytest.raises(RuntimeError, match="call fit"):
        again.save_pretrained(tmp_path / "model")
    assert list(Model.from_pretrained(tmp_path / "model").calibrators) == ["t"]


def test_any_model_has_them(tmp_path: Path) -> None:
    backbone = BackboneConfig(d_model=8, layers=["mamba2"], block_options={"mamba2": {"head_dim": 4}})
    model = LanguageModel(LanguageModelConfig(n_ids=3, backbone=backbone))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("calibration*"))
    model.calibrators["t"] = TemperatureScaling(2.0)
    model.save_pretrained(tmp_path)
    assert LanguageModel.from_pretrained(tmp_path).calibrators["t"].options() == {"temperature": 2.0}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) == {}
    save_calibration(tmp_path, {"t": TemperatureScaling(2.0)})
    (tmp_path / "calibration.json").write_text('{"t": {"kind": "platt", "options": {}}}')
    with pytest.raises(DataError, match="doesn't fit this version"):
        load_calibration(tmp_path)
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        load_calibration(tmp_path)
    save_calibration(tmp_path, {"t": TemperatureScaling(2.0)})
    (tmp_path / "calibration.safetensors").unlink()
    with pytest.raises(DataError, match="is damaged"):
        load_calibration(tmp_path)
    with pytest.raises(ValueError, match=r"without dots, got 'a\.b'"):
        save_calibration(tmp_path, {"a.b": TemperatureScaling()})
    with pytest.raises(TypeError, match="'t' is a float"):
        save_calibration(tmp_path, {"t": 2.0})  # type: ignore[dict-item]
    with pytest.raises(RuntimeError, match="call fit"):
        save_calibration(tmp_path, {"t": SplitConformal()})
    with pytest.raises(UserError, match="it is no folder; save the model first"):
        save_calibration(tmp_path / "missing", {})
