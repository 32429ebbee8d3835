"""How far our logits are from transformers' on the same random weights, through checkpoints in every format.

    python benchmarks/interop.py --write                # all, some minutes
    python benchmarks/interop.py --only mamba2 --length 256

For each configuration transformers saves a model with random weights; ours is read from that folder.
``whole``    the largest difference of any logit over a batch of sequences
``cached``   the same over a prompt and then token by token, each side with its own cache
``written``  the same with ours written, and read by transformers (for mamba_ssm: by us, beside transformers)
The goal is 1e-4. What float32 itself leaves open is beside it: how far either side is from our model in
float64. ``130m`` starts as the published models' training does, ``130m-default-start`` as transformers does,
whose larger embeddings and residuals make rounding larger than the goal, on both sides.
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
MAMBA_130M = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24}
MAMBA2_130M = MAMBA_130M | {
    "vocab_size": 50288, "num_heads": 24, "head_dim": 64, "n_groups": 1, "state_size": 128,
    "tie_word_embeddings": True,
}  # fmt: skip
AS_PUBLISHED = {"initializer_range": 0.02, "rescale_prenorm_residual": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba/130m": MAMBA_130M | AS_PUBLISHED,
    "mamba/130m-default-start": MAMBA_130M,
    "mamba2/130m": MAMBA2_130M | AS_PUBLISHED,
    "mamba2/130m-default-start": MAMBA2_130M,
    "falcon_mamba/8-layers": {
        "vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 8, **AS_PUBLISHED,
    },
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
    """transformers' model as it starts, its vectors (norms, skips, biases) moved off their common start."""
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
        exact = read_checkpoint(folder / "theirs", dtype=torch.float64)(ids)[0]
        beside: dict[str, float | None] = {"goal": GOAL, "largest logit": whole.abs().max().item()}

        def compare(actual: Tensor, expected: Tensor) -> tuple[float, dict[str, float | None]]:
            far = {"mambakit to float64": actual, "transformers to float64": expected}
            return difference(actual, expected), beside | {
                side: difference(logits.double(), exact) for side, logits in far.items()
            }

        yield f"{name}/whole", *compare(ours(ids)[0], whole)
        yield (
            f"{name}/cached",
            *compare(cached_of_ours(ours, ids, prompt), cached_of_theirs(theirs, ids, prompt)),
        )
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
            note = "" if value < GOAL else "  more than the goal"
            seen = ", ".join(f"{peer} {number:.2g}" for peer, number in beside.items() if number is not None)
            print(f"{what:48} {value:.2g}  ({seen}){note}", flush=True)
            path = f"core/interop/max-logit-difference/{what}"
            rows.append(row(path, value, "logit", peers=beside, seeds=[SEED]))
    if args.write:
        print(f"wrote {write_rows('interop', rows)}")


if __name__ == "__main__":
    main()
