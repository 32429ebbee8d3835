"""Probing a forecaster or a classifier of series: what `mambakit timeseries probe` does."""

from __future__ import annotations

from pathlib import Path

from mambakit.apps.probing import Attack, check_attack, check_outputs, show_membership, show_probe
from mambakit.apps.timeseries_evaluate import measure, opened
from mambakit.domains.timeseries.tables.series import Columns, Missing


def probe(
    *,
    model: Path,
    data: str,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    static_table: Path | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    attack: Attack = "perturb",
    only: list[str] = [],  # noqa: B006  (only read)
    reference: Path | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures how the error of forecasts grows, or accuracy falls, as what a model reads is spoilt.

    Targets, and the scales of errors, stay as they were. dt times 1/8 to 8 makes every
    state-space block step as if all happened slower or faster than in training.

    Args:
        model: Folder of the saved model.
        data: The card or file that a forecaster was trained on; for a classifier labelled series.
        columns: Which column is what, as in training.
        static_table: CSV or Parquet with a row a series.
        irregular: Take stamps as they are.
        missing: What to do about gaps and missing values in a file.
        attack: perturb, or membership: can the training's cases be told from others by their loss?
        only: Some of the perturbations: noise, missing, shuffle, dt; all by default.
        reference: For membership, folder of a model trained without these cases: losses are judged by its.
        output: CSV or Parquet with a row a level, or an attack.
        plot: PNG, PDF or SVG with a panel a perturbation, or hits over false alarms.
        seed: Of what is drawn; the same seed spoils alike.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries probe --model runs/etth1 --data ETTh1 --plot probe.png
        mambakit timeseries probe --model runs/vowels --data JapaneseVowels --only missing dt --json
        mambakit timeseries probe --model runs/etth1 --data ETTh1 --attack membership --plot roc.png
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.classification.evaluation import evaluate_classifier
    from mambakit.domains.timeseries.classification.network import SeriesClassifier
    from mambakit.domains.timeseries.evaluation import OURS
    from mambakit.domains.timeseries.membership import attacked_series, attacked_windows
    from mambakit.domains.timeseries.model import kind_of
    from mambakit.domains.timeseries.probing import classifying_subject, forecasting_subject
    from mambakit.domains.timeseries.tables.labelled import load_labelled

    check_outputs(output, plot)
    check_attack(attack, only, reference)
    if kind_of(model) is SeriesClassifier:
        classifier = SeriesClassifier.from_pretrained(model, map_location=resolve_device(device))
        asked = load_labelled(data, "test")
        if attack == "membership":
            known = load_labelled(data, "train")
            of_model = attacked_series(classifier, known, asked)
            beside = None
            if reference is not None:
                other = SeriesClassifier.from_pretrained(reference, map_location=resolve_device(device))
                beside = attacked_series(other, known, asked)
            show_membership(of_model, beside, name=data, seed=seed, output=output, plot=plot, json=json)
            return

        def right() -> dict[str, float]:
            row = evaluate_classifier(classifier, asked).rows[0]
            return {name: row[name] for name in ("accuracy", "macro_f1", "log_loss")}  # type: ignore[misc]

        probed = classifying_subject(classifier, right, f"{asked.name}, {len(asked.series)} series")
    else:
        forecaster, loaded = opened(
            model, data, columns=columns, static_table=static_table, irregular=irregular, missing=missing
        )
        if attack == "membership":
            of_model = attacked_windows(forecaster, loaded)
            beside = None
            if reference is not None:
                beside_it, same = opened(
                    reference, data, columns=columns, static_table=static_table, irregular=irregular,
                    missing=missing,
                )  # fmt: skip
                beside = attacked_windows(beside_it, same)
            show_membership(
                of_model, beside, name=loaded.name, seed=seed, output=output, plot=plot, json=json
            )
            return

        def errors() -> dict[str, float]:
            rows = measure(forecaster, loaded, device).rows
            row = next(row for row in rows if row["forecaster"] == OURS)
            return {name: row[name] for name in ("mse", "mae", "wql") if name in row}  # type: ignore[misc]

        probed = forecasting_subject(forecaster, errors, f"{loaded.name}, test windows")
    show_probe(probed, only=only, seed=seed, output=output, plot=plot, json=json)
