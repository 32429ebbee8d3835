"""The conformance kit finds what is broken in a tokenizer or an adapter, and says so."""

import random

import pytest
import torch
from torch import nn

from mambakit.core.adapters import Adapter, IdAdapter, SampleError, Tokens, VocabularyTokenizer
from mambakit.core.adapters.testing import check_adapter

SAMPLES = ["ACGT", "AAC", "T", "GGATC"]


class Letters(VocabularyTokenizer):
    """A right tokenizer, to break one thing at a time."""

    kind = "letters"


class WithParameters(Letters):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.scale = nn.Linear(2, 2)


class WithGradient(Letters):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.scale = torch.ones(2, requires_grad=True)


class ReturnsTensor(Letters):
    def encode(self, sample):
        return super().encode(sample).values


class MixesKinds(Letters):
    def encode(self, sample):
        tokens = super().encode(sample)
        return tokens if len(tokens) > 3 else Tokens(tokens.values[:, None].float())


class Random(Letters):
    def encode(self, sample):
        return Tokens(super().encode(sample).values + random.randrange(10**6))


class Remembers(Letters):
    seen = 0

    def encode(self, sample):
        self.seen += 1
        return Tokens(super().encode(sample).values + self.seen)


class NotPicklable(Letters):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rule = lambda text: text


class ForgetsOnPickle(Letters):
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.bos = not self.bos


class ForgetsOnSave(Letters):
    def state(self):
        return {**super().state(), "eos": not self.eos}


class StateNotJson(Letters):
    def state(self):
        return {**super().state(), "pattern": {1, 2}}


class WrongDecode(Letters):
    def decode(self, tokens):
        return super().decode(tokens)[::-1]


class LossyWithoutEnd(Letters):
    lossy = "the last letter"

    def decode(self, tokens):
        return super().decode(tokens)[:-1]


class AcceptsAnything(Letters):
    def encode(self, sample):
        return super().encode("".join(c for c in sample if c in "ACGT"))


class WrongError(Letters):
    def encode(self, sample):
        if "X" in sample:
            raise KeyError("X")
        return super().encode(sample)


class NoReason(Letters):
    def encode(self, sample):
        if "X" in sample:
            raise SampleError("")
        return super().encode(sample)


class DropsSilently(Letters):
    def encode_many(self, samples):
        encoded = super().encode_many(samples)
        return type(encoded)(encoded.tokens, [])


class FailsOnEmpty(Letters):
    def encode(self, sample):
        assert sample[0] in "ACGT" or sample
        return super().encode(sample)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            WithParameters,
            "no parameters in the tokenizer: .* modules or parameters in scale; move them into the adapter",
        ),
        (WithGradient, "no parameters in the tokenizer: .* scale"),
        (ReturnsTensor, "tokens: encode returned Tensor; return Tokens"),
        (MixesKinds, "tokens: samples differ in .* give all the same"),
        (Random, "determinism: sample 0 is encoded otherwise a second time; take randomness"),
        (Remembers, "determinism: sample 0 is encoded otherwise a second time"),
        (NotPicklable, "pickle: it can't be pickled .* keep lambdas"),
        (ForgetsOnPickle, "pickle: sample 0 is encoded otherwise after a pickle round trip"),
        (ForgetsOnSave, r"save and load: sample 0 is encoded otherwise .* put all it needs into state\(\)"),
        (StateNotJson, "save and load: save or load raised TypeError: .* JSON-able values"),
        (
            WrongDecode,
            "round trip: sample 0, 'ACGT', decodes to 'TGCA'; mend decode, or say in the property `lossy`",
        ),
        (LossyWithoutEnd, "round trip: sample 0, 'ACGT', has 4 tokens and, decoded and encoded again, 3"),
        (AcceptsAnything, r"bad samples: 'ACX' is encoded; raise SampleError\(reason\) for it"),
        (WrongError, r"bad samples: 'ACX' raises KeyError: 'X'; raise SampleError\(reason\) instead"),
        (NoReason, "bad samples: 'ACX' raises a SampleError without a reason"),
        (
            DropsSilently,
            r"bad samples: encode_many kept 2 of 2 good samples and listed bad ones at \[\], expected \[1\]",
        ),
        (FailsOnEmpty, "empty sample: '' raises IndexError: .* return Tokens or raise SampleError"),
    ],
)
def test_a_broken_tokenizer_fails_its_check(broken, message):
    tokenizer = broken().fit(SAMPLES)
    with pytest.raises(AssertionError, match=f"^check_adapter, {message}"):
        check_adapter(tokenizer, lambda: IdAdapter(10**7, 2), SAMPLES, ["ACX"], empty_sample="")


