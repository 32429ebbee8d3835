"""How far our logits are from transformers' on the same random weights, through checkpoints in every format.

    python benchmarks/interop.py --write                   # all, some minutes
    python benchmarks/interop.py --only mamba2 --length 256

For each configuration transformers saves a model with random weights; ours is read from that folder. ``whole`` is
the largest difference of any logit over a batch of sequences, ``cached`` over a prompt and then token by token,
each side with its own cache, ``written`` with ours written, and read by transformers (for mamba_ssm: by us, beside
transformers' model). As a measure of rounding, ``transformers`` is how far its own cached logits are from its whole
ones. The goal is 1e-4.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mambakit.core.interop import read_checkpoint, write_checkpoint
from mambakit.core.language_model import LanguageModel
from rows import machine, row, write_rows

GOAL = 1e-4
SEED = 0
BATCH = 2
CLASSES = {
    "mamba": "Mamba",
    "mamba2": "Mamba2",
    "falcon_mamba": "FalconMamba",
    "jamba": "Jamba",
    "bamba": "Bamba",
    "granitemoehybrid": "GraniteMoeHybrid",
    "nemotron_h": "NemotronH",
}
HYBRID: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
MAMBA2_PART = {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 128}
# Those of state-spaces' models are the published ones; the hybrids' are smaller than any published model.
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba/130m": {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24},
    "mamba2/130m": {
        "vocab_size": 50288, "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64,
        "n_groups": 1, "state_size": 128, "tie_word_embeddings": True,
    },
    "falcon_mamba/8-layers": {"vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 8},
    "jamba/8-layers-16-experts": HYBRID | {"num_experts": 16},
    "bamba/8-layers": HYBRID | MAMBA2_PART | {"attn_layer_indices": [3, 7]},
    "granitemoehybrid/8-layers-dense": HYBRID | MAMBA2_PART | {
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, "num_local_experts": 0,
        "shared_intermediate_size": 1024, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.0078125, "logits_scaling": 6.0, "tie_word_embeddings": True,
    },
    "granitemoehybrid/8-layers-16-experts": HYBRID | MAMBA2_PART | {
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, "num_local_experts": 16,
        "shared_intermediate_size": 512, "position_embedding_type": "rope", "attention_multiplier": 0.125,
    },
    "nemotron_h/10-layers": {name: HYBRID[name] for name in HYBRID if name != "num_hidden_layers"} | {
        "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"] * 2,
        "head_dim": 64, "mamba_num_heads": 16, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128,
    },
}  # fmt: skip


def original(kind: str, options: dict[str, Any]) -> nn.Module:
    """transformers' model as it starts, its vectors (norms, skips, biases) moved off what all of them start as."""
    torch.manual_seed(SEED)
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**options)
    model = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def cached_of_theirs(model: Any, ids: Tensor, prompt: int) -> Tensor:
    recurrent_only = model.config.model_type in ("mamba", "mamba2", "falcon_mamba")
    name = "cache_params" if recurrent_only else "past_key_values"
    output = model(ids[:, :prompt], use_cache=True)
    logits = [output.logits]
    for t in range(prompt, ids.shape[1]):
        places = {} if recurrent_only else {"position_ids": torch.full((len(ids), 1), t)}
        output = model(ids[:, t : t + 1], use_cache=True, **{name: output[name]}, **places)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def cached_of_ours(model: LanguageModel, ids: Tensor, prompt: int) -> Tensor:
    first, state = model(ids[:, :prompt])
    logits = [first]
    for t in range(prompt, ids.shape[1]):
        step, state = model.step(ids[:, t], state)
        logits.append(step[:, None])
    return torch.cat(logits, dim=1)


def measure(name: str, length: int) -> Iterator[tuple[str, float, dict[str, float | None]]]:
    """Path below the rows' own, largest difference, and what is reported beside it."""
    kind = name.split("/")[0]
    theirs: Any = original(kind, CONFIGS[name])
    ids = torch.randint(CONFIGS[name]["vocab_size"], (BATCH, length))
    prompt = 3 * length // 4
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = Path(scratch)
        theirs.save_pretrained(folder / "theirs")
        ours = read_checkpoint(folder / "theirs")
        whole = theirs(ids).logits
        cached = cached_of_theirs(theirs, ids, prompt)
        beside: dict[str, float | None] = {
            "goal": GOAL,
            "transformers": difference(cached, whole),
            "largest logit": whole.abs().max().item(),
        }
        yield f"{name}/whole", difference(ours(ids)[0], whole), beside
        yield f"{name}/cached", difference(cached_of_ours(ours, ids, prompt), cached), beside
        write_checkpoint(ours, folder / "ours", format=kind)
        again = type(theirs).from_pretrained(folder / "ours").eval()
        yield f"{name}/written", difference(again(ids).logits, whole), beside
        if kind in ("mamba", "mamba2"):
            write_checkpoint(ours, folder / "mamba_ssm", format="mamba_ssm")
            read = read_checkpoint(folder / "mamba_ssm")
            yield f"mamba_ssm/{name.replace('/', '-')}/written", difference(read(ids)[0], whole), beside


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def main() -> None:
    """Prints a table, and with --write writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="configurations whose name begins so")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--write", action="store_true", help="write rows to benchmarks/results/interop.json")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(
        f"{machine()}; transformers {transformers.__version__}; batch {BATCH}, length {args.length}, float32"
    )
    rows = []
    for name in CONFIGS:
        if not name.startswith(args.only):
            continue
        for what, value, beside in measure(name, args.length):
            note = "" if value < GOAL else "  MISSED"
            seen = ", ".join(f"{peer} {number:.2g}" for peer, number in beside.items() if number is not None)
            print(f"{what:48} {value:.2g}  ({seen}){note}", flush=True)
            path = f"core/interop/max-logit-difference/{what}"
            rows.append(row(path, value, "logit", peers=beside, seeds=[SEED]))
    if args.write:
        print(f"wrote {write_rows('interop', rows)}")


if __name__ == "__main__":
    main()
