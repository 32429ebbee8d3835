"""The language model of molecules: it learns, resumes, grows, and its samples hold what they must."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("rdkit")

from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig

from mambakit.core.errors import DataError, UsageError
from mambakit.core.language_model import LanguageModelConfig
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.core.training.devices import loading_processes
from mambakit.domains.molecules.design.agent import Agent
from mambakit.domains.molecules.language.batches import PackedMolecules
from mambakit.domains.molecules.language.config import PRESET_TRAIN, CorpusConfig, ModelConfig
from mambakit.domains.molecules.language.corpus import Corpus, make_corpus, rewritten
from mambakit.domains.molecules.language.decoration import ScaffoldGrammar, decorations, query_of
from mambakit.domains.molecules.language.model import MoleculeModel, token_losses
from mambakit.domains.molecules.language.ngram import NGram
from mambakit.domains.molecules.language.sampling import SamplingConfig, sample
from mambakit.domains.molecules.language.training import train_language_model
from mambakit.domains.molecules.reading import read_molecules
from mambakit.domains.molecules.tokenizer import END, REWRITTEN, START, TOKENIZERS

NETWORK = ModelConfig(d_model=24, n_layers=1, d_state=8, head_dim=8, dropout=0.0)
SHORT = CorpusConfig(max_length=60, row_length=64)
TRAIN = TrainConfig(max_epochs=4, batch_size=32, lr=2e-2, ema_decay=0.0, device="cpu")
SCAFFOLDS = [
    *("c1ccc(*)cc1", "O=C(N*)c1ccc([*:1])cc1", "*C1CCN(*)CC1"),
    *("C1=CC(=*)CC1", "*CC(*)(*)O", "c1cc2c(cc1*)[nH]cc2"),
]


@cache
def corpus() -> Corpus:
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"
    return make_corpus(read_molecules(path, tasks=()), SHORT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[MoleculeModel, RunFolder, float]:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "lm")
    model, result = train_language_model(
        corpus(), run, model_config=NETWORK, corpus_config=SHORT, train_config=TRAIN, n_validation_samples=5
    )
    model.save_pretrained(run.path)
    return model, run, result.best_score


def test_it_learns_more_than_how_frequent_tokens_are(trained):
    _, run, score = trained
    counts = torch.zeros(corpus().tokenizer.n_ids)
    ids = torch.cat([corpus().tokenizer.encode(one).values[1:] for one in corpus().validation])
    counts.index_add_(0, ids, torch.ones(len(ids)))
    shares = counts / counts.sum()
    assert score < -(shares[ids]).log().mean()  # even with the validation molecules' own frequencies
    assert "val/bits_per_token" in run.metrics_path.read_text()
    assert "val/validity" in run.metrics_path.read_text()


def test_the_loss_of_rewritten_molecules_is_told_and_chooses_nothing(trained):
    model, run, score = trained
    rows = [row for row in pd.read_csv(run.metrics_path).to_dict("records") if row["val/loss"] > 0]
    best = min(rows, key=lambda row: row["val/loss"])
    assert best["val/loss"] == pytest.approx(score, rel=1e-5)
    data = PackedMolecules(corpus().validation, corpus().tokenizer, randomize=1.0, row_length=64)
    batches = list(data.loader(32, shuffle=False))
    texts = [corpus().tokenizer.decode(one) for batch in batches for one in batch.unbind()]
    assert sorted(map(Chem.CanonSmiles, texts)) == sorted(corpus().validation)
    assert set(texts) != set(corpus().validation)
    with torch.no_grad():
        parts = [
            token_losses(model(one.values, seq_idx=one.seq_idx)[0], one.values, one.seq_idx)
            for one in batches
        ]
    wanted = sum(losses.sum() for losses, _ in parts) / sum(there.sum() for _, there in parts)
    assert best["val/loss_randomized"] == pytest.approx(float(wanted), rel=1e-4)
    assert best["val/loss_randomized"] != pytest.approx(best["val/loss"], rel=1e-3)


def test_canonical_and_rewritten_molecules_begin_apart(tmp_path) -> None:
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"
    mixed = make_corpus(read_molecules(path, tasks=()), dataclasses.replace(SHORT, randomize=0.5))
    tokenizer = mixed.tokenizer
    data = PackedMolecules(mixed.train, tokenizer, randomize=0.5, row_length=64)
    molecules = [one for batch in data.loader(32, shuffle=False) for one in batch.unbind()]
    canonical = set(mixed.train)
    starts = dict.fromkeys((START, REWRITTEN), 0)
    for one in molecules:
        starts[int(one.values[0])] += 1
        if one.values[0] == START:
            assert tokenizer.decode(one) in canonical
        else:  # ... whatever it is written like, of the same molecules
            assert Chem.CanonSmiles(tokenizer.decode(one)) in canonical
    assert all(0.3 * len(molecules) < n < 0.7 * len(molecules) for n in starts.values())
    model = MoleculeModel(LanguageModelConfig(tokenizer.n_ids, NETWORK.backbone()))
    model.tokenizer = tokenizer
    with torch.no_grad():  # a network that says with what a molecule began
        model.embedding.weight[REWRITTEN] += 2.0
    model.save_pretrained(tmp_path)
    again = MoleculeModel.from_pretrained(tmp_path)
    assert again.tokenizer.marks_rewritten
    agent = Agent(again, torch.device("cpu"))
    assert agent.encode("OCC")[0] == REWRITTEN
    assert {ids[0] for _, ids in agent.sample(4, 10, seed=0)} == {REWRITTEN}
    assert {one.prompt[0] for one in decorations(SCAFFOLDS[0], tokenizer)} == {REWRITTEN}
    for prefix, start in (("", START), ("CC", REWRITTEN)):
        config = SamplingConfig(n=20, max_length=60, prefix=prefix, seed=1)
        drawn = next(one for one in sample(again, config) if "no end" not in one.reason and one.smiles)
        ids = torch.tensor([start, *tokenizer.ids(drawn.smiles), END])
        with torch.no_grad():
            losses, _ = token_losses(again(ids[None])[0], ids[None])
        assert -losses[0, len(prefix) :].sum().item() == pytest.approx(drawn.log_prob, abs=1e-3)


def test_a_saved_model_draws_the_same_and_knows_what_it_was_trained_on(trained):
    model, run, _ = trained
    again = MoleculeModel.from_pretrained(run.path)
    config = SamplingConfig(n=6, max_length=40, seed=3)
    assert list(sample(model, config)) == list(sample(again, config))
    assert again.reference.seen(corpus().train).all()
    assert not again.reference.seen(corpus().held_out).any()
    assert set(again.reference.train) <= set(corpus().train)
    assert len(again.reference.baseline) == SHORT.n_reference


def test_samples_do_not_depend_on_the_batch_and_come_as_they_are_drawn(trained):
    model = trained[0]
    small = sample(model, SamplingConfig(n=7, max_length=30, batch_size=2, seed=1))
    first = next(small)
    whole = list(sample(model, SamplingConfig(n=7, max_length=30, batch_size=100, seed=1)))
    ours = [first, *small]
    assert [one.smiles for one in ours] == [one.smiles for one in whole]
    assert np.allclose([one.log_prob for one in ours], [one.log_prob for one in whole], atol=1e-3)


def test_log_probabilities_of_samples_are_those_of_the_molecules(trained):
    model = trained[0]
    drawn = list(sample(model, SamplingConfig(n=40, max_length=30)))
    whole = [one for one in drawn if one.smiles and not re.match("no end", one.reason)]
    assert len(whole) >= 5
    for one in whole[:5]:
        # the same text may be cut in one way only, so its probability is that of its tokens
        assert model.log_likelihoods([one.smiles]).item() == pytest.approx(one.log_prob, abs=1e-3)


def test_every_sample_says_whether_it_is_valid(trained):
    for one in sample(trained[0], SamplingConfig(n=30, max_length=40)):
        mol = Chem.MolFromSmiles(one.smiles) if one.smiles else None
        if one.valid:
            assert Chem.MolToSmiles(mol) == one.canonical
        else:
            assert one.reason


def test_prefixes_are_kept_and_what_cannot_be_a_prefix_is_named(trained):
    drawn = list(sample(trained[0], SamplingConfig(n=5, prefix="c1ccc(Cl)", max_length=30)))
    assert all(one.smiles.startswith("c1ccc(Cl)") for one in drawn)
    with pytest.raises(UsageError, match="position 1, '!'"):
        list(sample(trained[0], SamplingConfig(prefix="C!")))
    with pytest.raises(UsageError, match="give one"):
        SamplingConfig(prefix="C", scaffold="C*")


@cache
def grammar_of(scaffold: str):
    writings = decorations(scaffold, corpus().tokenizer)
    return writings, ScaffoldGrammar(writings, corpus().tokenizer).constraint()


@given(st.sampled_from(SCAFFOLDS), st.integers(0, 2**20))
@settings(max_examples=15, deadline=None)
def test_the_grammar_of_a_scaffold_holds_it_whatever_is_drawn(scaffold, seed):
    """Tokens drawn at random from what is allowed: whatever RDKit reads holds the scaffold."""
    tokenizer = corpus().tokenizer
    writings, grammar = grammar_of(scaffold)
    draw = np.random.default_rng(seed)
    prompt = torch.tensor([writings[seed % len(writings)].prompt])
    state = grammar.start(prompt, torch.tensor([prompt.shape[1]]))
    ids = prompt[0, 1:].tolist()
    for _ in range(60):
        allowed = grammar.allowed(state)[0].nonzero()[:, 0].tolist()
        if not allowed:
            break
        # closing what is open is drawn more often, or nothing would come to its end
        ending = [one for one in allowed if one in (END, *tokenizer.ids(")"), *tokenizer.ids("1"))]
        one = int(draw.choice(ending if ending and draw.random() < 0.6 else allowed))
        ids.append(one)
        state = grammar.advance(state, torch.tensor([one]))
    smiles = tokenizer.text(ids)
    mol = Chem.MolFromSmiles(smiles) if ids[-1] == END else None
    if mol is not None:
        assert mol.HasSubstructMatch(query_of(scaffold)), smiles
        assert len(Chem.GetMolFrags(mol)) == 1


def test_samples_of_a_scaffold_hold_it(trained):
    drawn = list(sample(trained[0], SamplingConfig(n=12, scaffold="O=C(N*)c1ccc(*)cc1", max_length=40)))
    assert any(one.valid for one in drawn)
    assert not any("scaffold" in one.reason for one in drawn)


@pytest.mark.parametrize(
    ("scaffold", "said"),
    [("c1ccccc1", "needs atoms"), ("*", "needs atoms"), ("C*C", "2 bonds"), ("c1cccc1*", "can't be read")],
)
def test_what_is_no_scaffold_is_refused(scaffold, said):
    with pytest.raises(UsageError, match=said):
        decorations(scaffold, corpus().tokenizer)


def test_a_finished_run_is_taken_up_and_another_refused(trained):
    model, run, score = trained
    again, result = train_language_model(
        corpus(), RunFolder(run.path), model_config=NETWORK, corpus_config=SHORT, train_config=TRAIN
    )
    assert result.best_score == score
    assert torch.equal(again.embedding.weight, model.embedding.weight)


def test_a_grown_model_says_the_same_of_old_molecules(trained):
    model = trained[0]
    tokenizer = type(model.tokenizer).from_state(model.tokenizer.state())
    assert tokenizer.extend(["C[Ge](C)C", "[Rn]"])
    larger = model.grown(tokenizer).eval()
    old = model.tokenizer.encode("CC(=O)Oc1ccccc1").values[None]
    wanted, got = model(old)[0], larger(old)[0]
    assert torch.allclose(got[..., : model.config.n_ids], wanted, atol=1e-6)
    assert torch.isfinite(larger.log_likelihoods(["C[Ge](C)C"])).all()


def test_packed_molecules_are_scored_as_each_alone():
    model = MoleculeModel(LanguageModelConfig(corpus().tokenizer.n_ids, NETWORK.backbone())).eval()
    model.tokenizer = corpus().tokenizer
    smiles = corpus().train[:9]
    batch = PackedMolecules(smiles, corpus().tokenizer, row_length=64).__getitems__(
        [(i, 0) for i in range(9)]
    )
    assert batch.values.shape[0] < 9
    losses, there = token_losses(model(batch.values, seq_idx=batch.seq_idx)[0], batch.values, batch.seq_idx)
    assert int(there.sum()) == sum(len(corpus().tokenizer.encode(one)) - 1 for one in smiles)
    assert losses.sum().item() == pytest.approx(-model.log_likelihoods(smiles).sum().item(), rel=1e-4)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_rewriting_keeps_the_molecule(data):
    smiles = data.draw(st.sampled_from(corpus().train))
    seed = data.draw(st.integers(1, 2**31 - 2))
    assert Chem.CanonSmiles(rewritten(smiles, seed)) == smiles
    assert rewritten(smiles, seed) == rewritten(smiles, seed)


def test_training_molecules_are_written_anew_each_epoch_by_the_seed():
    data = PackedMolecules(corpus().train, corpus().tokenizer, randomize=1.0, row_length=64)
    loader = data.loader(200, shuffle=True)

    def epoch(seed: int) -> list[str]:
        torch.manual_seed(seed)
        (batch,) = list(loader)
        return [corpus().tokenizer.decode(one) for one in batch.unbind()]

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert first == again
    assert set(first) != set(other)
    assert sorted(map(Chem.CanonSmiles, first)) == sorted(corpus().train)
    torch.manual_seed(1)
    (batch,) = list(data.loader(200, shuffle=True, num_workers=2))
    assert other == [corpus().tokenizer.decode(one) for one in batch.unbind()]


def test_processes_write_smiles_anew_where_a_gpu_would_wait(monkeypatch):
    assert PRESET_TRAIN.num_workers is None
    for cores, expected in ((1, 0), (2, 1), (6, 5), (64, 8)):
        monkeypatch.setattr("mambakit.core.training.devices.n_cores", lambda n=cores: n)
        assert loading_processes(PRESET_TRAIN.num_workers, torch.device("cuda")) == expected
        assert loading_processes(PRESET_TRAIN.num_workers, torch.device("cpu")) == 0
        assert loading_processes(0, torch.device("cuda")) == 0


def test_rows_that_cannot_be_learned_from_are_listed(tmp_path):
    path = tmp_path / "some.smi"
    good = [Chem.MolToSmiles(Chem.MolFromSmiles("C" * n + "O")) for n in range(1, 30)]
    path.write_text("\n".join([*good, "OC", "C(C)(C)(C)(C)C", "C" * 100]) + "\n")
    found = make_corpus(read_molecules(path, tasks=()), SHORT)
    reasons = dict(zip(found.left_out.row, found.left_out.reason, strict=True))
    assert set(reasons) == {30, 31, 32}
    assert "the same molecule as in row 1" in reasons[30]
    assert "valence" in reasons[31]
    assert "100 tokens are more than max_length=60" in reasons[32]
    parts = [*found.train, *found.validation, *found.held_out]
    assert sorted(parts) == sorted(good)
    path.write_text("CCO\nCC\n")
    with pytest.raises(DataError, match="no train molecules are left of 2 read"):
        make_corpus(read_molecules(path, tasks=()), SHORT)


def test_an_ngram_model_repeats_the_only_sequence_that_it_knows():
    assert NGram(3).fit([[1, 5, 6, 7, 2]]).sample(3) == [[5, 6, 7]] * 3
    drawn = NGram(2).fit([[1, 5, 2], [1, 6, 2], [1, 6, 2], [1, 6, 2]]).sample(4000)
    assert np.mean([one == [6] for one in drawn]) == pytest.approx(0.75, abs=4 * math.sqrt(0.19 / 4000))


@pytest.mark.parametrize("kind", ["smiles", "selfies"])
def test_ids_that_are_no_symbols_are_never_drawn_however_likely(kind):
    """As with a network that has hardly learned: SELFIES ended at the first unknown id."""
    tokenizer = TOKENIZERS[kind]().fit(["CC(=O)Nc1ccccc1", "CCO"])
    torch.manual_seed(0)
    model = MoleculeModel(LanguageModelConfig(tokenizer.n_ids, NETWORK.backbone())).eval()
    model.tokenizer = tokenizer
    drawn = model.symbols_only()
    assert drawn.mask.nonzero()[:, 0].tolist() == [END, *range(4, tokenizer.n_ids)]
    step, tilt = model.step, torch.zeros(tokenizer.n_ids)
    tilt[[0, 1, 3]] = 20.0

    def tilted(ids, state, **options):
        logits, state = step(ids, state, **options)
        return logits + tilt, state

    model.step = tilted
    found = list(sample(model, SamplingConfig(n=20, max_length=12, seed=1)))
    assert not any("unk" in one.smiles or "SELFIES" in one.reason for one in found)
    # the model's own probabilities, in which what may not come has its share
    assert all(one.log_prob < -15 for one in found if len(one.smiles) > 1)
    texts = [text for text, _ in Agent(model, torch.device("cpu")).sample(20, 12, seed=0)]
    assert not any("unk" in text for text in texts)
