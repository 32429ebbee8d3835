"""Fetching the files of a data card: local mirror, then the network; the sha256 is checked every time.

A fetched file lies in the cache as its plain bytes. It appears there by one rename, after its hash was
checked, so a file that exists is whole. A lock file keeps two processes from fetching the same file at once.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mambakit.core.data.cards import Card, CardFile, Source
from mambakit.core.data.download import ResumingDownloader, sha256_of
from mambakit.core.errors import DataError

_BLOCK = 1 << 20


def cache_folder() -> Path:
    """Where fetched files lie: the environment variable MAMBAKIT_DATA, else the platform's cache folder."""
    chosen = os.environ.get("MAMBAKIT_DATA")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("mambakit"))


def fetch(card: Card, *, progress: bool = True) -> dict[str, Path]:
    """The files of a data set, from the cache, the local mirror or the network.

    Each file is looked for in the cache, then in the folder that MAMBAKIT_DATA_MIRROR names (as
    ``<domain>/<dataset>/<file>``, then with ``.gz`` added), then at the card's URLs. A broken download
    continues where it stopped, in this call or the next.

    Args:
        card: The data set's card.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The path of each plain file by its name; empty for an embedded data set.

    Raises:
        DataError: If a file in the mirror is damaged, no source can be reached, or a download does not
            have the card's sha256. No file is left in place then.
    """
    folder = cache_folder() / card.domain / card.name
    return {file.name: _fetch_file(file, folder, progress=progress) for file in card.files}


def _fetch_file(file: CardFile, folder: Path, *, progress: bool) -> Path:
    import filelock

    target = folder / file.name
    if _is_whole(target, file):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to the data cache {folder} ({error}); set MAMBAKIT_DATA") from error
    with filelock.FileLock(folder / f".{file.name}.lock"):
        if _is_whole(target, file):  # another process fetched it while this one waited
            return target
        if target.exists():
            print(f"{target}: does not have its card's sha256 any more; fetching it again", file=sys.stderr)
            target.unlink()
        if not _from_mirror(file, target):
            _from_network(file, target, progress=progress)
    return target


def _is_whole(path: Path, file: CardFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _from_mirror(file: CardFile, target: Path) -> bool:
    mirror = os.environ.get("MAMBAKIT_DATA_MIRROR")
    if not mirror:
        return False
    root = Path(mirror).expanduser()
    if not root.is_dir():
        raise DataError(f"MAMBAKIT_DATA_MIRROR names {root}, which is not a folder")
    for source in file.sources:
        if source.mirror is None:
            continue
        stored = root / source.mirror
        gzipped = stored.with_name(stored.name + ".gz")
        if stored.is_file():
            _unpack(stored, source, file, target)
            return True
        if gzipped.is_file():
            with _temporary(target.parent) as served:
                with _damage_named(gzipped), gzip.open(gzipped) as packed, served.open("wb") as out:
                    shutil.copyfileobj(packed, out, _BLOCK)
                _unpack(served, source, file, target, origin=gzipped)
            return True
    return False


def _from_network(file: CardFile, target: Path, *, progress: bool) -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its news of each download would come on top of the bar
    failures = []
    for source in file.sources:
        served_name = f".{source.sha256[:16]}.{source.url.rpartition('/')[2]}"
        downloader = ResumingDownloader(
            part=target.parent / f"{served_name}.part",
            size=source.size,
            sha256=source.sha256,
            progress=progress,
        )
        print(f"downloading {source.url}", file=sys.stderr)
        try:
            served = pooch.retrieve(
                source.url,
                known_hash=f"sha256:{source.sha256}",
                fname=served_name,
                path=target.parent,
                downloader=downloader,
            )
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
            failures.append(f"{source.url}: {' '.join(str(error).split())}")
            continue
        try:
            _unpack(Path(served), source, file, target, origin=source.url)
        finally:
            Path(served).unlink(missing_ok=True)
        return
    by_hand = file.sources[-1]
    stored = file.sources[0].mirror or file.name
    raise DataError(
        f"could not download {file.name} ({'; '.join(failures)}); without a network, set "
        f"MAMBAKIT_DATA_MIRROR to a folder that holds {stored}, or fetch {by_hand.url} by hand"
        f"{', unpack it' if by_hand.compression else ''} and save it as {target}"
    )


def _unpack(
    stored: Path, source: Source, file: CardFile, target: Path, origin: Path | str | None = None
) -> None:
    """Checks what was served, unpacks it, checks the plain bytes and renames them into place."""
    origin = origin or stored
    served_hash = sha256_of(stored)
    if served_hash != source.sha256:
        raise DataError(
            f"{origin}: damaged or not the file that the card means: "
            f"sha256 is {served_hash}, the card says {source.sha256}"
        )
    with _temporary(target.parent) as plain:
        with _damage_named(origin), _opened(stored, source) as packed, plain.open("wb") as out:
            shutil.copyfileobj(packed, out, _BLOCK)
        plain_hash = sha256_of(plain)
        if plain_hash != file.sha256:
            raise DataError(
                f"{origin}: unpacks to other bytes than {file.name}'s: "
                f"sha256 is {plain_hash}, the card says {file.sha256}"
            )
        plain.replace(target)


@contextlib.contextmanager
def _opened(stored: Path, source: Source) -> Iterator[BinaryIO]:
    if source.compression == "gzip":
        with gzip.open(stored) as stream:
            yield stream  # type: ignore[misc]  # a GzipFile reads as a binary stream does
    elif source.compression == "zip":
        assert source.member is not None, "the card's schema wants a member for a zip"
        with zipfile.ZipFile(stored) as archive, archive.open(source.member) as member:
            yield member  # type: ignore[misc]
    elif source.compression == "tar":
        assert source.member is not None, "the card's schema wants a member for a tar"
        with tarfile.open(stored) as packed:
            entry = packed.extractfile(source.member)
            if entry is None:
                raise KeyError(f"{source.member} is no file")
            yield entry  # type: ignore[misc]
    else:
        with stored.open("rb") as stream:
            yield stream


@contextlib.contextmanager
def _damage_named(origin: Path | str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        raise DataError(f"{origin}: damaged, cannot be unpacked ({error})") from error


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A fresh file name on the target's own disk, so that the rename is atomic; gone at the end."""
    handle, name = tempfile.mkstemp(prefix=".unpack-", dir=folder)
    os.close(handle)
    path = Path(name)
    # mkstemp makes it private to its owner; a shared cache wants the umask's mode.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
