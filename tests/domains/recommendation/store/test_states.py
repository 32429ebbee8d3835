"""A model's state as bytes: goes on as if never stored, and another model's state is refused."""

from __future__ import annotations

import pytest
import torch

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.errors import DataError
from mambakit.core.fingerprint import fingerprint
from mambakit.core.state import State
from mambakit.core.state_storage import compress, decompress
from mambakit.domains.recommendation.store import Record, Store
from mambakit.domains.recommendation.store.states import decode_state, encode_state


def backbone(seed: int = 0, layers: tuple[str, ...] = ("mamba2", "mlp", "attention")) -> Backbone:
    torch.manual_seed(seed)
    options = {"mamba2": {"head_dim": 8, "d_state": 8}, "attention": {"n_heads": 2}}
    chosen = {kind: options[kind] for kind in layers if kind in options}
    return Backbone(BackboneConfig(d_model=16, layers=list(layers), block_options=chosen)).eval()


@torch.no_grad()
def test_a_stored_state_goes_on_where_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event by event through the store is bit for bit the same as without it, with a cache that grows too."""
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")  # no wait for a compiler
    model = backbone()
    x = torch.randn(1, 12, 16)
    state = model.init_state(1)
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state)
        outputs = []

        def step(
            past: Record | None, token: torch.Tensor = x[:, t], outputs: list[torch.Tensor] = outputs
        ) -> bytes:
            begun = model.init_state(1)
            stored, following = model.step(token, decode_state(past.state, begun) if past else begun)
            outputs.append(stored)
            return encode_state(following)

        store.update("42", str(t), step)
        assert torch.equal(outputs[-1], y)
    record = store.get("42")
    assert record is not None
    kept = decode_state(record.state, model.init_state(1))
    assert [name for name, _ in kept.tensors()] == [name for name, _ in state.tensors()]
    for (name, one), (_, other) in zip(kept.tensors(), state.tensors(), strict=True):
        assert torch.equal(one, other), name
        assert one.dtype == other.dtype
    torch.testing.assert_close(model(x)[0][:, -1], y)


@torch.no_grad()
def test_a_compressed_state_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    model = backbone(layers=("mamba2",))
    state = model(torch.randn(1, 5, 16))[1]
    small = encode_state(compress(state, "int8"))
    assert len(small) < len(encode_state(state))
    back = decompress(decode_state(small, compress(model.init_state(1), "int8")))
    for (_, one), (_, other) in zip(back.tensors(), state.tensors(), strict=True):
        assert (one - other).abs().max() <= other.abs().max() / 125


def test_a_state_of_another_model_is_refused() -> None:
    encoded = encode_state(backbone(layers=("mamba2",)).init_state(1))
    cases = {
        "'0.*' is torch.float32": backbone(layers=("mamba2",)).init_state(1, dtype=torch.float64),
        "which the model's hasn't": State({"0": State()}),
        "lacks '1.": backbone(layers=("mamba2", "mamba2")).init_state(1),
        r"is .* \(1, .*, the model's .* \(2, ": backbone(layers=("mamba2",)).init_state(2),
    }
    for message, like in cases.items():
        with pytest.raises(DataError, match=f"state of user '42' is of another model: .*{message}"):
            decode_state(encoded, like, what="the state of user '42'")


def test_bytes_that_are_no_state_are_refused() -> None:
    model = backbone(layers=("mamba2",))
    encoded = encode_state(model.init_state(1))
    for bad in (b"", b"garbage", encoded[:-1], encoded[: len(encoded) // 2], b"\xff" * len(encoded)):
        with pytest.raises(DataError, match="the stored state can't be read"):
            decode_state(bad, model.init_state(1))


def test_a_fingerprint_is_of_weights_and_config() -> None:
    one = fingerprint(backbone(), BackboneConfig(d_model=8))
    assert one == fingerprint(backbone(), BackboneConfig(d_model=8))
    changed = backbone()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    others = {
        fingerprint(backbone(1), BackboneConfig(d_model=8)),
        fingerprint(backbone(), BackboneConfig(d_model=16)),
        fingerprint(backbone(), {"items": ["a", "b"]}),
        fingerprint(backbone(), {"items": ["b", "a"]}),
        fingerprint(changed, BackboneConfig(d_model=8)),
        fingerprint(backbone().bfloat16(), BackboneConfig(d_model=8)),
    }
    assert len(others - {one}) == 6
