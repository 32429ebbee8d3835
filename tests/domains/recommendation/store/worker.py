"""What another process does to a store: ``python worker.py URL WHAT FIRST BEYOND [N_USERS]``.

``send`` applies events FIRST to BEYOND, each to a user by its number, prints the number of each once it is
safe, and says at the end how many were new. ``fork`` does so in two processes that share one open store.
"""

from __future__ import annotations

import os
import sys

from mambakit.domains.recommendation.store import Record, Store, open_store

WORDS = 8192  # 64 KiB a state, all of one number: a mix of two would show


def counted(past: Record | None) -> bytes:
    """The number of events, over and over."""
    n = 0 if past is None else int.from_bytes(past.state[:8], "big")
    return (n + 1).to_bytes(8, "big") * WORDS


def send(store: Store, events: range, n_users: int) -> int:
    """Apply events; how many were new."""
    new = 0
    for event in events:
        new += store.update(f"u{event % n_users}", f"event {event}", counted).applied
        print(event, flush=True)
    return new


def main() -> int:
    """The command line."""
    url, what, first, beyond, n_users = [*sys.argv[1:], "1"][:5]
    begin, end = int(first), int(beyond)
    with open_store(url, "a model") as store:
        if what == "send":
            print("new", send(store, range(begin, end), int(n_users)), flush=True)
            return 0
        send(store, range(begin, begin + 1), int(n_users))
        child = os.fork()
        middle = (begin + end) // 2
        send(store, range(begin, middle) if child else range(middle, end), int(n_users))
        if not child:
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        send(store, range(end, end + 1), int(n_users))
        return status


if __name__ == "__main__":
    sys.exit(main())
