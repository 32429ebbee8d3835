"""What the streaming law is tried on: a test takes the name of a block or a stack, and builds it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import build_block, kind_of
from mambakit.core.testing import Sequential

D_MODEL = 16
LENGTH = 11

# At least one entry for every registered kind; a new kind without one fails below.
CASES = {
    "mamba1": ("mamba1", {}),
    "mamba1-bare": ("mamba1", {"d_state": 3, "d_conv": 1, "conv_bias": False, "dt_rank": 2, "expand": 1}),
    "mamba1-limit": ("mamba1", {"dt_limit": (0.01, 0.05), "bias": True, "d_conv": 2}),
    "mamba2": ("mamba2", {"head_dim": 8, "d_state": 6}),
    "mamba2-groups": ("mamba2", {"head_dim": 4, "d_state": 5, "n_groups": 2, "dt_limit": (0.01, 0.1)}),
    "mamba2-no-norm": ("mamba2", {"head_dim": 16, "d_state": 4, "norm": False, "D_per_channel": True}),
    "mamba2-norm-first": (
        "mamba2",
        {
            "head_dim": 32,
            "d_state": 4,
            "norm_before_gate": True,
            "conv_bias": False,
            "bias": True,
            "d_conv": 1,
        },
    ),
    "mamba3": ("mamba3", {"head_dim": 8, "d_state": 6}),
    "mamba3-odd-shapes": (
        "mamba3",
        {"head_dim": 4, "d_state": 5, "n_groups": 2, "rope_fraction": 1, "norm": True, "bias": True},
    ),
    "mamba3-mimo": (
        "mamba3",
        {"head_dim": 8, "d_state": 6, "n_groups": 2, "mimo_rank": 3, "dt_limit": (0.01, 0.5)},
    ),
    "mamba3-real": (
        "mamba3",
        {
            "head_dim": 16,
            "d_state": 4,
            "mimo_rank": 2,
            "rope_fraction": 0,
            "norm": True,
            "A_init_range": (0.1, 4),
            "decay": "softplus",
        },
    ),
    "mamba1-normed": ("mamba1", {"d_state": 4, "inner_norm": "learned"}),
    "attention": ("attention", {"n_heads": 2}),
    "attention-grouped": ("attention", {"n_heads": 4, "n_kv_heads": 2, "rope": False, "bias": True}),
    "attention-both-ways": ("attention", {"n_heads": 2, "causal": False}),
    "attention-odd-shapes": (
        "attention",
        {"n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "rope_fraction": 0.67, "qk_norm": True, "scale": 0.3},
    ),
    "conv-attention": ("conv_attention", {"n_heads": 2, "d_conv": 3, "bias": True}),
    "conv-attention-odd-shapes": (
        "conv_attention",
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope_fraction": 0.67, "d_conv": 1},
    ),
    "sliding": ("sliding_attention", {"n_heads": 2, "window": 4}),
    "sliding-grouped": (
        "sliding_attention",
        {"n_heads": 4, "n_kv_heads": 2, "window": 3, "qk_norm": True, "bias": True, "out_bias": False},
    ),
    "sliding-both-ways": ("attention", {"n_heads": 2, "window": 3, "causal": False}),
    "mlp": ("mlp", {}),
    "moe": ("moe", {"n_experts": 5, "d_hidden": 8}),
    "moe-shared": (
        "moe",
        {"n_experts": 4, "top_k": 1, "normalize_gates": False, "d_hidden": 8, "d_shared": 8},
    ),
    "gru": ("gru", {}),
    "gru-wide": ("gru", {"d_hidden": 24, "bias": False}),
    "lstm": ("lstm", {}),
    "lstm-narrow": ("lstm", {"d_hidden": 5, "bias": False}),
    "conv": ("conv", {"width": 4}),
    "conv-both-ways": ("conv", {"width": 5, "causal": False, "norm": "layer", "expand": 2}),
    "zamba": ("zamba", {"n_heads": 2, "inner_options": {"d_state": 4}}),
    "bidirectional": ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 4}}),
    "bidirectional-concat": (
        "bidirectional",
        {"inner": "mamba2", "inner_options": {"head_dim": 8, "d_state": 4}, "merge": "concat"},
    ),
    "bidirectional-attention": (
        "bidirectional",
        {"inner": "attention", "inner_options": {"n_heads": 2}, "merge": "mean"},
    ),
    "bidirectional-gated": (
        "bidirectional",
        {"inner": "mamba1", "inner_options": {"d_state": 4}, "merge": "gated", "share": "all"},
    ),
    "bidirectional-tied": (
        "bidirectional",
        {"inner": "mamba2", "inner_options": {"head_dim": 8, "d_state": 4}, "share": "projections"},
    ),
    "bidirectional-mamba3": (
        "bidirectional",
        {"inner": "mamba3", "inner_options": {"head_dim": 8, "d_state": 4}, "share": "projections"},
    ),
    "sequence-windows": ("sequence_scan", {"scan": "windows", "size": 4, "inner": "mamba1"}),
    "sequence-dilated": ("sequence_scan", {"size": 3, "inner": "mamba1", "isolate": False}),
    "sequence-dilated-both-ways": (
        "sequence_scan",
        {"size": 2, "inner": "bidirectional", "inner_options": {"inner": "mamba1"}},
    ),
    "bidirectional-gru": ("bidirectional", {"inner": "gru", "merge": "concat"}),
    "unet": (
        "unet",
        {"levels": [["mamba1"], ["mamba1", "mlp"]], "inner_options": {"mamba1": {"d_state": 4}}},
    ),
    "unet-deep": (
        "unet",
        {
            "levels": [["mlp"], ["mamba2"], ["attention", "gru"]],
            "factor": [2, 3],
            "widths": [D_MODEL, 24, 32],
            "skip": "concat",
            "inner_options": {"mamba2": {"head_dim": 8, "d_state": 4}, "attention": {"n_heads": 2}},
        },
    ),
    "unet-bare": ("unet", {"levels": [[], ["conv"]], "factor": 4, "inner_options": {"conv": {"width": 3}}}),
    "unet-both-ways": (
        "unet",
        {
            "levels": [["mamba1"], ["moe"], ["attention"]],
            "causal": False,
            "factor": [3, 2],
            "inner_options": {"moe": {"n_experts": 3, "d_hidden": 8}, "attention": {"n_heads": 2}},
        },
    ),
}
# nothing here is a whole grid, and a graph's edges lie in a sequence
TESTED_ELSEWHERE = {"grid_scan", "graph"}
SMALL = {
    "mamba1": {"d_state": 4},
    "mamba2": {"head_dim": 8, "d_state": 6},
    "mamba3": {"head_dim": 8, "d_state": 6},
    "attention": {"n_heads": 2},
    "sliding_attention": {"n_heads": 2, "window": 3},
    "moe": {"n_experts": 3, "d_hidden": 8},
    "conv": {"width": 3},
    "zamba": {"n_heads": 2, "d_hidden": 16, "inner_options": {"d_state": 4}},
    "unet": {
        "levels": [["mamba1"], ["zamba", "moe"]],
        "factor": 3,
        "inner_options": {"mamba1": {"d_state": 4}, "zamba": {"n_heads": 2}, "moe": {"n_experts": 3}},
    },
}
STACKS = {
    "stack-mamba1": (["mamba1"], 2, False),
    "stack-mamba2": (["mamba2", "mlp"], 2, False),
    "stack-mamba3": (["mamba3", "mlp", "attention"], 1, False),
    "stack-hybrid": (["mamba1", "mlp", "attention", "mamba2"], 1, False),
    "stack-shared": (["zamba@a", "moe", "attention@b", "attention@b", "zamba@a"], 1, False),
    "stack-recurrent": (["gru", "mlp", "lstm"], 1, False),
    "stack-unet": (["mamba1", "unet", "moe"], 1, False),
    "stack-dense": (["mamba2", "mlp", "mamba1"], 3, False),
    "stack-both-ways": (["mamba2", "attention", "mlp"], 1, True),
    "stack-unet-both-ways": (["mamba1", "unet", "mlp"], 1, True),
    "stack-everything-both-ways": (["conv", "sliding_attention", "moe", "zamba"], 1, True),
}
NAMES = [*CASES, *STACKS]


@functools.cache
def made(name: str, dtype: torch.dtype = torch.float64) -> Sequential:
    torch.manual_seed(0)
    module: Sequential
    if name in CASES:
        kind, options = CASES[name]
        module = build_block(kind, D_MODEL, options)
    else:
        layers, repeat, bidirectional = STACKS[name]
        options = {kind: SMALL[kind] for kind in map(kind_of, layers) if kind in SMALL}
        module = Backbone(
            BackboneConfig(
                d_model=D_MODEL,
                layers=layers,
                repeat=repeat,
                block_options=options,
                bidirectional=bidirectional,
                dense=2 if name == "stack-dense" else 0,
            )
        )
    # larger dt than at the start of training, so that states forget within a few tokens
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.add_(3.0)
            if ".dense." in parameter_name:  # gates begin at zero
                parameter.add_(0.5 * torch.randn_like(parameter))
    return module.to(dtype).eval()


def drawn(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, generator=generator, dtype=torch.float64).to(dtype)


STREAMING = [name for name in NAMES if made(name).causal]
BOTH_WAYS = sorted(set(NAMES) - set(STREAMING))


@pytest.fixture(scope="session", params=NAMES)
def any_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=STREAMING)
def streaming_name(request: pytest.FixtureRequest) -> str:
    """Of one that has a state and a step."""
    return request.param


@pytest.fixture(scope="session", params=BOTH_WAYS)
def both_ways_name(request: pytest.FixtureRequest) -> str:
    """Of one that reads whole sequences alone."""
    return request.param


@pytest.fixture(scope="session")
def both_ways_names() -> set[str]:
    return set(BOTH_WAYS)


@pytest.fixture(scope="session")
def kinds() -> set[str]:
    """The kinds of blocks tried here, or where a grid or a graph is at hand."""
    return {kind for kind, _ in CASES.values()} | TESTED_ELSEWHERE


@pytest.fixture(scope="session")
def build() -> Callable[..., Sequential]:
    """Makes the module of a name, once for all tests: float64 unless another dtype is given."""
    return made


@pytest.fixture(scope="session")
def sample() -> Callable[..., torch.Tensor]:
    """Draws ``(batch, length, d_model)``, the same each time."""
    return drawn
