"""What a kind of model is for, in the words of who made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """What a model's card says of every model of its class."""

    task: str = ""
    """In a few words: next-item recommendation."""
    tag: str | None = None
    """The Hugging Face hub's own word for the task, where it has one."""
    use: str = ""
    """What it is meant for."""
    limits: tuple[str, ...] = ()
    """What it isn't meant for, and what it can't do."""
    commands: tuple[str, ...] = ()
    """Command lines that use a saved one; FOLDER stands for where it lies."""
