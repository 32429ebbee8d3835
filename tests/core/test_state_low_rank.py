from __future__ import annotations

import pytest
import torch

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.state import State
from mambakit.core.state_low_rank import low_rank, spectra
from mambakit.core.state_storage import compress, decompress
from mambakit.core.testing import assert_states_close

OPTIONS = {
    "mamba1": {"d_state": 8},
    "mamba2": {"head_dim": 16, "d_state": 12},
    "mamba3": {"head_dim": 16, "d_state": 12, "A_init": "s4d-lin"},
}


def stack(*kinds: str) -> Backbone:
    torch.manual_seed(0)
    options = {kind: OPTIONS[kind] for kind in kinds if kind in OPTIONS}
    return Backbone(BackboneConfig(16, [*kinds], block_options=options)).double().eval()


def matrices(*shape: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if rank is None:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    left = torch.randn(*shape[:-1], rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(*shape[:-2], rank, shape[-1], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 2, 6, 9), (2, 20, 5)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_the_best_approximation_of_its_rank(shape: tuple[int, ...], rank: int) -> None:
    H = matrices(*shape)
    state = State({"0": State({"ssm": H, "conv": torch.ones(shape[0], 4, 3)})})
    small = low_rank(state, rank)
    back = decompress(small)
    assert torch.equal(back["0"]["conv"], state["0"]["conv"])
    lost = H - back["0"]["ssm"]
    sizes = spectra(state)["0.ssm"]
    torch.testing.assert_close(lost.square().sum((-1, -2)), sizes[..., rank:].square().sum(-1))
    assert torch.linalg.matrix_rank(back["0"]["ssm"]).max() == rank
    kept = sum(tensor.numel() for _, tensor in small["0"]["ssm"].tensors())
    assert kept == rank * (shape[-1] + shape[-2]) * H[..., 0, 0].numel()


def test_a_matrix_of_that_rank_is_kept_to_rounding() -> None:
    H = matrices(2, 3, 8, 10, rank=2)
    torch.testing.assert_close(decompress(low_rank(State({"ssm": H}), 2))["ssm"], H, rtol=0, atol=1e-12)
    by_error = low_rank(State({"ssm": H}), error=1e-6)
    assert by_error["ssm"]["left"].shape == (2, 3, 8, 2)


@pytest.mark.parametrize("error", [0.3, 0.1, 0.01])
def test_the_least_rank_that_loses_no_more_than_is_allowed(error: float) -> None:
    H = matrices(2, 3, 40, 40) * torch.logspace(0, -6, 40, dtype=torch.float64)
    small = low_rank(State({"ssm": H}), error=error)
    rank = small["ssm"]["left"].shape[-1]
    share = (H - decompress(small)["ssm"]).norm(dim=(-1, -2)) / H.norm(dim=(-1, -2))
    assert share.max() <= error
    less = (H - decompress(low_rank(State({"ssm": H}), rank - 1))["ssm"]).norm(dim=(-1, -2))
    assert (less / H.norm(dim=(-1, -2))).max() > error


@torch.no_grad()
@pytest.mark.parametrize("kind", OPTIONS)
def test_later_outputs_of_a_layer_are_off_by_no_more_than_the_bound(kind: str) -> None:
    """By readings of the state, C . H, as the layer goes on over the same inputs."""
    block, x = stack(kind).blocks[0], matrices(2, 14, 16)
    _, state = block(x[:, :8])
    rank = 2
    small = decompress(low_rank(state, rank))
    bound = spectra(state)["ssm"][..., rank]  # [b] or [b, h]
    differs = False
    for t in range(8, 14):
        _, state = block.step(x[:, t], state)
        _, small = block.step(x[:, t], small)
        off = torch.linalg.matrix_norm(state["ssm"] - small["ssm"], ord=2)
        assert (off <= bound * (1 + 1e-9)).all()
        differs = differs or bool((off > 0).any())
    assert differs


@torch.no_grad()
def test_a_model_goes_on_from_a_small_file(tmp_path) -> None:
    module, x = stack("mamba2", "mlp", "mamba1", "attention", "mamba3"), matrices(3, 12, 16)
    _, state = module(x[:, :8])
    expected, _ = module(x[:, 8:], state)
    off = []
    for rank in (1, 4, 6):
        small = low_rank(state, rank)
        small.save(tmp_path / "state")
        back = decompress(State.load(tmp_path / "state"))
        assert repr(back) == repr(state)
        assert_states_close(back, decompress(small), atol=0)
        off.append((module(x[:, 8:], back)[0] - expected).abs().max().item())
    assert 0.0 < off[2] < off[1] < off[0]
    both = compress(low_rank(state, 3), "int8")
    assert both.nbytes < 0.5 * compress(state, "bfloat16").nbytes
    back = decompress(both)
    assert repr(back) == repr(state)
    assert (module(x[:, 8:], back)[0] - module(x[:, 8:], decompress(low_rank(state, 3)))[0]).abs().max() < 0.2


def test_rows_move_as_they_would() -> None:
    state = State({"0": State({"ssm": matrices(3, 2, 8, 8)})})
    for small in (low_rank(state, 2), compress(low_rank(state, 2), "int8")):
        rows = State.cat([small.index_select([2]), small.index_select([0, 1])])
        assert_states_close(decompress(rows), decompress(small).index_select([2, 0, 1]), atol=1e-12)


def test_what_would_not_be_smaller_stays() -> None:
    state = State({"ssm": matrices(2, 3, 4, 4), "gone": torch.zeros(2, 0)})
    assert low_rank(state, 2)["ssm"] is not None
    assert torch.equal(low_rank(state, 2)["ssm"], state["ssm"])
    half = State({"ssm": matrices(2, 3, 16, 16).bfloat16()})
    assert decompress(low_rank(half, 2))["ssm"].dtype == torch.bfloat16
    empty = State({"ssm": torch.zeros(0, 3, 8, 8)})
    assert repr(low_rank(empty, 2)) == repr(empty)


def test_zeros_have_the_least_rank() -> None:
    small = low_rank(State({"ssm": torch.zeros(2, 3, 8, 8)}), error=0.1)
    assert small["ssm"]["left"].shape[-1] == 1
    assert not decompress(small)["ssm"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of the two"),
        ({"rank": 2, "error": 0.1}, "give one of the two"),
        ({"rank": 0}, "at least 1, got 0"),
        ({"error": 1.0}, r"in \(0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        low_rank(State({"ssm": torch.ones(1, 2, 4, 4)}), **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        low_rank(State({"ssm": torch.full((1, 2, 8, 8), torch.nan)}), 1)
