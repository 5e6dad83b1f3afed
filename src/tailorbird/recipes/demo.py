"""The whole way at once: demonstrations, training, closed-loop runs, report."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from tailorbird.checkpoint.policy import POLICY_FILES, write_policy
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.data.record import record
from tailorbird.errors import Interrupted
from tailorbird.evals.report import write_report
from tailorbird.evals.results import load_conditions, load_stamp, save_episodes, success_table, table
from tailorbird.evals.rollout import Run, drive_in_real_time, rollouts
from tailorbird.evals.strip import draw_strip
from tailorbird.infer.policy import load_policy
from tailorbird.progress import console
from tailorbird.provenance import versions
from tailorbird.recipes.config import DemoConfig
from tailorbird.recipes.fit import build_pipeline, fit, new_model
from tailorbird.storage import claim, locked, new_folder, read_json, write_json


def demo(cfg: DemoConfig, out: Path, workers: int, command: str) -> Path:
    """Run every stage that `out` does not hold yet. Returns the path of the report.

    `out` receives dataset/, train/, policy/, untrained/, rollouts/, videos/, result.json, strip.jpg and
    report.html.
    Expect about 90 % success over 5 x 20 unseen seeds, and twelve minutes on two CPU cores.

    Raises:
        ConfigError: `out` holds a demo with other settings.
        Interrupted: training was stopped; the same call continues.
    """
    with locked(out):
        claim(out / "settings.json", asdict(cfg))
        if not (out / "result.json").exists():
            _make(cfg, out, workers, command)
        report = write_report(out)
    console.print(table(load_conditions(out)))
    return report


def _make(cfg: DemoConfig, out: Path, workers: int, command: str) -> None:
    """Everything up to result.json."""
    with _timed(out, "record"):
        recorded = record(cfg.record, out / "dataset", workers)
    with _timed(out, "train"):
        trained = fit(cfg.fit, out / "dataset", out / "train")
    if not trained.finished:
        raise Interrupted(f"stopped at step {trained.step}, saved: the same command goes on from there")
    with _timed(out, "rollouts"):
        _keep_policies(cfg, out, trained.checkpoint)
        _play(cfg, out, workers, command)
    draw_strip(out, cfg.rollout.tasks, out / "strip.jpg")
    result = {
        **success_table(load_conditions(out)),
        **read_json(out / "realtime.json"),
        "train_seconds": trained.seconds,
        "parameters": sum(p.numel() for p in load_policy(out / "policy").model.parameters()),
        "demonstrations": sum(recorded["episodes"].values()),
        **load_stamp(out, "normal"),
        "minutes": {stage: seconds / 60 for stage, seconds in read_json(out / "seconds.json").items()},
        "versions": versions(),
        "settings": asdict(cfg),
    }
    write_json(out / "result.json", result)


@contextmanager
def _timed(out: Path, stage: str) -> Iterator[None]:
    """Add the time of a block to seconds.json, whether it ends or is interrupted."""
    began = time.monotonic()
    try:
        yield
    finally:
        path = out / "seconds.json"
        spent = read_json(path) if path.exists() else {}
        write_json(path, {**spent, stage: spent.get(stage, 0.0) + time.monotonic() - began})


def _keep_policies(cfg: DemoConfig, out: Path, checkpoint: Path) -> None:
    """The trained policy without the optimizer's state, and the same network before training."""
    with new_folder(out / "policy") as folder:
        for name in POLICY_FILES:
            shutil.copyfile(checkpoint / name, folder / name)
    data = LeRobotDataset(out / "dataset")
    model = new_model(cfg.fit, data)
    with new_folder(out / "untrained") as folder:
        write_policy(folder, model.state_dict(), model.cfg, build_pipeline(cfg.fit, data))


def _play(cfg: DemoConfig, out: Path, workers: int, command: str) -> None:
    """The runs that count, those that should fail, and one by the wall clock. What is there already stays."""
    control = replace(cfg.rollout, seeds=cfg.control_seeds, film=False)
    policy, untrained = out / "policy", out / "untrained"
    runs = {
        "normal": Run(policy=policy, cfg=cfg.rollout),
        "shuffled": Run(policy=policy, cfg=control, condition="shuffled"),
        "black": Run(policy=policy, cfg=control, condition="black"),
        "untrained": Run(policy=untrained, cfg=control),
    }
    todo = {name: run for name, run in runs.items() if not (out / f"rollouts/{name}.json").exists()}
    for name, episodes in rollouts(todo, workers):
        save_episodes(out, name, episodes, command)
    if not (out / "realtime.json").exists():
        trace = drive_in_real_time(policy, cfg.rollout)
        rate = trace.ticks / trace.seconds
        facts = {"control_hz": rate, "control_late_ticks": trace.late, "control_held_ticks": trace.held}
        write_json(out / "realtime.json", facts)
