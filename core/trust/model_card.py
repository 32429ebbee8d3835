"""The card in a saved model's folder: ``README.md`` in the Hugging Face model-card form.

What it says comes from the model, from its run's own files, and from measurements that are given to it; it
says so where something is not known. Mitchell et al. 2019, Model Cards for Model Reporting, is where the
sections come from: what a model is for, its data, its figures and the split they are of, and its limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from mambakit.core.trust.about import About
from mambakit.core.trust.data_facts import DataFacts, facts_of

MARK = "<!-- Written when the model was saved, and again at the next save; without this line it is kept. -->"
_MEASURED = "<!-- measured -->"
_TAGS = ["mambakit", "state-space-model"]
# Of a run's settings, what the card has under other headings or is no fact of the data.
_NOT_SETTINGS = ("data", "model", "policy", "loss", "train")


@dataclass(frozen=True)
class RunFacts:
    """What a run's folder says of the model that it trained.

    Attributes:
        config: All that shaped the run.
        environment: Versions, commit and seed.
        result: How the training went; None where that is of other weights than the model's.
        validation: What was measured on validation data of the weights that were kept, by name.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    validation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Figures of a model, and of what was measured beside it.

    Attributes:
        data: The name of the data.
        split: Which part of them, such as ``test``.
        rows: A mapping a model, with its figures; what is no number says which model or condition it is.
        ours: What the rows of the card's own model hold, such as ``{"model": "mambakit"}``.
    """

    data: str
    split: str
    rows: Sequence[Mapping[str, Any]]
    ours: Mapping[str, Any]

    @property
    def own(self) -> list[Mapping[str, Any]]:
        """The rows of the card's model."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in self.ours.items())]


def is_written(path: Path) -> bool:
    """Whether a card is there that a save wrote, and that the next one may replace."""
    return path.is_file() and MARK in path.read_text(encoding="utf-8")


