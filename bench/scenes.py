"""Photograph the scenes that `tailorbird verify` shows to policies: simulated tasks, some of them under way.

python bench/scenes.py        writes src/tailorbird/evals/pictures/; seconds
"""

import json
from pathlib import Path

from PIL import Image

from tailorbird.recipes.config import WORLD
from tailorbird.sim.expert import ScriptedExpert
from tailorbird.sim.metaworld import MetaWorld

OUT = Path(__file__).parents[1] / "src/tailorbird/evals/pictures"
SEED = 500  # neither played nor recorded by the demo
UNDER_WAY = {  # task -> actions of the expert before the picture is taken
    "push-v3": 8,
    "drawer-open-v3": 16,
    "button-press-topdown-v3": 4,
    "door-close-v3": 12,
    "window-open-v3": 20,
    "peg-insert-side-v3": 10,
    "basketball-v3": 0,
    "coffee-button-v3": 6,
}


def main() -> None:
    scenes = []
    OUT.mkdir(exist_ok=True)
    for task, actions in UNDER_WAY.items():
        env, expert = MetaWorld(task, WORLD), ScriptedExpert(task)
        env.restart(SEED)
        for _ in range(actions):
            env.advance(expert.act(env))
        seen = env.observe()
        env.close()
        (picture,) = seen.images.values()
        Image.fromarray(picture).save(OUT / f"{task}.png", optimize=True)
        scenes.append({"picture": f"{task}.png", "task": seen.task, "state": seen.state.tolist()})
    text = json.dumps({"camera": WORLD.camera, "scenes": scenes}, indent=1)
    (OUT / "scenes.json").write_text(text + "\n")
    print(f"{OUT}: {len(scenes)} scenes, {sum(file.stat().st_size for file in OUT.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
