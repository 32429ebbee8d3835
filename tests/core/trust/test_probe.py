"""A probe measures what it says, the same for the same seed, whatever else is measured beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.errors import UsageError
from mambakit.core.trust.perturbations import intercepted, noisy
from mambakit.core.trust.probe import Perturbation, Subject, probe, probe_figure


def subject(model: nn.Module | None = None) -> Subject:
    """Predicts numbers by themselves, so that its error is the noise's power."""
    model = model or nn.Identity()
    x = torch.zeros(4000, 1)

    def spoil(level: float, generator: torch.Generator):
        return intercepted(model, "forward", lambda x: (noisy(x, level, generator),))

    return Subject(
        model,
        lambda: {"mse": float(model(x).square().mean()), "n": len(x)},
        "mse",
        "min",
        {"noise": Perturbation((0.5, 2.0), "units", spoil), "more": Perturbation((3.0,), "units", spoil)},
    )


def test_the_metric_is_that_of_spoilt_inputs_beside_the_clean_one():
    result = probe(subject())
    rows = [(row["perturbation"], row["level"], row["n"]) for row in result.rows]
    assert rows == [("clean", None, 4000), ("noise", 0.5, 4000), ("noise", 2.0, 4000), ("more", 3.0, 4000)]
    assert result.clean == 0
    for row, level in zip(result.rows[1:], (0.5, 2.0, 3.0), strict=True):
        assert row["mse"] == pytest.approx(level**2, rel=0.1)  # 4.5 deviations of a mean of 4000 squares
        assert row["change"] == row["mse"]
    assert result.notes == ["dt: no block of this model has a step size"]
    assert len(probe_figure(result).axes) == 2


def test_a_seed_gives_the_same_rows_whatever_is_left_out():
    whole, alone = probe(subject(), seed=3), probe(subject(), ["more"], seed=3)
    assert whole.rows == probe(subject(), seed=3).rows
    assert alone.rows[1] == whole.rows[3]
    assert probe(subject(), ["more"], seed=4).rows[1] != alone.rows[1]
    with pytest.raises(UsageError, match="no perturbation 'nois'; did you mean noise"):
        probe(subject(), ["nois"])


def test_dt_is_probed_where_there_are_blocks_with_one():
    torch.manual_seed(0)
    options = {"mamba2": {"head_dim": 4, "d_state": 4}}
    model = Backbone(BackboneConfig(d_model=8, layers=["mamba2"], block_options=options)).eval()
    x = torch.randn(2, 30, 8)
    with torch.no_grad():
        clean = model(x)[0]
        result = probe(
            Subject(model, lambda: {"off": float((model(x)[0] - clean).square().mean())}, "off", "min", {}),
        )
        wanted = model(x, elapsed=torch.full((2, 30), 8.0))[0]
    off = {row["level"]: row["off"] for row in result.rows}
    assert list(off) == [None, 0.125, 0.25, 0.5, 2.0, 4.0, 8.0]
    assert off[8.0] == pytest.approx(float((wanted - clean).square().mean()), rel=1e-4)
    assert off[8.0] > off[2.0] > 0
