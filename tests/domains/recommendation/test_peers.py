"""The networks of others: as large as ours, and able to be built whatever ours is."""

from __future__ import annotations

import pytest

from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.peers import PEERS, block_parameters, peer_config


@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("d_model", [32, 128])
def test_a_gru_of_as_many_parameters(d_model: int, n_layers: int) -> None:
    ours = ModelConfig(d_model=d_model, n_layers=n_layers)
    gru = peer_config("gru4rec", ours)
    assert gru.blocks == ["gru"]
    assert gru.d_hidden is not None
    assert gru.d_hidden % 8 == 0
    built = Recommender(RecommenderConfig(n_items=5, model=gru))
    counted = sum(parameter.numel() for parameter in built.backbone.parameters())
    assert (
        counted == block_parameters(gru) == pytest.approx(block_parameters(ours), rel=0.08)
    )  # widths are whole eights


@pytest.mark.parametrize("peer", PEERS)
def test_what_drives_dt_is_embedded_where_there_is_none(peer: str) -> None:
    for time, expected in {"none": "none", "gaps": "gaps", "dt": "gaps", "both": "gaps"}.items():
        config = peer_config(peer, ModelConfig(d_model=16, head_dim=8, time=time, dropout=0.4))
        assert (config.time, config.dropout, config.d_model) == (expected, 0.4, 16)
        Recommender(RecommenderConfig(n_items=5, model=config))
