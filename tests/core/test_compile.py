"""torch.compile: every block is one graph, in training and in a step too, and no new length is another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import BLOCKS, Block, build_block
from mambakit.core.state import State
from mambakit.core.testing import SMALL_BLOCKS

CAUSAL = [kind for kind in SMALL_BLOCKS if BLOCKS[kind].causal]
# the first is compiled for itself, the second for any: none after it may be compiled anew, whatever chunks
# and windows (of 32 and 64 tokens) it fills
LENGTHS = (7, 13, 40, 128, 130, 2)


def kinds(fast: Iterable[str], backend: str, among: Iterable[str] = SMALL_BLOCKS) -> list[object]:
    """On the CPU with a backend that compiles nothing, on a GPU with the one that is used there."""
    cpu = [
        pytest.param(kind, "cpu", backend, marks=() if kind in fast else pytest.mark.slow, id=kind)
        for kind in among
    ]
    return cpu + [
        pytest.param(kind, "cuda", "inductor", marks=pytest.mark.gpu, id=f"{kind}-gpu") for kind in among
    ]


def small(kind: str, device: str) -> Block:
    torch.manual_seed(0)
    return build_block(kind, 16, SMALL_BLOCKS[kind]).to(device)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """On a GPU other kernels round otherwise."""
    share = {"atol": 1e-5 * max(1.0, float(expected.abs().max())), "rtol": 0.0}
    torch.testing.assert_close(actual, expected, **({} if actual.device.type == "cpu" else share))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()  # the limit of graphs is the process's
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def test_every_block_is_here():
    # a grid has one length, and its test is with it; the other is below
    assert set(SMALL_BLOCKS) | {"graph", "grid_scan"} == set(BLOCKS)


@pytest.mark.parametrize(
    ("kind", "device", "backend"),
    kinds(set(SMALL_BLOCKS) - {"mamba3", "sliding_attention", "unet", "zamba"}, "eager"),
)
def test_forward(kind, device, backend):
    block = small(kind, device).eval()
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    with torch.no_grad():
        for length in LENGTHS:
            x = torch.randn(2, length, 16, device=device)
            assert_close(compiled(x)[0], block(x)[0])
    assert graphs() == (3 if kind == "unet" else 2)  # at its lower rate two tokens are one, which is special


@pytest.mark.parametrize(
    ("kind", "device", "backend"), kinds(("mamba1", "mlp", "moe", "gru", "lstm"), "aot_eager")
)
def test_training_step(kind, device, backend):
    block = small(kind, device).train()
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for length in LENGTHS[:-1]:
        x = torch.randn(2, length, 16, device=device, requires_grad=True)
        wanted = [x, *block.parameters()]
        for actual, expected in zip(
            *(torch.autograd.grad(module(x)[0].square().sum(), wanted) for module in (compiled, block)),
            strict=True,
        ):
            scale = float(expected.abs().max())
            torch.testing.assert_close(actual, expected, atol=1e-5 * max(1.0, scale), rtol=0)
    assert graphs() == 2


@pytest.mark.parametrize(("kind", "device", "backend"), kinds(CAUSAL, "eager", CAUSAL))
def test_decode_step(kind, device, backend):
    """A growing cache is compiled empty, of one token, and of any number; what keeps its size once."""
    block = small(kind, device).eval()
    compiled = torch.compile(block.step, backend=backend, fullgraph=True)
    grows = any(None in shape for shape in block.state_shapes().values())
    with torch.no_grad():
        state = other = block.init_state(2)
        for _ in range(6):
            x = torch.randn(2, 16, device=device)
            y, state = compiled(x, state)
            expected, other = block.step(x, other)
            assert_close(y, expected)
    assert graphs() == (3 if grows else 1)


@pytest.mark.parametrize("gated", [True, False])
def test_neighbourhoods_of_any_number_of_edges(gated):
    torch.manual_seed(0)
    options = {"graph": {"gated": gated}}
    backbone = Backbone(BackboneConfig(d_model=16, layers=["graph"], block_options=options))
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    for length, n_edges in ((7, 5), (9, 11), (12, 30), (3, 2)):
        x = torch.randn(2, length, 16, requires_grad=True)
        edges = torch.cat([torch.randint(2, (n_edges, 1)), torch.randint(length, (n_edges, 2))], dim=1)
        actual, expected = compiled(x, edges=edges)[0], backbone(x, edges=edges)[0]
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)), atol=1e-5, rtol=1e-4
        )
    assert graphs() == 2


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_gradients_from_and_to_the_states_of_a_recurrent_network(kind):
    block = small(kind, "cpu").double()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    start = block.init_state(2).map(lambda one: torch.randn_like(one).requires_grad_())
    wanted = [x, *(one for _, one in start.tensors()), *block.rnn.parameters()]

    def gradients(module: Block) -> tuple[torch.Tensor, ...]:
        y, state = module(x, State.of(**dict(start.items())))
        loss = y.square().sum() + sum(one.sin().sum() for _, one in state.tensors())
        return torch.autograd.grad(loss, wanted)

    for actual, expected in zip(gradients(compiled), gradients(block), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    weights = list(block.rnn.parameters())
    past = [one[None] for _, one in start.tensors()]
    torch.library.opcheck(
        torch.ops.mambakit.recurrent_fwd.default, (block._kind, x, past, weights, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip
