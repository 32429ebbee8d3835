"""Learned initial states: the streaming law, packed rows too, gradients, files, and what they cost."""

from __future__ import annotations

import pytest
import torch

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Block, build_block
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.testing import (
    Sequential,
    check_packing,
    check_packs,
    check_padding,
    check_streaming,
    run_by_steps,
    run_in_pieces,
)
from mambakit.core.training import parameter_groups

D_MODEL, LENGTH = 8, 11
OPTIONS = {
    "mamba1": {"d_state": 4},
    "mamba2": {"head_dim": 8, "d_state": 4},
    "mamba3": {"head_dim": 8, "d_state": 4},
    "attention": {"n_heads": 2},
    "sliding_attention": {"n_heads": 2, "window": 3},
    "conv": {"width": 3},
    "zamba": {"n_heads": 2, "d_hidden": 8, "inner_options": {"d_state": 4}},
}
STACKS = {
    "mamba1": (["mamba1"], False),
    "mamba2": (["mamba2"], False),
    "mamba3": (["mamba3"], False),
    "hybrid": (["mamba1", "mlp", "attention", "mamba2"], False),
    "mixed": (["zamba@a", "conv", "sliding_attention", "conv_attention", "zamba@a"], False),
    "recurrent": (["gru", "lstm"], False),
    "both-ways": (["mamba2", "attention", "mamba1"], True),
}
STREAMING = [name for name, (_, both_ways) in STACKS.items() if not both_ways]


def config(name: str, *, learned: bool = True) -> BackboneConfig:
    layers, both_ways = STACKS[name]
    kinds = [layer.partition("@")[0] for layer in layers]
    options = {kind: OPTIONS[kind] for kind in kinds if kind in OPTIONS}
    return BackboneConfig(
        D_MODEL, layers, block_options=options, bidirectional=both_ways, learn_initial_state=learned
    )


def build(name: str) -> Backbone:
    """A backbone in float64 whose starts are far from zero and whose layers differ in them."""
    torch.manual_seed(0)
    module = Backbone(config(name)).double().eval()
    with torch.no_grad():
        for where, parameter in module.named_parameters():
            if ".initial." in where:
                parameter.normal_()
    return module


def starts(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if ".initial." in f".{name}"}


