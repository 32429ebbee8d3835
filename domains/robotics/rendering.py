"""Pictures of MuJoCo scenes without a screen, ten to twenty times as fast as with the default settings.

On software EGL nearly all time goes into a 4096 x 4096 shadow map and four samples a pixel; neither matters
to a policy that sees 64 to 84 pixels.
"""

from __future__ import annotations

import os
import traceback
import weakref
from pathlib import PurePath
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import UserError

_SHADOW_SIZE = 256
_PACKAGES = {"egl": "libegl1, libegl-mesa0 and libgl1-mesa-dri", "osmesa": "libosmesa6"}
# folders of the package that look for a way to draw as it is imported
_DRAWING = frozenset({"egl", "osmesa", "glfw", "rendering"})


class FastRender(gymnasium.Wrapper[Any, Any, Any, Any]):
    """``render()`` as (size, size, 3) uint8, seen from the environment's own camera.

    Raises:
        UserError: At the first picture, if nothing here can draw; it says which packages are missing.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int) -> None:
        super().__init__(env)
        self._size = size
        self._renderer: Any = None
        self._close: weakref.finalize[Any, Any] | None = None
        self._camera: Any = None

    def render(self) -> NDArray[np.uint8]:
        import mujoco

        if self._renderer is None:
            self._renderer = self._opened(mujoco)
            # an environment that nobody closed: before the interpreter takes the graphics library apart
            self._close = weakref.finalize(self, self._renderer.close)
            self._camera = self._own_camera(mujoco)
        self._renderer.update_scene(self.unwrapped.data, self._camera)  # type: ignore[attr-defined]
        return self._renderer.render()

    def close(self) -> None:
        if self._close is not None:
            self._close()
            self._renderer, self._close = None, None
        super().close()

    def _opened(self, mujoco: Any) -> Any:
        model = self.unwrapped.model  # type: ignore[attr-defined]
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = _SHADOW_SIZE
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self._size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self._size)
        try:
            renderer = mujoco.Renderer(model, self._size, self._size)
        except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError) as error:
            raise UserError(_why_not(error)) from error
        flags = mujoco.mjtRndFlag
        for off in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX, flags.mjRND_HAZE):
            renderer.scene.flags[off] = 0
        return renderer

    def _own_camera(self, mujoco: Any) -> Any:
        """As gymnasium places it: a named camera, or a free one with the environment's settings."""
        theirs = getattr(self.unwrapped, "mujoco_renderer", None)
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.unwrapped.model, camera)  # type: ignore[attr-defined]
        if theirs is None:
            return camera
        if theirs.camera_id is not None and theirs.camera_id >= 0:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, theirs.camera_id
            return camera
        for name, value in (theirs.default_cam_config or {}).items():
            if isinstance(value, np.ndarray):
                getattr(camera, name)[:] = value
            else:
                setattr(camera, name, value)
        if getattr(camera, "trackbodyid", -1) >= 0:
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        return camera


class OwnRender(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The environment's own ``render()``; what it lacks is one sentence.

    Raises:
        UserError: If a package is missing, or nothing here can draw.
    """

    def render(self) -> Any:
        named = self.spec.id if self.spec is not None else str(self.unwrapped)
        try:
            picture = self.env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{named} can't be drawn: {error}") from error
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            if not hasattr(self.unwrapped, "model"):
                raise
            raise UserError(_why_not(error)) from error
        if picture is None:
            raise UserError(f"{named} can't be drawn: its render() gives no picture (rgb_array)")
        return picture


def why_no_import(error: BaseException) -> str | None:
    """Why mujoco can't be imported, where that is for want of a way to draw; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        for frame in traceback.extract_tb(cause.__traceback__):
            parts = PurePath(frame.filename).parts
            if "mujoco" in parts and _DRAWING.intersection(parts):
                return _why_not(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _why_not(error: BaseException) -> str:
    backend = os.environ.get("MUJOCO_GL", "glfw")
    what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if backend in _PACKAGES:
        help_text = f"on Debian it needs {_PACKAGES[backend]}"
    else:
        help_text = f"without a screen set MUJOCO_GL=egl; on Debian it needs {_PACKAGES['egl']}"
    return f"can't draw with MUJOCO_GL={backend} ({what}): {help_text}"
