"""The preset on ZINC250k: molecules drawn from it, measured beside held-out ones and a 6-gram model.

    python benchmarks/molecules_generation.py --seeds 0 1 2 --workers 12 --gpus 0 1 2 --jobs 3
    python benchmarks/molecules_generation.py --set train.max_epochs=10 corpus.randomize=0 --n 2000

A seed draws the parts of the data, the weights and the samples. The weights are those of the lowest
validation loss; molecules are drawn at temperature 1 without truncation, and with top-p (``SAMPLINGS``).
Validity is of all samples, the other measures as domains/molecules/language/metrics.py has them, of the first
10,000. Runs with ``--set`` or ``--limit`` write no rows; others write results/molecules-generation.json.
``--keep FOLDER`` keeps runs, models and samples, and resumes those that were killed; ``--no-measure`` stops
when samples are drawn, so that the same command measures them later, on another machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from processes import add_flags, run_all

SAMPLINGS: dict[str, dict[str, Any]] = {
    "": {},
    "/top-p-0.98": {"top_p": 0.98},
    "/top-p-0.95": {"top_p": 0.95},
}
# What differs from the preset of small corpora: PART.FIELD.
SETTINGS: dict[str, dict[str, Any]] = {
    "zinc250k": {
        "corpus.randomize": 0.5,
        "model.dropout": 0.05,
        "train.batch_size": 1024,
        "train.max_epochs": 36,
        "train.patience": 0,
    }
}
MEASURES = {
    "valid": "of samples",
    "unique@10k": "of valid samples",
    "novel": "of unique samples",
    "kl": "GuacaMol KL score",
    "int-div": "1 - mean Tanimoto",
    "snn-held-out": "mean Tanimoto",
    "scaf-held-out": "cosine",
    "snn-train": "mean Tanimoto",
    "scaf-train": "cosine",
}


def run_seed(job: dict[str, Any]) -> dict[str, Any]:
    """Trains with one seed, draws and measures."""
    from mambakit.domains.molecules.language.quality import measure
    from mambakit.domains.molecules.language.reference import Reference

    folder = Path(job["folder"]) / f"seed-{job['seed']}"
    kept = folder / "drawn.json"
    asked = {name: job[name] for name in ("data", "changes", "n", "limit")}
    if not kept.exists():
        made = train_and_draw(job, folder)
        kept.write_text(json.dumps({"asked": asked, **made}), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    if (before := found.pop("asked")) != asked:
        raise SystemExit(f"{kept}: these samples were drawn with {before}; give another --keep")
    reference = Reference.load(folder)
    assert reference is not None
    drawn = found.pop("drawn")
    rows = {}
    for name in drawn if job["measure"] else ():
        rows[name] = {one["molecules"]: one for one in measure(drawn[name], reference).rows}
    return {**job, **found, "rows": rows}


def train_and_draw(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains with one seed, saves the model in ``folder`` and draws with each of ``SAMPLINGS``."""
    from mambakit.core.training import RunFolder, resolve_device
    from mambakit.domains.molecules.cards import load_molecules
    from mambakit.domains.molecules.language.config import PRESET_CORPUS, PRESET_MODEL, PRESET_TRAIN
    from mambakit.domains.molecules.language.corpus import make_corpus
    from mambakit.domains.molecules.language.sampling import SamplingConfig, sample
    from mambakit.domains.molecules.language.training import train_language_model

    seed = job["seed"]
    configs: dict[str, Any] = {
        "model": PRESET_MODEL,
        "corpus": PRESET_CORPUS,
        "train": dataclasses.replace(
            PRESET_TRAIN, seed=seed, device=job["device"], num_workers=job["workers"]
        ),
    }
    for name, value in {**SETTINGS.get(job["data"], {}), **job["changes"]}.items():
        part, _, field = name.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    began = time.monotonic()
    molecules = load_molecules(job["data"], tasks=())
    if job["limit"] is not None:
        molecules = dataclasses.replace(
            molecules,
            **{name: getattr(molecules, name)[: job["limit"]] for name in ("rows", "smiles", "labels")},
            table=None,
            parts=None,
        )
    corpus = make_corpus(molecules, configs["corpus"], seed=seed)
    read = time.monotonic()
    model, result = train_language_model(
        corpus,
        RunFolder(folder),
        model_config=configs["model"],
        corpus_config=configs["corpus"],
        train_config=configs["train"],
    )
    model.save_pretrained(folder)
    trained = time.monotonic()
    model.to(resolve_device(job["device"]))
    drawn = {
        name: [
            one.smiles
            for one in sample(
                model, SamplingConfig(n=job["n"], seed=seed, batch_size=job["batch"], **options)
            )
        ]
        for name, options in SAMPLINGS.items()
    }
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "bits_per_token": result.best_score / math.log(2),
        "epochs": result.epochs,
        "reading_seconds": round(read - began, 1),
        "training_seconds": round(trained - read, 1),
        "samples_per_second": round(len(SAMPLINGS) * job["n"] / (time.monotonic() - trained), 1),
        "drawn": drawn,
    }


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line of a seed that is done."""
    print(json.dumps({**one, "at": round(seconds)}), flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="zinc250k")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="processes that write SMILES anew")
    parser.add_argument("--n", type=int, default=10_000, help="molecules to draw")
    parser.add_argument("--batch", type=int, default=1000, help="drawn at once")
    parser.add_argument("--limit", type=int, help="learn from the first so many alone, to try it out")
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    parser.add_argument("--no-measure", dest="measure", action="store_false", help="draw and keep alone")
    add_flags(parser)
    parser.add_argument("--set", dest="given", nargs="*", default=[], metavar="PART.FIELD=JSON")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (one.partition("=") for one in arguments.given)}
    with tempfile.TemporaryDirectory() as temporary:
        jobs = [
            {
                "seed": seed,
                "folder": str(arguments.keep or temporary),
                "changes": changes,
                **{
                    name: getattr(arguments, name)
                    for name in ("data", "device", "workers", "n", "batch", "limit", "measure")
                },
            }
            for seed in arguments.seeds
        ]
        limits = {"seconds": arguments.seconds, "stop_after": arguments.stop_after}
        found = run_all(run_seed, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus, **limits)
    done = [one for one in found if "error" not in one]
    if changes or arguments.limit or not arguments.measure or len(done) < len(jobs):
        return 1 if len(done) < len(jobs) else 0
    from mambakit.domains.molecules.language.quality import BASELINE, HELD_OUT, SAMPLES
    from rows import row, write_rows

    def over_seeds(sampling: str, of: str, measure: str) -> list[float]:
        return [one["rows"][sampling][of][measure] for one in done if of in one["rows"][sampling]]

    made = []
    for sampling, (name, unit) in itertools.product(SAMPLINGS, MEASURES.items()):
        values = over_seeds(sampling, SAMPLES, name)
        peers = {
            of: round(statistics.mean(over_seeds(sampling, of, name)), 4)
            for of in (HELD_OUT, BASELINE)
            if not (of == HELD_OUT and name.endswith("held-out"))
        }
        made.append(
            row(
                f"molecules/{arguments.data}/generation/{name}{sampling}",
                round(statistics.mean(values), 4),
                unit,
                peers=peers,
                spread=round(statistics.pstdev(values), 4),
                seeds=arguments.seeds,
            )
        )
    bits = [one["bits_per_token"] for one in done]
    made.append(
        row(
            f"molecules/{arguments.data}/generation/bits-per-token",
            round(statistics.mean(bits), 4),
            "bits a token of canonical SMILES",
            spread=round(statistics.pstdev(bits), 4),
            seeds=arguments.seeds,
        )
    )
    print(write_rows("molecules-generation", made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
