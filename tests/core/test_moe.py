"""A mixture of experts beside a loop over its tokens, its capacity, and the losses it asks for."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Context, MoE


def build(**options: object) -> MoE:
    torch.manual_seed(0)
    return MoE(**{"d_model": 8, "n_experts": 4, "d_hidden": 6, **options}).double()


def sample(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expert(block: MoE, e: int, token: torch.Tensor) -> torch.Tensor:
    gate, up = (block.in_proj.weight[e] @ token).chunk(2)
    return block.out_proj.weight[e] @ (F.silu(gate) * up)


def token_by_token(block: MoE, x: torch.Tensor) -> torch.Tensor:
    outputs = []
    for token in x.flatten(0, 1):
        logits = block.router.weight @ token
        chosen = logits.argsort(descending=True)[: block.top_k]
        gates = logits[chosen].softmax(0) if block.normalize_gates else logits.softmax(0)[chosen]
        y = sum(gate * expert(block, int(e), token) for gate, e in zip(gates, chosen, strict=True))
        if block.shared is not None:
            y = y + block.shared(token[None, None])[0][0, 0]
        outputs.append(y)
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1, "normalize_gates": False},
        {"top_k": 4, "normalize_gates": False},
        {"n_experts": 1, "top_k": 1},
        {"top_k": 3, "d_shared": 5},
        {"capacity_factor": 100.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7)], ids=str)
def test_equals_a_loop_over_tokens(options, shape):
    block, x = build(**options), sample(*shape)
    expected = token_by_token(block, x)
    torch.testing.assert_close(block(x)[0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(block.eval()(x)[0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(block.step(x[:, 0], block.init_state(shape[0]))[0], expected[:, 0])


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    "options", [{}, {"n_experts": 5, "top_k": 3, "normalize_gates": False, "d_shared": 4}]
)
def test_without_reading_sizes_it_is_the_same(batch, options, monkeypatch):
    """Few tokens with their experts' weights gathered, more with every expert on every token."""
    block, x = build(**options).eval(), sample(batch, 3)
    expected = token_by_token(block, x)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    monkeypatch.setattr(MoE, "_mix_slices", None)
    torch.testing.assert_close(block(x)[0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(block.step(x[:, 0], block.init_state(batch))[0], expected[:, 0])


def test_gradients_equal_a_loops():
    block, x = build(d_shared=3), sample(2, 5).requires_grad_()
    wanted = [x, *block.parameters()]
    actual = torch.autograd.grad(block(x)[0].square().sum(), wanted)
    expected = torch.autograd.grad(token_by_token(block, x).square().sum(), wanted)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-11, rtol=0)


def choosing(block: MoE, *chosen: int) -> torch.Tensor:
    """Tokens ``(1, n, d_model)`` of which each goes first to the expert given for it and next to the last."""
    with torch.no_grad():
        block.router.weight.zero_()
        block.router.weight[:, : block.n_experts] = torch.eye(block.n_experts)
    x = sample(1, len(chosen))
    x[..., : block.n_experts] = 0.0
    x[..., block.n_experts - 1] = 1.0
    for t, e in enumerate(chosen):
        x[0, t, e] = 2.0
    return x


def test_over_capacity_the_later_tokens_pass_by():
    # six choices, four experts: ceil(1.0 * 6 / 4) = 2 each
    block = build(top_k=1, normalize_gates=False, capacity_factor=1.0)
    x = choosing(block, 1, 1, 0, 1, 2, 1)
    y = block(x)[0]
    free = block.eval()(x)[0]
    kept = [True, True, True, False, True, False]
    torch.testing.assert_close(y[0, kept], free[0, kept])
    assert not y[0, [not k for k in kept]].any()
    torch.testing.assert_close(free, token_by_token(block, x))  # in evaluation none is dropped


def test_first_choices_come_before_second_ones():
    # two want expert 3 first and two second; eight choices: ceil(8 / 4) = 2 places
    block = build(top_k=2, capacity_factor=1.0)
    x = choosing(block, 0, 1, 3, 3)
    with torch.no_grad():
        x[0, 2:, 2] = 1.5  # the last two's second choice
    y = block(x)[0]
    for t, e in enumerate((0, 1)):  # their second choice was dropped: the first one's gate is as it was
        gate = torch.tensor([2.0, 1.0]).double().softmax(0)[0]
        torch.testing.assert_close(y[0, t], gate * expert(block, e, x[0, t]))
    torch.testing.assert_close(y[0, 2:], token_by_token(block, x)[0, 2:])


def test_padding_takes_no_place():
    block = build(top_k=1, normalize_gates=False, capacity_factor=1.0)
    x = choosing(block, 1, 1, 0, 2)
    rows = torch.cat([x, x])
    lengths = torch.tensor([1, 4])
    y = block(rows, lengths=lengths)[0]  # five real choices: ceil(5 / 4) = 2 places
    free = block.eval()(rows)[0]
    torch.testing.assert_close(y[0, 0], free[0, 0])
    torch.testing.assert_close(y[1, [0, 2, 3]], free[1, [0, 2, 3]])
    assert not y[1, 1].any()
    assert not y[0, 1:].any()


def losses_of(block: MoE, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    context = Context()
    block(x, lengths=lengths, context=context)
    (loss,) = context.losses
    return loss


def test_balance_and_z_loss_by_their_equations():
    block, x = build(balance_weight=0.3, z_weight=0.2), sample(2, 5)
    lengths = torch.tensor([5, 2])
    real = torch.cat([x[0], x[1, :2]])
    logits = real @ block.router.weight.T
    share = torch.zeros(4, dtype=torch.float64)
    for row in logits:
        share[row.argsort(descending=True)[:2]] += 1 / (2 * 7)
    balance = 4 * (share * logits.softmax(-1).mean(0)).sum()
    z = logits.exp().sum(-1).log().square().mean()
    torch.testing.assert_close(losses_of(block, x, lengths), 0.3 * balance + 0.2 * z)
    torch.testing.assert_close(losses_of(block, real[None]), losses_of(block, x, lengths))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), top_k=st.integers(1, 4))
