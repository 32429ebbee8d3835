"""Molecules: predict properties, and design.

mambakit molecules train --data esol --output runs/esol
mambakit molecules predict --model runs/esol --input my.csv --output predicted.csv
mambakit molecules explain --model runs/esol --smiles "CC(=O)Oc1ccccc1C(=O)O" --output why.svg
mambakit molecules evaluate --model runs/esol --data esol --json
mambakit molecules pretrain --data zinc250k --output runs/lm
mambakit molecules generate --model runs/lm --n 1000 --output new.smi --grid new.png
mambakit molecules export --model runs/lm --output step.onnx
mambakit molecules optimize --model runs/lm --objective objective.yaml --output runs/design
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from mambakit.apps.molecules_explain import explain
from mambakit.apps.molecules_export import export
from mambakit.apps.molecules_optimize import optimize
from mambakit.apps.molecules_pretrain import generate, pretrain
from mambakit.apps.molecules_probe import probe
from mambakit.apps.molecules_train import evaluate, predict, train
from mambakit.core.cli import run_app

VERBS: dict[str, Callable[..., object]] = {
    "train": train,
    "predict": predict,
    "explain": explain,
    "evaluate": evaluate,
    "pretrain": pretrain,
    "generate": generate,
    "export": export,
    "optimize": optimize,
    "probe": probe,
}
_NEEDED = {"rdkit": "RDKit", "sklearn": "scikit-learn", "selfies": "selfies"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit molecules ...``; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    missing = [shown for name, shown in _NEEDED.items() if find_spec(name) is None]
    if missing and words and words[0] in VERBS and not {"-h", "--help"} & set(words):
        print(
            f"error: mambakit molecules needs {' and '.join(missing)}; install it with "
            "pip install 'mambakit[molecules]'",
            file=sys.stderr,
        )
        return 1
    description, _, examples = (__doc__ or "").partition("\n\n")
    return run_app("mambakit molecules", VERBS, words, description, examples)


if __name__ == "__main__":
    sys.exit(main())
