"""The 130M Mamba-2 language model of the GPU benchmark, ours and the peers', all with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.state import State


class Size(NamedTuple):
    """Shape of the language model and of what it is trained on."""

    d_model: int = 768
    n_layers: int = 24
    d_state: int = 128
    head_dim: int = 64
    vocab: int = 50288
    batch: int = 8
    length: int = 2048


SMALL = Size(64, 2, 16, 16, 96, 2, 48)  # the dry run
SHARE = Size(n_layers=1, vocab=512, batch=2)  # compiles what the full size needs


class LanguageModel(nn.Module):
    """Embedding, a stack of Mamba-2 blocks, and the embedding again as the head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        # as the original, which keeps neither the convolution's result nor the norm's
        options = {"d_state": size.d_state, "head_dim": size.head_dim, "recompute": True}
        self.embedding = nn.Embedding(size.vocab, size.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(
            BackboneConfig(
                d_model=size.d_model,
                layers=["mamba2"],
                repeat=size.n_layers,
                block_options={"mamba2": options},
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, ``(batch, length, vocab)``."""
        return F.linear(self.backbone(self.embedding(tokens))[0], self.embedding.weight)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of one token, ``(batch, vocab)``, and the next state, in the memory of the first."""
        y, state = self.backbone.step(self.embedding(tokens), state, inplace=True)
        return F.linear(y, self.embedding.weight), state


@dataclass
class Model:
    """A language model as the benchmark sees it.

    Attributes:
        logits: From tokens ``(batch, length)`` to ``(batch, length, vocab)``.
        decoder: From tokens ``(batch,)``, and whether the state must stay in place, to a function that
            overwrites the tokens with the next ones; None if it is not timed.
    """

    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    decoder: Callable[[Tensor, bool], Callable[[], None]] | None


def ours(size: Size, device: torch.device) -> Model:
    torch.manual_seed(0)
    module = LanguageModel(size).to(device)

    def decoder(tokens: Tensor, in_place: bool) -> Callable[[], None]:
        held = [module.backbone.init_state(len(tokens))]

        def step() -> None:
            logits, new = module.step(tokens, held[0])
            if in_place:
                for (_, old), (_, value) in zip(held[0].tensors(), new.tensors(), strict=True):
                    if value.data_ptr() != old.data_ptr():
                        old.copy_(value)
            else:
                held[0] = new
            tokens.copy_(logits.argmax(-1))

        return step

    return Model(module, module, decoder)


def original(size: Size, device: torch.device, *, state_dtype: torch.dtype = torch.float32) -> Model:
    """mamba_ssm's model with our weights."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.utils.generation import InferenceParams

    options = {"layer": "Mamba2", "d_state": size.d_state, "headdim": size.head_dim}
    config = MambaConfig(d_model=size.d_model, n_layer=size.n_layers, vocab_size=size.vocab, ssm_cfg=options)
    module = MambaLMHeadModel(config, device=device)
    module.load_state_dict(renamed(size, "embedding"))

    def decoder(tokens: Tensor, in_place: bool) -> Callable[[], None]:
        params = InferenceParams(max_seqlen=1 << 20, max_batch_size=len(tokens), seqlen_offset=1)
        cache = module.allocate_inference_cache(len(tokens), 1 << 20)
        params.key_value_memory_dict = {
            layer: (conv, ssm.to(state_dtype)) for layer, (conv, ssm) in cache.items()
        }

        def step() -> None:
            logits = module(tokens[:, None], inference_params=params, num_last_tokens=1).logits
            tokens.copy_(logits[:, 0].argmax(-1))

        return step

    return Model(module, lambda tokens: module(tokens).logits, decoder)


def transformers_model(size: Size, device: torch.device) -> Model:
    """transformers' model with our weights; its decoding loop is its own, and not timed."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        hidden_size=size.d_model,
        num_hidden_layers=size.n_layers,
        vocab_size=size.vocab,
        state_size=size.d_state,
        head_dim=size.head_dim,
        num_heads=2 * size.d_model // size.head_dim,
        n_groups=1,
        tie_word_embeddings=True,
        use_cache=False,
    )
    module = Mamba2ForCausalLM(config).to(device)
    module.load_state_dict(renamed(size, "embeddings"))
    return Model(module, lambda tokens: module(tokens, use_cache=False).logits, None)


def renamed(size: Size, embedding: str) -> dict[str, Tensor]:
    """The weights of ``ours`` under the names that both peers give them."""
    torch.manual_seed(0)
    found = {}
    for name, value in LanguageModel(size).state_dict().items():
        name = name.replace("backbone.blocks.", "backbone.layers.").replace("final_norm", "norm_f")
        name = name.replace("embedding.", f"backbone.{embedding}.")
        if name.startswith("backbone.norms."):
            _, _, layer, rest = name.split(".")
            name = f"backbone.layers.{layer}.norm.{rest}"
        elif name.startswith("backbone.layers."):
            _, _, layer, rest = name.split(".", 3)
            rest = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias"}.get(rest, rest)
            rest = {"norm_weight": "norm.weight"}.get(rest, rest)
            name = f"backbone.layers.{layer}.mixer.{rest}"
            value = value[:, None] if rest == "conv1d.weight" else value
        found[name] = value
    return found | {"lm_head.weight": found[f"backbone.{embedding}.weight"]}


def agreement(model: Model, size: Size, device: torch.device) -> float:
    """Relative root mean square difference of a model's logits from ours, both under autocast."""
    tokens = torch.randint(size.vocab, (2, min(size.length, 300)), device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        theirs, wanted = model.logits(tokens).float(), ours(size, device).logits(tokens).float()
    return ((theirs - wanted).norm() / wanted.norm()).item()
