"""Small models to generate from: real ones, and one whose next id follows a table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.state import State

N_IDS = 7


class TableModel:
    """Logits that depend on the last id alone: row ``last`` of a table ``(n_ids, n_ids)``."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(
        self, ids: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        ends = torch.full((len(ids),), ids.shape[1]) if lengths is None else lengths
        return self.table[ids], State({"last": ids[torch.arange(len(ids)), (ends - 1).clamp(min=0)]})

    def step(self, ids: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        return self.table[ids], State({"last": ids})

    def init_state(self, batch: int) -> State:
        return State({"last": torch.zeros(batch, dtype=torch.int64)})


def build(layers: tuple[str, ...] = ("mamba2", "mamba1"), n_ids: int = N_IDS) -> LanguageModel:
    """Untrained, with logits far enough apart that decoding meets many ids."""
    torch.manual_seed(0)
    options = {"mamba2": {"head_dim": 8, "d_state": 8}, "mamba1": {"d_state": 4}, "attention": {"n_heads": 2}}
    backbone = BackboneConfig(
        d_model=16, layers=list(layers), block_options={kind: options[kind] for kind in layers}
    )
    model = LanguageModel(LanguageModelConfig(n_ids, backbone, tie_embeddings=False)).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=0.4)
        model.embedding.weight.normal_()
    return model


@pytest.fixture(scope="session")
def language_model() -> Callable[..., LanguageModel]:
    return build


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return build()


@pytest.fixture(scope="session")
def hybrid() -> LanguageModel:
    """With a state that grows."""
    return build(("mamba2", "attention"))


@pytest.fixture(scope="session")
def table_model() -> type[TableModel]:
    return TableModel
