"""Measuring policies: what `mambakit robotics evaluate` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from mambakit.apps.robotics_train import changed_episodes, mask_of
from mambakit.apps.shared import check_suffix, tell
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError, UsageError

Weights = Literal["both", "best", "last"]
_COLUMNS = (
    *("policy", "weights", "target_return", "episodes", "mean", "deviation", "iqm", "iqm_low", "iqm_high"),
    *("length", "score", "success"),
)


def evaluate(
    *,
    model: Path,
    env: str | None = None,
    env_options: list[str] = [],  # noqa: B006  (not changed)
    data: str | None = None,
    also: list[Path] = [],  # noqa: B006  (not changed)
    episodes: int = 50,
    weights: Weights = "both",
    target_return: float | None = None,
    validation_seeds: int = 5,
    instruction: str | None = None,
    stochastic: bool = False,
    n_envs: int = 8,
    mask: str | None = None,
    action_delay: int | None = None,
    observation_delay: int | None = None,
    observation_noise: float | None = None,
    mass: float = 1.0,
    friction: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Measures a policy in an environment: returns over many seeds, last and best weights apart.

    Without an environment (none named, and none that its data came from) the error of its actions on the held
    out episodes of its data is measured.

    Args:
        model: Folder of the trained policy.
        env: gymnasium's id; by default that of the training's data.
        env_options: Arguments of the environment as name=value, over those of the training's data.
        data: Measure the actions' error on these episodes instead: a card's name or a path, all of which is
            measured; or held-out, the test part of the training's data.
        also: Further models, measured alike: those of one kind, trained from other seeds, are summed up
            together with an interval over episodes within runs.
        episodes: How many, of the seeds from --seed on.
        weights: best on the validation episodes, last, or both.
        target_return: What a policy that is told it is asked for; by default chosen on validation seeds,
            apart from those that are measured, and kept in the model's folder for rollouts.
        validation_seeds: Episodes to choose it by, for each that is tried.
        instruction: In words, for a policy that is told one.
        stochastic: Draw actions, instead of taking the likeliest.
        n_envs: Environments at once.
        mask: Numbers of the state that read zero: velocities, places such as 5,6,7, or none; by default as in
            the training.
        action_delay: Steps until an action takes effect; by default as in the training.
        observation_delay: Steps by which observations are late; by default as in the training.
        observation_noise: Deviation of noise on states; by default as in the training.
        mass: Factor on every mass.
        friction: Factor on every friction.
        seed: Of the first episode; the others count up.
        device: auto, cpu, cuda or mps; auto is the CPU here, as steps are small.
        plot: PNG, PDF or SVG with the returns, beside those of the data where they are at hand.
        json: Print JSON for machines.

    Examples:
        mambakit robotics evaluate --model runs/hopper --env Hopper-v5 --episodes 50 --json
        mambakit robotics evaluate --model runs/hopper --episodes 20 --friction 0.7 --plot returns.png
        mambakit robotics evaluate --model runs/seed0 --also runs/seed1 runs/seed2 --weights best
        mambakit robotics evaluate --model runs/reach --env-options pairs=unseen
        mambakit robotics evaluate --model runs/widowx --data held-out
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.robotics.policy.training import policies_in
    from mambakit.domains.robotics.saved import load_spec

    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    place = resolve_device("cpu" if device == "auto" else device)
    runs: dict[Path, dict[str, Any]] = {}
    for folder in (model, *also):
        found = policies_in(folder)
        if weights != "both" and weights not in found:
            raise DataError(f"{folder}: has no {weights} weights; it has {', '.join(found)}")
        runs[folder] = {name: one.to(place) for name, one in found.items() if weights in ("both", name)}
    found = runs[model]
    config = next(iter(found.values())).config
    spec = load_spec(model)
    environment = env or config.environment_id
    if data is not None or environment is None:
        if env is not None:
            raise UsageError("env, data: measure in one or the other")
        _on_recorded(runs, data or "held-out", json)
        return

    from mambakit.domains.robotics import plots
    from mambakit.domains.robotics.evaluation import Measured, as_json, measure, pooled
    from mambakit.domains.robotics.saved import save_target

    changes = {} if spec is None else dict(spec.wrappers)
    given = {
        "action_delay": action_delay,
        "observation_delay": observation_delay,
        "observation_noise": observation_noise,
        "mask": None if mask is None else ([] if mask == "none" else mask_of(mask)),
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    changes = {name: value for name, value in changes.items() if value}
    changes |= {name: value for name, value in (("mass", mass), ("friction", friction)) if value != 1.0}
    maker, said = maker_of(environment, config, changes, env_options)
    tell(told_in_vain(config, target_return, instruction))
    measured: list[Measured] = []
    for folder, policies in runs.items():
        measured += measure(
            policies,
            maker,
            environment,
            range(seed, seed + episodes),
            run=str(folder),
            n_envs=n_envs,
            target_return=target_return,
            validation_seeds=validation_seeds,
            instruction=instruction or said,
            deterministic=not stochastic,
        )
    chosen = measured[0].target
    if chosen.tried and chosen.value is not None and not changes.keys() & {"mass", "friction"}:
        save_target(model, environment, chosen.value)
        print(f"target return {chosen.value:g} is kept in {model} for rollouts", file=sys.stderr)
    if plot is not None:
        groups: dict[str, Any] = {
            f"{one.row['policy']}, {one.weights}"
            + (f", {one.row['run']}" if also else ""): one.rollouts.returns
            for one in measured
        }
        returns = _returns_of_data(spec.data) if spec is not None else None
        if returns is not None:
            groups["data"] = returns
        plot.parent.mkdir(parents=True, exist_ok=True)
        plots.returns_figure(groups, best_of_data=config.best_return).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        print_json(
            {
                "environment": environment,
                "env_options": env_options,
                "changes": changes,
                "trained_on": config.trained_on,
            }
            | {"best_of_data": config.best_return, "mean_of_data": config.mean_return}
            | {"results": as_json(measured), "pooled": pooled(measured, environment)}
        )
        return
    changed = f" ({', '.join(f'{name} {value}' for name, value in changes.items())})" if changes else ""
    print(f"{environment}{changed}: seeds {seed} to {seed + episodes - 1}")
    rows = [one.row for one in measured]
    _show(rows, ("run", *_COLUMNS) if also else _COLUMNS)
    if together := pooled(measured, environment):
        print("over runs (deviation: of their means)")
        _show(together, ("runs", *_COLUMNS))
    if "score_is" in rows[0]:
        print(f"score: {rows[0]['score_is']}")
    if config.best_return is not None:
        print(f"the data it learned from: mean {config.mean_return:.1f}, best {config.best_return:.1f}")
    step = measured[0].rollouts.deadlines
    print(f"a step of {step.n_envs} robots: {step.p50_ms:.3f} ms (half), {step.p99_ms:.3f} ms (99 in 100)")


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    print(format_table(rows, [name for name in columns if any(row.get(name) is not None for row in rows)]))


def maker_of(
    environment: str,
    config: Any,
    changes: dict[str, Any],
    options: list[str],
    render_size: int | None = None,
) -> tuple[Any, str | None]:
    """What makes environments for a policy, and their instruction; says where versions differ."""
    from mambakit.domains.robotics.environments import make, record_of, version_note
    from mambakit.domains.robotics.episodes import EnvironmentRecord
    from mambakit.domains.robotics.experts.scripted import instruction_of
    from mambakit.domains.robotics.wrappers import WrapperConfig

    recorded = config.environment if config.environment.get("id") == environment else {}
    kwargs = {**(recorded.get("kwargs") or {}), **dict(map(_option, options))}
    image = None if config.spaces.image is None else config.spaces.image[0]
    wrappers = WrapperConfig(**changes)

    def maker() -> Any:
        return make(environment, image_size=image, render_size=render_size, wrappers=wrappers, kwargs=kwargs)

    probe = maker()
    record = record_of(probe, environment, kwargs)
    probe.close()
    if recorded.get("mujoco_version"):
        of_data = EnvironmentRecord(id=environment, mujoco_version=recorded["mujoco_version"])
        note = version_note(of_data) if record.mujoco_version else None
        tell([note] if note else [])
    return maker, instruction_of(environment, kwargs)


def _option(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"env_options: expected name=value, such as pairs=unseen, got {text!r}")
    return name, yaml.safe_load(value)


def _on_recorded(runs: dict[Path, dict[str, Any]], data: str, json: bool) -> None:
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.policy.training import action_error, check_episodes

    together = None if data == "held-out" else load_episodes(data)
    rows: list[dict[str, Any]] = []
    for folder, policies in runs.items():
        loaded, chosen = held_out(folder) if together is None else (together, together.episodes)
        for weights, one in policies.items():
            check_episodes(one.config, loaded)
            named = {"run": str(folder)} if len(runs) > 1 else {}
            row = {"policy": one.config.policy.kind, "weights": weights, **action_error(one, chosen)}
            about = {"data": loaded.name, "episodes": len(chosen), "steps": sum(map(len, chosen))}
            rows.append({**named, **row, **about})
    if json:
        same = {name: rows[0][name] for name in ("data", "episodes", "steps")}
        print_json({**same, "results": rows})
        return
    print("how far actions are off, told what was seen in the recorded episodes")
    print(format_table(rows))


def held_out(folder: Path) -> tuple[Any, list[Any]]:
    """The data that a run learned from, and of it the episodes that it was not shown."""
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.policy.training import read_parts
    from mambakit.domains.robotics.saved import load_spec

    spec = load_spec(folder)
    if spec is None:
        raise DataError(f"{folder}: does not say which data it learned from; name some with --data")
    loaded = load_episodes(spec.data)
    if spec.wrappers:
        loaded = changed_episodes(loaded, spec.wrappers, spec.seed)
    return loaded, read_parts(loaded, seed=spec.seed).test


def told_in_vain(config: Any, target_return: float | None, instruction: str | None) -> list[str]:
    """Notes on what is asked of a policy in vain: what it is not told, or returns far above its data's."""
    notes = []
    kind, best = config.policy.kind, config.best_return
    if target_return is not None and "return" not in config.conditions:
        notes.append(f"target_return: {kind} is not told a return, so that it makes no difference")
    elif target_return is not None and best is not None and target_return > best + 0.25 * abs(best):
        notes.append(
            f"target_return: {target_return:g} is far above the best episode it learned from ({best:.6g}); "
            "nothing tells it how to earn that"
        )
    if instruction is not None and "instruction" not in config.conditions:
        notes.append(f"instruction: {kind} is told none, so that it makes no difference")
    return notes


def _returns_of_data(data: str) -> Any:
    """Returns of the episodes, if they can still be read."""
    from mambakit.core.errors import UserError
    from mambakit.domains.robotics.cards import load_episodes

    try:
        return load_episodes(data).totals
    except UserError:
        return None
