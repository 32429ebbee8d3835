"""Packs of files: from a mirror's archive and from the network one by one; wrong ones are refused."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mambakit.core.data import Card, CardPack, fetch_pack
from mambakit.core.data import packs as module
from mambakit.core.errors import DataError

FILES = {f"sounds/{a}_{b}.bin": f"{a}{b}".encode() * 50 for a in "xy" for b in "12"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as packed:
        for name, data in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def card(url: str = "http://127.0.0.1:9/{member}", mirror_sha256: str = "0" * 64) -> Card:
    manifest = "".join(f"{sha(FILES[name])}  {name}\n" for name in sorted(FILES))
    pack = CardPack(
        "sounds", "sounds/{a}_{b}.bin", {"b": ("2", "1"), "a": ("x", "y")}, sha(manifest.encode()), 400, url,
        "speech/tiny/pack.tar.xz", mirror_sha256,
    )  # fmt: skip
    return Card(
        name="tiny", title="Tiny", domain="speech", license="mit", homepage="", version="1", tags=(),
        files=(),
        columns=("path",), units={}, splits={}, packs=(pack,),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAKIT_DATA_MIRROR", raising=False)
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mirror/speech/tiny/pack.tar.xz"
    path.parent.mkdir(parents=True)
    path.write_bytes(archive())
    monkeypatch.setenv("MAMBAKIT_DATA_MIRROR", str(tmp_path / "mirror"))
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    served: dict[str, bytes]
    failing: set[str]
    asked: list[str]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.asked.append(name)
        there = name in self.served and name not in self.failing
        self.send_response(200 if there else 503)
        self.end_headers()
        if there:
            self.wfile.write(self.served[name])
        self.failing.discard(name)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[type[Handler]]:
    class Own(Handler):
        served, failing, asked = dict(FILES), set(), []

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    Own.url = f"http://127.0.0.1:{running.server_address[1]}/{{member}}"  # type: ignore[attr-defined]
    yield Own
    running.shutdown()
    running.server_close()


def check(folder: Path) -> None:
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_members_are_in_the_order_of_the_keys() -> None:
    names = [name for name, _ in card().packs[0].members()]
    assert names == [f"sounds/{a}_{b}.bin" for b in "21" for a in "xy"]


def test_mirror_and_then_the_cache(mirror: Path) -> None:
    described = card(mirror_sha256=sha(mirror.read_bytes()))
    folder = fetch_pack(described, described.packs[0])
    check(folder)
    mirror.unlink()
    check(fetch_pack(described, described.packs[0]))


def test_a_changed_file_in_the_cache_is_fetched_again(mirror: Path) -> None:
    described = card(mirror_sha256=sha(mirror.read_bytes()))
    folder = fetch_pack(described, described.packs[0])
    (folder / "sounds/x_1.bin").write_bytes(b"else")
    check(fetch_pack(described, described.packs[0]))


def test_damaged_archive_is_refused(mirror: Path) -> None:
    described = card(mirror_sha256="0" * 64)
    with pytest.raises(DataError, match=r"pack\.tar\.xz: damaged or not the archive"):
        fetch_pack(described, described.packs[0])


def test_network_fetches_each_and_tries_again(server: type[Handler]) -> None:
    server.failing.add("sounds/y_1.bin")
    described = card(server.url)  # type: ignore[attr-defined]
    check(fetch_pack(described, described.packs[0], progress=False))
    assert server.asked.count("sounds/y_1.bin") == 2


def test_a_broken_download_goes_on(server: type[Handler]) -> None:
    described = card(server.url)  # type: ignore[attr-defined]
    lost = server.served.pop("sounds/y_1.bin")
    with pytest.raises(DataError, match="what came is kept for the next attempt"):
        fetch_pack(described, described.packs[0], progress=False)
    server.served["sounds/y_1.bin"] = lost
    server.asked.clear()
    check(fetch_pack(described, described.packs[0], progress=False))
    assert "sounds/y_1.bin" in server.asked
    assert len(server.asked) < len(FILES)


def test_other_content_is_refused_and_leaves_nothing(server: type[Handler], cache: Path) -> None:
    described = card(server.url)  # type: ignore[attr-defined]
    server.served["sounds/x_2.bin"] = b"else"
    with pytest.raises(DataError, match="are not those that the card means"):
        fetch_pack(described, described.packs[0], progress=False)
    assert not list((cache / "speech/tiny").glob("*/**/*.bin"))
