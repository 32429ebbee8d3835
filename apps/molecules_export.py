"""A language model's step for those who serve it: what `mambakit molecules export` does."""

from __future__ import annotations

from pathlib import Path

from mambakit.apps.shared import check_suffix
from mambakit.core.cli import print_json


def export(*, model: Path, output: Path, json: bool = False) -> None:
    """Writes the step of a language model as a program that runs without mambakit.

    It takes a token a row and the state, and gives the next token's logits and the next state; a molecule
    begins from a state of zeros and the token START. The tokens' numbers are in the model's folder.

    Args:
        model: Folder of the saved model.
        output: .pt2 for torch.export.load, .aoti.pt2 compiled for this machine (it wants a C++ compiler), or
            .onnx for any ONNX runtime (mambakit[onnx]).
        json: Print JSON for machines.

    Examples:
        mambakit molecules export --model runs/lm --output step.onnx
    """
    from mambakit.core.export import StateLayout, export_step, save_program
    from mambakit.domains.molecules.language.model import MoleculeModel
    from mambakit.domains.molecules.tokenizer import END, START

    check_suffix("output", output, (".pt2", ".onnx"))
    network = MoleculeModel.from_pretrained(model)
    kind = save_program(export_step(network), output)
    state = {name: list(one.shape[1:]) for name, one in StateLayout.pack(network.init_state(1)).items()}
    size = output.stat().st_size
    if json:
        tokens = {"start": START, "end": END, "n_ids": network.config.n_ids}
        print_json({"output": output, "kind": kind, "bytes": size, "tokens": tokens, "state": state})
        return
    print(f"{size:>12,} bytes  {output}  ({kind}; a state of {len(state)} tensors)")
