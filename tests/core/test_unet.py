"""U-shaped stacks: their equations, grids, time gaps and refusals; streaming is in the tests of the law."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import UNet
from mambakit.core.state import State
from mambakit.core.testing import assert_states_close, check_packing, check_padding

MAMBA = {"mamba1": {"d_state": 4}}


def stack(layers: list[list[str]] | None = None, **options: object) -> UNet:
    torch.manual_seed(0)
    levels = layers or [["mamba1"], ["mamba1"]]
    given = {kind: MAMBA[kind] for kind in MAMBA if any(kind in level for level in levels)}
    return UNet(**{"d_model": 6, "levels": levels, "inner_options": given, **options}).double().eval()  # type: ignore[arg-type]


def samples(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("skip", ["add", "concat"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_stack_is_its_equations_token_by_token(length: int, skip: str, causal: bool) -> None:
    block = stack([["mlp"], ["mlp"]], factor=3, widths=[6, 10], skip=skip, causal=causal)
    level, x = block.level, samples(2, length, 6)

    def layer(layers: nn.Module, v: torch.Tensor) -> torch.Tensor:
        return v + layers.blocks[0](layers.norms[0](v)[:, None])[0][:, 0]  # type: ignore[index,operator]

    fine = [layer(level.before, x[:, t]) for t in range(length)]
    nothing = torch.zeros(2, 6, dtype=x.dtype)
    for t in range(length):
        j = t // 3
        begin = 3 * j - 2 if causal else 3 * j
        window = [fine[s] if 0 <= s < length else nothing for s in range(begin, begin + 3)]
        coarse = layer(level.inner.before, level.sample.down_proj(torch.cat(window, 1)))  # type: ignore[union-attr,operator]
        up = level.sample.up_proj(coarse)[:, 6 * (t % 3) : 6 * (t % 3) + 6]  # type: ignore[union-attr,operator]
        joined = fine[t] + up if skip == "add" else level.fuse_proj(torch.cat([fine[t], up], 1))  # type: ignore[operator]
        torch.testing.assert_close(block(x)[0][:, t], layer(level.after, joined), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1), (2, 3, 5)])
def test_cells_of_a_grid_are_merged_with_their_neighbours(grid: tuple[int, ...]) -> None:
    """Only cells in one coarse cell reach each other through layers that mix nothing."""
    block = stack([[], ["mlp"]], grid=grid, factor=2)
    n = torch.tensor(grid).prod().item()
    x = samples(1, int(n), 6)
    y, _ = block(x)
    places = torch.cartesian_prod(*(torch.arange(size) // 2 for size in grid)).view(int(n), -1)
    for cell in range(int(n)):
        changed = x.clone()
        changed[:, cell] += 1
        moved = (block(changed)[0] - y).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == (places == places[cell]).all(1).tolist()


@torch.no_grad()
def test_two_dimensional_stacks_read_padded_and_packed_grids() -> None:
    config = BackboneConfig.from_yaml(
        "{d_model: 6, layers: [unet], block_options: {unet: {levels: [[grid_scan, mlp], [grid_scan], "
        "[attention]], grid: [3, 5], widths: [6, 8, 8], inner_options: {grid_scan: {inner: mamba1}, "
        "attention: {n_heads: 2}}}}}"
    )
    torch.manual_seed(0)
    module = Backbone(config).double().eval()
    block = module.blocks[0]
    sizes = [part.grid for part in block.modules() if type(part).__name__ == "GridScan"]
    assert sorted(set(sizes)) == [(2, 3), (3, 5)]
    check_padding(module, samples(3, 17, 6), [15, 0, 15], atol=1e-10)
    check_packing(module, samples(2, 30, 6), [15, 15], atol=1e-10)
    with pytest.raises(ValueError, match=r"one whole grid \(3, 5\) of 15 cells, got a length of 14"):
        module(samples(1, 14, 6))
    with pytest.raises(ValueError, match="or nothing, got"):
        module(samples(1, 15, 6), lengths=torch.tensor([7]))
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module.init_state(1)
    with pytest.raises(ValueError, match="elapsed: no layer"):
        module(samples(1, 15, 6), elapsed=torch.ones(1, 15))


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"grid": (3, 3)}], ids=str)
def test_gradients(options: dict[str, object]) -> None:
    block = stack(factor=2, widths=[6, 5], skip="concat", **options)
    x = samples(1, 9, 6).requires_grad_()
    torch.autograd.gradcheck(lambda v: block(v)[0], (x,), fast_mode=True)
    parameters = list(block.parameters())
    grads = torch.autograd.grad(block(x)[0].square().sum(), parameters)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_gradients_through_a_state_in_the_middle_of_a_window() -> None:
    block, x = stack(factor=3), samples(2, 5, 6)
    _, state = block(samples(2, 4, 6))
    names = [name for name, one in state.tensors() if one.is_floating_point()]
    values = [one.detach().requires_grad_() for _, one in state.tensors() if one.is_floating_point()]

    def run(*given: torch.Tensor) -> torch.Tensor:
        tree: dict[str, object] = dict(state.to_dict())
        for name, one in zip(names, given, strict=True):
            *path, last = name.split(".")
            inside = tree
            for part in path:
                inside = inside[part]  # type: ignore[assignment]
            inside[last] = one
        return block(x, State.from_dict(tree))[0]

    torch.autograd.gradcheck(run, values, fast_mode=True)


@torch.no_grad()
def test_rows_at_different_phases_step_together() -> None:
    block = stack([["mamba1"], ["mamba1"], ["mamba1"]], factor=[2, 3])
    x = samples(4, 20, 6)
    _, state = block(x[:, :7], lengths=torch.tensor([0, 3, 4, 7]))
    rows = [(0, 0), (1, 3), (2, 4), (3, 7)]
    for step in range(10):
        token = torch.stack([x[row, n + step] for row, n in rows])
        y, state = block.step(token, state)
        for row, n in rows:
            alone, _ = block(x[row : row + 1, : n + step + 1])
            torch.testing.assert_close(y[row], alone[0, -1], rtol=0, atol=1e-10)


@torch.no_grad()
def test_coarse_layers_of_a_stream_run_once_in_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = stack([[], ["mamba1"]], factor=4), samples(1, 12, 6)
    inner, calls = block.level.inner.before.blocks[0], []  # type: ignore[union-attr]
    true_step = inner.step
    monkeypatch.setattr(inner, "step", lambda *a, **k: calls.append(1) or true_step(*a, **k))
    state = block.init_state(1)
    for t in range(12):
        _, state = block.step(x[:, t], state)
    assert len(calls) == 3


@torch.no_grad()
def test_coarse_layers_see_the_mean_gap_of_their_window() -> None:
    block, x = stack([[], ["mamba1"]], factor=2), samples(1, 6, 6)
    gaps = torch.tensor([[1.0, 2.0, 0.5, 3.0, 1.5, 0.25]], dtype=torch.float64)
    coarse = block.level.sample.down(x, None, None, gaps)  # type: ignore[union-attr,operator]
    assert coarse.elapsed.tolist() == [[1.0, 1.25, 2.25]]  # before the first token gaps are ordinary
    options = {"unet": {"levels": [[], ["mamba1"]]}}
    module = Backbone(BackboneConfig(6, ["unet"], block_options=options)).double().eval()
    module.blocks[0] = block
    whole, final = module(x, elapsed=gaps)
    assert (whole - module(x)[0]).abs().max() > 1e-6
    state, said = module.init_state(1), []
    for t in range(3):
        y, state = module.step(x[:, t], state, elapsed=gaps[:, t])
        said.append(y[:, None])
    y, state = module(x[:, 3:], state, elapsed=gaps[:, 3:])
    torch.testing.assert_close(torch.cat([*said, y], 1), whole, rtol=0, atol=1e-12)
    assert_states_close(state, final, atol=1e-12)
    both = stack([["mamba1"], ["mamba1"]], causal=False)
    module.blocks[0] = both
    alone, _ = module(x[:, :3], elapsed=gaps[:, :3])
    padded, _ = module(x, lengths=torch.tensor([3]), elapsed=gaps)
    torch.testing.assert_close(padded[:, :3], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_step_that_reads_no_values_back_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU and in traced graphs: the coarse layers run for every token, and what was due is kept."""
    block, x = stack(factor=3), samples(3, 9, 6)
    _, state = block(x[:, :4], lengths=torch.tensor([1, 3, 4]))
    states, y = {}, {}
    for traced in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda traced=traced: traced)
        now = state
        for t in range(4, 8):
            y[traced], now = block.step(x[:, t], now)
        piece, states[traced] = block(x[:, 8:], now)
        y[traced] = torch.cat([y[traced][:, None], piece], 1)
    torch.testing.assert_close(y[True], y[False], rtol=0, atol=1e-12)
    assert_states_close(states[True], states[False], atol=1e-12)


