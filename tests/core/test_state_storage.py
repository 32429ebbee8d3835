from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.state import State
from mambakit.core.state_storage import PRECISIONS, SCALES, compress, decompress
from mambakit.core.testing import assert_states_close


def stack() -> Backbone:
    torch.manual_seed(0)
    options = {"mamba2": {"head_dim": 8, "d_state": 16}, "attention": {"n_heads": 2}}
    return Backbone(BackboneConfig(16, ["mamba2", "mlp", "attention"], block_options=options)).eval()


def test_it_goes_on_from_a_compressed_file(tmp_path) -> None:
    module, x = stack(), torch.randn(3, 12, 16)
    with torch.no_grad():
        _, state = module(x[:, :8], lengths=torch.tensor([8, 3, 0]))
        expected, _ = module(x[:, 8:], state)
        errors = {}
        for precision in PRECISIONS:
            small = compress(state, precision)
            small.save(tmp_path / "state")
            back = decompress(State.load(tmp_path / "state"))
            assert repr(back) == repr(state)  # names, dtypes and shapes
            assert_states_close(back, decompress(small), atol=0)
            errors[precision] = (module(x[:, 8:], back)[0] - expected).abs().max().item()
    assert 0 < errors["bfloat16"] < 0.05
    assert 0 < errors["int8"] < 0.05


def test_bytes() -> None:
    tensor = torch.randn(2, 4, 8, 64)
    state = State({"ssm": tensor, "valid": torch.ones(2, 5, dtype=torch.bool)})
    assert compress(state, "bfloat16").nbytes == 2 * tensor.numel() + 10
    for scale, groups in {"channel": 2 * 4 * 8, "head": 2 * 4, "row": 2}.items():
        assert compress(state, "int8", scale).nbytes == tensor.numel() + 2 * groups + 10


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.integers(-30, 30),
    scale=st.sampled_from(SCALES),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 100),
)
def test_the_error_is_bounded_as_documented(exponent: int, scale: str, dtype: torch.dtype, seed: int) -> None:
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    values[1, 2] = 0
    state = State({"x": values.to(dtype)})
    exact = state["x"].double()
    back = decompress(compress(state, "int8", scale))["x"]
    assert back.dtype == dtype
    first = {"channel": 3, "head": 2, "row": 1}[scale]
    largest = exact.abs().amax(tuple(range(first, 4)), keepdim=True)
    rounding = 2**-8 if dtype == torch.bfloat16 else 0  # of going back to its own dtype
    assert ((back.double() - exact).abs() <= largest * (1 / 250 + rounding)).all()
    assert not back[1, 2].any()
    back = decompress(compress(state, "bfloat16"))["x"].double()
    assert ((back - exact).abs() <= exact.abs() / 256).all()


def test_rows_of_a_compressed_state_move_as_they_would() -> None:
    state = State({"0": State({"ssm": torch.randn(3, 2, 8)}), "1": State({"valid": torch.ones(3, 2) > 0})})
    for precision in PRECISIONS:
        small = compress(state, precision)
        rows = State.cat([small.index_select([2]), small.index_select([0, 1])])
        assert_states_close(decompress(rows), decompress(small).index_select([2, 0, 1]), atol=0)
        put = small.put_rows([1], small.index_select([2]))
        assert_states_close(decompress(put), decompress(small).index_select([0, 2, 2]), atol=0)


@pytest.mark.parametrize("kind", ["attention", "zamba", "conv_attention"])
@pytest.mark.parametrize(("precision", "scale"), [("bfloat16", "row"), *(("int8", one) for one in SCALES)])
def test_compressed_caches_of_different_lengths_join(kind: str, precision: str, scale: str) -> None:
    torch.manual_seed(0)
    module = Backbone(BackboneConfig(16, [kind], block_options={kind: {"n_heads": 2}})).eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        parts = [compress(module(x[:, :n])[1], precision, scale) for n in (1, 5, 0, 3)]
        joined, _ = module(x[:, 5:].expand(4, -1, -1), decompress(State.cat(parts)))
        alone = [module(x[:, 5:], decompress(part))[0] for part in parts]
    torch.testing.assert_close(joined, torch.cat(alone), atol=1e-5, rtol=0)
    assert_states_close(
        decompress(State.cat([parts[1], parts[0]]).put_rows([1], parts[0])),
        decompress(State.cat([parts[1], parts[0]])),
        atol=0,
    )


def test_a_compressed_state_is_not_computed_with() -> None:
    module, x = stack(), torch.randn(2, 3, 16)
    with pytest.raises(ValueError, match=r"Mamba2 keeps .*; decompress it first"):
        module(x, compress(module(x)[1], "int8"))


def test_what_cannot_be_smaller_stays() -> None:
    half = State({"key": torch.randn(2, 3, 4).bfloat16(), "valid": torch.ones(2, 3, dtype=torch.bool)})
    small = compress(half, "bfloat16")
    assert small["key"] is half["key"]
    assert small["valid"] is half["valid"]
    assert_states_close(decompress(half), half, atol=0)
    empty = State({"conv": torch.zeros(2, 4, 0), "key": torch.zeros(2, 0, 3, 4), "mlp": State()})
    assert repr(decompress(compress(empty, "int8"))) == repr(empty)


def test_bad_input_is_named() -> None:
    state = State({"ssm": torch.tensor([[1.0, float("inf")]])})
    with pytest.raises(ValueError, match="precision: expected one of bfloat16, int8, got 'int4'"):
        compress(state, "int4")
    with pytest.raises(ValueError, match="scale: expected one of channel, head, row, got 'all'"):
        compress(state, "int8", "all")
    with pytest.raises(ValueError, match="'ssm' holds numbers that are not finite"):
        compress(state, "int8")
