"""The network that reads row by row beside its baselines, over every row of a split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.evaluation import OURS, Evaluation
from mambakit.domains.timeseries.metrics import Errors, mase_scale
from mambakit.domains.timeseries.stream.data import Found, Store, forecasts
from mambakit.domains.timeseries.stream.network import StreamForecaster

PARTS = {"train": 0, "validation": 1, "test": 2}


@torch.no_grad()
def evaluate_stream(
    model: StreamForecaster, store: Store, split: str, *, device: torch.device | str = "cpu"
) -> Evaluation:
    """Errors of forecasts after every row of a split, each series read once from its beginning.

    A window counts if the whole horizon lies in the split, or the split is shorter than that.

    Args:
        model: The forecaster.
        store: The rows of the series.
        split: ``"validation"`` or ``"test"``.
        device: Where to compute.
    """
    model, moved = model.to(device).eval(), store.to(device)
    season, horizon = model.config.season_length, model.config.horizon
    last = [_last_values(store, i) for i in range(len(store))]
    scale = torch.tensor([_scale(store, i, season) for i in range(len(store))], device=device)
    ours = Errors(model.levels, calibrator=model.calibrators.get(conformal.KEY))
    errors = {OURS: ours, "linear": Errors(), "seasonal naive": Errors(), "naive": Errors()}
    n_windows = 0
    for found in forecasts(model, moved, PARTS[split]):
        n_windows += int(found.target.isfinite().any(-1).sum())
        offset, unit = (
            getattr(store, name)[found.which].to(found.target.dtype).to(device)[:, None, None]
            for name in ("offset", "unit")
        )
        plain = [_naive(last, found, horizon, length).to(device) for length in (season, 1)]
        points = [model.point(found.quantiles), found.linear, *plain]
        for (name, one), point in zip(errors.items(), points, strict=True):
            # (origins, horizon, rows), as windows of series
            target, said = found.target.permute(1, 2, 0), point.permute(1, 2, 0)
            own = (point * unit + offset, found.target * unit + offset)
            one.add(
                said,
                target,
                found.quantiles.permute(1, 2, 0, 3) if name == OURS else None,
                scaled_back=(own[0].permute(1, 2, 0), own[1].permute(1, 2, 0)),
                scale=scale[found.which.to(device)],
            )
    return Evaluation(
        [{"forecaster": name, **one.result()} for name, one in errors.items()],
        {name: one.mse_by_step() for name, one in errors.items()},
        n_windows,
        errors[OURS].ranks(),
    )


def _last_values(store: Store, index: int) -> NDArray[np.float32]:
    """A series with the last observed value in place of each missing one; zero before the first."""
    first = int(store.first[index])
    values = store.values[first : first + int(store.length[index])].numpy()
    seen = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
    return np.where(seen >= 0, values[seen.clip(0)], 0.0)


def _naive(last: list[NDArray[np.float32]], found: Found, horizon: int, season: int) -> Tensor:
    """The last season again, or the last value where there is no whole one, like ``found.linear``."""
    origins = found.origins.numpy()
    index = origins[:, None] - season + 1 + np.arange(horizon) % season
    index = np.where(origins[:, None] + 1 >= season, index, origins[:, None])
    made = [last[i][np.minimum(index, len(last[i]) - 1)] for i in found.which.tolist()]
    return torch.from_numpy(np.stack(made))


def _scale(store: Store, index: int, season: int) -> float:
    first, end = int(store.first[index]), int(store.bounds[index, 0])
    return float(mase_scale(store.values[first : first + end, None].double(), season)[0]) if end > 1 else 0.0
