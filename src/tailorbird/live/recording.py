"""A run for Rerun's viewer: pictures, states, actions, chunks, ages, interventions; by tick and by second."""

import os
import sys
from contextlib import ExitStack
from math import isfinite
from pathlib import Path

from tailorbird.errors import ConfigError
from tailorbird.live.feed import Moment
from tailorbird.storage import new_file

try:
    import rerun as rr
    import rerun.blueprint as rrb
except ImportError as error:
    raise ConfigError(f"{error}. Install Rerun: pip install '.[rerun]' in Tailorbird's checkout") from error

PICTURE_S = 0.1  # between two pictures of a camera, at least
JPEG = 85


class Recording:
    """Writes an .rrd file, or shows the run in the viewer while it goes on."""

    def __init__(self, target: str, title: str) -> None:
        """target: a file, which Rerun wants to end in .rrd, or "viewer".

        Raises:
            ConfigError: the viewer does not start.
            StorageError: the file cannot be written.
        """
        self._stack = ExitStack()
        self._origin_s: float | None = None
        self._pictured_s = -PICTURE_S
        self._ticks = 0  # of the episodes before
        self._before: Moment | None = None
        self._stream = rr.RecordingStream("tailorbird")
        if target == "viewer":
            beside = str(Path(sys.executable).parent)  # where pip puts the viewer, in whatever environment
            os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), beside])
            try:
                self._stream.spawn(hide_welcome_screen=True)
            except Exception as error:  # Rerun raises RuntimeError and what the system says
                reason = str(error).partition("\n")[0]
                raise ConfigError(f"Rerun's viewer does not start: {reason} Name a file instead") from error
        else:
            self._stream.save(self._stack.enter_context(new_file(Path(target))))
        self._stream.set_log_time_enabled(False)  # when a watcher got to it says nothing about the run
        self._stream.send_recording_name(title)
        self._stream.send_blueprint(_blueprint())

    def take(self, moment: Moment) -> None:
        tick = moment.tick
        if self._before is not None and self._before.episode != moment.episode:
            self._ticks += self._before.tick.number + 1
        self._before = moment
        if self._origin_s is None:
            self._origin_s = tick.due_s
        now_s = tick.began_s - self._origin_s
        log, stream = self._stream.log, self._stream
        stream.set_time("tick", sequence=self._ticks + tick.number)
        stream.set_time("time", duration=now_s)
        if tick.number == 0:
            log("episode", rr.TextLog(f"episode {moment.episode}", level=rr.TextLogLevel.INFO))
        log("action", rr.Scalars(tick.action))
        log("loop/late_ms", rr.Scalars(1e3 * (tick.began_s - tick.due_s)))
        log("loop/left", rr.Scalars(tick.left))
        for name, age_s in (("observation", tick.age_s), ("scene", tick.scene_age_s)):
            if isfinite(age_s):
                log(f"age_ms/{name}", rr.Scalars(1e3 * age_s))
        for name in tick.interventions:
            log("guard", rr.TextLog(name, level=rr.TextLogLevel.WARN))
        if tick.chunk is not None:
            log("chunk", rr.Tensor(tick.chunk.actions, dim_names=("step", "action")))
            for stage, ms in tick.chunk.infer_ms.items():
                log(f"stage_ms/{stage}", rr.Scalars(ms))
        if tick.seen is not None:
            log("state", rr.Scalars(tick.seen.state))
            if tick.seen.images and now_s - self._pictured_s >= PICTURE_S:
                self._pictured_s = now_s
                for camera, picture in tick.seen.images.items():
                    log(f"camera/{camera}", rr.Image(picture).compress(jpeg_quality=JPEG))

    def close(self) -> None:
        """The file has its name from here on, whatever ended the run."""
        self._stream.disconnect()
        self._stack.close()


def _blueprint() -> rrb.Blueprint:
    """Pictures and the chunk at hand on the left, curves on the right, interventions below."""
    return rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(
                rrb.Vertical(
                    rrb.Spatial2DView(origin="camera", name="cameras"),
                    rrb.TensorView(origin="chunk", name="chunk"),
                ),
                rrb.Vertical(
                    rrb.TimeSeriesView(origin="action", name="action"),
                    rrb.TimeSeriesView(origin="state", name="state"),
                    rrb.TimeSeriesView(origin="age_ms", name="ages, ms"),
                    rrb.TimeSeriesView(origin="loop", name="loop"),
                ),
            ),
            rrb.TextLogView(contents=["guard", "episode"], name="guard"),
            row_shares=[4, 1],
        )
    )
