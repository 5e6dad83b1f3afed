"""Distance of this code from lerobot and of bfloat16 from fp32, for the demo's policy and for a SmolVLA.

The SmolVLA has the size of smolvla_base, three cameras and random weights.

PYTHONPATH=tests python bench/verify.py [POLICY]

POLICY: runs/demo/policy. Writes results/verify.json and results/verify.png: a quarter of an hour on two
cores, and 5 GB of memory.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import lerobot_reference  # noqa: F401  makes lerobot importable without what only robots need
from released import words, write_released
from tailorbird.checkpoint.policy import write_policy
from tailorbird.checkpoint.released import released_config
from tailorbird.evals.config import VerifyConfig
from tailorbird.evals.verify import Verdict, verify
from tailorbird.evals.verify_report import draw, table
from tailorbird.model.init import initialise
from tailorbird.model.sizes import SMOLVLA_BASE
from tailorbird.model.vla import VLA
from tailorbird.processing.image import Letterbox
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.progress import console
from tailorbird.provenance import stamp, versions
from tailorbird.storage import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SOURCES = (("float32", "reference"), ("bfloat16", "reference"), ("bfloat16", "fp32"))


def draw_fresh(model: VLA) -> None:
    initialise(model, seed=0)


def write_random(folder: Path, draw: Callable[[VLA], None] = draw_fresh) -> Path:
    """A policy of 450 million random weights in lerobot's layout. Returns its folder."""
    vlm, policy = folder / "vlm", folder / "random smolvla_base"
    for path in (vlm, policy):
        path.mkdir()
    write_released(vlm)  # for its words
    config = released_config(SMOLVLA_BASE.vlm, pad_id=0, end_ids=frozenset({0}), dtype="float32")
    write_json(vlm / "config.json", config)
    model = VLA(SMOLVLA_BASE)
    draw(model)
    pipeline = Pipeline(
        cameras=("camera1", "camera2", "camera3"),
        image=Letterbox(size=512),
        state=Normalizer(mean=(0.0,) * 6, std=(1.0,) * 6),
        action=Normalizer(mean=(0.0,) * 6, std=(1.0,) * 6),
        tokenizer=InstructionTokenizer(words(), 48),
        hz=None,
        state_dim=32,
        action_dim=32,
        lerobot={"type": "smolvla", "vlm_model_name": str(vlm), "device": "cpu"},
    )
    write_policy(policy, model.state_dict(), model.cfg, pipeline)
    return policy


def measure(policy: Path, name: str, cfg: VerifyConfig) -> Verdict:
    found = replace(verify(str(policy), cfg), model=name)
    console.print(table(found))
    return found


def main() -> None:
    demo = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo/policy"
    found = [
        measure(demo, "demo", VerifyConfig(scenes=8, dtype=dtype, device="cpu"))
        for dtype in ("float32", "bfloat16")
    ]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        policy = write_random(Path(folder))
        for dtype, against in SOURCES:
            cfg = VerifyConfig(  # random weights heed little
                scenes=2,
                dtype=dtype,
                against=against,
                device="cpu",
                min_change=1e-3,  # type: ignore[arg-type]
            )
            found.append(measure(policy, policy.name, cfg))
    rows: list[dict[str, Any]] = [one.row() for one in found]
    write_json(RESULTS / "verify.json", {"rows": rows, **stamp("make bench-verify"), "versions": versions()})
    draw(found[-2], RESULTS / "verify.png")


if __name__ == "__main__":
    main()
