"""What ``check_adapter`` checks about a tokenizer; an AssertionError says what to mend."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from mambakit.core.adapters.tokenizer import SampleError, Tokenizer
from mambakit.core.adapters.tokens import Tokens


def fail(message: str) -> NoReturn:
    """Fail the running check."""
    raise AssertionError(message)


def short(sample: Any) -> str:
    """A sample, for a message."""
    text = repr(sample)
    return text if len(text) <= 60 else text[:57] + "..."


def check_no_parameters(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> None:
    """A tokenizer has no parameters: those belong into the adapter."""
    if isinstance(tokenizer, nn.Module):
        fail("the tokenizer is an nn.Module; move everything that learns by gradient into the adapter")
    learned = [
        name
        for name, value in vars(tokenizer).items()
        if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad)
    ]
    if learned:
        fail(f"the tokenizer holds modules or parameters in {', '.join(learned)}; move them into the adapter")


def check_tokens(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> None:
    """``encode`` gives Tokens on the CPU, of one kind for all samples."""
    kinds = set()
    for sample in samples:
        tokens = tokenizer.encode(sample)
        if not isinstance(tokens, Tokens):
            fail(f"encode returned {type(tokens).__name__}; return Tokens(values, ...)")
        if tokens.values.device.type != "cpu":
            fail(
                f"encode returned values on {tokens.values.device}; "
                "tokenizers run in workers, stay on the CPU"
            )
        columns = tuple(tokens.values.shape[1:])
        kinds.add((tokens.values.dtype, columns, tokens.time is None, tokens.modality is None))
    if len(kinds) > 1:
        fail(
            f"samples differ in (dtype, columns, no time, no modality): {sorted(map(str, kinds))}; "
            "give all the same so that they go into one batch"
        )


def check_determinism(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> None:
    """Encoding a sample twice, after others too, gives the same; augmentation belongs into the data set."""
    first = [tokenizer.encode(sample) for sample in samples]
    second = [tokenizer.encode(sample) for sample in reversed(samples)][::-1]
    _compare(first, second, "a second time; take randomness and memory of past samples out of encode")


def check_pickle(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> None:
    """A tokenizer travels into data-loader workers by pickle."""
    try:
        copy = pickle.loads(pickle.dumps(tokenizer))
    except Exception as error:  # whatever an attribute raises when it is pickled
        raise AssertionError(
            f"it can't be pickled ({type(error).__name__}: {error}); keep lambdas, open files and "
            "local classes out of its attributes"
        ) from error
    _compare(
        _encode_all(tokenizer, samples),
        _encode_all(copy, samples),
        "after a pickle round trip; check __getstate__",
    )


def check_save_load(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> None:
    """``save`` and ``load`` through JSON keep every encoding."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save(folder)
            copy = type(tokenizer).load(folder)
        except Exception as error:  # a state that isn't JSON, or that from_state can't take
            raise AssertionError(
                f"save or load raised {type(error).__name__}: {error}; "
                "let state() return JSON-able values and from_state take them"
            ) from error
    _compare(
        _encode_all(tokenizer, samples),
        _encode_all(copy, samples),
        "after save and load; put all it needs into state()",
    )


def check_round_trip(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> None:
    """``decode(encode(sample))`` is the sample, or encodes alike where ``lossy`` says what is lost."""
    for i, sample in enumerate(samples):
        tokens = tokenizer.encode(sample)
        decoded = tokenizer.decode(tokens)
        if not tokenizer.same(sample, decoded) and not tokenizer.lossy:
            fail(
                f"sample {i}, {short(sample)}, decodes to {short(decoded)}; mend decode, or say in the "
                "property `lossy` what is lost"
            )
        if tokenizer.lossy and len(tokenizer.encode(decoded)) != len(tokens):
            fail(
                f"sample {i}, {short(sample)}, has {len(tokens)} tokens and, decoded and encoded again, "
                f"{len(tokenizer.encode(decoded))}; lossy may round, "
                "but decode must give a sample that encodes alike"
            )


def check_bad_samples(tokenizer: Tokenizer[Any], samples: Sequence[Any], bad_samples: Sequence[Any]) -> None:
    """Bad samples raise a SampleError with a reason; in bulk they are listed and the good ones kept."""
    for bad in bad_samples:
        try:
            tokenizer.encode(bad)
        except SampleError as error:
            if not error.reason.strip():
                fail(f"{short(bad)} raises a SampleError without a reason; say what is wrong, and where")
        except Exception as error:
            raise AssertionError(
                f"{short(bad)} raises {type(error).__name__}: {error}; raise SampleError(reason) instead"
            ) from error
        else:
            fail(f"{short(bad)} is encoded; raise SampleError(reason) for it")
    mixed = [samples[0], *bad_samples, samples[1]]
    tokens, bad_ones = tokenizer.encode_many(mixed)
    expected = list(range(1, 1 + len(bad_samples)))
    if [entry.index for entry in bad_ones] != expected or len(tokens) != 2:
        fail(
            f"encode_many kept {len(tokens)} of 2 good samples and listed bad ones at "
            f"{[entry.index for entry in bad_ones]}, expected {expected}; "
            "leave encode_many as the base class has it"
        )


def check_empty_sample(tokenizer: Tokenizer[Any], empty_sample: Any) -> None:
    """A sample without content is encoded, or refused with a SampleError."""
    try:
        tokens = tokenizer.encode(empty_sample)
    except SampleError:
        return
    except Exception as error:
        raise AssertionError(
            f"{short(empty_sample)} raises {type(error).__name__}: {error}; "
            "return Tokens or raise SampleError"
        ) from error
    if not isinstance(tokens, Tokens):
        fail(f"{short(empty_sample)} gives {type(tokens).__name__}; return Tokens or raise SampleError")


TOKENIZER_CHECKS: tuple[tuple[str, Callable[[Tokenizer[Any], Sequence[Any]], None]], ...] = (
    ("no parameters in the tokenizer", check_no_parameters),
    ("tokens", check_tokens),
    ("determinism", check_determinism),
    ("pickle", check_pickle),
    ("save and load", check_save_load),
    ("round trip", check_round_trip),
)


def _encode_all(tokenizer: Tokenizer[Any], samples: Sequence[Any]) -> list[Tokens]:
    return [tokenizer.encode(sample) for sample in samples]


def _compare(first: Sequence[Tokens], second: Sequence[Tokens], when: str) -> None:
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if not a.equals(b):
            fail(f"sample {i} is encoded otherwise {when}")
