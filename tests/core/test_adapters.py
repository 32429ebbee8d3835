"""The general adapters: what they embed, what they refuse, and that they pass the conformance kit."""

import pytest
import torch

from mambakit.core.adapters import (
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


def test_embed_tokens_of_a_wrong_shape_is_named():
    class Flat(IdAdapter):
        def embed_tokens(self, batch):
            return super().embed_tokens(batch)[:, 0]

    with pytest.raises(
        ValueError, match=r"Flat.embed_tokens: expected to return shape \(1, 2, 4\), got \(1, 4\)"
    ):
        Flat(5, 4).embed(pad_batch([Tokens(torch.tensor([1, 2]))]))


@pytest.mark.gpu
def test_general_adapters_pass_on_the_gpu():
    letters = VocabularyTokenizer().fit(SAMPLES)
    check_adapter(letters, IdAdapter(letters.n_ids, 8).cuda(), SAMPLES)
    adapter = ContinuousAdapter(2, 8, time_scale=1.0).cuda().bfloat16()
    tokens = Tokens(torch.randn(3, 2), torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64))
    batch: TokenBatch = pack_batch([tokens, tokens], 8).to("cuda")
    assert adapter.embed(batch).dtype == torch.bfloat16
