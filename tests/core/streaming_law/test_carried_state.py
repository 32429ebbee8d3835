"""A state that is carried: its gradients, its precision, kept in a file, and written over in place."""

from __future__ import annotations

import pytest
import torch

from mambakit.core.state import State
from mambakit.core.testing import assert_states_close, run_by_steps, run_in_pieces


def test_gradients_flow_through_a_carried_state(streaming_name, build, sample):
    module = build(streaming_name)
    x = sample(batch=2, length=7).requires_grad_()  # more than a window of every stack
    weight = torch.randn(*x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [x, *module.parameters()]

    def gradients(y):
        grads = torch.autograd.grad((y * weight).sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]

    expected = gradients(module(x)[0])
    assert any(grad.abs().sum() > 0 for grad in expected[1:])
    runs = {
        "pieces": run_in_pieces(module, x, [3, 5])[0],
        "steps": run_by_steps(module, x)[0],
    }
    for y in runs.values():
        for actual, grad in zip(gradients(y), expected, strict=True):
            torch.testing.assert_close(actual, grad, atol=1e-9, rtol=1e-9)


def test_detached_states_cut_the_graph(streaming_name, build, sample):
    module, x = build(streaming_name), sample(batch=2).requires_grad_()
    _, state = module(x[:, :5])
    y, _ = module(x[:, 5:], state.detach())
    grad = torch.autograd.grad(y.sum(), x)[0]
    assert not grad[:, :5].any()
    assert grad[:, 5:].any()


def test_a_saved_stream_goes_on(streaming_name, tmp_path, build, sample):
    module, x = build(streaming_name, torch.float32), sample(dtype=torch.float32)
    _, state = module(x[:, :6])
    expected, _ = module(x[:, 6:], state)
    state.save(tmp_path / "state.safetensors")
    loaded = State.load(tmp_path / "state.safetensors")
    assert torch.equal(module(x[:, 6:], loaded)[0], expected)
    for row in (2, 0):
        picked, _ = module(x[row : row + 1, 6:], state.index_select([row]))
        torch.testing.assert_close(picked, expected[row : row + 1], atol=1e-5, rtol=0)
    joined = State.cat([state.index_select([2]), state.index_select([0, 1])])
    both, _ = module(x[[2, 0, 1], 6:], joined)
    torch.testing.assert_close(both, expected[[2, 0, 1]], atol=1e-5, rtol=0)


def test_a_state_given_is_left_as_it_was(streaming_name, build, sample):
    module, x = build(streaming_name), sample()
    _, state = module(x)
    kept = state.clone()
    module(x, state)
    module.step(x[:, 0], state)
    with torch.inference_mode():
        module.step(x[:, 0], state)
    assert_states_close(state, kept, atol=0)


@pytest.mark.parametrize("backend", [None, "portable"])
def test_steps_in_place(streaming_name, backend, monkeypatch, build, sample):
    if backend is not None:
        monkeypatch.setenv("MAMBAKIT_BACKEND", backend)
    module, x = build(streaming_name), sample()
    with torch.inference_mode():
        _, state = module(x)
        own = state.clone()
        for t in range(3):
            expected, state = module.step(x[:, t], state)
            y, own = module.step(x[:, t], own, inplace=True)
            torch.testing.assert_close(y, expected, atol=0, rtol=0)
    assert_states_close(own, state, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_states_are_kept_in_float32_at_least(streaming_name, dtype, build, sample):
    module, x = build(streaming_name, dtype), sample(dtype=dtype)
    y, state = module(x)
    assert y.dtype == dtype
    start = module.init_state(3)
    for (key, tensor), (_, first) in zip(state.tensors(), start.tensors(), strict=True):
        if key.split(".")[-1] in ("conv", "ssm", "hidden", "cell"):
            assert tensor.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert tensor.dtype == first.dtype
    y_step, _ = module.step(x[:, 0], start)
    torch.testing.assert_close(y_step, y[:, 0], atol=0.05 if dtype == torch.bfloat16 else 1e-10, rtol=0)
