"""Spoilt inputs are what they say, and scaled steps are the blocks' own elapsed time."""

from __future__ import annotations

import pytest
import torch

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.trust.perturbations import (
    held,
    intercepted,
    lost,
    noisy,
    replaced,
    scaled_steps,
    shortened,
    shuffled,
    stepping_blocks,
)

STACKS = {
    "mamba1": {"layers": ["mamba1"], "block_options": {"mamba1": {"d_state": 3}}},
    "mamba2": {"layers": ["mamba2", "mlp"], "block_options": {"mamba2": {"head_dim": 4, "d_state": 4}}},
    "mamba3": {"layers": ["mamba3"], "block_options": {"mamba3": {"head_dim": 4, "d_state": 4}}},
    "both-ways": {
        "layers": ["mamba2", "attention"],
        "bidirectional": True,
        "block_options": {"mamba2": {"head_dim": 4, "d_state": 4}, "attention": {"n_heads": 2}},
    },
    "zamba": {
        "layers": ["zamba"],
        "block_options": {"zamba": {"n_heads": 2, "d_hidden": 8, "inner_options": {"d_state": 3}}},
    },
    "dilated": {
        "layers": ["sequence_scan"],
        "block_options": {
            "sequence_scan": {"size": 3, "inner": "mamba1", "inner_options": {"d_state": 3}, "isolate": False}
        },
    },
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_scaled_steps_are_elapsed_times_the_factor(name, factor):
    torch.manual_seed(0)
    model = Backbone(BackboneConfig(d_model=8, **STACKS[name])).double().eval()
    x, gaps = torch.randn(2, 7, 8).double(), torch.rand(2, 7).double() + 0.5
    lengths = torch.tensor([7, 4])
    with torch.no_grad():
        clean, _ = model(x)
        for told in ({}, {"lengths": lengths}):
            wanted, _ = model(x, elapsed=torch.full((2, 7), factor).double(), **told)
            with scaled_steps(model, factor):
                found, _ = model(x, **told)
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        wanted, _ = model(x, elapsed=factor * gaps)
        with scaled_steps(model, factor):
            found, _ = model(x, elapsed=gaps)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert (found - clean).abs().max() > 1e-5
        again, _ = model(x)
    assert torch.equal(again, clean)


def test_a_short_piece_on_the_compiled_path_is_scaled_too():
    torch.manual_seed(0)
    model = Backbone(
        BackboneConfig(d_model=8, layers=["mamba2"] * 2, block_options=STACKS["mamba2"]["block_options"])
    )
    model.eval()
    x = torch.randn(1, 2, 8)
    with torch.no_grad():
        clean, _ = model(x)
        wanted, _ = model(x, elapsed=torch.full((1, 2), 4.0))
        with scaled_steps(model, 4.0):
            found, _ = model(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - clean).abs().max() > 1e-3


def test_blocks_that_hold_others_are_not_scaled_twice():
    found = stepping_blocks(Backbone(BackboneConfig(d_model=8, **STACKS["both-ways"])))
    assert found
    assert not any(part in found for block in found for part in block.modules() if part is not block)
    options = {"attention": {"n_heads": 2}}
    attention = Backbone(BackboneConfig(d_model=8, layers=["attention"], block_options=options))
    assert stepping_blocks(attention) == []
    with pytest.raises(ValueError, match="expected more than 0, got 0"), scaled_steps(attention, 0.0):
        pass


def test_shuffled_steps_stay_in_their_windows_and_padding_where_it_is():
    there = torch.ones(64, 23, dtype=torch.bool)
    there[:, 5] = False
    there[::2, 20:] = False
    order = shuffled(there, 4, generator())
    assert torch.equal(order.sort(1).values, torch.arange(23).expand(64, 23))
    assert (order[~there] == torch.arange(23).expand(64, 23)[~there]).all()
    rank = there.long().cumsum(1) - 1
    assert (rank.gather(1, order) // 4 == rank // 4)[there].all()
    moved = (order != torch.arange(23))[there].double().mean()
    assert 0.6 < moved < 0.85  # of windows of four, three quarters move
    assert torch.equal(shuffled(there, 1, generator()), torch.arange(23).expand(64, 23))
    assert torch.equal(order, shuffled(there, 4, generator()))
    assert not torch.equal(order, shuffled(there, 4, generator(1)))


def test_lost_steps_are_held_removed_or_replaced():
    x = torch.tensor([[3, 4, 5, 6, 9], [7, 8, 1, 9, 9]])
    gone = torch.tensor([[True, True, False, True, False], [True, True, True, False, False]])
    assert held(x, gone).tolist() == [[3, 3, 5, 5, 9], [7, 7, 7, 9, 9]]
    assert held(x[..., None].double(), gone)[0, :, 0].tolist() == [3, 3, 5, 5, 9]
    made, lengths = shortened(x, torch.tensor([4, 3]), gone)
    assert lengths.tolist() == [1, 1]  # the second would be empty, and keeps its first
    assert made[0, 0] == 5
    assert made[1, 0] == 7
    spoilt = replaced(x, gone, 100, 110, generator())
    assert torch.equal(spoilt[~gone], x[~gone])
    assert ((spoilt[gone] >= 100) & (spoilt[gone] < 110)).all()


def test_shares_and_noise_are_as_large_as_they_say():
    there = torch.ones(200, 100, dtype=torch.bool)
    there[:, 50:] = False
    gone = lost(there, 0.3, generator())
    assert not gone[~there].any()
    assert gone[there].double().mean() == pytest.approx(0.3, abs=0.02)  # 4 deviations of 10,000 draws
    x = torch.zeros(100, 100)
    x[0, 0] = torch.nan
    noise = noisy(x, torch.linspace(1, 2, 100), generator())
    assert noise[0, 0].isnan()
    assert noise[:, -1].std() == pytest.approx(2, rel=0.3)
    assert noise[1:, 0].std() == pytest.approx(1, rel=0.3)


def test_what_is_intercepted_is_put_back_after_an_error():
    layer = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with intercepted(layer, "forward", lambda x: (2 * x,)):
        assert torch.equal(layer(x), torch.nn.functional.linear(2 * x, layer.weight, layer.bias))
    with pytest.raises(TypeError), intercepted(layer, "forward", lambda x: (2 * x, None)):
        layer(x)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
