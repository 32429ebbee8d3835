"""Time of a control step: state-space policies beside Decision Transformers, in one run.

    python benchmarks/robotics_step.py --write
    python benchmarks/robotics_step.py --device cuda --write

Policies have three layers of width 128 (the transformer three pairs of attention and MLP), a state of 11 and
three actions, as Hopper's, and random weights. First the recurrent step is compared with the parallel form.
The peers: the transformer on a ring of keys and values (our attention block), and as it is usually run, the
whole window computed anew at every step. Half of all steps are shorter than the times given. On a GPU only
many robots at once are measured, from observations on the host to actions there. ``--write`` writes
results/robotics-step.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mambakit.domains.robotics.controller import Controller
from mambakit.domains.robotics.policy.config import PolicyConfig, SavedPolicyConfig, Spaces
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.seen import Seen
from rows import row, write_rows

STATE, ACTIONS = 11, 3
CONTEXTS = (100, 10_000)
AGREES_TO = 1e-5


def policy_of(**options: Any) -> Policy:
    """A policy with random weights."""
    torch.manual_seed(0)
    spaces = Spaces(state_dim=STATE, action_dim=ACTIONS, low=[-1.0] * ACTIONS, high=[1.0] * ACTIONS)
    return Policy(SavedPolicyConfig(PolicyConfig(**options), spaces, target_return=100.0)).eval()


def recorded(length: int) -> Seen:
    """An episode as the parallel form takes it; its previous actions are zeros."""
    generator = torch.Generator().manual_seed(1)
    return Seen(
        began=torch.arange(length)[None] == 0,
        previous=torch.zeros(1, length, ACTIONS),
        state=torch.randn(1, length, STATE, generator=generator),
        to_go=torch.full((1, length), 100.0),
    )


def check_parity(policy: Policy, length: int = 200) -> float:
    """The largest difference between the recurrent and the parallel form's actions."""
    seen = recorded(length)
    whole = policy.actions(seen)[0].numpy()
    controller = Controller(policy)
    controller.reset(target_return=100.0)
    off = 0.0
    assert seen.state is not None
    for t in range(length):
        action = controller.step(seen.state[0, t].numpy())
        off = max(off, float(np.abs(action - whole[t]).max()))
        controller.correct(np.zeros((1, ACTIONS), np.float32))
    if off > AGREES_TO:
        raise SystemExit(f"{policy.config.policy.kind}: step and parallel form differ by {off:.2g}")
    return off


def step_ms(controller: Controller, n: int) -> float:
    """Half of ``n`` steps are shorter."""
    shown = np.random.default_rng(0).normal(size=(n, controller.n_envs, STATE)).astype(np.float32)
    earned = np.zeros(controller.n_envs)
    times = []
    for one in shown:
        began = time.perf_counter()
        controller.step(one, earned)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def call_ms(run: Callable[[], object], n: int = 30) -> float:
    """Half of ``n`` calls are shorter."""
    run()
    times = []
    for _ in range(n):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def measured(n_envs: int) -> list[dict[str, Any]]:
    """The rows of the CPU."""
    ours, three = policy_of(), policy_of(tokens="three")
    transformer = policy_of(kind="decision-transformer", tokens="three", window=20)
    for policy in (ours, three, transformer):
        print(f"{policy.config.policy.kind}: differs by {check_parity(policy):.2g} from the parallel form")
    rows: list[dict[str, Any]] = []
    long = policy_of(kind="decision-transformer", tokens="three", window=333)
    peers = {
        "three tokens a step": _fresh_ms(three),
        "decision transformer K=20, ring of keys and values": _fresh_ms(transformer),
        "decision transformer K=20, window anew": call_ms(lambda: transformer.actions(recorded(20))),
        "decision transformer K=333, window anew": call_ms(lambda: long.actions(recorded(333)), 10),
    }
    controller = Controller(ours)
    controller.warm_up()
    size, done = controller.state_bytes, 0
    for context in CONTEXTS:
        while done < context - 500:
            controller.step(np.zeros(STATE, np.float32), [0.0])
            done += 1
        ms = step_ms(controller, 1000)
        done += 1000
        if controller.state_bytes != size:
            raise SystemExit("the state grew")
        rows.append(row(f"robotics/step/ms/cpu-batch1/after-{context}", ms, "ms", peers=peers))
    return [*rows, per_second(n_envs, "cpu", ours, transformer)]


def per_second(n_envs: int, device: str, ours: Policy, transformer: Policy) -> dict[str, Any]:
    """The row of many robots at once."""
    both = {}
    for name, policy in (("ours", ours), ("decision transformer K=20, ring of keys and values", transformer)):
        many = Controller(policy.to(device), n_envs)
        many.warm_up()
        both[name] = n_envs * 1000 / step_ms(many, 100 if device == "cpu" else 1000)
    value = both.pop("ours")
    where = "cpu" if device == "cpu" else "gpu"
    return row(f"robotics/step/per-second/{where}-batch{n_envs}", value, "steps/s", peers=both)


def on_gpu(n_envs: int) -> list[dict[str, Any]]:
    """The row of a GPU, after step and parallel form were compared on the CPU."""
    policies = [policy_of(), policy_of(kind="decision-transformer", tokens="three", window=20)]
    for policy in policies:
        print(f"{policy.config.policy.kind}: differs by {check_parity(policy):.2g} from the parallel form")
    return [per_second(n_envs, "cuda", *policies)]


def _fresh_ms(policy: Policy) -> float:
    controller = Controller(policy)
    controller.warm_up()
    return step_ms(controller, 300)


def main() -> None:
    """Measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--robots", type=int, default=64, help="of the batched step")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--write", action="store_true", help="write results/robotics-step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measured(options.robots) if options.device == "cpu" else on_gpu(options.robots)
    for one in rows:
        print(f"{one['what']}: {one['value']:.4g} {one['unit']}")
        for name, value in one["peers"].items():
            print(f"    {name}: {value:.4g}")
    if options.write:
        write_rows("robotics-step", rows)


if __name__ == "__main__":
    main()
