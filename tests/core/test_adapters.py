import random

import pytest
import torch
from torch import nn

from mambakit.core.adapters import (
    Adapter,
    ContinuousAdapter,
    ContinuousTokenizer,
    IdAdapter,
    SampleError,
    TokenBatch,
    Tokens,
    VocabularyTokenizer,
    pack_batch,
    pad_batch,
)
from mambakit.core.adapters.testing import check_adapter
from mambakit.core.backbone import Backbone, BackboneConfig

SAMPLES = ["ACGT", "AAC", "T", "GGATC"]


def stamped(values, times):
    return Tokens(torch.tensor(values), torch.tensor(times, dtype=torch.float64))


# -- the general adapters --


def test_id_adapter_looks_up_its_table_and_sums_fields():
    one = IdAdapter(5, 4)
    batch = pad_batch([Tokens(torch.tensor([3, 1])), Tokens(torch.tensor([2]))])
    expected = one.tables[0].weight[[3, 1]]
    torch.testing.assert_close(one.embed(batch)[0], expected)
    assert not one.embed(batch)[1, 1].any()
    two = IdAdapter([5, 3], 4)
    fields = pad_batch([Tokens(torch.tensor([[3, 2]]))])
    torch.testing.assert_close(two.embed(fields)[0, 0], two.tables[0].weight[3] + two.tables[1].weight[2])


def test_continuous_adapter_is_linear():
    adapter = ContinuousAdapter(2, 3)
    values = torch.randn(4, 2)
    batch = pad_batch([Tokens(values)])
    torch.testing.assert_close(
        adapter.embed(batch)[0], values @ adapter.linear.weight.T + adapter.linear.bias
    )
    assert ContinuousAdapter(2, 3, bias=False).config()["bias"] is False


