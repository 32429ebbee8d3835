"""The ``mambakit`` command: hands over to the app that its first word names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from mambakit.core.cli import did_you_mean

# Apps are imported when they are called: `mambakit --help` must not wait for torch.


def _molecules(argv: Sequence[str]) -> int:
    from mambakit.apps.molecules import main

    return main(argv)


def _recommendation(argv: Sequence[str]) -> int:
    from mambakit.apps.recommendation import main

    return main(argv)


def _robotics(argv: Sequence[str]) -> int:
    from mambakit.apps.robotics import main

    return main(argv)


def _speech(argv: Sequence[str]) -> int:
    from mambakit.apps.speech import main

    return main(argv)


def _timeseries(argv: Sequence[str]) -> int:
    from mambakit.apps.timeseries import main

    return main(argv)


def _data(argv: Sequence[str]) -> int:
    from mambakit.apps.data import main

    return main(argv)


def _info(argv: Sequence[str]) -> int:
    from mambakit.apps.info import main

    return main(argv)


APPS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "molecules": (_molecules, "properties of molecules and their design: train, predict, evaluate"),
    "recommendation": (_recommendation, "recommend the next item: train, evaluate, recommend, update"),
    "robotics": (_robotics, "policies that act step by step: collect, train, evaluate, rollout, record"),
    "speech": (_speech, "name what recordings hold: train, classify, evaluate"),
    "timeseries": (_timeseries, "forecast time series: train, evaluate, forecast, backtest"),
    "data": (_data, "data sets by name: list, show, fetch"),
    "info": (_info, "versions, devices, and which backend each op would use here"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit APP ...``; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in APPS:
        return APPS[words[0]][0](words[1:])
    if words and words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words and words[0] == "--version":
        print(f"mambakit {version('mambakit')}")
        return 0
    if words:
        known = f"known: {', '.join(APPS)}"
        print(f"error: there is no {words[0]!r} here{did_you_mean(words[0], APPS)}; {known}", file=sys.stderr)
    else:
        print(_overview(), file=sys.stderr)
    return 2


def _overview() -> str:
    width = max(map(len, APPS))
    lines = ["usage: mambakit APP ...", "", "State-space sequence models from the command line.", "", "apps:"]
    lines += [f"  {name:<{width}}  {what}" for name, (_, what) in APPS.items()]
    lines += [
        "",
        "mambakit APP --help lists an app's verbs, mambakit APP VERB --help a verb's flags.",
        "",
        "examples:",
        "  mambakit timeseries train --data co2 --horizon 24 --output runs/co2",
        "  mambakit data show ETTh1",
        "  mambakit info",
    ]
    return "\n".join(lines)
