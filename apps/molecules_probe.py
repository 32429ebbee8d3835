"""Probing a property model: what `mambakit molecules probe` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mambakit.apps.molecules_train import PartKind, load_model
from mambakit.apps.probing import Attack, check_attack, check_outputs, show_membership, show_probe
from mambakit.core.errors import UsageError

if TYPE_CHECKING:
    from mambakit.core.trust.membership import Attacked
    from mambakit.domains.molecules.model import PropertyModel


def probe(
    *,
    model: Path,
    data: str | None = None,
    part: PartKind | None = None,
    smiles_column: list[str] | None = None,
    attack: Attack = "perturb",
    only: list[str] = [],  # noqa: B006  (only read)
    reference: Path | None = None,
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
        attack: perturb, or membership: can the training's cases be told from others by their loss?
        only: Some of the perturbations: replace, drop, shuffle, dt; all by default.
        reference: For membership, folder of a model trained without these cases: losses are judged by its.
        output: CSV or Parquet with a row a level, or an attack.
        plot: PNG, PDF or SVG with a panel a perturbation, or hits over false alarms.
        seed: Of what is drawn; the same seed spoils alike.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit molecules probe --model runs/esol --plot probe.png
        mambakit molecules probe --model runs/esol --data later.csv --only drop --output probe.csv --json
        mambakit molecules probe --model runs/esol --attack membership --reference runs/other --plot roc.png
    """
    from mambakit.domains.molecules import data as sources
    from mambakit.domains.molecules.probing import subject

    check_outputs(output, plot)
    check_attack(attack, only, reference)
    trained = load_model(model, device)
    if attack == "membership":
        if data is not None or part is not None:
            raise UsageError(
                "data, part: membership is of the training's data, which the model's folder names"
            )
        of_model, name = _attacked(trained, model, seed)
        beside = None if reference is None else _attacked(load_model(reference, device), model, seed)[0]
        show_membership(of_model, beside, name=name, seed=seed, output=output, plot=plot, json=json)
        return
    molecules, places, which = sources.to_evaluate(model, trained.config.tasks, data, part, smiles_column)
    probed = subject(trained, molecules, places, f"{molecules.name}, {which}: {len(places)} molecules")
    show_probe(probed, only=only, seed=seed, output=output, plot=plot, json=json)


def _attacked(trained: PropertyModel, folder: Path, seed: int) -> tuple[Attacked, str]:
    """The losses of a model on what the one in ``folder`` learned from and was tested on."""
    from mambakit.domains.molecules import data as sources
    from mambakit.domains.molecules.membership import attacked

    molecules, inside, _ = sources.to_evaluate(folder, trained.config.tasks, None, "train", None)
    _, outside, which = sources.to_evaluate(folder, trained.config.tasks, None, "test", None)
    split = which.removeprefix("test part of the ").removesuffix(" split")
    return attacked(trained, molecules, inside, outside, seed=seed, split=split), molecules.name
