"""Which function `mambakit speech train` and `evaluate` are: each task has flags of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mambakit.apps.speech_classify import evaluate_classify, train_classify
from mambakit.apps.speech_enhance import evaluate_enhance, train_enhance
from mambakit.apps.speech_language import evaluate_language, train_language
from mambakit.apps.speech_recognize import evaluate_recognize, train_recognize
from mambakit.apps.speech_separate import evaluate_separate, train_separate
from mambakit.core.cli import did_you_mean
from mambakit.core.errors import DataError, UsageError

Verb = Callable[..., object]

TRAINERS: dict[str, Verb] = {
    "classify": train_classify,
    "recognize": train_recognize,
    "language": train_language,
    "enhance": train_enhance,
    "separate": train_separate,
}
EVALUATORS: dict[str, Verb] = {
    "classify": evaluate_classify,
    "recognize": evaluate_recognize,
    "language": evaluate_language,
    "enhance": evaluate_enhance,
    "separate": evaluate_separate,
}
_FIRST = "classify"


def trainer(words: Sequence[str]) -> Verb:
    """The function that trains the task that ``--task`` names in the words after ``mambakit speech``, or the
    file that ``--config`` names.

    Raises:
        UsageError: If there is no such task.
    """
    task = _value(words, "--task") or _task_of(_value(words, "--config")) or _FIRST
    if task not in TRAINERS:
        raise UsageError(
            f"task: there is no {task!r}{did_you_mean(task, TRAINERS)}; tasks: {', '.join(TRAINERS)}"
        )
    return TRAINERS[task]


def evaluator(words: Sequence[str]) -> Verb:
    """The function that measures what lies in the folder that ``--model`` names.

    Raises:
        DataError: If that says another task than there are.
    """
    folder = _value(words, "--model")
    if not words or words[0] != "evaluate" or folder is None:
        return EVALUATORS[_FIRST]
    from mambakit.domains.speech.saved import DATA_FILE, load_spec

    if not (Path(folder) / DATA_FILE).is_file():  # said when the model is read, with its flags checked
        return EVALUATORS[_FIRST]
    task = load_spec(Path(folder)).task
    if task not in EVALUATORS:
        raise DataError(f"{folder}: a model of the task {task!r}, which this version does not measure")
    return EVALUATORS[task]


def _task_of(config: str | None) -> str | None:
    if config is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # said when the flags are read
        return None
    task = values.get("task") if isinstance(values, dict) else None
    return task if isinstance(task, str) else None


def _value(words: Sequence[str], flag: str) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
