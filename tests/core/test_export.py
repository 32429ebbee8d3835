"""Programs of blocks and models: the numbers of the original for other sizes than they were traced with."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import BLOCKS, Block, build_block
from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.core.export import StateLayout, export_forward, export_step, load_step, save_program
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.testing import SMALL_BLOCKS

ANY_LENGTH = [kind for kind in SMALL_BLOCKS if kind != "unet"]
CAUSAL = [kind for kind in SMALL_BLOCKS if BLOCKS[kind].causal]
Run = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason='ONNX is not installed: pip install "mambakit[onnx]"',
)


def kinds(every: list[str], fast: tuple[str, ...]) -> list[object]:
    return [kind if kind in fast else pytest.param(kind, marks=pytest.mark.slow) for kind in every]


def small(kind: str) -> Block:
    torch.manual_seed(0)
    return build_block(kind, 16, SMALL_BLOCKS[kind]).eval()


def hybrid(*layers: str) -> BackboneConfig:
    return BackboneConfig(
        d_model=16, layers=list(layers), block_options={kind: SMALL_BLOCKS[kind] for kind in layers}
    )


@torch.no_grad()
def check_step(
    model: nn.Module, run: Run, token: Callable[[int], torch.Tensor], **more: torch.Tensor
) -> None:
    for batch in (1, 2, 5):
        state = model.init_state(batch)
        tensors = StateLayout.pack(state)
        told = {name: tensor.expand(batch) for name, tensor in more.items()}
        for _ in range(5):
            x = token(batch)
            expected, state = model.step(x, state, **told)
            y, tensors = run(x, tensors, told)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
            # strides as at the first step: a package goes by those it was compiled for
            assert all(one.is_contiguous() for one in tensors.values())
        torch.testing.assert_close(tensors, StateLayout.pack(state), atol=1e-5, rtol=0)


def vectors(batch: int) -> torch.Tensor:
    return torch.randn(batch, 16)


@pytest.mark.parametrize("kind", kinds([*ANY_LENGTH], ("mamba1", "attention", "moe", "lstm")))
def test_forward_of_any_batch_and_length(kind):
    block = small(kind)
    run = export_forward(block).module()
    with torch.no_grad():
        for batch, length in ((1, 1), (2, 5), (1, 63), (3, 64), (2, 130)):
            x = torch.randn(batch, length, 16)
            y, state = run(x, {})
            expected, after = block(x)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(state, StateLayout.pack(after), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_stack_of_several_rates_is_a_program_of_one_length():
    block = small("unet")
    with pytest.raises(UserError, match="with fixed_length it may be"):
        export_forward(block)
    run = export_forward(block, fixed_length=7).module()
    with torch.no_grad():
        for batch in (1, 3):
            x = torch.randn(batch, 7, 16)
            y, state = run(x, {})
            expected, after = block(x)
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(state, StateLayout.pack(after), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", kinds(CAUSAL, ("mamba1", "mamba2", "attention", "moe", "lstm")))
def test_step_of_any_batch_in_operators_of_torch(kind, tmp_path):
    block = small(kind)
    program = export_step(block)
    assert not [node for node in program.graph.nodes if "mambakit" in str(node.target)]
    assert save_program(program, tmp_path / "step.pt2") == "torch.export"
    check_step(block, load_step(tmp_path / "step.pt2"), vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["step.pt2"]


@needs_onnx
@pytest.mark.parametrize("kind", kinds(CAUSAL, ("mamba2",)))
def test_onnxruntime_steps_to_the_same_numbers(kind, tmp_path):
    block = small(kind)
    assert save_program(export_step(block), tmp_path / "step.onnx") == "ONNX"
    check_step(block, load_step(tmp_path / "step.onnx"), vectors)


@needs_onnx
@pytest.mark.slow
def test_onnx_of_a_language_model(tmp_path):
    model = LanguageModel(LanguageModelConfig(11, hybrid("mamba1", "mlp", "sliding_attention"))).eval()
    save_program(export_step(model), tmp_path / "step.onnx")
    check_step(model, load_step(tmp_path / "step.onnx"), lambda batch: torch.randint(11, (batch,)))


@pytest.mark.slow  # half a minute each of the compiler's
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++")), reason="AOTInductor needs a C++ compiler"
)
@pytest.mark.parametrize("kind", ["mamba2", "mamba3", "conv_attention", "gru"])
def test_a_package_that_aotinductor_compiled(kind, tmp_path):
    block = small(kind)
    assert save_program(export_step(block), tmp_path / "step.aoti.pt2") == "AOTInductor"
    check_step(block, load_step(tmp_path / "step.aoti.pt2"), vectors)


def test_a_prompt_is_read_by_one_program_and_continued_by_the_other():
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(11, hybrid("mamba2", "attention", "gru"))).eval()
    forward, step = export_forward(model).module(), export_step(model).module()
    with torch.no_grad():
        for batch, length in ((1, 1), (2, 40)):
            ids = torch.randint(11, (batch, length + 3))
            y, state = forward(ids[:, :length], {})
            found = [y]
            for token in ids[:, length:].unbind(1):
                y, state = step(token, state, {})
                found.append(y[:, None])
            torch.testing.assert_close(torch.cat(found, 1), model(ids)[0], atol=1e-5, rtol=0)


def test_time_gaps_go_in_too():
    torch.manual_seed(0)
    model = Backbone(hybrid("mamba1", "mlp")).eval()
    gap = torch.tensor([0.5])
    check_step(model, export_step(model, elapsed=gap).module(), vectors, elapsed=gap)
    run = export_forward(model, lengths=torch.tensor([1]), elapsed=gap[:, None]).module()
    x, lengths, elapsed = torch.randn(4, 7, 16), torch.tensor([7, 0, 1, 5]), torch.rand(4, 7)
    with torch.no_grad():
        expected, _ = model(x, lengths=lengths, elapsed=elapsed)
        y, _ = run(x, {"lengths": lengths, "elapsed": elapsed})
    torch.testing.assert_close(y, expected)


def test_a_learned_start_is_the_states_own_affair():
    torch.manual_seed(0)
    config = BackboneConfig(
        d_model=16, layers=["mamba1"], block_options={"mamba1": {"d_state": 4}}, learn_initial_state=True
    )
    model = Backbone(config).eval()
    for name, parameter in model.named_parameters():
        if "initial" in name:
            nn.init.normal_(parameter)
    check_step(model, export_step(model).module(), vectors)
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(export_forward(model).module()(x, {})[0], model(x)[0])


def test_edges_and_grids():
    torch.manual_seed(0)
    graph = Backbone(BackboneConfig(d_model=16, layers=["graph"])).eval()
    run = export_forward(graph, edges=torch.tensor([[0, 0, 1], [1, 8, 2]])).module()
    x, edges = torch.randn(2, 20, 16), torch.tensor([[0, 0, 19], [1, 3, 3], [1, 4, 3]])
    torch.testing.assert_close(run(x, {"edges": edges})[0], graph(x, edges=edges)[0])
    grid = build_block("grid_scan", 16, {"grid": (3, 4), "inner": "mamba1"}).eval()
    x = torch.randn(5, 12, 16)
    torch.testing.assert_close(export_forward(grid, fixed_length=12).module()(x, {})[0], grid(x)[0])
    with pytest.raises(
        UserError, match=r"the block GridScan can't be .* one whole grid .* with fixed_length"
    ):
        export_forward(grid)


def test_what_cannot_be_exported_says_which_and_why(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Bidirectional looks in both directions and has no step"):
        export_step(small("bidirectional"))
    with pytest.raises(UserError, match=r"the block GRU can't be a program: .* depend on the data$"):
        export_forward(Backbone(hybrid("gru")), lengths=torch.tensor([3]))
    with pytest.raises(UsageError, match="example: give a tensor as Linear takes it"):
        export_forward(nn.Linear(2, 2))
    program = export_step(small("mlp"))
    with pytest.raises(UsageError, match=r"ends in \.pt2, \.aoti\.pt2 or \.onnx, got step\.bin"):
        save_program(program, tmp_path / "step.bin")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler \(no-such-compiler\)"):
        save_program(program, tmp_path / "step.aoti.pt2")
    with pytest.raises(UserError, match=r"ONNX knows nothing of the op mambakit\."):
        save_program(export_forward(small("mamba1")), tmp_path / "forward.onnx")
    monkeypatch.setattr("mambakit.core.export.files.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs onnx and onnxscript.*pip install "mambakit\[onnx\]"'):
        save_program(program, tmp_path / "step.onnx")
    with pytest.raises(DataError, match="no program at"):
        load_step(tmp_path / "step.pt2")
    assert not list(tmp_path.iterdir())
