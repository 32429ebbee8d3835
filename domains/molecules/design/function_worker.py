"""The process in which a user's own function scores molecules: a request a line in, a reply a line out.

Run as a file, so that it needs nothing but Python, with the function's file and name as arguments. What the
function prints goes to standard error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(path: Path, name: str) -> None:
    """Says that it is ready, or why it isn't, and then answers until its input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        function = load(path, name)
    except BaseException as error:  # noqa: BLE001  a file can end in any way, sys.exit among them
        reply(error=said(error))
        return
    reply(ready=True)
    requests = lines()
    while True:
        smiles = json.loads(requests.get())
        try:
            reply(values=checked(function(smiles), len(smiles)))
        except BaseException as error:  # noqa: BLE001  whatever it raises is told, and the run goes on
            reply(error=said(error))


def lines() -> queue.Queue[str]:
    """Lines of standard input; the process ends with it, also while a function hangs."""
    read: queue.Queue[str] = queue.Queue()

    def follow() -> None:
        for line in sys.stdin:
            read.put(line)
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
    return read


def load(path: Path, name: str) -> Callable[[list[str]], Any]:
    """The function of that name in a file, which may import what lies beside it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, one in vars(module).items() if callable(one) and not key.startswith("_")]
        raise ImportError(f"it has no function {name!r}, but {', '.join(known) or 'none at all'}")
    return function


def checked(values: Any, n: int) -> list[float]:
    """As many floats as molecules."""
    try:
        listed = list(values)
    except TypeError:
        raise TypeError(
            f"it returned {type(values).__name__}, expected a list with a number for each molecule"
        ) from None
    if len(listed) != n:
        raise ValueError(f"it returned {len(listed)} values for {n} molecule{'s' * (n > 1)}")
    return [float(value) for value in listed]


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
