"""The example of a data frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).parent.parent.parent / "examples/own_frame.py"


def test_it_forecasts_both_series_with_intervals() -> None:
    spec = importlib.util.spec_from_file_location("own_frame", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.main(max_steps=2)
    assert made.groupby("unique_id").size().to_dict() == {"north": 6, "south": 6}
    # the least-squares part knows what the load does
    assert (made.Mamba - made.y).abs().mean() < 0.5 * made.y.std()
    assert (made["Mamba-lo-80"] <= made["Mamba-hi-80"]).all()