def test_experts_inside_say_what_they_cost() -> None:
    torch.manual_seed(0)
    options = {"unet": {"levels": [[], ["moe"]], "inner_options": {"moe": {"n_experts": 3}}}}
    module = Backbone(BackboneConfig(6, ["unet"], block_options=options)).train()
    module(torch.randn(2, 6, 6))
    assert auxiliary_loss(module) > 0
    module(torch.randn(2, 6, 6), seq_idx=torch.tensor([[0, 0, 0, 0, 1, 1]] * 2, dtype=torch.int32))
    assert auxiliary_loss(module) > 0


def test_states_begin_as_learned() -> None:
    module = Backbone(
        BackboneConfig(6, ["unet"], block_options={"unet": {"levels": [["mamba1"], ["gru"]]}})
    ).double()
    module.learn_initial_state()
    for name, parameter in module.named_parameters():
        if ".initial." in name:
            nn.init.normal_(parameter, std=0.5)
    check_packing(module.eval(), samples(2, 11, 6), [4, 1, 6], atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [["mamba1"]]}, "at least two"),
        ({"levels": ["mamba1", "mlp"]}, "list of lists"),
        ({"levels": [["mamba1"], ["graph"]]}, "graph layers beside"),
        (
            {"levels": [["mlp"], ["sequence_scan"]], "inner_options": {"sequence_scan": {"inner": "gru"}}},
            "SequenceScan looks in both directions",
        ),
        ({"levels": [["mlp"], ["mamba7"]]}, "mamba7"),
        ({"inner_options": {"gru": {}}}, "'gru' is in no level"),
        ({"factor": [2, 2]}, "each of 1 steps down"),
        ({"factor": 0}, "at least 1, got 0"),
        ({"grid": (4, 4), "factor": [[2, 2, 2]]}, "of 2 axes"),
        ({"widths": [4, 8]}, "the first d_model=6"),
        ({"skip": "multiply"}, "add, concat, got 'multiply'"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{"d_model": 6, "levels": [["mamba2"], ["mamba2"]], **options})  # type: ignore[arg-type]


def test_states_of_others_are_refused() -> None:
    block, x = stack(), samples(2, 3, 6)
    state = block.init_state(2)
    with pytest.raises(ValueError, match="for a batch of 3 rows, but x has 2"):
        block(x, block.init_state(3))
    with pytest.raises(ValueError, match="belongs to another block: UNet keeps before, sample"):
        block(x, state["before"]["0"])
    with pytest.raises(ValueError, match="belongs to another block"):
        block(x, stack(factor=3).init_state(2))
    with pytest.raises(TypeError, match="expected a State"):
        block(x, {"before": 1})  # type: ignore[arg-type]
