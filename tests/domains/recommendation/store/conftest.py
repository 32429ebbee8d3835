"""Stores of both kinds; Redis on a server of our own, on a free loopback port, that keeps nothing on disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mambakit.domains.recommendation.store import Store, open_store

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="there is no redis-server (Debian's package redis-server)"
)
MODEL = "a model"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that ends with the tests."""
    redis = pytest.importorskip("redis")
    folder = tmp_path_factory.mktemp("redis")
    for _ in range(5):  # someone else may take the port in between
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        server = subprocess.Popen(["redis-server", *options, "--dir", str(folder)], stdout=subprocess.DEVNULL)
        try:
            if _answers(redis, port, server):
                yield f"redis://127.0.0.1:{port}/0"
                return
        finally:
            server.terminate()
            server.wait(10)
    pytest.fail("redis-server does not start")


def _answers(redis: Any, port: int, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + 10
    with redis.Redis(port=port) as client:
        while server.poll() is None and time.monotonic() < end:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)
    return False


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where there is no store yet."""
    if request.param == "sqlite":
        return str(tmp_path / "state.db")
    address: str = request.getfixturevalue("redis_url")
    import redis

    with redis.Redis.from_url(address) as client:
        client.flushdb()
    return address


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty store."""
    with open_store(url, MODEL) as one:
        yield one


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts ``worker.py`` with arguments; its output is lines."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", str(Path(__file__).parent / "worker.py"), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start
