"""Hidden attention of blocks that begin from a learned state."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mambakit.core.attribution import attribute, contributions_of_layers, hidden_attention
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Block, build_block

WIDTH = 8
MAMBA1 = {"d_state": 2}
MAMBA2 = {"d_state": 2, "head_dim": 4, "n_groups": 2}
BLOCKS = [
    ("mamba1", MAMBA1),
    ("mamba2", MAMBA2),
    ("mamba2", {"d_state": 2, "head_dim": 4, "d_conv": 1, "norm": False}),
    ("bidirectional", {"inner": "mamba1", "inner_options": MAMBA1}),
    ("bidirectional", {"inner": "mamba2", "inner_options": MAMBA2, "share": "all", "merge": "concat"}),
]
FOLDS = [{}, {"fold_convolution": True}, {"fold_gate": True}, {"fold_convolution": True, "fold_gate": True}]


def make(kind: str, options: dict[str, object]) -> Block:
    torch.manual_seed(0)
    block = build_block(kind, WIDTH, options)
    for module in block.modules():
        if isinstance(module, Block):
            module.learn_initial_state()
    return shaken(block)


def shaken(module):
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
@pytest.mark.parametrize("fold", FOLDS)
def test_the_learned_start_has_the_columns_of_a_state(kind, options, fold):
    block, x = make(kind, options), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    lengths = torch.tensor([6, 4])
    found = hidden_attention(block, x, lengths=lengths, **fold)
    torch.testing.assert_close(found.output(), block(x, lengths=lengths)[0].detach(), rtol=0, atol=1e-10)
    assert found.state_matrix.abs().max() > 1e-3
    some = hidden_attention(block, x, lengths=lengths, heads=[1], **fold)  # no output to be compared
    at = [found.unit_names.index(name) for name in some.unit_names]
    torch.testing.assert_close(some.state_matrix, found.state_matrix[:, at])
    if block.causal:
        given = hidden_attention(block, x, block.init_state(2).detach(), lengths=lengths, **fold)
        torch.testing.assert_close(given.state_matrix, found.state_matrix)
    if "fold_gate" in fold:
        tokens = dataclasses.replace(found, state_matrix=None, state_values=None)
        part = (found.output() - tokens.output()).norm(dim=-1)
        torch.testing.assert_close(found.contributions()[..., -1], part, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.contributions()[..., :-1], tokens.contributions())


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
def test_packed_rows_are_refused(kind, options):
    seq_idx = torch.tensor([[0, 0, 1, 1]], dtype=torch.int32)
    for heads in (None, [0]):
        with pytest.raises(ValueError, match=r"every packed sequence from a learned state.*with lengths="):
            hidden_attention(
                make(kind, options), torch.randn(1, 4, WIDTH).double(), None, seq_idx, heads=heads
            )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_call_gives_every_token_a_score_and_the_start_none(bidirectional):
    config = BackboneConfig(
        d_model=WIDTH,
        layers=["mamba2", "mlp", "attention", "mamba1"],
        block_options={"mamba2": MAMBA2, "mamba1": MAMBA1, "attention": {"n_heads": 2}},
        bidirectional=bidirectional,
        learn_initial_state=True,
    )
    model, x = shaken(Backbone(config)), torch.randn(5, WIDTH, dtype=torch.float64)
    for matrix in contributions_of_layers(model, x[None]).values():
        assert matrix.shape == (1, 5, 5)
    for method in ("hidden_attention", "rollout"):
        found = attribute(model, x, method=method)
        assert found.scores.shape == (5,)
        assert found.scores.sum() == pytest.approx(1.0)
    if not bidirectional:  # a given state has its column
        state = model.init_state(1).detach()
        assert contributions_of_layers(model, x[None], state, layers=[0])["0 Mamba2"].shape == (1, 5, 6)
