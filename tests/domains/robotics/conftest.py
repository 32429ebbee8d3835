"""Without the robotics extra none of these can run."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = (
    [] if all(find_spec(name) for name in ("gymnasium", "mujoco", "minari")) else ["test_*.py"]
)
