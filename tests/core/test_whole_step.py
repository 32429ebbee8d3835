"""The compiled step of a whole small model equals its parts, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.whole_step import WholeStep

PLAIN = {"d_state": 8, "head_dim": 8}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("mamba2", PLAIN),
    ("mamba2", {**PLAIN, "n_groups": 2, "bias": True, "D_per_channel": True}),
    ("mamba2", {**PLAIN, "norm": False, "conv_bias": False, "dt_limit": (0.01, 0.05)}),
    ("mamba2", {"d_state": 5, "head_dim": 4, "norm_before_gate": True, "d_conv": 3}),
    ("mamba3", PLAIN),
    ("mamba3", {**PLAIN, "n_groups": 2, "bias": True, "norm": True, "dt_limit": (0.01, 0.5)}),
    ("mamba3", {"d_state": 5, "head_dim": 4, "mimo_rank": 2, "rope_fraction": 1.0, "decay": "softplus"}),
    ("mamba3", {**PLAIN, "rope_fraction": 0.0, "A_init_range": (0.5, 2.0), "A_floor": 0.9}),
]


def built(kind: str, options: dict[str, Any]) -> tuple[nn.Linear, Backbone, nn.Linear]:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(d_model=16, layers=[kind], repeat=3, block_options={kind: options}))
    for parameter in backbone.parameters():  # what begins at ones or zeros shall matter too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return nn.Linear(7, 16), backbone.eval(), nn.Linear(16, 5)


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@torch.no_grad()
def test_equals_its_parts(kind: str, options: dict[str, Any]) -> None:
    first, backbone, last = built(kind, options)
    whole = WholeStep.of(first, backbone, last)
    assert whole is not None
    state, own = backbone.init_state(1), backbone.init_state(1).clone()
    added = torch.randn(1, 16)
    for t in range(40):
        x = torch.randn(1, 7)
        said = added if t % 2 else None
        hidden = first(x) if said is None else first(x) + said
        hidden, state = backbone.step(hidden, state)
        found = whole.run(x[0].numpy(), said, own)
        np.testing.assert_allclose(found, last(hidden)[0].numpy(), rtol=0, atol=2e-5)
    for (name, one), (_, other) in zip(state.tensors(), own.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", ["mamba2", "mamba3"])
@torch.no_grad()
def test_goes_on_from_another_state(kind: str) -> None:
    first, backbone, last = built(kind, PLAIN)
    whole = WholeStep.of(first, backbone, last)
    assert whole is not None
    x = np.ones(7, np.float32)
    fresh = whole.run(x, None, backbone.init_state(1).clone()).copy()
    used = backbone.init_state(1).clone()
    whole.run(x, None, used)
    assert not np.allclose(whole.run(x, None, used), fresh)
    assert np.array_equal(whole.run(x, None, backbone.init_state(1).clone()), fresh)


def test_leaves_what_is_out_of_the_usual() -> None:
    first, backbone, last = built("mamba2", PLAIN)
    hybrid = Backbone(BackboneConfig(d_model=16, layers=["mamba2", "mlp"], block_options={"mamba2": PLAIN}))
    assert WholeStep.of(first, hybrid, last) is None
    two_options = {"mamba3": PLAIN, "mamba3@b": {"decay": "softplus"}}
    two = Backbone(BackboneConfig(d_model=16, layers=["mamba3", "mamba3@b"], block_options=two_options))
    assert WholeStep.of(first, two, last) is None
    assert WholeStep.of(nn.Identity(), backbone, last) is None
    assert WholeStep.of(first, backbone.double(), last) is None
