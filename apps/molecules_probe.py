"""Probing a property model: what `mambakit molecules probe` does."""

from __future__ import annotations

from pathlib import Path

from mambakit.apps.molecules_train import PartKind, load_model
from mambakit.apps.probing import check_outputs, show_probe


def probe(
    *,
    model: Path,
    data: str | None = None,
    part: PartKind | None = None,
    smiles_column: list[str] | None = None,
    only: list[str] = [],  # noqa: B006  (only read)
    output: Path | None = None,
    plot: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures how a property model's error grows as the tokens that it reads are spoilt more and more.

    Labels, and features computed from the molecule, stay as they were. dt times 1/8 to 8 makes every
    state-space block step as if all happened slower or faster than in training.

    Args:
        model: Folder of the saved model.
        data: A card's name or a file with the same columns of labels; the training's by default.
        part: test, validation, train or all; of other data than the training's, all.
        smiles_column: The column of structures (or several), of other data.
        only: Some of the perturbations: replace, drop, shuffle, dt; all by default.
        output: CSV or Parquet with a row a level.
        plot: PNG, PDF or SVG with a panel a perturbation.
        seed: Of what is drawn; the same seed spoils alike.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit molecules probe --model runs/esol --plot probe.png
        mambakit molecules probe --model runs/esol --data later.csv --only drop --output probe.csv --json
    """
    from mambakit.domains.molecules import data as sources
    from mambakit.domains.molecules.probing import subject

    check_outputs(output, plot)
    trained = load_model(model, device)
    molecules, places, which = sources.to_evaluate(model, trained.config.tasks, data, part, smiles_column)
    probed = subject(trained, molecules, places, f"{molecules.name}, {which}: {len(places)} molecules")
    show_probe(probed, only=only, seed=seed, output=output, plot=plot, json=json)