def test_balance_is_one_when_uniform_and_more_when_all_agree(seed, top_k):
    block = build(top_k=top_k, balance_weight=1.0, normalize_gates=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        block.router.weight.zero_()
    assert losses_of(block, sample(2, 6)).item() == pytest.approx(1.0)
    with torch.no_grad():
        block.router.weight.copy_(torch.randn(4, 8, generator=generator))
    x = sample(1, 1).expand(2, 6, 8)  # every token the same: all choose alike
    # shares 1/k of the likeliest k: their mean probability, over the uniform one
    probability = (x[0, 0] @ block.router.weight.T).softmax(0).sort(descending=True).values[:top_k].sum()
    assert losses_of(block, x).item() == pytest.approx(4 * probability.item() / top_k)
    assert losses_of(block, x).item() >= 1.0 - 1e-12


def test_the_balance_loss_spreads_a_collapsed_router():
    block = build(top_k=2, balance_weight=1.0)
    x = sample(4, 16) + 1.0
    with torch.no_grad():
        block.router.weight.mul_(0.1)[0].add_(1.0)  # everyone to expert 0
    optimizer = torch.optim.Adam([block.router.weight], lr=0.03)
    first = losses_of(block, x).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = losses_of(block, x)
        loss.backward()
        optimizer.step()
    assert first > 1.5
    assert loss.item() < 1.15


def test_a_backbone_adds_the_losses_up():
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=8, layers=["moe", "mlp", "moe@one", "moe@one"], block_options={"moe": {"n_experts": 3}}
    )
    model = torch.nn.Sequential(Backbone(config).double())
    backbone, x = model[0], sample(2, 5)
    assert auxiliary_loss(model) == 0.0
    backbone(x)
    loss = auxiliary_loss(model)
    assert 3 * 0.01 * 0.9 < loss.item() < 3 * 0.01 * 3  # three layers, each 1 at least where balanced
    loss.backward()
    assert backbone.blocks[0].router.weight.grad.abs().sum() > 0
    assert backbone.blocks[2] is backbone.blocks[3]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert auxiliary_loss(copied) == 0.0
        torch.testing.assert_close(copied[0](x)[0], backbone(x)[0])
    model.eval()
    backbone(x)
    assert auxiliary_loss(model) == 0.0
    model.train()
    backbone(x[:, :0])  # nothing to route
    assert math.isfinite(float(auxiliary_loss(model)))


def test_a_batch_of_padding_alone():
    block = build(z_weight=0.1)
    context = Context()
    y, _ = block(sample(2, 3), lengths=torch.tensor([0, 0]), context=context)
    (y.sum() + context.losses[0]).backward()
    assert not y.any()
    assert not block.in_proj.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_experts": 0}, "d_model, d_hidden, n_experts: expected at least 1"),
        ({"top_k": 5}, "1 <= top_k <= n_experts=4, got 5"),
        ({"top_k": 1}, "normalize_gates: with top_k=1 every gate is one"),
        ({"capacity_factor": 0.0}, "capacity_factor: expected a positive number, got 0.0"),
        ({"balance_weight": -1.0}, "balance_weight: expected at least 0, got -1.0"),
        ({"activation": "swish"}, "activation: expected one of silu, gelu, relu, relu2, got 'swish'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
