"""Recording demonstrations: the same settings give the same dataset, whatever happens in between."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from synthetic import files
from tailorbird.data import record as recording
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.data.record import record
from tailorbird.data.record_config import RecordConfig
from tailorbird.data.writer import DatasetWriter, Layout
from tailorbird.errors import ConfigError, DataError, TailorbirdError
from tailorbird.sim.config import ActionNoise, SimConfig
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import read_json

CALM = ActionNoise(share=0.0)


def facts(root: Path) -> list[dict[str, object]]:
    features = read_json(root / "meta/info.json")["features"]
    size = features["observation.images.corner2"]["shape"][0]
    layout = Layout(
        fps=20,
        robot="metaworld_sawyer",
        state_names=recording.STATE_NAMES,
        action_names=recording.ACTION_NAMES,
        cameras={"corner2": (size, size)},
    )
    return DatasetWriter(root, layout).facts


def alive(pid: int) -> bool:
    """A zombie is not: whether it is reaped depends on the machine's first process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_one_process_records_the_same_bytes_as_two(
    recorded: Path, recorded_config: RecordConfig, tmp_path: Path
) -> None:
    record(recorded_config, tmp_path / "alone", workers=1)
    alone, together = files(tmp_path / "alone"), files(recorded)
    assert alone.keys() == together.keys()
    assert [name for name in alone if alone[name] != together[name]] == []
    assert len(alone) == 7


RECORD = """
import json, sys
from pathlib import Path
from tailorbird.data.record_config import RecordConfig
from tailorbird.data.record import record
from tailorbird.sim.config import ActionNoise, SimConfig

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["sim"], given["noise"] = SimConfig(**given["sim"]), ActionNoise(**given["noise"])
    record(RecordConfig(**given), Path(sys.argv[2]), workers=2)
"""


def test_a_killed_recording_continues_where_it_stopped(
    recorded: Path, recorded_config: RecordConfig, tmp_path: Path
) -> None:
    script, out = tmp_path / "script.py", tmp_path / "dataset"
    script.write_text(RECORD)
    command = [sys.executable, str(script), json.dumps(asdict(recorded_config)), str(out)]
    kept: dict[str, int] = {}
    for enough in (1, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(list(out.glob(".staging/episode-*"))) < enough:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        workers = children(process.pid)
        process.kill()
        process.wait()
        assert len(workers) >= 2
        end = time.monotonic() + 10
        while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < end:
            time.sleep(0.02)
        assert left == [], "no worker outlives the recorder"
        staged = {f.parent.name: f.stat().st_mtime_ns for f in out.glob(".staging/episode-*/data.parquet")}
        assert len(staged) >= enough
        assert kept.items() <= staged.items(), "what was recorded is not recorded again"
        kept = staged
        with pytest.raises(DataError, match="run the same record command again"):
            LeRobotDataset(out)
    done = record(recorded_config, out, workers=2)
    assert done["episodes"] == recorded_config.demos
    assert files(out) == files(recorded)


def test_a_finished_recording_is_left_as_it_is(
    recorded: Path, recorded_config: RecordConfig, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(recorded, tmp_path / "dataset"))
    done = record(recorded_config, out, workers=1)
    assert done["episodes"] == {"drawer-open-v3": 4, "button-press-topdown-v3": 2}
    assert files(out) == files(recorded)


def test_other_settings_need_another_folder(
    recorded: Path, recorded_config: RecordConfig, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(recorded, tmp_path / "dataset"))
    with pytest.raises(TailorbirdError, match=r"with other settings .*choose another folder, or delete it"):
        record(replace(recorded_config, crf=20), out, workers=1)
    assert files(out) == files(recorded)


def test_what_was_recorded_can_be_played_again_to_the_last_number(
    recorded: Path, recorded_config: RecordConfig
) -> None:
    data, cfg, told = LeRobotDataset(recorded), recorded_config, facts(recorded)
    assert [fact["task"] for fact in told] == ["drawer-open-v3"] * 4 + ["button-press-topdown-v3"] * 2
    env = MetaWorld("drawer-open-v3", cfg.sim)
    disturbed = []
    for episode, fact in zip(data.episodes[:4], told, strict=False):
        seed = int(str(fact["seed"]))
        rows = slice(episode.start, episode.start + episode.length)
        rng = np.random.default_rng([seed, list(INSTRUCTIONS).index(env.task)])
        offsets = cfg.noise.draw(int(cfg.max_s * cfg.sim.control_hz), rng)
        env.restart(seed)
        solved = []
        for state, action, offset, frame in zip(
            data.state[rows], data.action[rows], offsets, data.frames(episode, "corner2"), strict=False
        ):
            seen = env.observe()
            np.testing.assert_array_equal(seen.state, state)
            assert np.abs(seen.images["corner2"].astype(int) - frame).mean() < 8  # the codec's loss
            solved.append(env.advance(action + offset))
        assert solved.index(True) == episode.length - 1 - int(cfg.after_s * cfg.sim.control_hz)
        assert data.tasks[data.task_index[episode.start]] == INSTRUCTIONS["drawer-open-v3"]
        disturbed.append(bool(offsets.any()))
    env.close()
    assert set(disturbed) == {True, False}, "by default half of the episodes are disturbed"
    assert np.abs(data.action).max() <= 1


def test_an_expert_that_never_succeeds_ends_the_recording_with_what_to_change(tmp_path: Path) -> None:
    cfg = RecordConfig(
        demos={"drawer-open-v3": 3}, max_s=0.05, sim=SimConfig(size=16), noise=CALM, first_seed=50
    )
    with pytest.raises(
        DataError, match=r"solved drawer-open-v3 on 0 of 41 seeds: give it more time \(max_s\)"
    ):
        record(cfg, tmp_path / "dataset", workers=1)


def test_attempts_that_are_still_under_way_do_not_count_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PATIENCE", 0)  # a worker runs further ahead than that
    cfg = RecordConfig(demos={"drawer-open-v3": 2}, sim=SimConfig(size=16), noise=CALM)
    assert record(cfg, tmp_path / "dataset", workers=1) == {
        "episodes": {"drawer-open-v3": 2},
        "failed_seeds": {"drawer-open-v3": 0},
    }


def test_seeds_on_which_the_expert_fails_are_passed_over_and_counted(tmp_path: Path) -> None:
    task = "button-press-topdown-v3"
    cfg = RecordConfig(demos={task: 3}, max_s=0.8, sim=SimConfig(size=16), noise=CALM)
    done = record(cfg, tmp_path / "dataset", workers=1)
    seeds = [int(str(fact["seed"])) for fact in facts(tmp_path / "dataset")]
    assert seeds == sorted(seeds)
    assert done == {"episodes": {task: 3}, "failed_seeds": {task: seeds[-1] - 999 - 3}}
    assert done["failed_seeds"][task] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"demos": {}}, "at least one demonstration each"),
        ({"demos": {"drawer-open-v3": 0}}, "at least one demonstration each"),
        ({"demos": {"open-drawer": 3}}, "name Meta-World tasks .*drawer-open-v3"),
        ({"max_s": 0.0}, r"max_s=0\.0 must be in \(0, 6\.25\]"),
        ({"max_s": 7.0}, r"max_s=7\.0 must be in \(0, 6\.25\]"),
        ({"sim": SimConfig(size=33)}, r"size=33 even for video"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecordConfig(**{"demos": {"drawer-open-v3": 1}, **wrong})
