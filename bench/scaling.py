"""Time of a call against cameras, robots, steps and picture size, stage by stage, and which stage dominates.

PYTHONPATH=tests python bench/scaling.py

Random weights of smolvla_base's shape and of the demo's, compiled by OpenVINO in bfloat16. Writes
results/scaling_cpu.json and results/scaling_cpu.png: five minutes on two cores, 8 GB of memory.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from contender import FRAME
from released import words
from tailorbird.evals.plots import BLUE, GREEN, GREY, ORANGE, STYLE
from tailorbird.evals.scenes import load_scenes
from tailorbird.infer.policy import Policy
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.model.config import VLAConfig
from tailorbird.model.init import initialise
from tailorbird.model.sizes import SMOLVLA_BASE, TINY
from tailorbird.model.vla import VLA
from tailorbird.perf.trace import time_stages
from tailorbird.processing.image import Letterbox
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.provenance import cores, stamp, versions
from tailorbird.storage import new_file, write_json
from tailorbird.wire import Observation

RESULTS = Path(__file__).parents[1] / "results"
CAMERAS = tuple(f"camera{i}" for i in range(1, 6))
REPEATS = 3
STATE_DIM = 4
STAGES = {"prepare": GREY, "vision": BLUE, "prefix": GREEN, "steps": ORANGE, "write": "#3a3a3a"}
SMOLVLA, DEMO = "smolvla_base", "demo"
VALUES = {  # of each axis; what is not varied is one camera, one robot, ten steps, 512 px
    (SMOLVLA, "cameras"): (1, 2, 3, 4, 5),
    (SMOLVLA, "robots"): (1, 2, 4, 8),
    (SMOLVLA, "steps"): (1, 2, 5, 10, 20, 40),
    (SMOLVLA, "px"): (128, 256, 384, 512),
    (DEMO, "robots"): (1, 2, 4, 8, 16, 32, 64),
}
Row = dict[str, Any]


def build(cfg: VLAConfig) -> Policy:
    model = VLA(cfg)
    initialise(model, seed=0)
    scale = Normalizer(mean=(0.0,) * STATE_DIM, std=(1.0,) * STATE_DIM)
    pipeline = Pipeline(
        cameras=CAMERAS,
        image=Letterbox(size=cfg.vlm.vision.image_size),
        state=scale,
        action=scale,
        tokenizer=InstructionTokenizer(words(), 48),
        hz=None,
        state_dim=cfg.state_dim,
        action_dim=cfg.action_dim,
    )
    return Policy(CompiledVLA(model.eval().requires_grad_(False), "bfloat16"), pipeline)


def measure(policy: Policy, model: str, axis: str, value: int) -> Row:
    """One point: medians of calls that do nothing else than this many of what the axis counts."""
    cameras, robots = (value if axis == one else 1 for one in ("cameras", "robots"))
    if axis == "steps":
        policy.model.cfg = replace(policy.model.cfg, num_steps=value)
    policy = Policy(policy.model, replace(policy.pipeline, absent=CAMERAS[cameras:]))
    scenes = load_scenes()
    frames = [
        np.asarray(Image.fromarray(picture).resize(FRAME))
        for one in scenes
        for picture in one.images.values()
    ]
    seen = [
        Observation(
            images={name: frames[(i + j) % len(frames)] for j, name in enumerate(CAMERAS[:cameras])},
            state=np.zeros(STATE_DIM, np.float32),
            task=scenes[0].task,
        )
        for i in range(robots)
    ]
    runs = [_grouped(time_stages(policy, seen)) for _ in range(REPEATS + 1)][1:]  # the first one warms up
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
    ms = statistics.median(sum(run.values()) for run in runs)
    print(f"{model}, {axis} {value}: {ms:.0f} ms, most of it {_longest(stages)}", flush=True)
    return {"model": model, "axis": axis, "value": value, "ms_p50": ms, "stages_ms": stages}


def _grouped(ms: dict[str, float]) -> dict[str, float]:
    """All steps as one stage, and the state's place with the others of the prefix."""
    steps = sum(one for stage, one in ms.items() if stage.startswith("step"))
    merged = {**ms, "prefix": ms["prefix"] + ms["state"], "steps": steps}
    return {stage: merged[stage] for stage in STAGES}


def _longest(stages: dict[str, float]) -> str:
    return max(stages, key=lambda stage: stages[stage])


def turns(rows: Sequence[Row]) -> list[str]:
    """Of each axis, which stage takes longest from where to where."""
    found = []
    for (model, axis), line in groupby(rows, key=lambda row: (row["model"], row["axis"])):
        parts = []
        for stage, run in groupby(line, key=lambda row: _longest(row["stages_ms"])):
            values = [row["value"] for row in run]
            parts.append(f"{stage} at {values[0]}" + (f" to {values[-1]}" if len(values) > 1 else ""))
        found.append(f"{model}, {axis}: {', '.join(parts)}")
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """Stacked bars of the stages, a panel an axis."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(VALUES), figsize=(14, 3.6), layout="constrained")
        for ax, (model, axis) in zip(panels, VALUES, strict=True):
            line = [row for row in rows if (row["model"], row["axis"]) == (model, axis)]
            foot = np.zeros(len(line))
            for stage, colour in STAGES.items():
                heights = np.array([row["stages_ms"][stage] for row in line])
                ax.bar(range(len(line)), heights, 0.8, foot, color=colour, label=stage)
                foot += heights
            ax.set_xticks(range(len(line)), [str(row["value"]) for row in line])
            ax.set_title(f"{model}: {axis}", fontsize=10)
            ax.grid(visible=False, axis="x")
        panels[0].set_ylabel("ms a call")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STAGES))
        with new_file(path) as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": None})
        plt.close(figure)


def main() -> None:
    rows, policies = [], {SMOLVLA: build(SMOLVLA_BASE), DEMO: build(TINY)}
    for (model, axis), values in VALUES.items():
        for value in values:
            policy = policies[model]
            if axis == "px":
                vlm = SMOLVLA_BASE.vlm
                policy = build(
                    replace(SMOLVLA_BASE, vlm=replace(vlm, vision=replace(vlm.vision, image_size=value)))
                )
            rows.append(measure(policy, model, axis, value))
        policies[model].model.cfg = replace(policies[model].model.cfg, num_steps=SMOLVLA_BASE.num_steps)
    result = {"rows": rows, "dominates": turns(rows), "engine": "openvino bfloat16", "threads": cores()}
    write_json(
        RESULTS / "scaling_cpu.json", {**result, **stamp("make bench-scaling"), "versions": versions()}
    )
    draw(rows, RESULTS / "scaling_cpu.png")
    print("\n".join(result["dominates"]))


if __name__ == "__main__":
    with torch.random.fork_rng():
        main()
