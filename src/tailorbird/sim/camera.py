"""Off-screen cameras for MuJoCo: which OpenGL to use, and how much picture quality to pay for."""

import atexit
import ctypes.util
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.errors import SimulatorError

GL_REMEDY = (
    "Off-screen OpenGL needs EGL or OSMesa. On Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri "
    "(or libosmesa6, then set MUJOCO_GL=osmesa). `tailorbird doctor` shows what this machine has."
)


def choose_gl() -> str:
    """Pick the OpenGL that MuJoCo loads, before MuJoCo is imported. An MUJOCO_GL that is already set wins.

    Software rendering is kept to one thread a process: simulators run side by side in processes.
    """
    if "MUJOCO_GL" not in os.environ and sys.platform == "linux":
        found = [
            name for name, lib in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(lib)
        ]
        if not found:
            raise SimulatorError(f"no off-screen OpenGL library found. {GL_REMEDY}")
        os.environ["MUJOCO_GL"] = found[0]
    backend = os.environ.get("MUJOCO_GL", "")
    if backend in ("egl", "osmesa"):
        os.environ["PYOPENGL_PLATFORM"] = backend
    os.environ.setdefault("LP_NUM_THREADS", "1")
    return backend


class Camera:
    """One camera of one MuJoCo model at one size.

    fast: no shadows, no reflections, no multisampling; several times the frame rate in software, and a few
    grey levels away from the faithful picture. Decide before the first frame: multisampling is fixed then.
    """

    def __init__(self, model: Any, name: str, size: int, *, fast: bool) -> None:
        import mujoco

        self.name, self.fast = name, fast
        view = model.vis.global_
        view.offwidth, view.offheight = max(view.offwidth, size), max(view.offheight, size)
        samples = model.vis.quality.offsamples
        if fast:
            model.vis.quality.offsamples = 0
        try:
            self._renderer: mujoco.Renderer | None = mujoco.Renderer(model, size, size)
        except Exception as error:  # the GL loaders raise whatever they like, AttributeError included
            raise SimulatorError(f"cannot open an off-screen camera: {error}. {GL_REMEDY}") from error
        finally:
            model.vis.quality.offsamples = samples
        atexit.register(self.close)  # before MuJoCo's own exit, which takes the display away
        self._off = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION) if fast else ()

    def shoot(self, data: Any) -> NDArray[np.uint8]:
        """Take a picture, (size, size, 3).

        Turned by 180 degrees: Meta-World hangs its cameras upside down.
        """
        if self._renderer is None:
            raise SimulatorError("this camera was closed")
        self._renderer.update_scene(data, self.name)
        for flag in self._off:
            self._renderer.scene.flags[flag] = 0
        return np.ascontiguousarray(self._renderer.render()[::-1, ::-1])

    def close(self) -> None:
        """Free the OpenGL context. Left to the garbage collector it may tear down a newer one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
            atexit.unregister(self.close)
