"""Adapted models: alike by every way through them, plain again once merged, and back from their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambakit.core.adaptation import (
    AdaptConfig,
    adapt,
    load_adapter,
    merge,
    projections_of,
    save_adapter,
)
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import BLOCKS, Block, build_block
from mambakit.core.blocks.linear import weight_of
from mambakit.core.compiled_stack import WholeStep
from mambakit.core.errors import DataError, UsageError
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.testing import check_packing, check_padding, check_streaming

D_MODEL, LENGTH = 8, 11
SSD = {"head_dim": 8, "d_state": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"n_heads": 2},
    "bidirectional": {"inner": "mamba2", "inner_options": SSD, "merge": "concat"},
    "conv": {"width": 3},
    "conv_attention": {"n_heads": 2},
    "graph": {"d_edge": 2},
    "grid_scan": {"grid": (3, 3), "inner": "mamba2", "inner_options": SSD, "merge": "concat"},
    "gru": {},
    "lstm": {},
    "mamba1": {"d_state": 4},
    "mamba2": SSD,
    "mamba3": SSD,
    "mlp": {},
    "moe": {"n_experts": 3, "d_hidden": 8, "d_shared": 8},
    "sequence_scan": {"inner": "mamba2", "inner_options": SSD},
    "sliding_attention": {"n_heads": 2, "window": 3},
    "unet": {"levels": [["mamba2"], ["mlp"]], "skip": "concat", "inner_options": {"mamba2": SSD}},
    "zamba": {"n_heads": 2, "d_hidden": 8, "inner_options": {"d_state": 4}},
}
# linear maps that choose, and are no projections
CHOOSING = {"router", "gate_proj"}
STACKS = {
    "mamba1": ["mamba1"],
    "mamba2": ["mamba2"],
    "mamba3": ["mamba3"],
    "hybrid": ["mamba1", "mlp", "attention", "moe", "mamba2"],
    "mixed": ["zamba@a", "conv", "sliding_attention", "conv_attention", "lstm", "zamba@a"],
}
LOW_RANK = ["lora", "dora"]
EVERY = [*LOW_RANK, "state", "prefix"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _peft(request: pytest.FixtureRequest) -> None:
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("kind") in LOW_RANK:
        pytest.importorskip("peft")


def stack(layers: list[str], *, bidirectional: bool = False) -> Backbone:
    options = {kind: OPTIONS[kind] for kind in {layer.partition("@")[0] for layer in layers}}
    config = BackboneConfig(D_MODEL, layers, block_options=options, bidirectional=bidirectional)
    return Backbone(config).eval()


def adapted(model: Any, kind: Any, **options: Any) -> Any:
    """Adapted, and as if it had learned: everything that learns is moved."""
    adapt(model, AdaptConfig(kind, **{"rank": 2, "alpha": 2.0, "tokens": 3, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def language(layers: list[str], n_ids: int = 8, d_model: int = 16) -> LanguageModel:
    options = {kind: OPTIONS[kind] for kind in layers}
    config = BackboneConfig(d_model, layers, block_options=options)
    return LanguageModel(LanguageModelConfig(n_ids, config)).eval()


def test_every_block_says_which_of_its_linear_maps_are_projections() -> None:
    assert OPTIONS.keys() == BLOCKS.keys(), "a block without an example here"
    for kind, options in OPTIONS.items():
        block = build_block(kind, D_MODEL, options)
        linear = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        wanted = [name for name in linear if name.rpartition(".")[2] not in CHOOSING]
        assert sorted(projections_of(block)) == sorted(wanted), kind


@pytest.mark.parametrize("kind", LOW_RANK)
@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
@torch.no_grad()
def test_low_rank_changes_obey_the_streaming_law_and_merge(kind: str, layers: list[str]) -> None:
    x = torch.randn(2, LENGTH, D_MODEL)
    model = stack(layers)
    before = model(x)[0]
    model(x[:1])  # what is remembered of a plain stack's weights does not outlive them
    adapt(model, AdaptConfig(kind, rank=2))  # type: ignore[arg-type]
    torch.testing.assert_close(model(x)[0], before, atol=2e-6, rtol=0, msg="nothing is learned yet")
    merge(model)
    model = adapted(model, kind)
    apart = model(x)[0]
    assert (apart - before).abs().max() > 0.01
    for _ in range(2):  # beside the weights, then in them
        check_streaming(model, x, (3, 3, 8), atol=3e-5)
        check_padding(model, x, (LENGTH, 4), atol=3e-5)
        torch.testing.assert_close(model(x)[0], apart, atol=3e-5, rtol=0)
        torch.testing.assert_close(model(x[:1])[0], apart[:1], atol=3e-5, rtol=0)
        if "lora" not in str(list(model.state_dict())):
            break
        merge(model)
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", LOW_RANK)
@pytest.mark.parametrize("block", [name for name in OPTIONS if name != "graph"])
@torch.no_grad()
def test_each_projection_alone_matters_as_merged(kind: str, block: str) -> None:
    """A path that read a map's own weight would miss what goes beside it."""
    module: Block = build_block(block, D_MODEL, OPTIONS[block]).double().eval()
    x = torch.randn(2, 9, D_MODEL, dtype=torch.float64)
    adapt(module, AdaptConfig(kind, rank=2, alpha=2.0))  # type: ignore[arg-type]
    changes = [(name, one) for name, one in module.named_parameters() if "lora_B" in name]
    seen = module(x)[0]
    for name, change in changes:
        change += 0.5 * torch.randn_like(change)
        following = module(x)[0]
        assert (following - seen).abs().max() > 1e-7, name
        if module.causal:
            state = module.init_state(2)
            steps = []
            for token in x.unbind(1):
                y, state = module.step(token, state)
                steps.append(y)
            torch.testing.assert_close(torch.stack(steps, 1), following, atol=1e-10, rtol=0, msg=name)
        seen = following
    merge(module)
    torch.testing.assert_close(module(x)[0], seen, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", LOW_RANK)
@torch.no_grad()
def test_the_weight_of_an_adapted_map_is_what_merging_makes(kind: str) -> None:
    block = adapted(build_block("mamba2", D_MODEL, SSD), kind, dropout=0.5)
    before = weight_of(block.out_proj)
    assert block.training
    merge(block)
    torch.testing.assert_close(before, block.out_proj.weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["lora", "prefix", "state"])
@torch.no_grad()
def test_a_compiled_whole_step_is_that_of_the_adapted_model(kind: str) -> None:
    first, backbone, last = nn.Linear(7, D_MODEL), adapted(stack(["mamba2", "mamba2"]), kind), nn.Linear(8, 5)
    if kind == "lora":
        assert WholeStep.of([first], backbone, last) is None, "it reads weights where they lie"
        merge(backbone)
    whole = WholeStep.of([first], backbone, last)
    assert (whole is None) == (kind == "state")
    if whole is None:
        return
    x = torch.randn(1, 6, 7)
    own = backbone.init_state(1)
    found = []
    for token in x[0]:
        whole.inputs[0][:] = token
        found.append(whole.run(own, [None]).copy())
    wanted = last(backbone(first(x))[0])[0]
    np.testing.assert_allclose(np.stack(found), wanted.numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["state", "prefix"])
@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
@torch.no_grad()
def test_beginnings_obey_the_streaming_law(kind: str, layers: list[str]) -> None:
    x = torch.randn(2, LENGTH, D_MODEL)
    model = stack(layers)
    before = model(x)[0]
    model(x[:1])
    adapted(model, kind)
    after = model(x)[0]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(model(x[:1])[0], after[:1], atol=3e-5, rtol=0)
    check_streaming(model, x, (3, 3, 8), atol=3e-5)
    check_padding(model, x, (LENGTH, 4), atol=3e-5)
    check_packing(model, x, (4, 1, 6), atol=3e-5)


@given(n=st.integers(1, 5), length=st.integers(1, 7), layers=st.sampled_from(list(STACKS.values())))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_a_prefix_is_tokens_before_the_sequence(n: int, length: int, layers: list[str]) -> None:
    plain, model = stack(layers), stack(layers)
    model.load_state_dict(plain.state_dict())
    adapted(model, "prefix", tokens=n)
    x = torch.randn(2, length, D_MODEL)
    assert model.prefix is not None
    whole = plain(torch.cat([model.prefix.expand(2, -1, -1), x], 1))[0]
    torch.testing.assert_close(model(x)[0], whole[:, n:], atol=2e-5, rtol=0)


def batches(step: int, *, told: bool, n: int = 60) -> Iterator[Tensor]:
    """Ids that go on by ``step``, or by 1 or 2 as their first id, 6 or 7, tells."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        start = torch.randint(0, 6, (16, 1), generator=generator)
        by = torch.randint(1, 3, (16, 1), generator=generator) if told else torch.full((16, 1), step)
        counted = (start + by * torch.arange(9)) % 6
        yield torch.cat([by + 5, counted], 1) if told else counted


def loss(model: LanguageModel, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])[0]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def learn(model: LanguageModel, data: Iterator[Tensor], lr: float = 1e-2) -> float:
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr)
    for ids in data:
        optimizer.zero_grad()
        loss(model, ids).backward()
        optimizer.step()
    return float(loss(model, ids).detach())


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    torch.manual_seed(0)
    model = language(["mamba2", "mamba1"])
    learn(model, batches(0, told=True, n=100))
    return model


def copied(model: LanguageModel) -> LanguageModel:
    other = language(["mamba2", "mamba1"])
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("kind", EVERY)
def test_learns_a_changed_task_while_the_base_stays(kind: str, base: LanguageModel) -> None:
    """The base counts by what it is told; now it is told nothing, and everything goes by 2."""
    model = copied(base)
    frozen = float(loss(model, next(batches(2, told=False))).detach())
    known = {name: one.detach().clone() for name, one in base.named_parameters()}
    learning = adapt(model, AdaptConfig(kind, rank=2, tokens=4))  # type: ignore[arg-type]
    assert 0 < learning.learns < 0.4 * learning.total
    assert learning.learns == sum(one.numel() for one in model.parameters() if one.requires_grad)
    after = learn(model, batches(2, told=False), lr=3e-2)
    assert after < 0.3 * frozen, f"{frozen} before, {after} after"
    kept = {name.replace(".base_layer", ""): one for name, one in model.named_parameters()}
    for name, tensor in known.items():
        assert torch.equal(kept[name], tensor), name
    ids = next(batches(2, told=False))
    apart = model(ids)[0]
    merge(model)
    torch.testing.assert_close(model(ids)[0], apart, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
@torch.no_grad()
def test_the_difference_and_the_base_are_the_model(kind: str, base: LanguageModel, tmp_path: Path) -> None:
    ids = torch.randint(0, 8, (3, 7))
    model = adapted(copied(base), kind, also=["head"])
    wanted = model(ids)[0]
    save_adapter(model, tmp_path / "small", base="runs/base")
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["kind"], config["base"]) == (kind, "runs/base")
    again = copied(base)
    load_adapter(again, tmp_path / "small")
    assert torch.equal(again(ids)[0], wanted)

    merge(model)
    model.save_pretrained(tmp_path / "whole")
    whole = LanguageModel.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(whole(ids)[0], wanted, atol=5e-5, rtol=1e-5)
    assert torch.equal(whole(ids)[0], model(ids)[0])
    beside = copied(base)
    load_adapter(beside, tmp_path / "whole" / "adapter")
    assert torch.equal(beside(ids)[0], wanted)
    whole.save_pretrained(tmp_path / "again")  # what it has beyond its config is not lost by loading
    assert torch.equal(LanguageModel.from_pretrained(tmp_path / "again")(ids)[0], model(ids)[0])


def test_files_that_do_not_fit_are_said(base: LanguageModel, tmp_path: Path) -> None:
    save_adapter(adapted(copied(base), "state"), tmp_path / "small")
    with pytest.raises(DataError, match="learned on another base"):
        load_adapter(language(["mamba2", "mamba1"]), tmp_path / "small")
    with pytest.raises(DataError, match="does not exist"):
        load_adapter(copied(base), tmp_path / "none")
    (tmp_path / "small" / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="damaged"):
        load_adapter(copied(base), tmp_path / "small")
    (tmp_path / "small" / "adapter_config.json").write_text('{"kind": "lora", "rank": 0}')
    with pytest.raises(DataError, match="rank: expected at least 1, got 0"):
        load_adapter(copied(base), tmp_path / "small")


def test_what_cannot_be_is_said_in_a_sentence(base: LanguageModel, tmp_path: Path) -> None:
    for options, said in [
        ({"kind": "lora", "rank": 0}, "rank: expected at least 1, got 0"),
        ({"kind": "lora", "alpha": 0.0}, "alpha: expected a positive number"),
        ({"kind": "dora", "dropout": 1.0}, "dropout: expected"),
        ({"kind": "prefix", "tokens": 0}, "tokens: expected at least 1, got 0"),
        ({"base": "runs/base"}, "base: without effect while adapt.kind is none"),
    ]:
        with pytest.raises(UsageError, match=said):
            AdaptConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="got none"):
        adapt(copied(base), AdaptConfig())
    with pytest.raises(UsageError, match="no recurrent layer"):
        adapt(stack(["attention", "mlp"]), AdaptConfig("state"))
    with pytest.raises(UsageError, match="a prefix needs a stack that reads forwards"):
        adapt(stack(["mamba2"], bidirectional=True), AdaptConfig("prefix"))
    with pytest.raises(UsageError, match="no projection"):
        adapt(nn.Linear(2, 2), AdaptConfig("lora"))
    with pytest.raises(UsageError, match="no part 'heads'; it has embedding, backbone, head"):
        adapt(copied(base), AdaptConfig("state", also=["heads"]))
    with pytest.raises(UsageError, match="not adapted"):
        merge(copied(base))
    with pytest.raises(UsageError, match="not adapted"):
        save_adapter(copied(base), tmp_path)
    model = adapted(copied(base), "state")
    with pytest.raises(UsageError, match="adapted already"):
        adapt(model, AdaptConfig("prefix"))
    with pytest.raises(UsageError, match="merge it first"):
        model.save_pretrained(tmp_path)
    merge(model)
    with pytest.raises(UsageError, match="merged already"):
        merge(model)
