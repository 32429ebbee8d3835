"""What a policy's card says of it."""

from __future__ import annotations

from mambakit.core.trust.about import About

POLICY = About(
    task="robot control learned from recorded episodes",
    tag="robotics",
    use=(
        "Acting in the environment that its episodes come from, at the same control period, with the same "
        "observations in the same order and units."
    ),
    limits=(
        "It has no notion of safety: on a machine, something else has to keep the limits of force, "
        "speed and place, with a person at the emergency stop.",
        "In states that the episodes have not, its actions mean nothing; errors bring it into such states.",
        "A good error on recorded actions does not say that the task is done: measure returns in the "
        "environment (`mambakit robotics evaluate`), and how they bear noise and delay (`probe`).",
    ),
    commands=("mambakit robotics evaluate --model FOLDER --episodes 50",),
)
