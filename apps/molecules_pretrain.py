"""Languages of molecules: what `mambakit molecules pretrain` and `generate` do."""

from __future__ import annotations

import csv
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambakit.apps.shared import check_suffix, tell, train_config
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.molecules.language.config import (
    PRESET_CORPUS,
    PRESET_MODEL,
    PRESET_TRAIN,
    CorpusConfig,
    ModelConfig,
)

if TYPE_CHECKING:
    from mambakit.domains.molecules.language.model import MoleculeModel
    from mambakit.domains.molecules.language.quality import Quality
    from mambakit.domains.molecules.language.sampling import Sample

_COLUMNS = ("number", "smiles", "valid", "reason", "canonical", "novel", "log_prob")


def pretrain(
    *,
    data: str = "nci",
    output: Path = Path("runs/language"),
    smiles_column: str | None = None,
    largest_component: bool = False,
    pretrained: Path | None = None,
    samples: int = 1000,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: ModelConfig = PRESET_MODEL,
    corpus: CorpusConfig = PRESET_CORPUS,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a language model of molecules, and measures molecules drawn from it.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html, left_out.csv) and
    the model with its tokenizer. Some training molecules lie in it too: whoever gets the folder gets them
    (--corpus.n_reference 0 keeps none).

    Args:
        data: A card's name (`mambakit data list`), or a .smi, .csv, .parquet or .sdf file of molecules.
        output: Folder for the run and the model; a killed run continues in it.
        smiles_column: Column of the SMILES in a table; found by the usual names.
        largest_component: Keep only the largest component of salts and mixtures.
        pretrained: Folder of a saved model to continue from; its vocabulary grows by what is new in the data.
        samples: Molecules drawn at the end to measure the model by; 0 measures nothing.
        seed: Seed of weights, parts, shuffling and rewriting.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network; without effect with --pretrained.
        corpus: How molecules are written, and what is held out.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit molecules pretrain --data zinc250k --output runs/lm
        mambakit molecules pretrain --data mine.smi --pretrained runs/lm --output runs/mine --train.lr 3e-4
        mambakit molecules pretrain --data mine.smi --pretrained runs/lm --train.adapt.base runs/lm \\
            --train.adapt.kind lora --output runs/small
        mambakit molecules pretrain --data nci --model.n_layers 4 --max-time 5m
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.molecules.cards import load_molecules
    from mambakit.domains.molecules.language import report
    from mambakit.domains.molecules.language.corpus import make_corpus
    from mambakit.domains.molecules.language.quality import SAMPLES
    from mambakit.domains.molecules.language.training import train_language_model
    from mambakit.domains.molecules.unseen import unseen_sentence

    if samples < 0:
        raise UsageError(f"samples: expected at least 0, got {samples}")
    config = train_config(train, seed, device, max_time)
    before = None if pretrained is None else _load(pretrained, "cpu")
    if before is not None and before.tokenizer.kind != corpus.notation:
        raise UsageError(
            f"pretrained: {pretrained} is a model of {before.tokenizer.kind}, but corpus.notation is "
            f"{corpus.notation}"
        )
    run = RunFolder(output, overwrite=overwrite)
    options = {"smiles_column": smiles_column, "largest_component": largest_component}
    run.start(
        {
            "data": data,
            **options,
            "pretrained": pretrained,
            "model": model,
            "corpus": corpus,
            "train": config,
        },
        seed=config.seed,
    )
    molecules = load_molecules(data, smiles_column=smiles_column, tasks=(), largest=largest_component)
    if before is not None:
        unseen = before.tokenizer.unseen(molecules.smiles.tolist(), molecules.rows.tolist())
        tell([unseen_sentence(unseen)] if unseen else [])
    parts = make_corpus(
        molecules, corpus, seed=config.seed, tokenizer=None if before is None else before.tokenizer
    )
    parts.left_out.to_csv(run.path / "left_out.csv", index=False)
    if len(parts.left_out):
        print(
            f"note: {len(parts.left_out)} rows are left out, each with its reason in left_out.csv; the first "
            f"is row {parts.left_out.row[0]}: {parts.left_out.reason[0]}",
            file=sys.stderr,
        )
    network, result = train_language_model(
        parts, run, model_config=model, corpus_config=corpus, train_config=config, start=before
    )
    run.save(network)
    quality = None
    if samples and corpus.n_reference:
        quality = _of_fresh_samples(network, samples, config.seed, config.device)
        run.measured(
            network, quality.rows, data=f"{samples} samples", split="drawn", ours={"molecules": SAMPLES}
        )
    report.write_run(run, network, parts, result, quality)
    bits = result.best_score / math.log(2)
    if json:
        measured = {} if quality is None else quality.to_dict()
        print_json({"data": data, "validation_bits_per_token": bits, "model": run.path, **measured})
        return
    if quality is not None:
        print(format_table(report.shown(quality.rows)))
    print(f"validation: {bits:.4g} bits a token\nmodel: {run.path}\nreport: {run.report_path}")


