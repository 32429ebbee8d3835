"""The folder that a training run leaves behind.

config.yaml, environment.json, metrics.csv, checkpoints/, pictures/, report.html, result.json once the run has
finished, and evaluation.json once its model was measured.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mambakit.core.errors import UserError

if TYPE_CHECKING:
    from mambakit.core.hub import HubModel
    from mambakit.core.trust.model_card import RunFacts

_PACKAGES = ("mambakit", "torch", "lightning", "numpy", "triton", "numba")
_OWN = (
    *("config.yaml", "environment.json", "metrics.csv", "result.json", "evaluation.json"),
    *("report.html", "checkpoints", "pictures", "memory"),
)


class RunFolder:
    """A run's folder, made on ``start``.

    Args:
        path: Where it is or shall be.
        overwrite: Whether ``start`` may remove what another run left there.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.started = False

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint that a killed run continues from, if there is one."""
        path = self.checkpoints / "last.ckpt"
        return path if path.exists() else None

    @property
    def result(self) -> dict[str, Any] | None:
        """What ``finish`` stored, or None while the run has not finished."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def start(self, config: object, *, seed: int | None = None) -> None:
        """Makes the folder and writes the config and the environment, or takes up a run of the same config.

        Args:
            config: A dataclass or a mapping, nested as you like: everything that shaped the run.
            seed: The run's seed, for ``environment.json``.

        Raises:
            UserError: If the folder holds a run of another config, or files that are no run's, and
                ``overwrite`` was not set; or if it cannot be written.
        """
        text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, and a run needs a folder; choose another output")
        if self.overwrite:
            self._clear()
        elif self.config_path.exists():
            self._refuse_another(yaml.safe_load(text))
            self.started = True
            return
        elif self.path.is_dir() and any((self.path / name).exists() for name in _OWN):
            raise UserError(
                f"{self.path} holds a run without config.yaml; choose another output or overwrite it"
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.pictures.mkdir(exist_ok=True)
            write_atomically(self.path / "environment.json", json.dumps(environment(seed), indent=2) + "\n")
            write_atomically(self.config_path, text)
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error.strerror}") from error
        self.started = True

    def finish(self, result: Mapping[str, Any]) -> None:
        """Marks the run as finished and stores its result."""
        write_atomically(self.path / "result.json", json.dumps(_plain(result), indent=2) + "\n")

    def save(self, model: HubModel, name: str = "", *, of_result: bool = True) -> None:
        """Saves a model that this run trained, with a card that says so.

        Args:
            model: What to save.
            name: A folder inside the run's, for further models.
            of_result: Whether ``result.json`` is of these very weights.
        """
        model.save_pretrained(self.path / name, model_card_kwargs={"run": self._facts(of_result)})

    def measured(
        self,
        model: HubModel,
        rows: Sequence[Mapping[str, Any]],
        *,
        data: str,
        ours: Mapping[str, Any],
        split: str = "test",
        name: str = "",
    ) -> None:
        """Writes what was measured of the saved model into ``evaluation.json`` and into its card.

        Args:
            model: That was measured.
            rows: A mapping a model, or a model and condition.
            data: The name of what it was measured on.
            ours: What the rows of ``model`` hold, such as ``{"model": "mambakit"}``.
            split: The part of the data.
            name: The model's folder inside the run's.
        """
        from mambakit.core.hub import CARD_FILE
        from mambakit.core.trust.model_card import Measured, add_measured

        plain = _finite(_plain(rows))
        found = {"data": data, "split": split, "ours": _plain(ours), "results": plain}
        folder = self.path / name
        write_atomically(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
        add_measured(folder / CARD_FILE, Measured(Path(data).name, split, plain, ours), model.about)

    def _facts(self, of_result: bool) -> RunFacts:
        from mambakit.core.trust.model_card import RunFacts

        config = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        environment = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        result = self.result if of_result else None
        return RunFacts(config, environment, result, {} if result is None else self._validation(result))

    def _validation(self, result: Mapping[str, Any]) -> dict[str, float]:
        """The kept checkpoint's validation figures: of its row in ``metrics.csv``, if it is one's."""
        monitor, score = result.get("monitor"), result.get("best_score")
        if monitor is None or score is None:
            return {}
        found = {monitor: score}
        if self.metrics_path.exists():
            with self.metrics_path.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    # the average of checkpoints has no row, and the file has eight digits
                    if row["step"] == str(result.get("steps_to_best")) and math.isclose(
                        float(row.get(monitor) or "nan"), score, rel_tol=1e-6
                    ):
                        figures = {key: text for key, text in row.items() if key.startswith("val/") and text}
                        found = {**{key: float(text) for key, text in figures.items()}, **found}
        return {key: value for key, value in found.items() if math.isfinite(value)}

    def save_picture(self, figure: Any, name: str) -> Path:
        """Saves a matplotlib figure as ``pictures/<name>.png``."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight")
        return path

    def _refuse_another(self, config: Any) -> None:
        there = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        changed = _differences(there, config)
        if changed:
            state = "a finished" if self.result is not None else "an unfinished"
            raise UserError(
                f"{self.path} holds {state} run with another config ({', '.join(changed[:4])}"
                f"{', ...' if len(changed) > 4 else ''}); choose another output or overwrite it"
            )

    def _clear(self) -> None:
        """Removes a run's own files, and nothing else that a user may have put there."""
        for name in _OWN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def environment(seed: int | None = None) -> dict[str, Any]:
    """What a run ran on: versions, machine, command, git commit if the code is a checkout."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_commit": _git_commit(),
        "command": sys.argv,
        "seed": seed,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a killed process leaves the old one or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _git_commit() -> str | None:
    """The commit of the checkout that this code lies in; None when it is installed."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # An installed copy may lie inside a repository of the user's own: that commit is not ours.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()


def _plain(value: Any) -> Any:
    """What YAML and JSON can write: dataclasses as mappings, tuples as lists, paths as strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy or torch scalar
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """``train.lr: 0.001, now 0.01`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            found += _differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
        return found
    return [] if old == new else [f"{at}: {old}, now {new}"]
