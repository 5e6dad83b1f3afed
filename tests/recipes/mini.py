"""The demo at a size that a test can afford: python mini.py OUT"""

import sys
from dataclasses import replace
from pathlib import Path

from tailorbird.data.record_config import RecordConfig
from tailorbird.evals.config import RolloutConfig
from tailorbird.model.sizes import TINY
from tailorbird.recipes.config import DemoConfig, tiny
from tailorbird.sim.config import SimConfig

WORLD = SimConfig(size=96)
VISION = replace(TINY.vlm.vision, image_size=32, width=32, mlp_dim=48, stem=(4, 8, 12), num_heads=2)
TRAIN = replace(tiny().train, steps=30, log_every=5, eval_every=10, save_every=10, threads=1)
MINI = DemoConfig(
    record=RecordConfig(demos={"drawer-open-v3": 3, "button-press-topdown-v3": 2}, sim=WORLD),
    fit=replace(tiny(), model=replace(TINY, vlm=replace(TINY.vlm, vision=VISION)), train=TRAIN),
    rollout=RolloutConfig(
        tasks=("drawer-open-v3", "button-press-topdown-v3"), seeds=2, max_s=0.6, film_size=64, sim=WORLD
    ),
    control_seeds=1,
)

if __name__ == "__main__":
    from tailorbird.recipes.demo import demo

    demo(MINI, Path(sys.argv[1]), workers=2, command="make demo")