def test_time_features_see_the_gap_and_the_phase():
    adapter = ContinuousAdapter(1, 3, time_scale=2.0, time_periods=[24.0])
    with torch.no_grad():
        adapter.linear.weight.zero_()
        adapter.linear.bias.zero_()
        adapter.time.linear.weight.copy_(torch.eye(3))
    # Unix seconds: the phase must not be lost to rounding
    start = 24.0 * 1e8
    tokens = Tokens(torch.zeros(3, 1), torch.tensor([start, start + 6, start + 12], dtype=torch.float64))
    gap = torch.log1p(torch.tensor(3.0))
    expected = torch.tensor([[0.0, 0, 1], [gap, 1, 0], [gap, 0, -1]])
    torch.testing.assert_close(adapter.embed(pad_batch([tokens]))[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("adapter", "samples"),
    [
        (IdAdapter(6, 8), [[1, 2, 3], [4], [5, 5]]),
        (IdAdapter(6, 8, time_scale=1.0, time_periods=[7.0, 24.0]), [[1, 2, 3], [4], [5, 5]]),
        (IdAdapter([6, 3], 8), [[[1, 2], [3, 0]], [[4, 1]]]),
        (ContinuousAdapter(2, 8, time_scale=0.5), [[[1.0, 2.0], [3.0, 0.0]], [[4.0, 1.0]]]),
    ],
)
def test_general_adapters_pass_the_model_side_checks(adapter, samples):
    check_adapter(Stamped(), adapter, samples, bad_samples=[["x"]])


def test_general_pairs_pass_all_checks():
    letters = VocabularyTokenizer(bos=True, eos=True).fit(SAMPLES)
    check_adapter(letters, lambda: IdAdapter(letters.n_ids, 8), SAMPLES, ["ACX", None, 3], empty_sample="")
    channels = ContinuousTokenizer().fit([torch.randn(9, 2)])
    check_adapter(
        channels,
        ContinuousAdapter(2, 8),
        [torch.randn(5, 2).tolist(), torch.randn(3, 2).tolist()],
        [[[1.0, float("nan")]], "text"],
        empty_sample=torch.zeros(0, 2),
    )


@pytest.mark.parametrize(
    ("adapter", "values", "error", "message"),
    [
        (IdAdapter(5, 4), [1, 5], ValueError, "id 5 at row 0, position 1 is outside the table of n_ids=5"),
        (IdAdapter(5, 4), [[1, 2]], ValueError, r"expected shape \(batch, length\), got \(1, 1, 2\)"),
        (
            IdAdapter([5, 5], 4),
            [1, 2],
            ValueError,
            r"\(batch, length, n_fields=2\), got \(1, 2, 1\)|got \(1, 2\)",
        ),
        (IdAdapter(5, 4), [[1.0]], TypeError, "IdAdapter takes int64 ids, got torch.float32"),
        (IdAdapter(5, 4, time_scale=1.0), [1], ValueError, "time: this batch has none"),
        (ContinuousAdapter(2, 4), [[1.0]], ValueError, r"d_input=2\), got \(1, 1, 1\)"),
        (ContinuousAdapter(2, 4), [1], TypeError, "takes float32 channels, got torch.int64"),
    ],
)
def test_batches_that_do_not_fit_are_named(adapter, values, error, message):
    with pytest.raises(error, match=message):
        adapter.embed(pad_batch([Tokens(torch.tensor(values))]))


def test_adapter_checks_type_and_device():
    adapter = IdAdapter(5, 4)
    with pytest.raises(TypeError, match="batch: expected a TokenBatch, got Tensor"):
        adapter.embed(torch.tensor([[1]]))
    with pytest.raises(ValueError, match="batch: is on cpu, but the adapter is on meta"):
        adapter.to("meta").embed(pad_batch([Tokens(torch.tensor([1]))]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IdAdapter(5, 0), "d_model: expected at least 1, got 0"),
        (lambda: IdAdapter([], 4), "n_ids: expected sizes of at least 1"),
        (lambda: ContinuousAdapter(0, 4), "d_input: expected at least 1, got 0"),
        (lambda: IdAdapter(5, 4, time_scale=0.0), "expected positive numbers"),
        (lambda: IdAdapter(5, 4, time_periods=[24.0]), "time_periods: need time_scale too"),
    ],
)
def test_adapter_arguments_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "layers",
    [["mamba1"], ["mamba2", "attention"], ["bidirectional"]],
    ids=lambda layers: "+".join(layers),
)
def test_a_backbone_gives_each_sequence_what_it_gets_alone(layers):
    options = {
        "mamba1": {"d_state": 4},
        "mamba2": {"head_dim": 4, "d_state": 4},
        "attention": {"n_heads": 2},
        "bidirectional": {"inner": "mamba2", "inner_options": {"head_dim": 4, "d_state": 4}},
    }
    torch.manual_seed(0)
    config = BackboneConfig(d_model=8, layers=layers, block_options={k: options[k] for k in layers})
    backbone, adapter = Backbone(config).double(), IdAdapter(9, 8, time_scale=1.0).double()
    samples = [stamped(torch.randint(9, (n,)).tolist(), torch.arange(n).tolist()) for n in (5, 3, 7, 1, 4)]
    alone = [backbone(adapter.embed(pad_batch([sample])))[0][0] for sample in samples]
    for batch in (pad_batch(samples), pad_batch(samples, padding="left"), pack_batch(samples, 9)):
        y, _ = backbone(adapter.embed(batch), **batch.layout())
        for part, expected in zip(batch.split(y), alone, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)


# -- the conformance kit finds what is broken --


class Stamped(VocabularyTokenizer):
    """Values as they are, one stamp a token."""

    kind = "stamped"

    def __init__(self):
        super().__init__("items")
        self.symbols = []

    def encode(self, sample):
        try:
            values = torch.tensor(sample)
        except (ValueError, TypeError) as error:
            raise SampleError(str(error)) from None
        return Tokens(values, torch.arange(len(sample), dtype=torch.float64).square())

    def decode(self, tokens):
        return tokens.values.tolist()

    @classmethod
    def from_state(cls, state):
        return cls()


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


def test_embed_tokens_of_a_wrong_shape_is_named():
    class Flat(Embeds):
        def embed_tokens(self, batch):
            return super().embed_tokens(batch)[:, 0]

    with pytest.raises(
        ValueError, match=r"Flat.embed_tokens: expected to return shape \(1, 2, 4\), got \(1, 4\)"
    ):
        Flat().embed(pad_batch([Tokens(torch.tensor([1, 2]))]))


@pytest.mark.gpu
def test_general_adapters_pass_on_the_gpu():
    letters = VocabularyTokenizer().fit(SAMPLES)
    check_adapter(letters, IdAdapter(letters.n_ids, 8).cuda(), SAMPLES)
    adapter = ContinuousAdapter(2, 8, time_scale=1.0).cuda().bfloat16()
    tokens = Tokens(torch.randn(3, 2), torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64))
    batch: TokenBatch = pack_batch([tokens, tokens], 8).to("cuda")
    assert adapter.embed(batch).dtype == torch.bfloat16
