"""The step of a policy as a program of its own: torch.export, or ONNX.

Inputs by name: ``state`` (n_envs, d), and where the policy reads them ``goal``, ``to_go`` (n_envs,),
``previous`` (the action before), ``told`` (n_envs, d_model; ``Policy.embed.told`` of the instruction),
``instructed`` (n_envs,) bool (whether there is an instruction, where it is a token of its own) and ``image``;
``began`` (n_envs,) bool, True at an episode's first step; and ``memory_0``, ... . Outputs: the
``action``, and ``next_memory_0``, ... , which begin as ``initial_memory`` gives them. Chunks are
not ensembled in it: the action is the newest.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from mambakit.core.export import save_program, traced
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.seen import Seen


class StepProgram(nn.Module):
    """One step with the memory as plain tensors.

    Args:
        policy: Trained.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        _, self.layout = pytree.tree_flatten(policy.init_state(1))

    def forward(self, inputs: dict[str, Tensor], memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The action in the environment's own units, and the next memory."""
        told = inputs.get("told")
        seen = Seen(**{name: value for name, value in inputs.items() if name != "told"})
        state = pytree.tree_unflatten(memory, self.layout)
        output, state = self.policy.step(seen, state, told)
        action = self.policy.finished(self.policy.head.point(output)[:, 0])
        return action, pytree.tree_leaves(state)


def initial_memory(policy: Policy, n_envs: int = 1) -> list[Tensor]:
    """The memory before an episode's first step."""
    return [leaf.detach().clone() for leaf in pytree.tree_leaves(policy.init_state(n_envs))]


def example_inputs(policy: Policy, n_envs: int = 1) -> dict[str, Tensor]:
    """Inputs of the right names, shapes and types."""
    spaces, embed = policy.config.spaces, policy.embed
    inputs: dict[str, Tensor] = {"began": torch.ones(n_envs, dtype=torch.bool)}
    if embed.tells_action:
        inputs["previous"] = (
            torch.zeros(n_envs, dtype=torch.int64)
            if spaces.discrete
            else torch.zeros(n_envs, spaces.action_dim)
        )
    if spaces.state_dim:
        inputs["state"] = torch.zeros(n_envs, spaces.state_dim)
    if embed.tells_goal:
        inputs["goal"] = torch.zeros(n_envs, spaces.goal_dim)
    if embed.tells_return:
        inputs["to_go"] = torch.zeros(n_envs)
    if spaces.image is not None:
        inputs["image"] = torch.zeros(n_envs, *spaces.image, 3, dtype=torch.uint8)
    if embed.is_told:
        inputs["told"] = torch.zeros(n_envs, policy.config.policy.d_model)
    if embed.is_told and embed.interleave is not None:
        inputs["instructed"] = torch.ones(n_envs, dtype=torch.bool)
    return inputs


def export_step(policy: Policy, path: Path, n_envs: int = 1) -> str:
    """Writes the step as a program that runs without this package.

    Args:
        policy: Trained; on the CPU.
        path: ``.pt2`` for ``torch.export.load``, ``.aoti.pt2`` compiled for this machine, ``.onnx`` for any
            ONNX runtime.
        n_envs: Robots a step.

    Returns:
        A few words on what was written.

    Raises:
        UserError: If what the file needs, ONNX's packages or a C++ compiler, is not installed.
    """
    program = exported(policy, n_envs)
    (inputs, memory), _ = program.example_inputs
    places = range(len(memory))
    kind = save_program(
        program,
        path,
        input_names=[*inputs, *(f"memory_{i}" for i in places)],
        output_names=["action", *(f"next_memory_{i}" for i in places)],
    )
    return f"{kind}, {n_envs} robot{'s' if n_envs > 1 else ''}, {path.stat().st_size / 1024:.0f} KiB"


def exported(policy: Policy, n_envs: int = 1) -> torch.export.ExportedProgram:
    """The step as torch's own operations."""
    step = StepProgram(copy.deepcopy(policy).cpu().eval().requires_grad_(False))
    arguments: tuple[Any, ...] = (example_inputs(policy, n_envs), initial_memory(step.policy, n_envs))
    return traced(step, arguments)