class Embeds(Adapter):
    """A right adapter, to break one thing at a time."""

    def __init__(self, d_model=4):
        super().__init__(d_model)
        self.table = nn.Embedding(20, d_model)

    def embed_tokens(self, batch):
        return self.table(batch.values)

    def config(self):
        return {"d_model": self.d_model}


class WrongWidth(Embeds):
    def embed(self, batch):
        return super().embed(batch)[..., 1:]


class WrongDtype(Embeds):
    def embed(self, batch):
        return super().embed(batch).double()


class IgnoresDtype(Embeds):
    def embed_tokens(self, batch):
        return super().embed_tokens(batch) @ torch.eye(4)


class Nan(Embeds):
    def embed_tokens(self, batch):
        x = super().embed_tokens(batch)
        return x / (x - x)


class PaddingNotZero(Embeds):
    def embed(self, batch):
        return self.embed_tokens(batch)


class CountsFromRowStart(Embeds):
    """Right alone and right-padded; wrong where a sequence starts elsewhere."""

    def embed_tokens(self, batch):
        return super().embed_tokens(batch) + torch.arange(batch.length)[None, :, None]


class LooksAtNeighbours(Embeds):
    def embed_tokens(self, batch):
        x = super().embed_tokens(batch)
        return x - x.mean(dim=0, keepdim=True)


class LeaksOverPacking(Embeds):
    def embed_tokens(self, batch):
        x = super().embed_tokens(batch).masked_fill(~batch.mask[..., None], 0.0)
        return (
            x
            + x.roll(1, dims=1) * torch.tensor([0.0] + [1.0] * max(0, batch.length - 1))[: batch.length, None]
        )


class FailsOnEmptyRow(Embeds):
    def embed_tokens(self, batch):
        first = self.table(batch.values[:, :1])
        return self.table(batch.values) + 0 * first[:, 0][:, None] if batch.length else first[:, 0]


class Detached(Embeds):
    def embed_tokens(self, batch):
        return super().embed_tokens(batch).detach()


class UnusedParameter(Embeds):
    def __init__(self, d_model=4):
        super().__init__(d_model)
        self.spare = nn.Parameter(torch.ones(3))


class ConfigForgets(Embeds):
    def __init__(self, d_model=4, scale=1.0):
        super().__init__(d_model)
        self.scale = scale

    def embed_tokens(self, batch):
        return super().embed_tokens(batch) * self.scale


class ConfigNotJson(Embeds):
    def config(self):
        return {"d_model": torch.tensor(4)}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongWidth, r"output: embed returned shape \(4, 5, 3\), expected .* = \(4, 5, 4\)"),
        (WrongDtype, "output: embed returned torch.float64 on cpu, but the parameters are torch.float32"),
        (Nan, "output: embed returned NaN or infinity"),
        (IgnoresDtype, r"dtype: after .double\(\) embed raised .* cast the values"),
        (PaddingNotZero, "padding is zero: right padding embeds to something else than zeros"),
        (CountsFromRowStart, "padding and packing: sample 0 embeds otherwise left-padded than alone"),
        (LooksAtNeighbours, "padding and packing: sample 0 embeds otherwise right-padded than alone"),
        (LeaksOverPacking, "padding and packing: sample 1 embeds otherwise packed than alone"),
        (FailsOnEmptyRow, "empty row: an empty sequence raises IndexError: .* handle length 0"),
        (Detached, "gradients: embed returned a tensor without gradient"),
        (UnusedParameter, "gradients: no gradient reaches spare; use it in embed_tokens, or remove it"),
        (lambda: ConfigForgets(scale=2.0), r"config: the adapter rebuilt from config\(\) embeds otherwise"),
        (ConfigNotJson, r"config: config\(\) can't rebuild the adapter \(TypeError"),
        (lambda: nn.Linear(2, 2), "adapter: expected an Adapter or a function that builds one, got Linear"),
    ],
)
def test_a_broken_adapter_fails_its_check(broken, message):
    tokenizer = VocabularyTokenizer().fit(SAMPLES)
    check_adapter(tokenizer, Embeds, SAMPLES)
    prefix = "" if message.startswith("adapter:") else "check_adapter, "
    with pytest.raises(AssertionError, match=f"^{prefix}{message}"):
        check_adapter(tokenizer, broken, SAMPLES)


def test_dropout_does_not_disturb_the_checks_and_the_mode_is_put_back():
    class Drops(Embeds):
        def embed_tokens(self, batch):
            return nn.functional.dropout(super().embed_tokens(batch), 0.5, self.training)

    adapter = Drops().train()
    check_adapter(VocabularyTokenizer().fit(SAMPLES), adapter, SAMPLES)
    assert adapter.training


def test_the_kit_needs_two_samples():
    with pytest.raises(ValueError, match="expected at least two to compare, got 1"):
        check_adapter(VocabularyTokenizer().fit(SAMPLES), Embeds, SAMPLES[:1])
