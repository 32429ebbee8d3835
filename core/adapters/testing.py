"""The conformance kit of tokenizer-adapters, as scikit-learn's ``check_estimator`` is of estimators.

from mambakit.core.adapters.testing import check_adapter

def test_my_adapter():
    tokenizer = MyTokenizer().fit(train)
    check_adapter(tokenizer, lambda: MyAdapter(tokenizer.n_ids, d_model=16), samples, bad_samples=[None])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mambakit.core.adapters.adapter import Adapter
from mambakit.core.adapters.adapter_checks import ADAPTER_CHECKS
from mambakit.core.adapters.tokenizer import Tokenizer
from mambakit.core.adapters.tokenizer_checks import (
    TOKENIZER_CHECKS,
    check_bad_samples,
    check_empty_sample,
    fail,
)

__all__ = ["check_adapter"]

_MISSING = object()


def check_adapter(
    tokenizer: Tokenizer[Any],
    adapter: Adapter | Callable[[], Adapter],
    samples: Sequence[Any],
    bad_samples: Sequence[Any] = (),
    *,
    empty_sample: Any = _MISSING,
) -> None:
    """Run every check of the tokenizer-adapter contract.

    Args:
        tokenizer: Fitted.
        adapter: The adapter, or a function that builds one.
        samples: Good ones, at least two, best of different lengths.
        bad_samples: Ones that ``encode`` must refuse.
        empty_sample: One without content, which ``encode`` must turn into tokens (however few) or
            refuse with a SampleError. Left out, the adapter is still checked on an empty row.

    Raises:
        AssertionError: At the first check that fails; the message names it and says what to mend.
        ValueError: If there are fewer than two samples.
    """
    samples = list(samples)
    if len(samples) < 2:
        raise ValueError(f"samples: expected at least two to compare, got {len(samples)}")
    for name, check in TOKENIZER_CHECKS:
        with _named(name):
            check(tokenizer, samples)
    with _named("bad samples"):
        check_bad_samples(tokenizer, samples, bad_samples)
    if empty_sample is not _MISSING:
        with _named("empty sample"):
            check_empty_sample(tokenizer, empty_sample)
    tokens = [tokenizer.encode(sample) for sample in samples]
    module = adapter if isinstance(adapter, Adapter) else adapter()
    if not isinstance(module, Adapter):
        fail(f"adapter: expected an Adapter or a function that builds one, got {type(module).__name__}")
    # dropout and the like would make two calls differ
    was_training = module.training
    module.eval()
    try:
        for name, adapter_check in ADAPTER_CHECKS:
            with _named(name):
                adapter_check(module, tokens)
    finally:
        module.train(was_training)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the check's name in front of any failure; other exceptions become failures that say so."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"check_adapter, {name}: {error}") from error.__cause__
    except Exception as error:
        raise AssertionError(f"check_adapter, {name}: raised {type(error).__name__}: {error}") from error
