"""One call: a model and a sample to scores, a table and a picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mambakit.core.adapters import ContinuousAdapter, IdAdapter, TokenBatch, Tokens, pack_batch, pad_batch
from mambakit.core.attribution import METHODS, Attribution, attribute, deletion_insertion
from mambakit.core.attribution.embedded import embedded
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

EXPLAINING, READING = METHODS[:3], METHODS[3:]
OPTIONS = {"mamba2": {"head_dim": 8, "d_state": 8}, "mamba1": {"d_state": 8}, "attention": {"n_heads": 2}}


def backbone(*layers: str) -> BackboneConfig:
    options = {kind: OPTIONS[kind] for kind in layers if kind in OPTIONS}
    return BackboneConfig(d_model=16, layers=list(layers), block_options=options, dropout=0.1)


def language_model(*layers: str) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(10, backbone(*layers), tie_embeddings=False))
    nn.init.normal_(model.embedding.weight)  # as large as training makes it
    nn.init.normal_(model.head.weight)
    return model


class Classifier(nn.Module):
    """As a domain builds one: an adapter, a backbone, a head on the last real token."""

    def __init__(self, adapter: nn.Module, *layers: str) -> None:
        super().__init__()
        self.adapter, self.backbone = adapter, Backbone(backbone(*layers))
        self.head = nn.Linear(16, 3)

    def forward(self, batch: TokenBatch) -> Tensor:
        y, _ = self.backbone(self.adapter.embed(batch), **batch.layout())
        return self.head(y[torch.arange(len(y)), batch.lengths - 1])


@pytest.mark.parametrize("method", METHODS)
def test_a_language_model_to_a_table_and_a_picture(method, tmp_path):
    model, ids = language_model("mamba2", "mlp", "attention"), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    found = attribute(model, ids, method=method, labels=list("abcd fg$"), position=5)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not model.backbone.blocks[0]._forward_pre_hooks
    assert not model.embedding._forward_hooks
    assert not found.scores[6:].any()  # what comes after position 5
    table = found.table()
    assert list(table.columns) == ["position", "token", "score", "share"]
    assert list(table["token"]) == list("abcd fg$")
    assert table["score"].tolist() == found.scores.tolist()
    assert table["share"].sum() == pytest.approx(1.0)
    figure = found.plot(tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 5000
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert bars == pytest.approx(found.scores.tolist())
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["a", "b", "c", "d", "␣", "f", "g", "$"]
    assert (len(found.matrices) > 0) == (method in READING)


def test_integrated_gradients_are_complete_and_in_the_targets_unit():
    model, ids = language_model("mamba2"), torch.tensor([3, 1, 4, 1, 5])
    found = attribute(model, ids, target=7, measure="log_probability", baseline=0)
    with torch.no_grad():
        value = model.eval()(ids[None])[0][0, -1].log_softmax(-1)[7]
        baseline_value = model(torch.zeros(1, 5, dtype=torch.int64))[0][0, -1].log_softmax(-1)[7]
    assert found.value == pytest.approx(float(value), abs=1e-5)
    assert found.baseline_value == pytest.approx(float(baseline_value), abs=1e-5)
    assert found.scores.sum() == pytest.approx(float(value - baseline_value), abs=0.01)
    assert found.gap < 0.01 * abs(float(value - baseline_value)) + 1e-5
    assert "log probability of 7 at position 4" in repr(found)
    largest = attribute(model, ids)
    assert f"logit of {int(model(ids[None])[0][0, -1].argmax())} " in largest.target
    named = attribute(model, ids, target=7, target_name="'x'")
    assert named.target == "logit of 'x' at position 4"


@pytest.mark.parametrize("method", METHODS)
def test_every_form_of_a_sample_says_the_same(method):
    torch.manual_seed(0)
    model = Classifier(IdAdapter(10, 16, time_scale=1.0), "mamba1")
    tokens = Tokens(torch.tensor([3, 1, 4, 1]), time=torch.arange(4.0, dtype=torch.float64))
    forms = [tokens, pad_batch([tokens], length=6), pad_batch([tokens], length=6, padding="left")]
    scores = [attribute(model, form, method=method).scores for form in (*forms, pack_batch([tokens], 5))]
    assert all(other == pytest.approx(scores[0], abs=1e-6) for other in scores[1:])
    assert attribute(model, tokens, method=method).labels == ["3", "1", "4", "1"]


def test_channels_through_an_adapter_and_a_backbone_by_itself():
    torch.manual_seed(0)
    model, x = Classifier(ContinuousAdapter(2, 16), "mamba2").eval(), torch.randn(5, 2)
    given = embedded(model, Tokens(x))
    torch.testing.assert_close(given.run(given.tokens), model(pad_batch([Tokens(x)])))
    found = attribute(model, Tokens(x), method="perturbation", target=1, baseline="zero")
    without = given.tokens.repeat(5, 1, 1)
    without[range(5), range(5)] = 0
    falls = given.run(given.tokens)[:, 1] - given.run(without)[:, 1]
    assert found.scores == pytest.approx(falls.detach().numpy(), abs=1e-6)
    assert found.target == "logit of 1"
    wide = torch.randn(4, 16)

    def size(y: Tensor) -> Tensor:
        return y[:, -1].square().sum(-1)

    found = attribute(model.backbone, wide, target=size, method="gradient_times_input", baseline="zero")
    x = wide.clone().requires_grad_()
    size(model.backbone(x[None])[0]).backward()
    assert found.scores == pytest.approx((x.grad * wide).sum(-1).numpy(), abs=1e-5)
    assert found.target == "size"
    read = attribute(model.backbone, wide, method="hidden_attention")
    assert read.scores.sum() == pytest.approx(1.0)


def test_dropping_tokens_is_running_without_them():
    model, ids = language_model("mamba2").eval(), torch.tensor([3, 1, 4, 1, 5])
    found = attribute(model, ids, method="perturbation", mode="drop", target=2)
    with torch.no_grad():
        whole = model(ids[None])[0][0, -1, 2]
        rest = [model(torch.cat([ids[:i], ids[i + 1 :]])[None])[0][0, -1, 2] for i in range(5)]
    assert found.scores == pytest.approx([float(whole - part) for part in rest], abs=1e-5)


def selective_copies(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise 2..5, one signal 6..9 at a random place, and 1 at the end, after which the signal is due.

    A model may take one signal for granted and tell only the others: in training, an eighth of the rows have
    none, and 0 is due.
    """
    ids = torch.randint(2, 6, (n, 12), generator=generator)
    places = torch.randint(0, 11, (n,), generator=generator)
    signals = torch.randint(6, 10, (n,), generator=generator)
    ids[torch.arange(n), places], ids[:, -1] = signals, 1
    return ids, signals, places


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mamba1", "mamba2", "attention"])
def test_a_model_that_learned_to_copy_is_seen_to_read_what_it_copies(kind):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(10, backbone(kind), tie_embeddings=False))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(250):
        ids, signals, places = selective_copies(64, generator)
        ids[:8][torch.arange(8), places[:8]], signals[:8] = 2, 0
        loss = nn.functional.cross_entropy(model(ids)[0][:, -1], signals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, signals, places = selective_copies(20, generator)
    model.eval()
    assert (model(ids)[0][:, -1].argmax(-1) == signals).all()
    for row in range(20):
        found = attribute(model, ids[row], method="hidden_attention")
        assert found.scores[:-1].argmax() == places[row]
    # what explains a target is judged by what its order does to the target
    gains = []
    for row in range(20):
        options = {"target": int(signals[row]), "measure": "log_probability", "baseline": 2}
        found = attribute(model, ids[row], method="perturbation", **options)
        given = embedded(model, ids[row])
        curves = deletion_insertion(
            lambda x, run=given.run, row=row: run(x)[:, -1].softmax(-1)[:, signals[row]],
            given.tokens,
            torch.from_numpy(found.scores)[None],
            given.embed_ids(torch.full_like(ids[row], 2)),
        ).areas()
        gains.append(float(curves["random_deletion"].mean() - curves["deletion"]))
    # not in every row: without the 1 at the end a model may guess anything, the signal among it
    assert sum(gain > 0 for gain in gains) > 14
    assert sum(gains) / 20 > 0.1


def test_bad_input_is_named(tmp_path):
    model, ids = language_model("mamba2"), torch.tensor([3, 1, 4])
    cases = [
        ({"method": "lime"}, "method: expected one of integrated_gradients, .*, got 'lime'"),
        ({"target": 10}, r"target: 10 is outside the model's 10 outputs, 0\.\.9"),
        ({"target": -1}, "target: -1 is outside"),
        ({"position": 3}, r"position: 3 is outside 0\.\.2"),
        ({"labels": ["a", "b"]}, "labels: expected one for each of the 3 tokens, got 2"),
        ({"measure": "odds"}, "measure: expected 'logit' or 'log_probability', got 'odds'"),
        ({"baseline": "noise"}, "baseline: expected 'zero', 'mean', an id or a tensor, got 'noise'"),
        ({"baseline": 10}, "10 is outside the vocabulary"),
        ({"baseline": torch.zeros(2, 1)}, r"baseline: .* broadcasts to \(1, 3, 16\), got \(2, 1\)"),
        ({"target": lambda output: output}, "function: expected one number a row"),
        ({"method": "rollout", "target": 1}, "target: rollout shows who reads whom, for any target"),
        ({"method": "perturbation", "mode": "drop", "position": 0}, "position: to drop tokens it must be"),
        ({"method": "hidden_attention", "layers": [1]}, r"layers: 1 is outside 0\.\.0"),
        (
            {"embedding": nn.Embedding(2, 2)},
            "embedding: expected the model to call Embedding once .* 0 calls",
        ),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            attribute(model, ids, **options)
    with pytest.raises(ValueError, match="at least one token, got none"):
        attribute(model, ids[:0])
    with pytest.raises(TypeError, match="sample: expected a tensor, Tokens or a TokenBatch, got list"):
        attribute(model, [1, 2])
    with pytest.raises(ValueError, match="expected a batch of one sequence, got 2"):
        attribute(model, pad_batch([Tokens(ids), Tokens(ids)]))
    with pytest.raises(ValueError, match=r"sample: expected ids \(length,\) int64 or floats .*\(2, 3\)"):
        attribute(model, torch.stack([ids, ids]))
    with pytest.raises(ValueError, match="sample: a backbone embeds nothing"):
        attribute(model.backbone, ids)
    with pytest.raises(ValueError, match="expected one adapter or embedding in ModuleList, found 2"):
        embedded(nn.ModuleList([model, nn.Embedding(2, 2)]), ids)
    with pytest.raises(ValueError, match="baseline: got the id 1, but the sample's tokens are no ids"):
        attribute(model.backbone, torch.randn(3, 16), target=0, baseline=1)
    assert model.training
    found = attribute(model, ids)
    with pytest.raises(ValueError, match=r"path: expected an ending of .*png.*, got 'why'"):
        found.plot(tmp_path / "why")
    with pytest.raises(TypeError, match="target: expected the number of an output or a function, got 'a'"):
        attribute(model, ids, target="a")
    with pytest.raises(TypeError, match=r"position: expected whole numbers, got \[1\.5\]"):
        attribute(model, ids, position=1.5)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"):
        attribute(model, ids)
    with pytest.raises(ValueError, match="labels: expected one for each of the 3 tokens, got 1"):
        Attribution(found.scores, ["a"], "by hand", "nothing")
