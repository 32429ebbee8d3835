"""The tokenizer-adapter contract, and scales from training rows."""

from __future__ import annotations

import numpy as np
import pytest

from mambakit.core.adapters import SampleError
from mambakit.core.adapters.testing import check_adapter
from mambakit.domains.timeseries.tokenizer import PatchAdapter, PatchTokenizer, Window


def test_keeps_the_contract():
    rng = np.random.default_rng(0)
    train = [Window(name, 100 + 7 * rng.standard_normal(80)) for name in ("a", "b")]
    tokenizer = PatchTokenizer(8, "h").fit(train)
    samples = [Window("a", rng.standard_normal(n) + 100) for n in (8, 16, 40)] + [Window("b", np.zeros(24))]
    bad = [
        Window("c", np.zeros(8)),
        Window("a", np.zeros(9)),
        Window("a", np.full(8, np.nan)),
        Window("a", np.zeros((2, 8))),
    ]
    check_adapter(tokenizer, lambda: PatchAdapter(8, 16), samples, bad, empty_sample=Window("a", np.zeros(0)))


def test_scales_by_training_rows_and_back():
    tokenizer = PatchTokenizer(2).fit([Window("a", [1.0, 3.0]), Window("flat", [5.0, 5.0])])
    tokens = tokenizer.encode(Window("a", [2.0, 4.0, 0.0, 2.0]))
    assert tokens.values.tolist() == [[0.0, 2.0], [-2.0, 0.0]]  # mean 2, population deviation 1
    assert tokenizer.encode(Window("flat", [5.0, 6.0])).values.tolist() == [[0.0, 1.0]]
    np.testing.assert_allclose(tokenizer.decode(tokens).values, [2.0, 4.0, 0.0, 2.0])


def test_refuses_one_series_twice():
    with pytest.raises(SampleError, match="'a' comes twice"):
        PatchTokenizer(2).fit([Window("a", [1.0]), Window("a", [2.0])])
