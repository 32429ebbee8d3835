"""The linear form of a stack against hidden attention's explicit matrices, and what it must add up to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mambakit.core.attribution import coefficients_held, hidden_attention
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import MLP

OPTIONS = {
    "mamba1": {"d_state": 4},
    "mamba2": {"d_state": 4, "head_dim": 8},
    "attention": {"n_heads": 2},
    "sliding_attention": {"n_heads": 2, "window": 3},
}


def backbone(*layers: str, **more: object) -> Backbone:
    torch.manual_seed(0)
    kinds = {kind.partition("@")[0] for kind in layers}
    options = {kind: OPTIONS[kind] for kind in kinds if kind in OPTIONS}
    made = Backbone(BackboneConfig(d_model=16, layers=list(layers), block_options=options, **more))
    for parameter in made.parameters():  # nothing is left at a value that hides it, such as one or zero
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made.double().eval()


def contributions(model: Backbone, x: Tensor, direction: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token to the last output along a direction, and that output."""
    x = x.clone().requires_grad_()
    with coefficients_held(model):
        value = (model(x, **options)[0][:, -1] @ direction).sum()
        (gradient,) = torch.autograd.grad(value, x)
    return (gradient * x).sum(-1).detach(), value.detach()


@pytest.mark.parametrize(
    ("kind", "driven"),
    [(kind, False) for kind in OPTIONS] + [("mamba1", True), ("mamba2", True)],
)
def test_one_layer_reads_as_the_explicit_matrices_say(kind: str, driven: bool) -> None:
    model = backbone(kind)
    x, direction = torch.randn(2, 9, 16).double(), torch.randn(16).double()
    gaps = {"elapsed": torch.rand(2, 9).double() + 0.5} if driven else {}
    found, _ = contributions(model, x, direction, **gaps)

    (block,) = model.blocks
    attention = hidden_attention(
        block, model.norms[0](x), positions=[-1], fold_gate=True, fold_convolution=True, **gaps
    )
    output = x[:, -1] + attention.output()[:, 0]
    scale = model.final_norm(output) / output
    written = (attention.matrix[:, :, 0, :, None] * attention.values).transpose(1, 2).flatten(2)
    written = written @ block.out_proj.weight.T  # [b, l, m]: what each token adds to the last one's output
    written[:, -1] += x[:, -1]
    torch.testing.assert_close(found, ((written * scale[:, None]) @ direction).detach())


@pytest.mark.parametrize(
    "layers",
    [("mamba2", "mlp", "mamba2", "mlp"), ("mamba1", "attention", "mlp"), ("mamba2@a", "mlp@a", "mamba2@a")],
)
def test_all_tokens_together_are_the_output_but_for_biases(layers: tuple[str, ...]) -> None:
    model = backbone(*layers)
    for name, parameter in model.named_parameters():
        if name.endswith("conv_bias"):
            parameter.data.zero_()
    x, direction = torch.randn(1, 12, 16).double(), torch.randn(16).double()
    found, value = contributions(model, x, direction)
    plain = model(x)[0][:, -1] @ direction
    torch.testing.assert_close(value, plain.sum().detach())
    torch.testing.assert_close(found.sum(), value)


@pytest.mark.parametrize("merge", ["sum", "concat", "gated"])
@pytest.mark.parametrize("share", ["none", "projections", "all"])
def test_both_directions_leave_nothing_out(merge: str, share: str) -> None:
    read = {"merge": merge, "share": share, "inner_options": OPTIONS["mamba2"]}
    torch.manual_seed(0)
    made = BackboneConfig(d_model=16, layers=["bidirectional", "mlp"], block_options={"bidirectional": read})
    model = Backbone(made).double().eval()
    for name, parameter in model.named_parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
        if name.endswith("conv_bias"):
            parameter.data.zero_()
    x, direction = torch.randn(1, 9, 16).double(), torch.randn(16).double()
    found, value = contributions(model, x, direction)
    torch.testing.assert_close(value, (model(x)[0][:, -1] @ direction).sum().detach())
    torch.testing.assert_close(found.sum(), value)
    assert (found.abs() > 1e-6).all()


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "relu2"])
@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward_layers_leave_nothing_out(activation: str, gated: bool) -> None:
    model = backbone("mlp")
    model.blocks[0] = MLP(d_model=16, gated=gated, activation=activation).double()
    x, direction = torch.randn(1, 3, 16).double(), torch.randn(16).double()
    found, value = contributions(model, x, direction)
    torch.testing.assert_close(found.sum(), value)


def test_a_learned_start_is_no_tokens() -> None:
    model = backbone("mamba2", learn_initial_state=True)
    x, direction = torch.randn(1, 5, 16).double(), torch.randn(16).double()
    for name, parameter in model.named_parameters():
        if name.endswith("conv_bias"):
            parameter.data.zero_()
    found, value = contributions(model, x, direction)
    torch.testing.assert_close(value, (model(x)[0][:, -1] @ direction).sum().detach())
    assert float((value - found.sum()).abs()) > 1e-3


def test_gradients_are_the_models_own_again_afterwards() -> None:
    model = backbone("mamba2", "mlp")
    x = torch.randn(1, 6, 16).double().requires_grad_()
    (before,) = torch.autograd.grad(model(x)[0].sum(), x)
    with coefficients_held(model):
        (held,) = torch.autograd.grad(model(x)[0].sum(), x)
    (after,) = torch.autograd.grad(model(x)[0].sum(), x)
    torch.testing.assert_close(after, before)
    assert not torch.allclose(held, before)


def test_what_cannot_be_held_is_named() -> None:
    with (
        pytest.raises(ValueError, match="layer 1 MoE: its coefficients cannot be held"),
        coefficients_held(backbone("mamba2", "moe")),
    ):
        pass
    model = backbone("mamba2")
    x = torch.randn(2, 4, 16).double()
    with coefficients_held(model):
        model(x, lengths=torch.tensor([4, 4]))
        with pytest.raises(ValueError, match="rows without padding"):
            model(x, lengths=torch.tensor([4, 3]))


def test_a_block_that_does_more_is_refused() -> None:
    class Doubled(MLP):
        def mix(self, x, state, seq_idx, lengths):  # type: ignore[no-untyped-def]
            y, state = super().mix(x, state, seq_idx, lengths)
            return 2 * y, state

    model = backbone("mlp")
    model.blocks[0] = Doubled(d_model=16).double()
    with coefficients_held(model), pytest.raises(ValueError, match="this Doubled gives another output"):
        model(torch.randn(1, 3, 16).double())
