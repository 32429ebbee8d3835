"""Fetching files by the hundred: from a mirror's archive, else each by itself from the network.

What lies in the cache is checked every time as a whole, by the hash over all members' hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from mambakit.core.data.cards import Card, CardPack
from mambakit.core.data.download import sha256_of
from mambakit.core.data.fetch import cache_folder
from mambakit.core.errors import DataError

_CONNECTIONS = 8
_ATTEMPTS = 4
_TIMEOUT_S = (10, 60)


def fetch_pack(card: Card, pack: CardPack, *, progress: bool = True) -> Path:
    """The folder that holds a pack's members under their names.

    It is looked for in the cache, then in the folder that MAMBAKIT_DATA_MIRROR names, then each member is
    fetched from its URL; a download that broke off goes on with the members that are missing.

    Raises:
        DataError: If the mirror's archive is damaged, members cannot be reached, or they are not, together,
            those that the card means.
    """
    import filelock

    home = cache_folder() / card.domain / card.name
    target = home / pack.name
    names = [name for name, _ in pack.members()]
    if _is_whole(target, names, pack):
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to the data cache {home} ({error}); set MAMBAKIT_DATA") from error
    with filelock.FileLock(home / f".{pack.name}.lock"):
        if _is_whole(target, names, pack):
            return target
        if target.exists():
            print(f"{target}: does not have its card's sha256 any more; fetching it again", file=sys.stderr)
            shutil.rmtree(target)
        archive = _in_mirror(pack)
        if archive is not None:
            _unpack(archive, names, pack, target)
        else:
            _download(names, pack, target, progress=progress)
    return target


def manifest_hash(folder: Path, names: list[str]) -> str:
    """The sha256 over the lines ``<sha256>  <member>``, in order of the member's name."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{sha256_of(folder / name)}  {name}\n".encode())
    return digest.hexdigest()


def _is_whole(folder: Path, names: list[str], pack: CardPack) -> bool:
    there = folder.is_dir() and all((folder / name).is_file() for name in names)
    return there and manifest_hash(folder, names) == pack.manifest_sha256


def _in_mirror(pack: CardPack) -> Path | None:
    mirror = os.environ.get("MAMBAKIT_DATA_MIRROR")
    if not mirror:
        return None
    root = Path(mirror).expanduser()
    if not root.is_dir():
        raise DataError(f"MAMBAKIT_DATA_MIRROR names {root}, which is not a folder")
    archive = root / pack.mirror
    return archive if archive.is_file() else None


def _unpack(archive: Path, names: list[str], pack: CardPack, target: Path) -> None:
    served = sha256_of(archive)
    if served != pack.mirror_sha256:
        raise DataError(
            f"{archive}: damaged or not the archive that the card means: "
            f"sha256 is {served}, the card says {pack.mirror_sha256}"
        )
    made = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        wanted = set(names)
        with tarfile.open(archive) as packed:
            for entry in packed:
                if entry.name in wanted and entry.isfile():
                    packed.extract(entry, made, filter="data")
        missing = [name for name in names if not (made / name).is_file()]
        if missing:
            raise DataError(f"{archive}: holds no {missing[0]}, which the card names")
        _check(made, names, pack, str(archive))
        _move(made, target)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: damaged, cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _download(names: list[str], pack: CardPack, target: Path, *, progress: bool) -> None:
    from tqdm import tqdm

    part = target.with_name(f".{pack.name}.part")
    missing = [name for name in names if not (part / name).is_file()]
    print(f"downloading {len(missing):,} files, {pack.url.format(member=names[0])} and on", file=sys.stderr)
    for folder in {(part / name).parent for name in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        fetched = pool.map(
            lambda name: _download_one(pack.url.format(member=quote(name)), part / name), missing
        )
        try:
            for _ in tqdm(fetched, total=len(missing), unit="file", disable=not progress, file=sys.stderr):
                pass
        except OSError as error:  # requests' errors are
            pool.shutdown(cancel_futures=True)
            raise DataError(
                f"could not download {pack.name} ({' '.join(str(error).split())}); what came is kept for the "
                f"next attempt; without a network, set MAMBAKIT_DATA_MIRROR to a folder with {pack.mirror}"
            ) from error
    try:
        _check(part, names, pack, pack.url)
    except DataError:
        shutil.rmtree(part)  # one of them is wrong, and nothing says which
        raise
    _move(part, target)


def _download_one(url: str, path: Path) -> None:
    import requests

    for attempt in range(_ATTEMPTS):
        try:
            answer = requests.get(url, timeout=_TIMEOUT_S)
            answer.raise_for_status()
            break
        except requests.RequestException as error:
            gone = error.response is not None and error.response.status_code == 404
            if gone or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(2.0**attempt)
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(answer.content)
    partial.replace(path)


def _check(folder: Path, names: list[str], pack: CardPack, origin: str) -> None:
    found = manifest_hash(folder, names)
    if found != pack.manifest_sha256:
        raise DataError(
            f"{origin}: the files of {pack.name} are not those that the card means: "
            f"the sha256 over theirs is {found}, the card says {pack.manifest_sha256}"
        )


def _move(made: Path, target: Path) -> None:
    umask = os.umask(0)  # a shared cache wants the umask's mode, a temporary folder is private
    os.umask(umask)
    made.chmod(0o777 & ~umask)
    made.replace(target)
