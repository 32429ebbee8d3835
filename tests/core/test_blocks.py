from __future__ import annotations

import pytest
import torch

from mambakit.core.blocks import (
    BLOCKS,
    GRU,
    LSTM,
    MLP,
    Attention,
    Bidirectional,
    Block,
    ConvAttention,
    ConvModule,
    GraphMix,
    GridScan,
    Mamba1,
    Mamba2,
    Mamba3,
    MoE,
    SequenceScan,
    SlidingAttention,
    UNet,
    Zamba,
    block_options,
    build_block,
    register_block,
)
from mambakit.core.state import State
from mambakit.core.testing import SMALL_BLOCKS, assert_states_close

CAUSAL = [
    "mamba1",
    "mamba2",
    "mamba3",
    "attention",
    "mlp",
    "sliding_attention",
    "conv_attention",
    "moe",
    "gru",
    "lstm",
    "conv",
    "zamba",
]


def small(kind: str) -> Block:
    torch.manual_seed(0)
    return build_block(kind, 16, SMALL_BLOCKS[kind]).double()


def sample(batch: int = 2, length: int = 5, d_model: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, d_model, generator=generator, dtype=torch.float64)


# --- the registry


def test_kinds_and_classes():
    assert {
        "mamba1": Mamba1,
        "mamba2": Mamba2,
        "mamba3": Mamba3,
        "attention": Attention,
        "mlp": MLP,
        "bidirectional": Bidirectional,
        "sliding_attention": SlidingAttention,
        "moe": MoE,
        "conv": ConvModule,
        "gru": GRU,
        "lstm": LSTM,
        "conv_attention": ConvAttention,
        "graph": GraphMix,
        "zamba": Zamba,
        "grid_scan": GridScan,
        "sequence_scan": SequenceScan,
        "unet": UNet,
    } == BLOCKS
    assert "d_model" not in block_options("mamba1")
    assert block_options("mamba1")["d_state"].default == 16


def test_unknown_kind_lists_the_known():
    with pytest.raises(
        ValueError, match="'mamba9'; known kinds are attention, bidirectional, conv, conv_attention"
    ):
        build_block("mamba9", 16)


@pytest.mark.parametrize("kind", SMALL_BLOCKS)
def test_unknown_option_lists_the_valid(kind):
    with pytest.raises(ValueError, match=f"options of {kind}: it has no option 'd_stat'; valid options are"):
        build_block(kind, 16, {"d_stat": 3})


def test_a_kind_is_registered_once(monkeypatch):
    monkeypatch.setattr("mambakit.core.blocks.registry.BLOCKS", dict(BLOCKS))
    with pytest.raises(ValueError, match="'mlp' is already the block MLP"):
        register_block("mlp")(Mamba1)
    assert register_block("mlp")(MLP) is MLP


# --- sizes


def test_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match=r"d_inner=96 .* is not divisible by head_dim=64"):
        Mamba2(d_model=48)
    with pytest.raises(ValueError, match=r"n_heads=4 .* is not divisible by n_groups=3"):
        Mamba2(d_model=32, head_dim=16, n_groups=3)
    with pytest.raises(ValueError, match="d_model=10 is not divisible by n_heads=4"):
        Attention(d_model=10, n_heads=4)
    with pytest.raises(ValueError, match="n_heads=4 is not divisible by n_kv_heads=3"):
        Attention(d_model=16, n_heads=4, n_kv_heads=3)
    with pytest.raises(ValueError, match="odd head_dim=3"):
        Attention(d_model=6, n_heads=2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mamba1", {"d_state": 0}, "d_state: expected at least 1, got 0"),
        ("mamba1", {"dt_rank": "big"}, "dt_rank: expected a number or 'auto', got 'big'"),
        ("mamba1", {"dt_init": "zero"}, "dt_init: expected 'random' or 'constant'"),
        ("mamba1", {"d_conv": 0}, "d_conv: expected at least 1"),
        ("mamba2", {"head_dim": 0}, "head_dim: expected at least 1"),
        ("mamba2", {"head_dim": 8, "A_init_range": (0, 1)}, "A_init_range: expected 0 < low <= high"),
        ("mamba3", {"head_dim": 8, "mimo_rank": 0}, "mimo_rank: expected at least 1, got 0"),
        ("mamba3", {"head_dim": 8, "rope_fraction": 1.5}, r"rope_fraction: expected a number in \[0, 1\]"),
        ("mamba3", {"head_dim": 8, "decay": "exp"}, "decay: expected 'heavy_tail' or 'softplus', got 'exp'"),
        ("mlp", {"d_hidden": 0}, "expected at least 1"),
        ("gru", {"d_hidden": 0}, "expected at least 1, got 16 and 0"),
        ("bidirectional", {"merge": "max"}, "merge: expected one of sum, mean, concat, gated, got 'max'"),
        ("bidirectional", {"share": True}, "share: expected one of none, projections, all, got True"),
        ("bidirectional", {"inner": "rnn"}, "no block is called 'rnn'"),
        ("bidirectional", {"inner": "mamba1", "inner_options": {"x": 1}}, "options of mamba1"),
        (
            "bidirectional",
            {"inner": "attention", "inner_options": {"causal": False}},
            "looks in both directions already",
        ),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build_block(kind, 16, options)


# --- the boundary


@pytest.mark.parametrize("kind", SMALL_BLOCKS)
def test_wrong_inputs(kind):
    block = small(kind)
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, length, d_model=16\), got \(2, 5, 8\)"):
        block(sample(d_model=8))
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, length, d_model=16\), got \(2, 16\)"):
        block(sample()[:, 0])
    with pytest.raises(ValueError, match=r"either lengths .* or seq_idx .* not both"):
        block(sample(), lengths=torch.tensor([1, 2]), seq_idx=torch.zeros(2, 5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"seq_idx: expected shape \(batch=2, length=5\)"):
        block(sample(), seq_idx=torch.zeros(2, 4, dtype=torch.int32))
    with pytest.raises(TypeError, match="seq_idx: expected dtype int32, got int64"):
        block(sample(), seq_idx=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="lengths: expected an int64 tensor, got list"):
        block(sample(), lengths=[1, 2])
    with pytest.raises(TypeError, match=r"lengths: expected an int64 tensor, got torch.float32"):
        block(sample(), lengths=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"lengths: expected shape \(batch=2,\), got \(3,\)"):
        block(sample(), lengths=torch.tensor([1, 2, 3]))
    for bad in ([1, 6], [-1, 2]):
        with pytest.raises(ValueError, match=r"lengths: values must be in 0..5"):
            block(sample(), lengths=torch.tensor(bad))


@pytest.mark.parametrize("kind", CAUSAL)
def test_wrong_steps(kind):
    block = small(kind)
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, d_model=16\), got \(2, 5, 16\)"):
        block.step(sample(), block.init_state(2))
    with pytest.raises(TypeError, match=r"state: expected a State .* got NoneType"):
        block.step(sample()[:, 0], None)
    with pytest.raises(TypeError, match=r"state: expected a State .* got dict"):
        block.step(sample()[:, 0], {})


