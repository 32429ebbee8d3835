"""Published architectures by name: their pattern of layers, for any width, and the sizes of some models.

`BackboneConfig(layers="jamba", d_model=512, repeat=2)` takes the pattern and keeps every other field the
caller's; options given for a kind go over the pattern's own, one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A pattern of layers, stacked ``repeat`` times by the config that names it; see each field."""

    layers: list[str]
    """Kinds from first to last."""
    source: str
    """The paper."""
    block_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By kind."""
    residual_scale: dict[str, float] = field(default_factory=dict)
    """By kind."""


def _jamba() -> list[str]:
    """Eight layers, the fifth attention and the others Mamba, each with an MLP or, every other, experts."""
    mixers = ["attention" if i == 4 else "mamba1" for i in range(8)]
    return [kind for i, mixer in enumerate(mixers) for kind in (mixer, "moe" if i % 2 else "mlp")]


PRESETS: dict[str, Preset] = {
    "mamba1": Preset(["mamba1"], "Gu & Dao 2023, arXiv:2312.00752"),
    "mamba2": Preset(["mamba2"], "Dao & Gu 2024, arXiv:2405.21060"),
    "mamba3": Preset(["mamba3", "mlp"], "Lahoti et al. 2026, arXiv:2603.15569, section 3"),
    "mamba3-mimo": Preset(
        ["mamba3", "mlp"], "Lahoti et al. 2026, arXiv:2603.15569, section 3", {"mamba3": {"mimo_rank": 4}}
    ),
    "jamba": Preset(
        _jamba(),
        "Lieber et al. 2024, arXiv:2403.19887, section 3.1",
        {
            "mamba1": {"inner_norm": "learned"},
            "attention": {"rope": False},
            "moe": {"n_experts": 16, "top_k": 2, "normalize_gates": False},
        },
    ),
    "samba": Preset(
        ["mamba1", "mlp", "sliding_attention", "mlp"],
        "Ren et al. 2024, arXiv:2406.07522, section 2.1",
        {"sliding_attention": {"window": 2048}},
    ),
    "zamba": Preset(["mamba1"] * 5 + ["zamba@shared"], "Glorioso et al. 2024, arXiv:2405.16712, section 2"),
    "mamba2-hybrid": Preset(
        ["mamba2", "mlp"] * 3 + ["attention", "mlp"] + ["mamba2", "mlp"] * 3,
        "Waleffe et al. 2024, arXiv:2406.07887, section 3: 43% Mamba-2, 7% attention, 50% MLP, evenly spread",
        {"attention": {"rope": False}},
    ),
    # Their closing norm of each block is left to the pre-norms of the next and the backbone's last.
    "conmamba": Preset(
        ["mlp", "mamba1", "conv", "mlp"],
        "Jiang et al. 2024, arXiv:2407.09732, section 2.2 (bidirectional in the encoder); "
        "half steps of the MLPs: Gulati et al. 2020, arXiv:2005.08100, equation 1",
        {"mlp": {"gated": False, "bias": True}},
        {"mlp": 0.5},
    ),
}

# Fields of a LanguageModelConfig, with those of its backbone: BackboneConfig(**PUBLISHED[name]["backbone"]).
PUBLISHED: dict[str, dict[str, Any]] = {
    "mamba-130m": {"n_ids": 50280, "backbone": {"layers": "mamba1", "d_model": 768, "repeat": 24}},
    "mamba-2.8b": {"n_ids": 50280, "backbone": {"layers": "mamba1", "d_model": 2560, "repeat": 64}},
    "mamba2-130m": {"n_ids": 50288, "backbone": {"layers": "mamba2", "d_model": 768, "repeat": 24}},
    "mamba2-2.7b": {"n_ids": 50288, "backbone": {"layers": "mamba2", "d_model": 2560, "repeat": 64}},
    "jamba-v0.1": {
        "n_ids": 65536,
        "tie_embeddings": False,
        "backbone": {
            "layers": "jamba",
            "d_model": 4096,
            "repeat": 4,
            "norm_eps": 1e-6,
            "block_options": {
                "attention": {"n_heads": 32, "n_kv_heads": 8},
                "mlp": {"d_hidden": 14336},
                "moe": {"d_hidden": 14336},
            },
        },
    },
    "zamba-7b-v1": {
        "n_ids": 32000,
        "backbone": {
            "layers": [
                "zamba@shared" if i == 2 or (i > 2 and i % 6 == 1) else "mamba1"  # as released, 13 of 76
                for i in range(76)
            ],
            "d_model": 3712,
            "block_options": {"zamba": {"n_heads": 16, "d_hidden": 14848}},
        },
    },
}  # fmt: skip
