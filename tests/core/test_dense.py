"""Dense hidden connections beside their equation; that they stream and pack is in the tests of the law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mambakit.core.attribution.of_block import has_hidden_attention, n_heads_of
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.state import State
from mambakit.core.testing import check_packing, check_streaming

OPTIONS = {
    "mamba1": {"d_state": 3},
    "mamba2": {"head_dim": 4, "d_state": 6, "n_groups": 2},
    "ungated": {"head_dim": 4, "d_state": 6, "norm": False, "D_per_channel": True},
}


def stack(kind: str, dense: int, n_layers: int = 4, **options: object) -> Backbone:
    torch.manual_seed(0)
    name = "mamba2" if kind == "ungated" else kind
    config = BackboneConfig(8, [name] * n_layers, block_options={name: OPTIONS[kind]}, dense=dense, **options)  # type: ignore[arg-type]
    return Backbone(config).double().eval()


def stirred(module: Backbone) -> Backbone:
    for name, parameter in module.named_parameters():
        if ".dense." in name:
            nn.init.normal_(parameter, std=0.5)
        if name.endswith(("dt_bias", "dt_proj.bias")):
            parameter.data += 3
    return module


def samples(length: int) -> torch.Tensor:
    return torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("kind", OPTIONS)
def test_states_below_are_projected_gated_and_added_before_the_reading(kind: str) -> None:
    """Token by token with the hidden states themselves: y = C (h + sum of g * h P), then the gate and out."""
    module, x = stirred(stack(kind, dense=2)), samples(6)
    plain = stack(kind, dense=0)
    plain.load_state_dict(module.state_dict(), strict=False)
    said, _ = module(x)
    state = plain.init_state(2)
    for t in range(6):
        h, after, below = x[:, t], {}, []
        for i, (norm, block) in enumerate(zip(plain.norms, plain.blocks, strict=True)):
            u, reads = norm(h), module.blocks[i].dense_reads
            y, after[str(i)] = block.step(u, state[str(i)])
            hidden = after[str(i)]["ssm"]
            if reads is not None:
                earlier = below[-reads.n_earlier :]
                gates = reads.gate_out(nn.functional.silu(reads.gate_in(u))).unflatten(1, (len(earlier), -1))
                added = torch.zeros_like(hidden)
                for j, one in enumerate(earlier):
                    gate = gates[:, j].reshape(hidden.shape[:-1])[..., None]
                    added += gate * (one @ reads.project[j].T)
                y = _read_again(block, u, state[str(i)], after[str(i)], added)
            below.append(hidden)
            h = h + y
        state = State(after)
        torch.testing.assert_close(plain.final_norm(h), said[:, t], rtol=0, atol=1e-10)


def _read_again(
    block: nn.Module, u: torch.Tensor, past: State, after: State, added: torch.Tensor
) -> torch.Tensor:
    """The block's output for a token whose hidden state is ``after`` with ``added``."""
    z, C, own, D = _parts(block, u, past)
    hidden = after["ssm"] + added
    if hidden.dim() == 4:
        C = C.repeat_interleave(hidden.shape[1] // C.shape[1], 1)[:, :, None]
        y = (hidden * C).sum(-1) + (D if D.dim() == 2 else D[:, None]) * own
        y = y.flatten(1)
    else:
        y = (hidden * C).sum(-1) + D * own
    if getattr(block, "norm_weight", None) is not None:
        return block.out_proj(block._normalize(y, z))
    return block.out_proj(y * nn.functional.silu(z))


def _parts(block: nn.Module, u: torch.Tensor, past: State) -> tuple[torch.Tensor, ...]:
    """Gate, C, what enters, and D, by the block's own way there over a sequence of one token."""
    if hasattr(block, "x_proj"):
        inputs, z = block.project_in(u[:, None])
        arguments, _ = block.scan_arguments(inputs, past["conv"], None, None)
        return z[:, 0], arguments["C"][:, 0], arguments["x"][:, 0], block.D
    z, inputs, dt = block.project_in(u[:, None])
    arguments, _ = block.scan_arguments(inputs, dt, past["conv"], None, None)
    return z[:, 0], arguments["C"][:, 0], arguments["x"][:, 0], block.D


@torch.no_grad()
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_model_begins_as_the_same_one_without_connections(kind: str) -> None:
    module, plain, x = stack(kind, dense=2), stack(kind, dense=0), samples(9)
    plain.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(module(x)[0], plain(x)[0], rtol=0, atol=1e-12)
    stirred(module)
    assert (module(x)[0] - plain(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", OPTIONS)
def test_gradients_reach_every_connection_and_are_right(kind: str) -> None:
    module, x = stirred(stack(kind, dense=2, n_layers=3)), samples(5)[:1].requires_grad_()
    torch.autograd.gradcheck(lambda v: module(v)[0], (x,), fast_mode=True)
    wanted = {name: one for name, one in module.named_parameters() if ".dense." in name}
    grads = torch.autograd.grad(module(x)[0].square().sum(), list(wanted.values()))
    assert len(wanted) == 8
    assert all(grad.abs().sum() > 0 for grad in grads)


@torch.no_grad()
def test_only_layers_alike_are_joined_and_the_nearest_ones() -> None:
    options = {"mamba2": {"head_dim": 4, "d_state": 6}, "mamba1": {"d_state": 3}}
    module = Backbone(BackboneConfig(8, ["mamba2", "mlp", "mamba1"], 3, options, dense=1))
    counts = [block.dense_reads and block.dense_reads.n_earlier for block in module.blocks]
    assert counts == [None, None, None, 1, None, 1, 1, None, 1]
    module = stirred(stack("mamba1", dense=1))
    check_streaming(module, samples(7), [2, 2, 5], atol=1e-10)


@torch.no_grad()
def test_streams_in_float32_and_time_gaps() -> None:
    module, x = stirred(stack("mamba2", dense=3)), samples(8)
    gaps = 0.5 + torch.rand(2, 8, dtype=torch.float64)
    whole, _ = module(x, elapsed=gaps)
    state = module.init_state(2)
    for t in range(8):
        y, state = module.step(x[:, t], state, elapsed=gaps[:, t])
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-10)
    check_streaming(module.float(), x.float(), [3], atol=2e-5)


@torch.no_grad()
def test_packed_rows_begin_as_learned() -> None:
    module = stack("mamba1", dense=2, learn_initial_state=True)
    for name, parameter in module.named_parameters():
        if ".initial." in name:
            nn.init.normal_(parameter, std=0.5)
    check_packing(stirred(module), samples(9), [4, 2, 3], atol=1e-10)


@torch.no_grad()
def test_it_is_one_graph_for_the_compiler() -> None:
    module, x = stirred(stack("mamba2", dense=2)), samples(6)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], module(x)[0])
    torch.compiler.reset()


def test_hidden_attention_does_not_take_part_of_a_layer_for_all_of_it() -> None:
    module = stack("mamba1", dense=1)
    assert has_hidden_attention(module.blocks[0])
    assert not has_hidden_attention(module.blocks[1])
    with pytest.raises(ValueError, match="reads the hidden states of layers below"):
        n_heads_of(module.blocks[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["mamba1", "mlp"]}, "no two layers have hidden states alike"),
        ({"layers": ["mamba3", "attention"], "repeat": 2}, "no two layers have hidden states alike"),
        ({"layers": ["mamba1"], "repeat": 2, "bidirectional": True}, "leave bidirectional off"),
        ({"layers": ["mamba1@a", "mamba1@a"]}, "share weights"),
        ({"layers": ["mamba1"], "dense": -1}, "at least 0, got -1"),
    ],
)
def test_what_cannot_be_joined_is_refused(options: dict[str, object], message: str) -> None:
    small = {kind: {"head_dim": 4} for kind in ["mamba3"] if kind in options["layers"]}  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        Backbone(BackboneConfig(**{"d_model": 8, "dense": 2, "block_options": small, **options}))  # type: ignore[arg-type]
