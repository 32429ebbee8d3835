"""Networks of others on the shared core: what a recommender is measured beside, but for its blocks.

Embeddings, loss, budget and data are the recommender's own, so that the blocks' worth shows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mambakit.core.backbone import Backbone
from mambakit.domains.recommendation.config import ModelConfig, Peer
from mambakit.domains.recommendation.model import backbone_config

PEERS: dict[Peer, str] = {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}


def peer_config(peer: Peer, model: ModelConfig) -> ModelConfig:
    """The network that stands beside ``model``.

    SASRec (Kang & McAuley 2018, arXiv:1808.09781) has attention in the place of each Mamba block. GRU4Rec
    (Hidasi et al. 2016, arXiv:1511.06939) is one GRU, which its authors found best, of the width that gives
    its blocks as many parameters. Time drives no dt in either; where it does in ``model``, it is embedded.
    """
    time = "gaps" if model.time in ("dt", "both") else model.time
    if peer == "sasrec":
        return replace(model, blocks=["attention", "mlp"], time=time)
    wanted, d = block_parameters(model), model.d_model
    # 3 h (d + h + 2) of the gates, (h + 1) d of out_proj, 2 d of two norms; to a whole number of eights
    linear = 4 * d + 6
    hidden = (math.sqrt(linear**2 + 12 * max(0, wanted - 3 * d)) - linear) / 6
    return replace(model, blocks=["gru"], n_layers=1, d_hidden=max(8, 8 * round(hidden / 8)), time=time)


def block_parameters(model: ModelConfig) -> int:
    """Parameters of a network without embeddings."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Backbone(backbone_config(model)).parameters())
