"""Our Mamba-1 and Mamba-2 beside the transformers package's, an implementation nobody here wrote.

Random weights are copied across; its plain PyTorch path runs, as no kernel package of it is installed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Block, Mamba1, Mamba2
from mambakit.core.testing import run_by_steps, run_in_pieces

# its parts are imported when a test wants them: they take seconds
transformers = pytest.importorskip("transformers", reason="the test extra installs it")

# It keeps A, B and C in float32 whatever the input, so float64 is not nearer than float32's rounding.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 2e-6}

MAMBA1 = {
    "default": {},
    "no-biases": {"use_conv_bias": False, "state_size": 5, "conv_kernel": 3},
    "biases": {"use_bias": True, "time_step_rank": 7, "expand": 1, "state_size": 1},
}
MAMBA2 = {
    "head-dim-64": {"num_heads": 2, "head_dim": 64, "n_groups": 1, "hidden_size": 64},
    "groups": {"num_heads": 8, "head_dim": 8, "n_groups": 4, "state_size": 6},
    "no-biases": {"num_heads": 4, "head_dim": 16, "n_groups": 2, "use_conv_bias": False, "conv_kernel": 2},
    "biases": {"num_heads": 3, "head_dim": 16, "n_groups": 1, "use_bias": True, "hidden_size": 24},
    "dt-limit": {"num_heads": 16, "head_dim": 4, "n_groups": 1, "time_step_limit": (0.01, 0.05)},
    "one-head": {"num_heads": 1, "head_dim": 64, "n_groups": 1, "state_size": 3},
}
RENAMED = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "norm_weight": "norm.weight"}


def randomize(module: nn.Module) -> None:
    """Move every parameter off its start: norms and skips of one would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def copy_weights(ours: Block, theirs: nn.Module) -> None:
    source = theirs.state_dict()
    state = {
        name: source.pop(RENAMED.get(name, name)).reshape(p.shape) for name, p in ours.named_parameters()
    }
    assert not source, "every weight must have a place here"
    ours.load_state_dict(state)


def mamba1_pair(name: str, dtype: torch.dtype) -> tuple[Block, nn.Module, transformers.MambaConfig]:
    torch.manual_seed(0)
    c = transformers.MambaConfig(
        **{"hidden_size": 32, "state_size": 8, "num_hidden_layers": 1, **MAMBA1[name]}
    )
    theirs = transformers.models.mamba.modeling_mamba.MambaMixer(c, 0).eval()
    randomize(theirs)
    ours = Mamba1(
        d_model=c.hidden_size,
        d_state=c.state_size,
        d_conv=c.conv_kernel,
        expand=c.expand,
        dt_rank=c.time_step_rank,
        conv_bias=c.use_conv_bias,
        bias=c.use_bias,
    ).eval()
    copy_weights(ours, theirs)
    return ours.to(dtype), theirs.to(dtype), c


def mamba2_pair(name: str, dtype: torch.dtype) -> tuple[Block, nn.Module, transformers.Mamba2Config]:
    torch.manual_seed(0)
    c = transformers.Mamba2Config(
        **{"hidden_size": 32, "state_size": 8, "num_hidden_layers": 1, "chunk_size": 4, **MAMBA2[name]}
    )
    theirs = transformers.models.mamba2.modeling_mamba2.Mamba2Mixer(c, 0).eval()
    randomize(theirs)
    ours = Mamba2(
        d_model=c.hidden_size,
        d_state=c.state_size,
        d_conv=c.conv_kernel,
        expand=c.expand,
        head_dim=c.head_dim,
        n_groups=c.n_groups,
        dt_limit=c.time_step_limit,
        conv_bias=c.use_conv_bias,
        bias=c.use_bias,
        norm_eps=c.layer_norm_epsilon,
    ).eval()
    copy_weights(ours, theirs)
    return ours.to(dtype), theirs.to(dtype), c


PAIRS = {f"mamba1-{name}": (mamba1_pair, name) for name in MAMBA1} | {
    f"mamba2-{name}": (mamba2_pair, name) for name in MAMBA2
}


def sample(d_model: int, dtype: torch.dtype, length: int = 13) -> Tensor:
    return torch.randn(2, length, d_model, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_whole_sequence(pair, dtype):
    make, name = PAIRS[pair]
    ours, theirs, config = make(name, dtype)
    x = sample(config.hidden_size, dtype)
    expected = theirs(x)
    actual, _ = ours(x)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "mamba2-dt-limit"])
def test_decoding_from_a_prompt(pair):
    """Its cache after a prompt, token by token, beside our state (its step leaves dt_limit out)."""
    make, name = PAIRS[pair]
    ours, theirs, config = make(name, torch.float32)
    x = sample(config.hidden_size, torch.float32)
    cache = transformers.DynamicCache(config=config)
    with torch.no_grad():
        expected = [theirs(x[:, :8], cache_params=cache)]
        expected += [theirs(x[:, t : t + 1], cache_params=cache) for t in range(8, 13)]
        prompt, state = run_in_pieces(ours, x[:, :8], [3])
        steps, _ = run_by_steps(ours, x[:, 8:], state)
    actual, wanted = torch.cat([prompt, steps], dim=1), torch.cat(expected, dim=1)
    # both are rounded, by as much as their largest numbers are
    torch.testing.assert_close(actual, wanted, atol=2e-6 * wanted.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients(pair):
    make, name = PAIRS[pair]
    ours, theirs, config = make(name, torch.float32)
    x = sample(config.hidden_size, torch.float32)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (ours(inputs[0])[0] * weight).sum().backward()
    (theirs(inputs[1]) * weight).sum().backward()
    grads = {RENAMED.get(key, key): p.grad for key, p in ours.named_parameters()}
    pairs = [("x", inputs[0].grad, inputs[1].grad)]
    pairs += [(key, grads[key], p.grad) for key, p in theirs.named_parameters()]
    for key, actual, expected in pairs:
        error = (actual.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
        assert error < 2e-5, f"gradient of {key}: relative error {error:.1e}"


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_a_whole_stack(kind):
    """Norms, residuals and the order of layers: three of them, from embeddings to the final norm."""
    torch.manual_seed(0)
    if kind == "mamba1":
        c = transformers.MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=3, vocab_size=11)
        theirs = transformers.MambaModel(c).eval()
        options = {"d_state": 8}
    else:
        c = transformers.Mamba2Config(
            hidden_size=32,
            state_size=8,
            num_heads=8,
            head_dim=8,
            n_groups=2,
            num_hidden_layers=3,
            vocab_size=11,
            chunk_size=4,
        )
        theirs = transformers.Mamba2Model(c).eval()
        options = {"d_state": 8, "head_dim": 8, "n_groups": 2}
    randomize(theirs)
    ours = Backbone(
        BackboneConfig(
            d_model=32,
            layers=[kind],
            repeat=3,
            block_options={kind: options},
            norm_eps=c.layer_norm_epsilon,
        )
    ).eval()
    for i, layer in enumerate(theirs.layers):
        copy_weights(ours.blocks[i], layer.mixer)
        ours.norms[i].load_state_dict(layer.norm.state_dict())
    ours.final_norm.load_state_dict(theirs.norm_f.state_dict())
    ids = torch.randint(11, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedded = theirs.embeddings(ids)
        expected = theirs(inputs_embeds=embedded).last_hidden_state
        torch.testing.assert_close(ours(embedded)[0], expected, atol=2e-5, rtol=1e-5)
