"""Hidden attention: times the values it is the block's output, for every option and layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mambakit.core.attribution import hidden_attention
from mambakit.core.blocks import Block, build_block

WIDTH = 8
BLOCKS = [
    ("mamba1", {"d_state": 3}),
    ("mamba1", {"d_state": 1, "d_conv": 1, "dt_rank": 2, "bias": True, "dt_limit": (0.01, 0.3)}),
    ("mamba1", {"d_state": 2, "d_conv": 3, "conv_bias": False, "expand": 1.5}),
    ("mamba2", {"d_state": 4, "head_dim": 4}),
    ("mamba2", {"d_state": 3, "head_dim": 4, "n_groups": 2, "norm_before_gate": True}),
    ("mamba2", {"d_state": 3, "head_dim": 2, "n_groups": 4, "D_per_channel": True, "dt_limit": (0.01, 0.3)}),
    ("mamba2", {"d_state": 2, "head_dim": 8, "norm": False, "bias": True, "conv_bias": False, "d_conv": 2}),
    ("mamba2", {"d_state": 2, "head_dim": 16, "d_conv": 1, "recompute": True}),
    ("attention", {"n_heads": 2}),
    ("attention", {"n_heads": 4, "n_kv_heads": 2, "rope": False, "bias": True}),
    ("attention", {"n_heads": 2, "causal": False}),
    ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 2}}),
    ("bidirectional", {"inner": "mamba2", "inner_options": {"d_state": 2, "head_dim": 4}, "merge": "mean"}),
    ("bidirectional", {"inner": "attention", "inner_options": {"n_heads": 2}, "merge": "concat"}),
]
FOLDS = [
    {},
    {"fold_convolution": True},
    {"fold_gate": True},
    {"fold_convolution": True, "fold_gate": True},
]


def make_block(kind: str, options: dict[str, object]) -> Block:
    torch.manual_seed(0)
    block = build_block(kind, WIDTH, options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return block


def inputs(batch: int, length: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
@pytest.mark.parametrize("fold", FOLDS)
def test_times_the_values_it_is_the_blocks_output(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 7)
    y = block(x)[0].detach()
    found = hidden_attention(block, x, **fold)
    close(found.output(), y)
    assert found.gap is not None
    assert found.gap < 1e-12
    some = hidden_attention(block, x, positions=[-1, 2], **fold)
    close(some.output(), y[:, [6, 2]])
    close(some.matrix, found.matrix[:, :, [6, 2]])


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
@pytest.mark.parametrize("fold", [FOLDS[0], FOLDS[3]])
def test_padded_and_packed_rows(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 7)
    padded = x.clone()
    padded[1, 4:] = torch.nan
    lengths = torch.tensor([7, 4])
    found = hidden_attention(block, padded, lengths=lengths, **fold)
    close(found.output(), block(padded, lengths=lengths)[0].detach())
    alone = hidden_attention(block, x[1:, :4], **fold)
    close(found.matrix[1:, :, :4, :4], alone.matrix)
    assert not found.matrix[1, :, 4:].any()
    assert not found.matrix[1, :, :, 4:].any()

    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 5, 5]], dtype=torch.int32)
    state = block(inputs(2, 3))[1].detach() if block.causal else None
    found = hidden_attention(block, x, state, seq_idx, **fold)
    close(found.output(), block(x, state, seq_idx)[0].detach())
    assert not found.matrix.masked_fill((seq_idx[:, None, :, None] == seq_idx[:, None, None]), 0.0).any()
    close(found.matrix[1:, :, 5:, 5:], hidden_attention(block, x[1:, 5:], **fold).matrix)


@pytest.mark.parametrize(("kind", "options"), [case for case in BLOCKS if case[0] != "bidirectional"][:-1])
@pytest.mark.parametrize("fold", FOLDS)
def test_a_state_has_columns_of_its_own(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 7)
    whole = hidden_attention(block, x, **fold)
    _, state = block(x[:, :3])
    found = hidden_attention(block, x[:, 3:], state.detach(), **fold)
    close(found.output(), whole.output()[:, 3:])
    close(found.matrix, whole.matrix[:, :, 3:, 3:])
    if kind == "attention":
        close(found.state_matrix, whole.matrix[:, :, 3:, :3])
    else:
        assert found.state_matrix.abs().max() > 1e-6
