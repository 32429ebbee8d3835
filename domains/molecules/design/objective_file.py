"""Objectives from YAML files and by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from rdkit.Chem import Mol

from mambakit.core.cli import did_you_mean
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.design.function_oracle import FunctionOracle
from mambakit.domains.molecules.design.objective import Aggregate, Component, Objective, Scorer
from mambakit.domains.molecules.design.oracles import PLAIN, WITH_OPTIONS, Oracle
from mambakit.domains.molecules.design.oracles_pmo import PMO
from mambakit.domains.molecules.design.predictor_oracle import predictor_scorer
from mambakit.domains.molecules.design.shaping import Transform, make_transform, number

# Saturn's experiment "part 1" (Guo & Schwaller 2024, arXiv:2405.17066; its published configuration): a large
# polar surface in a molecule of at most 350 g/mol with 2 to 5 rings. Its aggregator is called product, and is
# the geometric mean, as the rewards of its published run show.
SATURN_PART_1: dict[str, Any] = {
    "aggregate": "geometric",
    "components": [
        {"oracle": "tpsa", "transform": {"kind": "sigmoid", "low": 75, "high": 350, "k": 0.15}},
        {
            "oracle": "mw",
            "transform": {
                "kind": "double_sigmoid",
                "low": 0,
                "high": 350,
                "coef_div": 500,
                "coef_si": 250,
                "coef_se": 250,
            },
        },
        {"oracle": "rings", "transform": {"kind": "step", "low": 2, "high": 5}},
    ],
}
BY_NAME: dict[str, dict[str, Any]] = {
    **{name: {"components": [{"oracle": name}]} for name in PMO},
    "saturn-part1": SATURN_PART_1,
}
ORACLES = [*PLAIN, *WITH_OPTIONS, *(name for name in PMO if name not in PLAIN), "predictor", "function"]
_OF_COMPONENT = ("oracle", "name", "transform", "weight")


def load_objective(given: str) -> Objective:
    """The objective of a name (``qed``, a PMO oracle, ``saturn-part1``) or of a YAML file.

    Raises:
        UsageError: If it is neither, or can't be as it is written; the key is named.
        DataError: If the file can't be read, or a predictor or function of it can't be used.
    """
    if given in BY_NAME:
        return make_objective(BY_NAME[given])
    path = Path(given)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(
            f"objective: expected a YAML file or one of {', '.join(BY_NAME)}, got {given!r}"
            f"{did_you_mean(given, BY_NAME)}"
        )
    try:
        spec = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"objective: {path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise DataError(f"objective: {path} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return make_objective(spec, path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def make_objective(spec: Any, folder: Path | None = None) -> Objective:
    """The objective that a mapping describes.

    Args:
        spec: ``{aggregate, components}``, see ``objective.py``.
        folder: Where files named in it lie, if not in the current folder.

    Raises:
        UsageError: On a key that is unknown or missing, or a value that can't be; named by its key.
        DataError: If a predictor or function can't be used.
    """
    if not isinstance(spec, Mapping):
        raise UsageError(f"expected a mapping with components, got {spec!r}")
    for key in spec:
        if key not in ("aggregate", "components"):
            raise UsageError(
                f"{key}: there is no such key; there are aggregate and components"
                f"{did_you_mean(str(key), ['aggregate', 'components'])}"
            )
    aggregate = spec.get("aggregate", "geometric")
    if aggregate not in get_args(Aggregate):
        raise UsageError(f"aggregate: expected one of {', '.join(get_args(Aggregate))}, got {aggregate!r}")
    listed = spec.get("components")
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise UsageError(f"components: expected a list of at least one component, got {listed!r}")
    made: list[Component] = []
    try:
        for i, one in enumerate(listed):
            made.append(_component(one, f"components[{i}]", folder or Path()))
        return Objective(
            made, aggregate, {"aggregate": aggregate, "components": [dict(one) for one in listed]}
        )
    except (UsageError, DataError):
        for component in made:
            component.close()
        raise


def _component(spec: Any, at: str, folder: Path) -> Component:
    if not isinstance(spec, Mapping):
        raise UsageError(f"{at}: expected a mapping with an oracle, got {spec!r}")
    oracle = spec.get("oracle")
    if not isinstance(oracle, str) or oracle not in ORACLES:
        raise UsageError(
            f"{at}.oracle: expected one of {', '.join(ORACLES)}, got {oracle!r}"
            f"{did_you_mean(str(oracle), ORACLES)}"
        )
    weight = number(spec.get("weight", 1.0), f"{at}.weight", positive=True)
    transform = (
        None if spec.get("transform") is None else make_transform(spec["transform"], f"{at}.transform")
    )
    options = {str(key): value for key, value in spec.items() if key not in _OF_COMPONENT}
    name = str(spec.get("name", oracle))
    if oracle == "function":
        _check_options(options, ("function",), ("timeout_s", "batch"), at)
        own = _function(options, at, folder)
        return Component(
            str(spec.get("name", own.function)),
            lambda smiles, mols: own(smiles),
            transform,
            weight,
            own.batch,
            own.close,
        )
    if oracle == "predictor":
        _check_options(options, ("model",), ("task",), at)
        scorer, bounded = predictor_scorer(_found(str(options["model"]), folder), options.get("task"), at)
        _check_transform(transform, bounded, f"{at}.transform: this property")
        return Component(name, scorer, transform, weight)
    if oracle in WITH_OPTIONS:
        maker, bounded = WITH_OPTIONS[oracle]
        parameters = inspect.signature(maker).parameters
        needed = [key for key, one in parameters.items() if one.default is one.empty]
        _check_options(options, needed, [key for key in parameters if key not in needed], at)
        try:
            function = maker(**options)
        except UsageError as error:
            raise UsageError(f"{at}.{error}") from None
    else:
        _check_options(options, (), (), at)
        function, bounded = PLAIN[oracle] if oracle in PLAIN else (PMO[oracle](), True)
    _check_transform(transform, bounded, f"{at}.transform: {oracle}")
    return Component(name, each(function), transform, weight)


def each(oracle: Oracle) -> Scorer:
    """An oracle of one molecule, for several; what RDKit can't compute has no value."""

    def score(smiles: Sequence[str], mols: Sequence[Mol]) -> tuple[NDArray[np.float64], list[str]]:
        values, reasons = np.full(len(mols), np.nan), [""] * len(mols)
        for i, mol in enumerate(mols):
            try:
                values[i] = oracle(mol)
            except (RuntimeError, ValueError, ArithmeticError, LookupError) as error:
                reasons[i] = f"RDKit failed: {' '.join(str(error).split())}"
        return values, reasons

    return score


