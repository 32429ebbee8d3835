"""Videos of rollouts: frames to an MP4 file, through the ffmpeg that comes with imageio-ffmpeg."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import UserError

_EVEN = 2
_MOST_HZ = 60.0


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], control_hz: float | None) -> int:
    """Writes frames ``(height, width, 3)`` uint8 at the speed of life; returns how many were written.

    Above 60 control steps a second, frames are left out, so that the speed stays.

    Args:
        path: An MP4 file.
        frames: One a control step.
        control_hz: Control steps a second; 30 where it is not known.

    Raises:
        UserError: If imageio or its ffmpeg is not installed, or there is no frame.
    """
    missing = [name for name in ("imageio", "imageio_ffmpeg") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"video: needs {' and '.join(missing)}; install them with pip install 'mambakit[robotics]'"
        )
    import imageio.v2 as imageio

    hz = control_hz or 30.0
    every = max(1, round(hz / _MOST_HZ))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part.mp4")
    writer: Any = None
    count = 0
    try:
        for number, frame in enumerate(frames):
            if number % every:
                continue
            if writer is None:
                writer = imageio.get_writer(
                    partial, fps=hz / every, codec="libx264", macro_block_size=1, quality=8
                )
            writer.append_data(_even(np.asarray(frame, dtype=np.uint8)))
            count += 1
        if writer is None:
            raise UserError(f"{path}: there is no frame to write")
        writer.close()
        partial.replace(path)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)
    return count


def _even(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With even height and width, as the usual pixel format of MP4 files takes them."""
    more = [(0, frame.shape[0] % _EVEN), (0, frame.shape[1] % _EVEN), (0, 0)]
    return np.pad(frame, more, mode="edge")
