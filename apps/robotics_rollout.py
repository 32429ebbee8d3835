"""Acting once: what `mambakit robotics rollout` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from mambakit.apps.robotics_evaluate import maker_of, told_in_vain
from mambakit.apps.shared import check_suffix, tell
from mambakit.core.cli import print_json
from mambakit.core.errors import DataError, UsageError


def rollout(
    *,
    model: Path,
    env: str | None = None,
    env_options: list[str] = [],  # noqa: B006  (not changed)
    video: Path | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    export: Path | None = None,
    weights: Literal["best", "last"] = "best",
    target_return: float | None = None,
    instruction: str | None = None,
    stochastic: bool = False,
    max_steps: int | None = None,
    size: int = 256,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Lets a policy act for one episode: a video, what it did, and how long its steps took.

    Args:
        model: Folder of the trained policy.
        env: gymnasium's id; by default that of the training's data.
        env_options: Arguments of the environment as name=value, over those of the training's data.
        video: MP4 file.
        output: NPZ or CSV file of the episode's actions and rewards (NPZ: observations too).
        plot: PNG, PDF or SVG of the return and the actions over time.
        export: Writes the step as a program that runs without mambakit: .pt2 (torch.export), .aoti.pt2
            (compiled for this machine) or .onnx (mambakit[onnx]); no environment is needed for that.
        weights: best on the validation episodes, or last.
        target_return: What a policy that is told it is asked for; by default what an evaluation chose, else
            a high return of its data.
        instruction: In words, for a policy that is told one.
        stochastic: Draw actions, instead of taking the likeliest.
        max_steps: Stop after so many; by default the environment says when.
        size: Height and width of the video, in pixels.
        seed: Of the episode.
        device: auto, cpu, cuda or mps; auto is the CPU here, as steps are small.
        json: Print JSON for machines.

    Examples:
        mambakit robotics rollout --model runs/hopper --env Hopper-v5 --video hopper.mp4
        mambakit robotics rollout --model runs/hopper --seed 7 --output episode.npz --plot episode.png
        mambakit robotics rollout --model runs/hopper --export step.pt2
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.robotics.policy.training import policies_in
    from mambakit.domains.robotics.saved import load_spec, load_target

    check_suffix("video", video, (".mp4",))
    check_suffix("output", output, (".npz", ".csv"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    check_suffix("export", export, (".pt2", ".onnx"))
    found = policies_in(model)
    if weights not in found:
        raise DataError(f"{model}: has no {weights} weights; it has {', '.join(found)}")
    policy = found[weights].to(resolve_device("cpu" if device == "auto" else device))
    if export is not None:
        from mambakit.domains.robotics.export import export_step

        said = export_step(policy, export)
        print(f"step: {export} ({said})", file=sys.stderr)
        if not any((env, video, output, plot)):
            if json:
                print_json({"export": export, "about": said})
            return
    environment = env or policy.config.environment_id
    if environment is None:
        raise UsageError("env: the policy's data do not say their environment; name one")

    from mambakit.domains.robotics import rollouts

    spec = load_spec(model)
    changes = {} if spec is None else dict(spec.wrappers)
    maker, own = maker_of(
        environment, policy.config, changes, env_options, size if video is not None else None
    )
    tell(told_in_vain(policy.config, target_return, instruction))
    asked = target_return if target_return is not None else load_target(model, environment)
    acted: Any = rollouts.act(
        policy,
        maker,
        seed=seed,
        target_return=asked,
        instruction=instruction or own,
        deterministic=not stochastic,
        max_steps=max_steps,
        video=video,
        control_hz=policy.config.environment.get("control_hz"),
    )
    if output is not None:
        rollouts.write(output, acted)
        print(f"episode: {output}", file=sys.stderr)
    if plot is not None:
        from mambakit.domains.robotics.plots import rollout_figure

        title = f"{environment}, seed {seed}: return {acted.total:.1f} in {len(acted.rewards)} steps"
        figure = rollout_figure(acted.rewards, acted.actions, control_hz=acted.control_hz, title=title)
        plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if video is not None:
        print(f"video: {video}, {acted.n_frames} frames", file=sys.stderr)
    row = acted.deadlines.row()
    if json:
        print_json(
            {"environment": environment, "seed": seed, "target_return": acted.target_return}
            | {"return": acted.total, "steps": len(acted.rewards), "success": acted.success, "step": row}
        )
        return
    asked_for = "" if acted.target_return is None else f", asked for {acted.target_return:g}"
    print(f"{environment}, seed {seed}{asked_for}: return {acted.total:.2f} in {len(acted.rewards)} steps")
    if acted.success is not None:
        print(f"success: {'yes' if acted.success else 'no'}")
    print(
        f"a step: {acted.deadlines.mean_ms:.3f} ms on average, {acted.deadlines.p99_ms:.3f} ms "
        f"for 99 in 100, {acted.deadlines.max_ms:.3f} ms at most"
    )
    missed = ", ".join(f"{count} at {rate}" for rate, count in acted.deadlines.missed.items())
    print(f"deadlines missed: {missed}")
