"""Property models on the sets of MoleculeNet beside the random forest, in one run.

    python benchmarks/molecules_properties.py --seeds 0 1 2 --jobs 2
    python benchmarks/molecules_properties.py --sets esol bbbp --protocols ibm-split --validation-only
    python benchmarks/molecules_properties.py --seeds 0 1 2 3 4 --gpus 0 1 --jobs 10 --pretrained runs/lm

Trains the preset with the app's own code for every set, protocol and seed (the weights are chosen by
validation loss) and measures the test molecules once, beside a forest and the mean fitted on the same
training molecules. Rows go into results/molecules.json as ``molecules/<set>/<metric>/<protocol>``: the
mean over seeds, and their standard deviation. A seed is that of the weights; ``random`` and ``scaffold``
splits are those of seed 0 for all. ``--set model.members=5`` changes the preset for a trial; such runs,
and those with ``--validation-only``, touch no test molecule and write no rows.

ibm-split are the files of MoLFormer, SMI-TED and SMI-SSED, in which test scaffolds stand in training too;
deepchem-scaffold is DeepChem's ScaffoldSplitter. Figures of the two are not comparable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETS = ("esol", "freesolv", "lipophilicity", "bbbp", "bace", "clintox", "tox21")
PROTOCOLS = ("ibm-split", "deepchem-scaffold")
# Published under the same protocol. SMI-TED: Soares et al. 2024, tables 3 and 6, fine-tuned, means of 10
# seeds. MoLFormer-XL: its own paper (Ross et al. 2022), without ESOL and FreeSolv, which are in other units.
# The rest: tables 2 and 3 of the ChemBERTa-3 repository (D-MPNN and GCN are DeepChem's implementations; the
# forest reads ECFP; ibm-split with scaled targets), on the scaffold split its tables of raw targets.
_SETS_OF: dict[str, tuple[str, ...]] = {
    "ibm-split": ("esol", "freesolv", "lipophilicity", "bbbp", "bace", "clintox", "tox21"),
    "deepchem-scaffold": ("esol", "lipophilicity", "bbbp", "bace", "clintox", "tox21"),
}
_BY_PEER: dict[str, dict[str, tuple[float | None, ...]]] = {
    "ibm-split": {
        "ECFP forest": (1.154, 2.209, 0.722, 0.926, 0.884, 0.916, 0.803),
        "GCN": (0.648, 1.178, 0.589, 0.898, 0.824, 0.838, 0.810),
        "D-MPNN": (0.676, 1.110, 0.569, 0.930, 0.878, 0.890, 0.824),
        "ChemBERTa-MLM-100M": (0.648, 1.254, 0.609, 0.961, 0.859, 0.992, 0.803),
        "MoLFormer retrained": (0.568, 1.141, 0.531, 0.900, 0.848, 0.846, 0.830),
        "MoLFormer-XL": (None, None, 0.529, 0.937, 0.882, 0.948, 0.847),
        "SMI-TED": (0.6112, 1.2233, 0.5522, 0.9226, 0.8824, 0.9427, 0.8185),
    },
    "deepchem-scaffold": {
        "ECFP forest": (1.700, 0.963, 0.694, 0.866, 0.689, 0.674),
        "GCN": (0.934, 0.753, 0.642, 0.778, 0.870, 0.710),
        "D-MPNN": (1.159, 0.704, 0.661, 0.626, 0.642, 0.706),
        "ChemBERTa-MLM-100M": (0.899, 0.755, 0.700, 0.781, 0.979, 0.718),
        "MoLFormer retrained": (0.812, 0.673, 0.735, 0.819, 0.839, 0.723),
    },
}
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    protocol: {
        name: {peer: value for peer, values in peers.items() if (value := values[place]) is not None}
        for place, name in enumerate(_SETS_OF[protocol])
    }
    for protocol, peers in _BY_PEER.items()
}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one set, protocol and seed; measures it on test, or without ``test`` on validation."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.molecules.beside import baselines
    from mambakit.domains.molecules.config import PRESET_LOSS, PRESET_MODEL, PRESET_TRAIN
    from mambakit.domains.molecules.data import DataSpec, load
    from mambakit.domains.molecules.evaluation import evaluate
    from mambakit.domains.molecules.training import train_properties, usable

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.monotonic()
    configs: dict[str, Any] = {"model": PRESET_MODEL, "loss": PRESET_LOSS, "train": PRESET_TRAIN}
    for name, value in job["changes"].items():
        part, _, field = name.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    molecules, split = load(DataSpec(job["set"], job["protocol"]))
    molecules, _ = usable(molecules, split)
    with tempfile.TemporaryDirectory() as folder:
        model, result = train_properties(
            molecules,
            split,
            RunFolder(Path(folder) / "run"),
            model_config=configs["model"],
            loss_config=configs["loss"],
            train_config=dataclasses.replace(configs["train"], seed=job["seed"], device=device),
            pretrained=Path(job["pretrained"]) if job["pretrained"] else None,
        )
    trained = time.monotonic() - began
    places = split.test if job["test"] else split.validation
    smiles, labels = molecules.smiles[split.train].tolist(), molecules.labels[split.train]
    beside = baselines(smiles, labels, molecules.tasks, molecules.smiles[places].tolist())
    evaluation = evaluate(model.to(device), molecules, places, beside)
    metric = "rmse" if molecules.tasks[0].kind == "regression" else "roc_auc"
    return {
        **job,
        "validation_loss": result.best_score,
        "epochs": result.epochs,
        "metric": metric,
        "unit": (molecules.tasks[0].unit or "label's unit") if metric == "rmse" else "ROC-AUC",
        "figures": {who: evaluation.figure(who, metric) for who in evaluation.scores},
        "coverage": statistics.mean(row["coverage"] for row in evaluation.rows if "coverage" in row),
        "n": len(places),
        "seconds": [round(trained, 1), round(time.monotonic() - began, 1)],
    }


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line on stderr of a run that ended."""
    figures = {who: round(value, 4) for who, value in one.get("figures", {}).items()}
    part = "test" if one["test"] else "validation"
    said = one.get("error") or f"{part} {one['metric']} {figures} coverage {one['coverage']} {one['seconds']}"
    print(
        f"{seconds:6.1f} s  {one['set']:<13} {one['protocol']:<17} seed {one['seed']} "
        f"{one['changes'] or ''} {said}",
        file=sys.stderr,
        flush=True,
    )


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows: a set and protocol each."""
    from rows import row

    made = []
    for name, protocol in dict.fromkeys((one["set"], one["protocol"]) for one in found):
        runs = [one for one in found if (one["set"], one["protocol"]) == (name, protocol)]
        ours = [one["figures"]["mambakit"] for one in runs]
        others = [who for who in runs[0]["figures"] if who != "mambakit"]
        peers: dict[str, float | None] = {
            who: round(statistics.mean(one["figures"][who] for one in runs), 4) for who in others
        }
        published = PUBLISHED.get(protocol, {}).get(name, {})
        peers |= {f"{peer} (published)": value for peer, value in published.items()}
        made.append(
            row(
                f"molecules/{name}/{runs[0]['metric'].replace('_', '-')}/{protocol}",
                round(statistics.mean(ours), 4),
                runs[0]["unit"],
                peers=peers,
                spread=round(statistics.pstdev(ours), 4),
                seeds=sorted(one["seed"] for one in runs),
                command=command,
            )
        )
        made.append(
            row(
                f"molecules/{name}/coverage/{protocol}",
                round(statistics.mean(one["coverage"] for one in runs), 3),
                "of test labels in sets or intervals meant for .9",
                spread=round(statistics.pstdev(one["coverage"] for one in runs), 3),
                seeds=sorted(one["seed"] for one in runs),
                command=command,
            )
        )
    return made


def main() -> int:
    """The command line."""
    from processes import add_flags, run_all

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pretrained", help="folder of a language model to begin with")
    add_flags(parser)
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--validation-only", action="store_true", help="measure validation molecules instead")
    parser.add_argument("--raw", type=Path, help="also write every run's result here")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (c.partition("=") for c in arguments.changes)}
    test = not (arguments.validation_only or changes)

    from mambakit.core.data import fetch, load_card

    for name in arguments.sets:
        fetch(load_card(name))
    jobs = [
        {"set": name, "protocol": protocol, "seed": seed, "changes": changes, "test": test}
        | {"pretrained": arguments.pretrained}
        for seed in arguments.seeds
        for name in reversed(arguments.sets)  # the large ones first
        for protocol in arguments.protocols
    ]
    limits = {"seconds": arguments.seconds, "stop_after": arguments.stop_after}
    found = run_all(run_job, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus, **limits)
    failed = [one for one in found if "error" in one]
    done = [one for one in found if "error" not in one]
    if arguments.raw:
        arguments.raw.write_text(json.dumps(done, indent=1))
    if test and done:
        from rows import command_line, write_rows

        made = rows_of(done, command_line())
        print(f"{len(made)} rows written to {write_rows('molecules', made)}")
        for one in made:
            print(one["what"], one["value"], "+-", one["spread"], one["peers"])
    if len(found) < len(jobs):
        print(f"out of time: {len(jobs) - len(found)} runs are not done", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
