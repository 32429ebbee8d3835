"""A user's own Python function as an oracle, in a process of its own that may crash and hang."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.molecules.design import function_worker

_START_S = 120.0
_MOST_TIMEOUTS = 3  # molecules in a row; then the function hangs, whatever it is given


class _FailedError(Exception):
    """A call that gave no values; the message says why."""


class _TimeoutError(_FailedError):
    """A call that took too long."""


class FunctionOracle:
    """Calls ``function(smiles)`` of a file with lists of canonical SMILES; it returns a number for each.

    A call that raises, takes too long, returns another number of values or ends its process is made again
    molecule by molecule, so that only those at fault have no value. After three molecules in a row that took
    too long the rest of the call is not asked for.

    Args:
        path: The Python file; it may import what lies beside it.
        function: The name in it.
        timeout_s: How long one call may take; then its process is ended, and a new one started.
        batch: Molecules in a call at most.

    Raises:
        DataError: If the file can't be run, or has no such function.
    """

    def __init__(self, path: Path, function: str, *, timeout_s: float = 60.0, batch: int = 16) -> None:
        self.path, self.function = path.resolve(), function
        self.timeout_s, self.batch = timeout_s, batch
        if not self.path.is_file():
            raise DataError(f"{path}: there is no such file to take the function {function!r} from")
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._start()

    def __call__(self, smiles: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
        """Values ``(n,)``, NaN where there is none, and why there is none."""
        values, reasons = np.full(len(smiles), np.nan), [""] * len(smiles)
        for begin in range(0, len(smiles), self.batch):
            part = list(smiles[begin : begin + self.batch])
            try:
                values[begin : begin + len(part)] = self._ask(part)
            except _FailedError as whole:
                if len(part) == 1:
                    reasons[begin] = str(whole)
                    continue
                slow = 0
                for i, one in enumerate(part, begin):
                    if slow == _MOST_TIMEOUTS:
                        reasons[i] = f"not asked for: {reasons[i - 1].removeprefix('not asked for: ')}"
                        continue
                    try:
                        values[i], slow = self._ask([one])[0], 0
                    except _FailedError as error:
                        reasons[i] = str(error)
                        slow = slow + 1 if isinstance(error, _TimeoutError) else 0
        for place in np.flatnonzero(~np.isfinite(values)):
            reasons[place] = reasons[place] or f"{self.function} returned {values[place]}"
            values[place] = np.nan
        return values, reasons

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def _start(self) -> None:
        worker = str(Path(function_worker.__file__).resolve())
        self._process = subprocess.Popen(
            [sys.executable, "-P", worker, str(self.path), self.function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt is ours to handle
        )
        self._replies = queue.Queue()
        threading.Thread(target=_follow, args=(self._process.stdout, self._replies), daemon=True).start()
        try:
            self._answer(_START_S)
        except _FailedError as error:
            self.close()
            raise DataError(f"{self.path}: the function {self.function!r} can't be used: {error}") from None

    def _ask(self, smiles: list[str]) -> list[float]:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(smiles) + "\n")
            self._process.stdin.flush()
        except OSError:  # it has ended, which the reply says too
            pass
        values: list[float] = self._answer(self.timeout_s)["values"]
        return values

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise _TimeoutError(f"{self.function} took longer than {seconds:g} s") from None
        if line is None:
            assert self._process is not None
            status = self._process.wait()
            self.close()
            raise _FailedError(f"the process of {self.function} ended by itself (status {status})")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise _FailedError(f"{self.function} failed: {reply['error']}")
        return reply


def _follow(stream: Any, replies: queue.Queue[str | None]) -> None:
    """Lines of a stream into a queue, None at its end."""
    try:
        for line in stream:
            replies.put(line)
    except (OSError, ValueError):  # closed while it was read
        pass
    replies.put(None)