def generate(
    *,
    model: Path,
    n: int = 1000,
    output: Path | None = None,
    grid: Path | None = None,
    report: Path | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    unique: bool = False,
    prefix: str = "",
    scaffold: str = "",
    max_length: int = 512,
    measure: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Draws molecules from a language model, and measures them beside held-out ones and an n-gram model.

    They are written as they are drawn: a run that is killed leaves what it has. A .csv has every one, with
    RDKit's reason where it is not valid; a .smi has the valid ones, named by their number.

    Args:
        model: Folder of the saved model.
        n: How many; with --unique, so many valid ones that differ.
        output: A .csv or .smi file; standard output by default.
        grid: A .png or .svg picture of the first valid molecules that differ.
        report: An .html file of all that was measured, with pictures; the same numbers go beside it as .json.
        temperature: Below 1 likelier molecules, above 1 stranger ones.
        top_k: Only the k likeliest tokens.
        top_p: Only the fewest likeliest tokens whose probabilities reach p.
        unique: Draw invalid and repeated molecules again, up to 20 draws a molecule.
        prefix: Every SMILES begins with this text.
        scaffold: A SMILES with attachment points `*`: every valid molecule holds it, with a substituent at
            each attachment point and nowhere else.
        max_length: Tokens of a molecule at most.
        measure: Measure the molecules; `--measure false` only draws.
        batch_size: Molecules drawn at once.
        seed: The same seed draws the same molecules.
        device: auto, cpu, cuda or mps.
        json: Print what was measured as JSON.

    Examples:
        mambakit molecules generate --model runs/lm --n 1000 --output new.smi --grid new.png
        mambakit molecules generate --model runs/lm --n 200 --unique --scaffold "O=C(N*)c1ccc(*)cc1"
        mambakit molecules generate --model runs/lm --prefix "c1ccc2[nH]" --output indoles.csv
    """
    from mambakit.domains.molecules.language import pictures
    from mambakit.domains.molecules.language import quality as qualities
    from mambakit.domains.molecules.language import report as reports
    from mambakit.domains.molecules.language.decoration import query_of
    from mambakit.domains.molecules.language.sampling import SamplingConfig, sample

    check_suffix("output", output, (".csv", ".smi"))
    check_suffix("grid", grid, (".png", ".svg"))
    check_suffix("report", report, (".html",))
    config = SamplingConfig(
        n=n, temperature=temperature, top_k=top_k, top_p=top_p, unique=unique, prefix=prefix,
        scaffold=scaffold, max_length=max_length, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    network = _load(model, device)
    drawn: list[Sample] = []
    with _writer(output, network, quiet=json) as write:
        for one in sample(network, config):
            drawn.append(one)
            write(len(drawn), one)
    valid = [one for one in drawn if one.valid]
    faults = Counter(_kind(one.reason) for one in drawn if not one.valid)
    found = f"{len(drawn)} molecules drawn, {len(valid)} valid" if not unique else f"{len(valid)} molecules"
    print(f"{found}{'' if output is None else f': {output}'}", file=sys.stderr)
    if unique and len(valid) < n:
        print(f"note: fewer than {n}: the model kept drawing the same or invalid ones", file=sys.stderr)
    query = query_of(scaffold) if scaffold else None
    if grid is not None:
        pictures.grid(list(dict.fromkeys(one.canonical for one in valid)), grid, query=query)
    if network.reference is None or not network.reference.train or not measure or not drawn:
        if report is not None:
            raise UsageError(f"report: {model} keeps no molecules to compare with, or --measure is false")
        return
    measured = qualities.measure([one.smiles for one in drawn], network.reference)
    rows = reports.shown(measured.rows)
    if report is not None:
        settings: dict[str, object] = {"valid": len(valid), "temperature": temperature}
        settings |= {name: text for name, text in (("prefix", prefix), ("scaffold", scaffold)) if text}
        reports.write_samples(report, measured, settings=settings, faults=faults, query=query)
        reports.write_json(report.with_suffix(".json"), {**settings, **measured.to_dict(), "faults": faults})
    if json:
        print_json({"model": model, "drawn": len(drawn), "valid": len(valid), **measured.to_dict()})
    else:
        print(format_table(rows), file=sys.stderr if output is None else sys.stdout)


def _load(folder: Path, device: str) -> MoleculeModel:
    from mambakit.core.training import resolve_device
    from mambakit.domains.molecules.language.model import MoleculeModel

    return MoleculeModel.from_pretrained(folder).to(resolve_device(device)).eval()


def _of_fresh_samples(network: MoleculeModel, n: int, seed: int, device: str) -> Quality:
    from mambakit.core.training import resolve_device
    from mambakit.domains.molecules.language.quality import measure
    from mambakit.domains.molecules.language.sampling import SamplingConfig, sample

    reference = network.reference
    assert reference is not None
    network = network.to(resolve_device(device))
    drawn = [one.smiles for one in sample(network, SamplingConfig(n=n, seed=seed))]
    network.cpu()
    return measure(drawn, reference)


@contextmanager
def _writer(output: Path | None, network: MoleculeModel, *, quiet: bool) -> Iterator[Any]:
    """A function of a sample's number and the sample, which puts it into the file at once."""
    if output is None:
        yield (lambda number, one: None if quiet or not one.valid else print(one.smiles))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        if output.suffix.lower() == ".csv":
            table.writerow(_COLUMNS)

        def write(number: int, one: Sample) -> None:
            if output.suffix.lower() == ".smi":
                if one.valid:
                    stream.write(f"{one.smiles} sample-{number}\n")
            else:
                novel = ""
                if one.valid and network.reference is not None:
                    novel = str(not network.reference.seen([one.canonical])[0]).lower()
                table.writerow(
                    [number, one.smiles, str(one.valid).lower(), one.reason, one.canonical, novel,
                     f"{one.log_prob:.4f}"]
                )  # fmt: skip
            stream.flush()

        yield write


def _kind(reason: str) -> str:
    """A reason without the numbers of atoms, so that alike ones are counted together."""
    return " ".join("_" if word.strip(",").isdigit() else word for word in reason.split())
