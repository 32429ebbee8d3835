"""Greedy decoding and beam search beside transformers' generate, on the same weights."""

from __future__ import annotations

import re

import pytest
import torch
from torch.testing import assert_close

from mambakit.core.backbone import BackboneConfig
from mambakit.core.generation import GenerationConfig, generate
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

# its parts are imported when a test wants them: they take seconds
transformers = pytest.importorskip("transformers", reason="the test extra installs it")

RENAMED = {
    r"backbone\.embeddings": "embedding",
    "lm_head": "head",
    "norm_f": "final_norm",
    r"layers\.(\d+)\.norm": r"norms.\1",
    r"layers\.(\d+)\.mixer": r"blocks.\1",
    r"conv1d\.": "conv_",
}
N_IDS = 11
PROMPT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        vocab_size=N_IDS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    theirs = transformers.MambaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    backbone = BackboneConfig(
        d_model=16, layers=["mamba1"], repeat=2, block_options={"mamba1": {"d_state": 4}}
    )
    ours = LanguageModel(LanguageModelConfig(N_IDS, backbone)).eval()
    wanted = ours.state_dict()
    weights = {}
    for name, value in theirs.state_dict().items():
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        weights[name] = value.reshape(wanted[name].shape)
    ours.load_state_dict(weights)
    return ours, theirs


def theirs_generate(theirs, **options):
    return theirs.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def test_greedy(pair):
    ours, theirs = pair
    expected = theirs_generate(theirs, max_new_tokens=15, do_sample=False)
    made = generate(ours, PROMPT, GenerationConfig(max_new_tokens=15))
    assert torch.equal(made.ids, expected.sequences[:, 5:])
    scores = torch.stack(expected.scores, 1).log_softmax(-1).gather(2, made.ids[..., None])[..., 0]
    assert_close(made.log_probs, scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("eos", [None, 7])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search(pair, eos, penalty):
    ours, theirs = pair
    expected = theirs_generate(
        theirs,
        max_new_tokens=8,
        do_sample=False,
        num_beams=4,
        num_return_sequences=1 if eos else 4,
        length_penalty=penalty,
        early_stopping="never",
        eos_token_id=eos,
        pad_token_id=eos,
    )
    made = generate(
        ours,
        PROMPT,
        GenerationConfig(
            max_new_tokens=8,
            strategy="beam",
            beam_width=4,
            n_best=1 if eos else 4,
            length_penalty=penalty,
            eos_ids=() if eos is None else (eos,),
            pad_id=eos or 0,
        ),
    )
    assert torch.equal(made.ids, expected.sequences[:, 5:])
    assert_close(made.scores, expected.sequences_scores, atol=1e-4, rtol=0)