@pytest.mark.parametrize("kind", CAUSAL)
def test_states_of_others(kind):
    block = small(kind)
    others = [
        Mamba1(d_model=16, d_state=9),
        Mamba2(d_model=16, head_dim=16, d_state=7),
        Attention(d_model=16, n_heads=8),
    ]
    for other in others:
        for call in (lambda state: block(sample(), state), lambda state: block.step(sample()[:, 0], state)):
            with pytest.raises(ValueError, match=f"belongs to another block: {type(block).__name__} keeps"):
                call(other.init_state(2))
    with pytest.raises(ValueError, match="belongs to another block"):
        block(sample(), State({"other": torch.zeros(2, 1)}))
    if block.state_shapes():
        with pytest.raises(ValueError, match="belongs to another block"):
            block(sample(), State())
        with pytest.raises(ValueError, match="for a batch of 3 rows, but x has 2"):
            block(sample(), block.init_state(3))
        with pytest.raises(ValueError, match="for a batch of 3 rows, but x has 2"):
            block.step(sample()[:, 0], block.init_state(3))


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_first_state_is_that_of_no_tokens(kind):
    block = small(kind)
    explicit = block(sample(), block.init_state(2))
    implicit = block(sample())
    torch.testing.assert_close(explicit[0], implicit[0], atol=1e-12, rtol=0)
    assert_states_close(explicit[1], implicit[1], atol=1e-12)
    moved = block.init_state(2, device="meta", dtype=torch.float64)
    assert {tensor.device.type for _, tensor in moved.tensors()} <= {"meta"}


# --- training and tracing


@pytest.mark.parametrize("kind", SMALL_BLOCKS)
def test_learns_a_batch_by_heart(kind):
    torch.manual_seed(0)
    block = build_block(kind, 16, SMALL_BLOCKS[kind])
    x, target = sample(length=8).float(), sample(length=8).float().flip(0, 2)
    optimizer = torch.optim.Adam(block.parameters(), lr=2e-2)
    first = None
    for _ in range(100):
        loss = (block(x)[0] - target).square().mean()
        first = loss.item() if first is None else first
        if loss.item() < 0.1 * first:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"after 100 steps the loss is {loss.item():.3g}, from {first:.3g}")


@pytest.mark.parametrize("kind", SMALL_BLOCKS)
def test_every_parameter_has_a_gradient(kind):
    block = small(kind)
    block(sample())[0].square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", SMALL_BLOCKS)
def test_autocast(kind):
    torch.manual_seed(0)
    block = build_block(kind, 16, SMALL_BLOCKS[kind])
    x = sample().float()
    expected, _ = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = block(x)
        if block.causal:
            _, state = block(x, state)
            block.step(x[:, 0], state)
    torch.testing.assert_close(y.float(), expected, atol=0.03 * expected.abs().max().item(), rtol=0.05)
    for name, tensor in state.tensors():
        if name in ("conv", "ssm", "hidden", "cell"):
            assert tensor.dtype == torch.float32


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind != "zamba"])  # a composite, and slow
def test_dynamo_traces_it_in_one_graph(kind):
    torch.manual_seed(0)
    torch._dynamo.reset()  # graphs of one function are counted over all blocks
    block = build_block(kind, 16, SMALL_BLOCKS[kind])
    x = sample().float()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    y, state = compiled(x)
    expected, expected_state = block(x)
    torch.testing.assert_close(y, expected)
    assert_states_close(state, expected_state, atol=1e-6)
    torch.testing.assert_close(compiled(x, state)[0], block(x, expected_state)[0])


@pytest.mark.parametrize("norm", [True, False])
def test_recomputing_gives_the_same_and_keeps_less(norm):
    """Two calls in a row, the second from the first's state."""
    torch.manual_seed(0)
    plain = Mamba2(d_model=32, head_dim=8, d_state=8, norm=norm)
    frugal = Mamba2(d_model=32, head_dim=8, d_state=8, norm=norm, recompute=True)
    frugal.load_state_dict(plain.state_dict())
    found = []
    for block in (plain, frugal):
        x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y, state = block(x[:, :14])
            z, _ = block(x[:, 14:], state)
        (y.square().sum() + z.square().sum()).backward()
        found.append(
            (sum(kept.values()), torch.cat([y, z], 1), x.grad, *(p.grad for p in block.parameters()))
        )
    (most, *expected), (less, *actual) = found
    assert less < 0.9 * most
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
