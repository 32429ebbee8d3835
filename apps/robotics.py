"""Robot control: collect what experts do, learn it, act.

mambakit robotics collect --env Hopper-v5 --level medium --episodes 200 --output data/hopper-medium
mambakit robotics train --data data/hopper-medium --policy decision-mamba --output runs/hopper
mambakit robotics evaluate --model runs/hopper --env Hopper-v5 --episodes 50 --json
mambakit robotics rollout --model runs/hopper --env Hopper-v5 --video hopper.mp4
mambakit robotics record --env Hopper-v5 --level expert --episodes 2 --output hopper-expert.mp4
mambakit robotics record --data data/hopper-medium --output hopper-medium.mp4
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from mambakit.apps.robotics_collect import collect
from mambakit.apps.robotics_evaluate import evaluate
from mambakit.apps.robotics_probe import probe
from mambakit.apps.robotics_record import record
from mambakit.apps.robotics_rollout import rollout
from mambakit.apps.robotics_train import train
from mambakit.core.cli import run_app

VERBS: dict[str, Callable[..., object]] = {
    "collect": collect,
    "record": record,
    "train": train,
    "evaluate": evaluate,
    "rollout": rollout,
    "probe": probe,
}
_NEEDED = ("gymnasium", "mujoco", "minari")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit robotics ...``; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing and words and not {"-h", "--help"} & set(words):
        print(
            f"error: mambakit robotics needs {' and '.join(missing)}; install it with "
            "pip install 'mambakit[robotics]'",
            file=sys.stderr,
        )
        return 1
    description, _, examples = (__doc__ or "").partition("\n\n")
    return run_app("mambakit robotics", VERBS, words, description, examples)


if __name__ == "__main__":
    sys.exit(main())
