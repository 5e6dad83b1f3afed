"""Scripted experts play, a LeRobot dataset remembers. Only what succeeded is kept."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tailorbird.data.record_config import RecordConfig
from tailorbird.data.stats import describe_frames
from tailorbird.data.video import encode
from tailorbird.data.writer import DatasetWriter, Demonstration, Layout
from tailorbird.errors import DataError
from tailorbird.progress import track
from tailorbird.sim.expert import ScriptedExpert
from tailorbird.sim.metaworld import open_simulator
from tailorbird.sim.pool import run_in_order
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import claim, locked

STATE_NAMES = ("gripper_x", "gripper_y", "gripper_z", "gripper_opening")
PATIENCE = 20  # attempts per success before giving up
ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "close")


@dataclass(frozen=True)
class Attempt:
    """One seed of one task, for a worker process."""

    task: str
    seed: int
    cfg: RecordConfig


def play(attempt: Attempt) -> Demonstration | None:
    """Let the expert try one seed, disturbed as the settings say. None: it did not succeed in time."""
    cfg, env = attempt.cfg, open_simulator(attempt.task, attempt.cfg.sim)
    env.restart(attempt.seed)
    expert = ScriptedExpert(attempt.task)
    most = int(cfg.max_s * cfg.sim.control_hz)
    rest = int(cfg.after_s * cfg.sim.control_hz)
    noise = cfg.noise.draw(
        most, np.random.default_rng([attempt.seed, list(INSTRUCTIONS).index(attempt.task)])
    )
    frames, states, actions, left = [], [], [], None
    for offset in noise:
        seen, action = env.observe(), expert.act(env)
        frames.append(seen.images[cfg.sim.camera])
        states.append(seen.state)
        actions.append(action)
        if env.advance(action + offset) and left is None:
            left = rest
        elif left is not None:
            left -= 1
        if left is not None and left <= 0:
            break
    if left is None:
        return None
    pictures = np.stack(frames)
    return Demonstration(
        task=env.instruction,
        state=np.stack(states),
        action=np.stack(actions),
        videos={cfg.sim.camera: encode(frames, cfg.sim.control_hz, crf=cfg.crf)},
        picture_stats={cfg.sim.camera: describe_frames(pictures)},
        facts={"task": attempt.task, "seed": attempt.seed},
    )


def record(cfg: RecordConfig, out: Path, workers: int) -> dict[str, Any]:
    """Record until every task has its demonstrations, continuing what an earlier call left behind.

    The same settings give the same dataset, whatever the number of workers and interruptions.

    Returns:
        Episodes kept and seeds that failed, per task.
    Raises:
        ConfigError: the folder was recorded with other settings.
        DataError: the expert hardly ever succeeds.
        StorageError: the disk is full, or another process records there.
    """
    size = (cfg.sim.size, cfg.sim.size)
    layout = Layout(
        fps=cfg.sim.control_hz,
        robot="metaworld_sawyer",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        cameras={cfg.sim.camera: size},
    )
    with locked(out):
        writer = DatasetWriter(out, layout)
        claim(out / "meta/tailorbird.json", {"record": asdict(cfg)})
        return _record(cfg, writer, workers)


def _record(cfg: RecordConfig, writer: DatasetWriter, workers: int) -> dict[str, Any]:
    kept = {task: [fact["seed"] for fact in writer.facts if fact["task"] == task] for task in cfg.demos}

    def attempts() -> Iterator[Attempt]:
        for task, wanted in cfg.demos.items():
            seed = max(kept[task], default=cfg.first_seed - 1)
            while len(kept[task]) < wanted:
                seed += 1
                yield Attempt(task, seed, cfg)

    total, done = sum(cfg.demos.values()), sum(map(len, kept.values()))
    with track("record", total, done) as bar:
        for attempt, demo in run_in_order(play, attempts(), workers):
            task, tried = attempt.task, attempt.seed - cfg.first_seed + 1
            if len(kept[task]) >= cfg.demos[task]:
                continue  # begun before it was known that there are enough
            if demo is None:
                if tried > PATIENCE * (len(kept[task]) + 2):
                    raise DataError(
                        f"the expert solved {task} on {len(kept[task])} of {tried} seeds: "
                        "give it more time (max_s), or disturb it less (noise)"
                    )
                continue
            writer.add(demo)
            kept[task].append(attempt.seed)
            bar.advance(note=task)
    writer.finish()
    failed = {task: max(seeds) - cfg.first_seed + 1 - len(seeds) for task, seeds in kept.items()}
    return {"episodes": {task: len(seeds) for task, seeds in kept.items()}, "failed_seeds": failed}
