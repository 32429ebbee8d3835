"""One HTTP download that continues where it broke off: a downloader for pooch."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

_TIMEOUT_S = (10, 60)  # to connect, between two blocks
_BLOCK = 1 << 16


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ResumingDownloader:
    """Downloads into a ``.part`` file and, after a break, asks the server for the rest only.

    pooch calls it with a temporary name and checks the hash afterwards; pooch's own downloader writes to
    that temporary file, which is deleted when the connection drops, and so begins again each time.

    Args:
        part: The file that collects the bytes; it stays after a failure, for the next attempt.
        size: Bytes that the server should serve in all.
        sha256: What they should hash to. A resumed download that does not (the server's file had changed
            between the two halves) is fetched once more from its beginning.
        progress: Whether to show a bar on stderr.
        attempts: Connections without a single new byte before giving up.
        wait_s: Seconds to wait before the second attempt; doubled for each further one.
    """

    def __init__(
        self,
        part: Path,
        size: int,
        sha256: str,
        *,
        progress: bool = True,
        attempts: int = 3,
        wait_s: float = 1.0,
    ) -> None:
        self.part = part
        self.size = size
        self.sha256 = sha256
        self.progress = progress
        self.attempts = attempts
        self.wait_s = wait_s

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Fetches ``url`` into ``output_file``.

        Raises:
            requests.RequestException: If the server cannot be reached or refuses.
            ValueError: If it serves another number of bytes than the card says.
        """
        resumed = self._size_so_far() > 0
        self._complete(url)
        if resumed and sha256_of(self.part) != self.sha256:
            self.part.unlink()
            self._complete(url)
        self.part.replace(output_file)

    def _complete(self, url: str) -> None:
        import requests  # here, as reading a file must not wait for it

        fruitless = 0
        while self._size_so_far() < self.size:
            before = self._size_so_far()
            try:
                self._request_rest(url, before)
                if self._size_so_far() == before:
                    raise requests.ConnectionError("the server sent nothing")
            except requests.HTTPError:
                raise
            except requests.RequestException:
                fruitless = 0 if self._size_so_far() > before else fruitless + 1
                if fruitless >= self.attempts:
                    raise
                time.sleep(self.wait_s * 2 ** max(fruitless - 1, 0))

    def _request_rest(self, url: str, start: int) -> None:
        import requests
        from tqdm import tqdm

        # identity: a range of a body that is compressed on the way would not be a range of the file.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if response.status_code == 416:  # the server's file ends before the part does
                self._refuse("fewer than")
            response.raise_for_status()
            content_range = response.headers.get("Content-Range", "")
            continues = response.status_code == 206 and content_range.startswith(f"bytes {start}-")
            length = response.headers.get("Content-Length")
            if length is not None and "Content-Encoding" not in response.headers:
                total = int(length) + (start if continues else 0)
                if total != self.size:
                    self._refuse(f"{total:,} bytes instead of")
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with (
                self.part.open("ab" if continues else "wb") as out,
                tqdm(
                    total=self.size,
                    initial=start if continues else 0,
                    unit="B",
                    unit_scale=True,
                    desc=url.rpartition("/")[2],
                    file=sys.stderr,
                    disable=not self.progress or not sys.stderr.isatty(),
                ) as bar,
            ):
                written = start if continues else 0
                for block in response.iter_content(_BLOCK):
                    out.write(block)
                    out.flush()
                    bar.update(len(block))
                    written += len(block)
                    if written > self.size:  # an endless body must not fill the disk
                        self._refuse("more than")

    def _refuse(self, instead: str) -> NoReturn:
        self.part.unlink(missing_ok=True)
        raise ValueError(f"the server has {instead} the {self.size:,} bytes that the card says")

    def _size_so_far(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0
