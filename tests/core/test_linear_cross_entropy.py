"""Cross-entropy by blocks of classes: torch's numbers and gradients, for every block, and less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.linear_cross_entropy import linear_cross_entropy


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 23), st.integers(1, 5), st.integers(1, 30), st.booleans(), st.booleans()
)
def test_is_torchs_cross_entropy(
    n: int, classes: int, d: int, block: int, with_bias: bool, far: bool
) -> None:
    generator = torch.Generator().manual_seed(n + 100 * classes)

    def draw(*shape: int) -> torch.Tensor:
        scale = 30 if far else 1
        return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).requires_grad_()

    x, weight, bias = draw(n, d), draw(classes, d), draw(classes) if with_bias else None
    target = torch.randint(classes, (n,), generator=generator)
    rows = torch.randn(n, dtype=torch.float64, generator=generator)
    inputs = [part for part in (x, weight, bias) if part is not None]
    ours = linear_cross_entropy(x, weight, target, bias, block=block)
    found = torch.autograd.grad(ours @ rows, inputs)
    theirs = F.cross_entropy(F.linear(x, weight, bias), target, reduction="none")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(theirs @ rows, inputs))


def test_rounds_as_autocast_asks_and_sums_in_float32() -> None:
    x, weight = torch.randn(8, 16), torch.randn(1000, 16, requires_grad=True)
    target = torch.randint(1000, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, target, block=100)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, F.cross_entropy(x @ weight.T, target, reduction="none"), atol=0.1, rtol=0.02
    )
    loss.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_never_holds_all_logits() -> None:
    n, classes, d = 64, 20_000, 8
    x, weight = torch.randn(n, d, requires_grad=True), torch.randn(classes, d, requires_grad=True)
    target = torch.randint(classes, (n,))
    saved: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        linear_cross_entropy(x, weight, target).sum().backward()
    assert max(saved) <= classes * d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(2, 3)}, "expected \\(n, d\\) and \\(n_classes, d\\)"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target: expected shape \\(2,\\)"),
        ({"bias": torch.ones(3)}, "bias: expected shape \\(5,\\)"),
        ({"block": 0}, "block: expected at least 1"),
    ],
)
def test_says_what_is_wrong(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "x": torch.ones(2, 4),
        "weight": torch.ones(5, 4),
        "target": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**good, **arguments})  # type: ignore[arg-type]