def model_card(model: nn.Module, about: About, run: RunFacts | None = None) -> ModelCard:
    """The card of a model.

    Args:
        model: Of which the size and the class are told.
        about: What its class is for.
        run: Of the run that trained it; None where it is not known.
    """
    kind = type(model)
    title = f"mambakit {kind.__name__}"
    named = run.config.get("data") if run else None
    data = facts_of(str(named)) if named else []
    results = []
    if run is not None and run.validation:
        row = dict(run.validation)
        results = _eval_results(Measured(", ".join(one.name for one in data), "validation", [row], {}), about)
    head = ModelCardData(
        model_name=title,
        library_name="mambakit",
        tags=_TAGS,
        pipeline_tag=about.tag,
        datasets=[one.name for one in data] or None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    parts = [
        MARK,
        f"# {title}",
        _summary(kind, about),
        "## Intended use",
        about.use or f"Not said by the author of `{kind.__name__}`.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in about.limits) or f"Not said by the author of `{kind.__name__}`.",
        "## How to load it",
        _loading(kind, about),
        "## Size",
        _size(model),
        "## Data",
        _data(data, run),
        "## Training",
        _training(run),
        *_validation(run),
        _MEASURED,
        "## Measured\n\nNothing was measured on data that training did not see.",
    ]
    return _whole(head, "\n\n".join(parts))


def add_measured(path: Path, measured: Measured, about: About) -> bool:
    """Put what was measured into a card that a save wrote, in the place of what stood there.

    Args:
        path: Of the card.
        measured: The figures, and where they are from.
        about: The model's.

    Returns:
        Whether it was done: a card that a person wrote is theirs.
    """
    if not is_written(path):
        return False
    card = ModelCard.load(path)
    head: ModelCardData = card.data
    kept = [one for one in head.eval_results or [] if one.dataset_split == "validation"]
    head.eval_results = [*kept, *_eval_results(measured, about)] or None
    before = card.text.partition(_MEASURED)[0].strip()
    what = f"Measured on the part `{measured.split}` of {measured.data}; `evaluation.json` has every figure."
    parts = [before, _MEASURED, "## Measured", what, _table(measured.rows)]
    _whole(head, "\n\n".join(parts)).save(path)
    return True


def _whole(head: ModelCardData, text: str) -> ModelCard:
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{text}\n")


def _summary(kind: type, about: About) -> str:
    first = (kind.__doc__ or "").strip().partition("\n")[0]
    return f"A model for {about.task}. {first}".strip() if about.task else first


def _loading(kind: type, about: About) -> str:
    lines = [
        "```python",
        f"from {kind.__module__} import {kind.__qualname__}",
        "",
        f'model = {kind.__qualname__}.from_pretrained("FOLDER")  # where this file lies',
        "```",
    ]
    if about.commands:
        lines += ["", "```sh", *about.commands, "```"]
    return "\n".join(lines)


def _size(model: nn.Module) -> str:
    parameters = list(model.parameters())
    kinds = sorted({str(one.dtype).removeprefix("torch.") for one in parameters})
    return (
        f"{sum(one.numel() for one in parameters):,} parameters in {len(parameters)} tensors "
        f"({', '.join(kinds) or 'none'}). `config.json` says how they are put together."
    )


def _data(data: Sequence[DataFacts], run: RunFacts | None) -> str:
    if not data:
        return "What it was trained on is not recorded in this folder."
    lines = []
    for one in data:
        lines.append(f"- **{one.name}**" + (f": {one.title}" if one.title else ""))
        if one.is_card:
            lines.append(f"  - card: `mambakit data show {one.name}`")
        lines.append(f"  - licence of the data: {one.license or 'not known'}")
        facts = [("home", one.homepage), ("version", one.version)]
        lines += [f"  - {name}: {value}" for name, value in facts if value]
        lines += [f"  - sha256 of {what}: `{value}`" for what, value in one.fingerprints]
        if not one.fingerprints:
            made = (
                "they are made by the code, or come with a package" if one.is_card else "they are not there"
            )
            lines.append(f"  - no fingerprint: {made}")
    settings = {
        name: value
        for name, value in (run.config if run else {}).items()
        if name not in _NOT_SETTINGS and value is not None and not isinstance(value, (dict, list))
    }
    if settings:
        shown = ", ".join(f"{name} {_without_folder(value)}" for name, value in settings.items())
        lines += ["", f"Read and split with: {shown}."]
    return "\n".join(lines)


def _without_folder(value: object) -> object:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _training(run: RunFacts | None) -> str:
    if run is None:
        return "How it was trained is not recorded in this folder."
    versions = run.environment.get("versions") or {}
    lines = [
        f"- mambakit {versions.get('mambakit') or 'of unknown version'}, "
        + (f"commit `{commit}`" if (commit := run.environment.get("git_commit")) else "from a package"),
        f"- torch {versions.get('torch')}, Python {run.environment.get('python')}",
        f"- seed {run.environment.get('seed')}, begun {run.environment.get('started')}",
    ]
    if run.result is not None:
        lines.append(
            f"- {run.result['steps']:,} optimizer steps in {run.result['epochs']} epochs, "
            f"{run.result['seconds']:.0f} s; ended by {run.result['stopped']}"
        )
    if run.result is not None and (private := run.result.get("privacy")):
        lines.append(
            f"- differential privacy of the gradient steps: epsilon {private['epsilon']:.4g} at delta "
            f"{private['delta']:g} for {private['unit']}, by noise of {private['noise_multiplier']:g} times "
            f"the clipping norm in {private['steps']} steps at a sampling rate of "
            f"{private['sample_rate']:.4g}; not covered: the choice of weights on validation data"
            + (f", {private['not_covered']}" if private["not_covered"] else "")
        )
    train = run.config.get("train")
    if train:
        lines += ["", "```yaml", yaml.safe_dump({"train": train}, sort_keys=False).strip(), "```"]
    return "\n".join(lines)


def _validation(run: RunFacts | None) -> list[str]:
    if run is None or not run.validation:
        return []
    said = (
        "Of the checkpoint that was kept, on the part of the data that chose it: better than it is elsewhere."
    )
    rows = [{"figure": name, "value": value} for name, value in run.validation.items()]
    body = "\n".join(f"| {row['figure']} | {_shown(row['value'])} |" for row in rows)
    return ["## Validation", said, f"| figure | value |\n| --- | --- |\n{body}"]


def _eval_results(measured: Measured, about: About) -> list[EvalResult]:
    found = []
    for row in measured.own:
        condition = ", ".join(
            f"{name} {value}"
            for name, value in row.items()
            if isinstance(value, str) and name not in measured.ours
        )
        for name, value in row.items():
            if not _is_number(value) or name.endswith(("-lo", "-hi")):
                continue
            found.append(
                EvalResult(
                    task_type=about.tag or "other",
                    task_name=about.task or None,
                    dataset_type=measured.data or "unknown",
                    dataset_name=measured.data or "unknown",
                    dataset_split=measured.split,
                    metric_type=name,
                    metric_name=f"{name} ({condition})" if condition else name,
                    metric_value=value,
                )
            )
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column for each row, as there are more figures than models; an interval behind its figure."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    labels = [name for name in names if any(isinstance(row.get(name), str) for row in rows)]
    figures = [name for name in names if name not in labels and not name.endswith(("-lo", "-hi"))]
    heads = [" ".join(str(row[name]) for name in labels if row.get(name)) or "value" for row in rows]
    lines = [f"| figure | {' | '.join(heads)} |", f"| --- |{' --- |' * len(rows)}"]
    for name in figures:
        lines.append(f"| {name} | {' | '.join(_with_interval(row, name) for row in rows)} |")
    return "\n".join(lines)


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}-lo"), row.get(f"{name}-hi")
    shown = _shown(row.get(name))
    return f"{shown} ({_shown(low)} to {_shown(high)})" if _is_number(low) and _is_number(high) else shown


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "–" if value is None or isinstance(value, float) else str(value)