def sample(batch: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(
        batch, length, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", STREAMING)
def test_steps_and_pieces_equal_the_whole(name: str) -> None:
    check_streaming(build(name), sample(), [0, 1, 4, 4, 9], atol=1e-10)


@pytest.mark.parametrize("name", STACKS)
def test_padded_rows_equal_each_alone(name: str) -> None:
    check_padding(build(name), sample(batch=5), [11, 0, 1, 7, 10], atol=1e-10)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("lengths", [[11], [3, 8], [1, 1, 7, 2], [1] * 11], ids=str)
def test_packed_rows_equal_each_alone(name: str, lengths: list[int]) -> None:
    check_packing(build(name), sample(batch=2), lengths, atol=1e-10)


@pytest.mark.parametrize("name", STACKS)
def test_rows_packed_differently(name: str) -> None:
    module, x = build(name), sample()
    before = module(x[:, :5])[1] if module.causal else None
    check_packs(module, x, before, [[4, 7], [11], [2, 1, 8]], atol=1e-10)


@pytest.mark.parametrize("name", STACKS)
def test_it_begins_as_the_model_without(name: str) -> None:
    torch.manual_seed(0)
    plain = Backbone(config(name, learned=False)).double()
    torch.manual_seed(0)
    learned = Backbone(config(name)).double()
    seq_idx = torch.tensor([[0] * 4 + [1] * 7] * 3).int()
    torch.testing.assert_close(learned(sample())[0], plain(sample())[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(
        learned(sample(), seq_idx=seq_idx)[0], plain(sample(), seq_idx=seq_idx)[0], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("mode", ["whole", "padded", "packed"])
def test_gradients_reach_every_start(name: str, mode: str) -> None:
    module, x = build(name), sample(batch=2)
    weight = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    learned = starts(module)
    if mode == "whole":
        y = module(x)[0]
        alone = [module(row[None])[0] for row in x]
    elif mode == "padded":
        lengths = [11, 4]
        y = module(x, lengths=torch.tensor(lengths))[0]
        alone = [
            torch.nn.functional.pad(module(x[row : row + 1, :n])[0], (0, 0, 0, LENGTH - n))
            for row, n in enumerate(lengths)
        ]
    else:
        y = module(x, seq_idx=torch.tensor([[0] * 5 + [1] * 6] * 2).int())[0]
        alone = [torch.cat([module(row[None, :5])[0], module(row[None, 5:])[0]], 1) for row in x]
    actual = torch.autograd.grad((y * weight).sum(), list(learned.values()))
    expected = torch.autograd.grad((torch.cat(alone) * weight).sum(), list(learned.values()))
    for where, a, e in zip(learned, actual, expected, strict=True):
        assert e.abs().sum() > 0, where
        torch.testing.assert_close(a, e, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", STREAMING)
def test_gradients_by_pieces_and_steps_equal_the_whole(name: str) -> None:
    module, x = build(name), sample(batch=2)
    learned = list(starts(module).values())
    expected = torch.autograd.grad(module(x)[0].square().sum(), learned)
    for y in (run_in_pieces(module, x, [3, 7])[0], run_by_steps(module, x)[0]):
        for a, e in zip(torch.autograd.grad(y.square().sum(), learned), expected, strict=True):
            torch.testing.assert_close(a, e, atol=1e-9, rtol=1e-9)


def test_each_direction_has_its_own_start() -> None:
    module = build("both-ways")
    names = set(starts(module))
    assert {"blocks.0.ahead.initial.ssm", "blocks.0.back.initial.ssm", "blocks.2.back.initial.conv"} <= names
    assert len(names) == 8
    assert not any(name.startswith("blocks.1") for name in names)  # a cache begins empty


def test_a_start_can_be_learned() -> None:
    """A frozen block finds back the start that another run of it had."""
    torch.manual_seed(0)
    block = build_block("mamba2", D_MODEL, OPTIONS["mamba2"]).requires_grad_(False)
    x = torch.randn(4, 6, D_MODEL)
    hidden = block.init_state(1).map(torch.randn_like)
    target = block(x, hidden.index_select([0] * 4))[0]
    block.learn_initial_state()
    learned = [p for p in block.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.1)
    losses = []
    for _ in range(60):
        loss = (block(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0], losses


def test_a_step_in_place_leaves_the_parameters() -> None:
    module = build("hybrid").float()
    kept = {name: p.detach().clone() for name, p in starts(module).items()}
    with torch.inference_mode():
        state = module.init_state(2)
        for token in sample(batch=2).float().unbind(1):
            _, state = module.step(token, state, inplace=True)
    for name, parameter in starts(module).items():
        assert torch.equal(parameter, kept[name])


def test_saved_and_loaded_with_the_model(tmp_path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(7, config("hybrid"))).eval()
    with torch.no_grad():
        for parameter in starts(model).values():
            parameter.normal_()
    model.save_pretrained(tmp_path / "model")
    loaded = LanguageModel.from_pretrained(tmp_path / "model")
    ids = torch.randint(7, (2, 5))
    assert loaded.config.backbone.learn_initial_state
    assert torch.equal(loaded(ids)[0], model(ids)[0])
    for parameter in starts(model).values():
        parameter.data.zero_()
    assert not torch.equal(loaded(ids)[0], model(ids)[0])


def test_what_it_costs() -> None:
    """One row's state in parameters, and no weight decay towards zero."""
    module = Backbone(config("hybrid"))
    ours = sum(p.numel() for p in starts(module).values())  # the cache is empty
    assert ours == sum(t.numel() for _, t in module.init_state(1).tensors())
    kept = parameter_groups(module, 0.1)[1]["params"]
    assert all(any(p is other for other in kept) for p in starts(module).values())


def test_states_of_a_half_precision_model_are_float32() -> None:
    module: Sequential = build("mamba2").to(torch.bfloat16)
    state = module.init_state(2)
    assert all(tensor.dtype == torch.float32 for _, tensor in state.tensors())
    y, _ = module(sample().to(torch.bfloat16))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0)], ids=str)
def test_packed_rows_may_be_none_or_empty(name: str, shape: tuple[int, int]) -> None:
    module = build(name)
    x, seq_idx = torch.zeros(*shape, D_MODEL, dtype=torch.float64), torch.zeros(shape, dtype=torch.int32)
    for state in (None, module.init_state(shape[0])):
        y, following = module(x, state, seq_idx)
        assert y.shape == x.shape
        assert following.batch == shape[0]
        module(x, following, seq_idx)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer has a state that can be learned"):
        Backbone(BackboneConfig(8, ["attention", "mlp"], learn_initial_state=True))
    block: Block = build_block("attention", 8)
    block.learn_initial_state()
    assert not starts(block)
