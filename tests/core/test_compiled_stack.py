"""The compiled step of a whole small model equals its parts, token by token."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.compiled_stack import WholeStep

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
    whole = WholeStep.of([first], backbone, last)
    assert whole is not None
    state, own = backbone.init_state(1), backbone.init_state(1).clone()
    added = torch.randn(1, 16)
    for t in range(40):
        x = torch.randn(1, 7)
        said = added if t % 2 else None
        hidden = first(x) if said is None else first(x) + said
        hidden, state = backbone.step(hidden, state)
        whole.inputs[0][:] = x[0]
        found = whole.run(own, [said])
        np.testing.assert_allclose(found, last(hidden)[0].numpy(), rtol=0, atol=2e-5)
    for (name, one), (_, other) in zip(state.tensors(), own.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", ["mamba2", "mamba3"])
@torch.no_grad()
def test_goes_on_from_another_state(kind: str) -> None:
    first, backbone, last = built(kind, PLAIN)
    whole = WholeStep.of([first], backbone, last)
    assert whole is not None
    whole.inputs[0][:] = 1.0
    fresh = whole.run(backbone.init_state(1).clone(), [None]).copy()
    used = backbone.init_state(1).clone()
    whole.run(used, [None])
    assert not np.allclose(whole.run(used, [None]), fresh)
    assert np.array_equal(whole.run(backbone.init_state(1).clone(), [None]), fresh)


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("n_tokens", [2, 3, 5])
@torch.no_grad()
def test_several_tokens_a_step_equal_one_after_the_other(
    kind: str, options: dict[str, Any], n_tokens: int
) -> None:
    """Each through a map of its own, or none; some are missing at some steps."""
    _, backbone, last = built(kind, options)
    firsts = [None if i == 1 else nn.Linear(i + 3, 16, bias=i != 2) for i in range(n_tokens)]
    whole = WholeStep.of(firsts, backbone, last)
    assert whole is not None
    state, own = backbone.init_state(1), backbone.init_state(1).clone()
    added = [torch.randn(16) if i else None for i in range(n_tokens)]
    for t in range(12):
        there = [i for i in range(n_tokens) if i != t % (n_tokens + 1)]
        for i, first in enumerate(firsts):
            x = torch.randn(16 if first is None else first.in_features)
            whole.inputs[i][:] = x
            if i in there:
                token = x if first is None else first(x)
                token = token if added[i] is None else token + added[i]
                hidden, state = backbone.step(token[None], state)
        found = whole.run(own, added, None if len(there) == n_tokens else there)
        np.testing.assert_allclose(found, last(hidden)[0].numpy(), rtol=0, atol=2e-5)
    for (name, one), (_, other) in zip(state.tensors(), own.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=name)


def test_leaves_what_is_out_of_the_usual() -> None:
    first, backbone, last = built("mamba2", PLAIN)
    hybrid = Backbone(BackboneConfig(d_model=16, layers=["mamba2", "mlp"], block_options={"mamba2": PLAIN}))
    assert WholeStep.of([first], hybrid, last) is None
    two_options = {"mamba3": PLAIN, "mamba3@b": {"decay": "softplus"}}
    two = Backbone(BackboneConfig(d_model=16, layers=["mamba3", "mamba3@b"], block_options=two_options))
    assert WholeStep.of([first], two, last) is None
    assert WholeStep.of([nn.Identity()], backbone, last) is None
    assert WholeStep.of([first], backbone.double(), last) is None


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@torch.no_grad()
def test_short_pieces_are_as_long_ones(kind: str, options: dict[str, Any]) -> None:
    _, backbone, _ = built(kind, options)
    x = torch.randn(1, 23, 16)
    with torch.enable_grad():  # gradients go op by op
        whole, last = backbone(x)
    state, pieces = None, []
    for piece in x.split([1, 5, 0, 9, 8], dim=1):
        before = None if state is None else {name: one.clone() for name, one in state.tensors()}
        y, following = backbone(piece, state)
        if state is not None and before is not None:
            assert all(torch.equal(one, before[name]) for name, one in state.tensors())
        state = following
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole.detach(), rtol=0, atol=3e-5)
    assert state is not None
    for (name, one), (_, other) in zip(state.tensors(), last.tensors(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=3e-5, msg=name)


@torch.no_grad()
def test_a_short_piece_reads_weights_as_they_are() -> None:
    _, backbone, _ = built("mamba2", PLAIN)
    x = torch.randn(1, 3, 16)

    def checked() -> torch.Tensor:
        with torch.enable_grad():
            wanted = backbone(x)[0].detach()
        torch.testing.assert_close(backbone(x)[0], wanted, rtol=0, atol=2e-5)
        return wanted

    found = [checked()]
    backbone.blocks[0].in_proj.weight.mul_(0.5)  # in place
    found.append(checked())
    backbone.blocks[1].out_proj.weight.data = 2 * backbone.blocks[1].out_proj.weight  # other memory
    found.append(checked())
    backbone.blocks[2].out_proj.weight = nn.Parameter(torch.randn(16, 32))  # another parameter
    found.append(checked())
    backbone.final_norm = nn.Identity()  # another module
    found.append(checked())
    copied = copy.deepcopy(backbone)
    backbone.blocks[2].out_proj.weight.neg_()
    torch.testing.assert_close(copied(x)[0], found[-1], rtol=0, atol=2e-5)
    found.append(checked())
    for one, other in itertools.pairwise(found):
        assert not torch.allclose(one, other, atol=1e-3)


@torch.no_grad()
def test_hooks_see_short_pieces() -> None:
    _, backbone, _ = built("mamba2", PLAIN)
    x, seen = torch.randn(1, 3, 16), []
    backbone(x)
    handle = backbone.blocks[1].register_forward_hook(lambda module, given, made: seen.append(module))
    backbone(x)
    handle.remove()
    backbone(x)
    assert seen == [backbone.blocks[1]]
