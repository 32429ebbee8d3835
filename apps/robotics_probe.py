"""Probing a policy: what `mambakit robotics probe` does."""

from __future__ import annotations

from pathlib import Path

from mambakit.apps.probing import check_outputs, show_probe
from mambakit.apps.robotics_evaluate import held_out


def probe(
    *,
    model: Path,
    data: str = "held-out",
    only: list[str] = [],  # noqa: B006  (only read)
    output: Path | None = None,
    plot: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures how far a policy's actions go off as the states that it sees are spoilt more and more.

    On recorded episodes, beside the actions that were taken there; returns in a noisy or delayed environment
    are measured by `evaluate`. dt times 1/8 to 8 makes every
    state-space block step as if all happened slower or faster than in training.

    Args:
        model: Folder of the trained policy.
        data: Episodes: a card's name or a path; or held-out, the test part of the training's data.
        only: Some of the perturbations: noise, drop, delay, shuffle, dt; all by default.
        output: CSV or Parquet with a row a level.
        plot: PNG, PDF or SVG with a panel a perturbation.
        seed: Of what is drawn; the same seed spoils alike.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit robotics probe --model runs/hopper --plot probe.png
        mambakit robotics probe --model runs/hopper --only delay --output probe.csv --json
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.policy.model import Policy
    from mambakit.domains.robotics.policy.training import check_episodes
    from mambakit.domains.robotics.probing import subject

    check_outputs(output, plot)
    policy = Policy.from_pretrained(model).to(resolve_device("cpu" if device == "auto" else device))
    if data == "held-out":
        loaded, episodes = held_out(model)
    else:
        loaded = load_episodes(data)
        episodes = loaded.episodes
    check_episodes(policy.config, loaded)
    probed = subject(policy, episodes, f"{loaded.name}, {len(episodes)} episodes")
    show_probe(probed, only=only, seed=seed, output=output, plot=plot, json=json)
