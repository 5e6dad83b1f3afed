"""A recording, read back by Rerun's own reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rerun.chunk import RrdReader
from watched import HZ, TICKS, played

from tailorbird.live.recording import PICTURE_S, Recording


def load(path: Path) -> dict[str, dict[str, list[Any]]]:
    """By entity: its columns, in the order of the ticks."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(path).stream():
        if "tick" in chunk.timeline_names:
            batch = chunk.to_record_batch()
            seconds = np.asarray(batch["time"]) / np.timedelta64(1, "s")
            told = batch.drop_columns(["time"]).to_pylist()
            rows.setdefault(chunk.entity_path, []).extend(
                {**row, "time": float(at)} for row, at in zip(told, seconds, strict=True)
            )
    for found in rows.values():
        found.sort(key=lambda row: row["tick"])
    return {name: {key: [row[key] for row in found] for key in found[0]} for name, found in rows.items()}


def test_what_was_recorded_is_what_happened(tmp_path: Path) -> None:
    recording = Recording(str(tmp_path / "run.rrd"), "an arm")
    _, moments, _ = played(recording.take, episodes=2)
    recording.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.rrd"]
    found = load(tmp_path / "run.rrd")
    assert found["/action"]["tick"] == list(range(2 * TICKS))
    actions = np.array(found["/action"]["Scalars:scalars"])
    assert np.allclose(actions, [moment.tick.action for moment in moments])
    start = moments[0].tick.due_s
    assert found["/action"]["time"] == pytest.approx(
        [moment.tick.began_s - start for moment in moments], abs=1e-5
    )
    states = [moment.tick.seen.state for moment in moments if moment.tick.seen is not None]
    assert np.allclose(found["/state"]["Scalars:scalars"], states)
    chunks = [moment.tick.chunk for moment in moments if moment.tick.chunk is not None]
    assert len(found["/chunk"]["tick"]) == len(found["/stage_ms/encode"]["tick"]) == len(chunks)
    assert found["/stage_ms/encode"]["Scalars:scalars"] == [[60.0]] * len(chunks)
    ages = [1e3 * moment.tick.scene_age_s for moment in moments]
    assert np.allclose(np.ravel(found["/age_ms/scene"]["Scalars:scalars"]), ages)
    texts = [name for moment in moments for name in moment.tick.interventions]
    assert [text for (text,) in found["/guard"]["TextLog:text"]] == texts
    assert len(found["/episode"]["tick"]) == 2


def test_pictures_of_all_cameras_come_now_and_then(tmp_path: Path) -> None:
    recording = Recording(str(tmp_path / "run.rrd"), "")
    _, moments, _ = played(recording.take)
    recording.close()
    found = load(tmp_path / "run.rrd")
    ticks = found["/camera/top"]["tick"]
    looked = [moment.tick.number for moment in moments if moment.tick.seen is not None]
    assert ticks == found["/camera/wrist"]["tick"]
    assert set(ticks) <= set(looked)
    assert 3 <= len(ticks) <= TICKS / HZ / PICTURE_S
    assert all(kind == ["image/jpeg"] for kind in found["/camera/top"]["EncodedImage:media_type"])
