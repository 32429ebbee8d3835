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
# seeds. MoLFormer retrained and D-MPNN (DeepChem's implementation): tables 2 and 3 of the ChemBERTa-3
# repository, with scaled targets; on the scaffold split its tables of raw targets.
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "ibm-split": {
        "esol": {"SMI-TED": 0.6112, "MoLFormer retrained": 0.568, "D-MPNN": 0.676},
        "freesolv": {"SMI-TED": 1.2233, "MoLFormer retrained": 1.141, "D-MPNN": 1.110},
        "lipophilicity": {"SMI-TED": 0.5522, "MoLFormer retrained": 0.531, "D-MPNN": 0.569},
        "bbbp": {"SMI-TED": 0.9226, "MoLFormer retrained": 0.900, "D-MPNN": 0.930},
        "bace": {"SMI-TED": 0.8824, "MoLFormer retrained": 0.848, "D-MPNN": 0.878},
        "clintox": {"SMI-TED": 0.9427, "MoLFormer retrained": 0.846, "D-MPNN": 0.890},
        "tox21": {"SMI-TED": 0.8185, "MoLFormer retrained": 0.830, "D-MPNN": 0.824},
    },
    "deepchem-scaffold": {
        "esol": {"MoLFormer retrained": 0.812, "D-MPNN": 1.159},
        "lipophilicity": {"MoLFormer retrained": 0.673, "D-MPNN": 0.704},
        "bbbp": {"MoLFormer retrained": 0.735, "D-MPNN": 0.661},
        "bace": {"MoLFormer retrained": 0.819, "D-MPNN": 0.626},
        "clintox": {"MoLFormer retrained": 0.839, "D-MPNN": 0.642},
        "tox21": {"MoLFormer retrained": 0.723, "D-MPNN": 0.706},
    },
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
        "coverage": next(row.get("coverage") for row in evaluation.rows),
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
        from rows import write_rows

        made = rows_of(done, "python " + " ".join(sys.argv))
        print(f"{len(made)} rows written to {write_rows('molecules', made)}")
        for one in made:
            print(one["what"], one["value"], "+-", one["spread"], one["peers"])
    if len(found) < len(jobs):
        print(f"out of time: {len(jobs) - len(found)} runs are not done", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
