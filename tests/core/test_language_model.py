from __future__ import annotations

import pytest
import torch

from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig


def small(**changes: object) -> LanguageModel:
    torch.manual_seed(0)
    options = {"mamba2": {"head_dim": 8, "d_state": 8}, "attention": {"n_heads": 2}}
    backbone = BackboneConfig(d_model=16, layers=["mamba2", "attention"], block_options=options)
    return LanguageModel(LanguageModelConfig(11, backbone, **changes)).eval()  # type: ignore[arg-type]


def test_whole_pieces_steps_and_padded_rows_agree() -> None:
    model = small()
    ids = torch.randint(11, (2, 9))
    whole, _ = model(ids)
    first, state = model(ids[:, :4])
    rest, _ = model(ids[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    steps, state = [], model.init_state(2)
    for token in ids.unbind(1):
        logits, state = model.step(token, state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    padded = ids.clone()
    padded[1, 5:] = -1  # not looked at
    short, _ = model(padded, lengths=torch.tensor([9, 5]))
    torch.testing.assert_close(short[1, :5], whole[1, :5])


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path, tied: bool) -> None:
    model = small(tie_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    loaded = LanguageModel.from_pretrained(tmp_path / "model")
    ids = torch.randint(11, (1, 5))
    assert torch.equal(loaded(ids)[0], model(ids)[0])
    assert loaded.config == model.config
    assert (loaded.head.weight is loaded.embedding.weight) == tied


def test_it_learns_a_cycle_and_the_mask_leaves_targets_out() -> None:
    model = small().train()
    ids = torch.arange(40).remainder(5).expand(2, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        logits, _ = model(ids[:, :-1])
        loss = model.loss(logits, ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    mask = torch.zeros(2, 39, dtype=torch.bool)
    assert model.loss(logits, ids[:, 1:], mask) == 0
    mask[0, 3] = True
    torch.testing.assert_close(
        model.loss(logits, ids[:, 1:], mask), model.loss(logits[:1, 3:4], ids[:1, 4:5])
    )


def test_bad_input_is_named() -> None:
    model = small()
    with pytest.raises(TypeError, match="ids: expected an int64 tensor, got torch"):
        model(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"ids: expected shape \(batch, length\), got \(3,\)"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="11 is outside the vocabulary of n_ids=11"):
        model(torch.full((1, 3), 11))
    with pytest.raises(TypeError, match="backbone: expected a BackboneConfig, got dict"):
        LanguageModelConfig(4, {"layers": ["mamba1"]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="looks both ways"):
        LanguageModel(
            LanguageModelConfig(4, BackboneConfig(d_model=16, layers=["mamba1"], bidirectional=True))
        )
