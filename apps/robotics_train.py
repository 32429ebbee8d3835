"""Training of policies: what `mambakit robotics train` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mambakit.apps.shared import tell, tell_left_out, train_config, words_of
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.robotics.policy.config import (
    PRESET_POLICY,
    PRESET_TRAIN,
    HeadKind,
    Kind,
    PolicyConfig,
    Tokens,
)

_OF_TRAINING = ("validation", "parameters", "seconds")  # beside what is measured on test episodes


def train(
    *,
    data: str = "reacher-noisy",
    policy: Kind = "decision-mamba",
    output: Path = Path("runs/robotics"),
    tokens: Tokens = "fused",
    head: HeadKind | None = None,
    chunk: int = 1,
    baselines: list[Kind] = [],  # noqa: B006  (not changed)
    mask: str | None = None,
    action_delay: int = 0,
    observation_delay: int = 0,
    observation_noise: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: PolicyConfig = PRESET_POLICY,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a policy on recorded episodes.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html), the policy with
    the weights that were best on validation episodes, and in the folder last the one with those of the end.

    Args:
        data: A card's name (`mambakit data list`), a Minari data set (its id or folder, HDF5 or Arrow), a
            LeRobot v3 folder, or a folder of episodes (npz or Parquet).
        policy: decision-mamba, bc (the same layers without the return), decision-transformer, bc-mlp (no
            memory), or iql (no memory, and actions count by their advantage).
        output: Folder for the run and the policy; a killed run continues in it.
        tokens: fused, everything of a control step in one token, or three, a token for each modality (action,
            return and state; and goal, instruction, picture).
        head: gaussian, mixture, flow or categorical; by default gaussian or, for numbered actions,
            categorical.
        chunk: Actions predicted at every step; above 1 they are ensembled over time.
        baselines: Further policies, each trained on the same episodes into a folder of its name.
        mask: Numbers of the state that read zero: velocities, or places such as 5,6,7.
        action_delay: Steps until an action takes effect: episodes are changed as if it had been so.
        observation_delay: Steps by which observations are late.
        observation_noise: Deviation of noise on states.
        seed: Of the split, of weights and shuffling.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m (each baseline too).
        overwrite: Remove another run in the output folder first.
        model: The network; --policy, --tokens, --head and --chunk go before it.
        train: The training options; a batch is --train.batch_size rows of some 256 control steps (32 with
            pictures), and an epoch passes over the episodes as often as makes 100 batches.
        json: Print JSON for machines.

    Examples:
        mambakit robotics train --data data/hopper-medium --policy decision-mamba --output runs/hopper
        mambakit robotics train --data data/hopper-medium --mask velocities --baselines bc-mlp --output runs/m
        mambakit robotics train --data widowx --policy bc --head mixture --chunk 4 --output runs/widowx
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.robotics import report
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.policy.baselines import baseline_config
    from mambakit.domains.robotics.policy.training import action_error, read_parts, train_policy
    from mambakit.domains.robotics.saved import DataSpec, save_spec

    config = train_config(train, seed, device, max_time)
    shape = dataclasses.replace(
        model,
        kind=policy,
        tokens=tokens if tokens != "fused" else model.tokens,
        head=head or model.head,
        chunk=chunk if chunk != 1 else model.chunk,
    )
    changes: dict[str, Any] = {
        "action_delay": action_delay,
        "observation_delay": observation_delay,
        "observation_noise": observation_noise,
        "mask": mask_of(mask),
    }
    changes = {name: value for name, value in changes.items() if value}
    episodes = load_episodes(data)
    if changes:
        episodes = changed_episodes(episodes, changes, config.seed)
    tell(episodes.notes)
    tell_left_out(episodes.left_out)
    parts = read_parts(episodes, seed=config.seed)
    spec = DataSpec(data, config.seed, changes)

    rows: list[dict[str, Any]] = []
    ours = None
    for kind in [policy, *(one for one in dict.fromkeys(baselines) if one != policy)]:
        own = shape if kind == policy else baseline_config(kind, shape)
        run = RunFolder(output if kind == policy else output / kind, overwrite=overwrite)
        run.start({**dataclasses.asdict(spec.resolved()), "policy": own, "train": config}, seed=config.seed)
        made, result = train_policy(episodes, parts, run, own, config)
        save_spec(run.path, spec)
        size = sum(one.numel() for one in made.parameters())
        rows.append(
            {"policy": kind, **action_error(made, parts.test), "validation": result.best_score}
            | {"parameters": size, "seconds": round(result.seconds, 1)}
        )
        if ours is None:
            ours = run, made, result
    assert ours is not None
    run, made, result = ours
    figures = [{name: value for name, value in row.items() if name not in _OF_TRAINING} for row in rows]
    run.measured(made, figures, data=episodes.name, ours={"policy": policy})
    report.write(run, made, episodes, parts, result, rows)
    if json:
        print_json(
            {"data": episodes.name, "episodes": len(episodes), "steps": episodes.n_steps, "results": rows}
            | {"stopped": result.stopped, "left_out": episodes.left_out, "model": run.path}
        )
        return
    print(f"{episodes.name}: {len(parts.train)} episodes to learn from, {len(parts.test)} held out")
    print(format_table(rows))
    print(f"model: {run.path}\nreport: {run.report_path}")


def mask_of(text: str | None) -> list[int] | str | None:
    """What ``--mask`` names: places, or ``velocities``.

    Raises:
        UsageError: If it is neither.
    """
    if text is None or text == "velocities":
        return text
    words = words_of(text)
    if not words or not all(word.isdigit() for word in words):
        raise UsageError(f"mask: expected velocities, or places such as 5,6,7, got {text!r}")
    return [int(word) for word in words]


def changed_episodes(episodes: Any, changes: dict[str, Any], seed: int) -> Any:
    """Recorded episodes as they would have looked through wrappers.

    Raises:
        UsageError: If velocities are to be masked and the data do not say which environment they are from.
    """
    from mambakit.domains.robotics.environments import make
    from mambakit.domains.robotics.wrappers import WrapperConfig, mask_indices, seen_through

    places = None
    if changes.get("mask") == "velocities":
        record = episodes.environment
        if record is None:
            raise UsageError(
                f"mask: {episodes.name} does not say its environment, and so not which numbers are "
                "velocities; name their places, such as --mask 5,6,7"
            )
        env = make(record.id, kwargs=record.kwargs)
        places = mask_indices(env, "velocities")
        env.close()
    return seen_through(episodes, WrapperConfig(**changes), places, seed=seed)