def _function(options: Mapping[str, Any], at: str, folder: Path) -> FunctionOracle:
    given = options["function"]
    file, colon, name = str(given).rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UsageError(f"{at}.function: expected FILE.py:FUNCTION, got {given!r}")
    timeout_s = number(options.get("timeout_s", 60.0), f"{at}.timeout_s", positive=True)
    batch = options.get("batch", 16)
    if not isinstance(batch, Integral) or isinstance(batch, bool) or batch < 1:
        raise UsageError(f"{at}.batch: expected a whole number of at least 1, got {batch!r}")
    return FunctionOracle(_found(file, folder), name, timeout_s=timeout_s, batch=int(batch))


def _check_transform(transform: Transform | None, bounded: bool, subject: str) -> None:
    if transform is None and not bounded:
        raise UsageError(
            f"{subject} is not between 0 and 1 and needs one, such as "
            "{kind: sigmoid, low: ..., high: ..., k: 0.25}"
        )


def _found(name: str, folder: Path) -> Path:
    """A path from the current folder, or else from the objective file's."""
    path = Path(name).expanduser()
    return path if path.exists() or path.is_absolute() else folder / path


def _check_options(options: Mapping[str, Any], needed: Sequence[str], others: Sequence[str], at: str) -> None:
    known = [*_OF_COMPONENT, *needed, *others]
    for key in options:
        if key not in known:
            raise UsageError(
                f"{at}.{key}: there is no such key here; there are {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
    for key in needed:
        if key not in options:
            raise UsageError(f"{at}.{key}: it is needed here")
