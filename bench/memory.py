"""Predicted and measured peak memory of processes that load a model of random weights and answer once.

PYTHONPATH=tests python bench/memory.py

Writes results/memory.json: five minutes on two cores, 6 GB of disk, 3 GB of memory. Fails where a prediction
is more than 10 % away. Needs Linux.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from released import CFG, write_released
from tailorbird.model.config import VLMConfig
from tailorbird.model.sizes import SIZES, SMOLVLA_BASE
from tailorbird.perf.memory import Memory, policy_memory, process_bytes, vlm_memory
from tailorbird.provenance import stamp, versions
from tailorbird.storage import write_json
from verify import write_random

OUT = Path(__file__).parents[1] / "results/memory.json"
DTYPES = ("bfloat16", "float32")
TOLERANCE, MIB, GB = 0.1, 2**20, 1e9
PUBLISHED_GB = {"smolvlm2-256m": 1.4, "smolvlm2-500m": 1.8}  # what inference needs
ANSWER, QUESTION = 8, "What is this?"
CHAT = """
from tailorbird.__main__ import main
main()
"""
ACT = """
import sys
import numpy as np
import tailorbird
folder, dtype, num = sys.argv[1:]
cameras = [f"camera{i}" for i in (1, 2, 3)]
policy = tailorbird.load_policy(folder, device="cpu", dtype=dtype, without=cameras[int(num):])
frame, state = np.zeros((480, 640, 3), np.uint8), np.zeros(6, np.float32)
images = dict.fromkeys(cameras[:int(num)], frame)
policy.act(tailorbird.Observation(images=images, state=state, task="pick up the cube"))
"""
PEAK = """
from tailorbird.perf.memory import peak_bytes
print(peak_bytes())
"""


def measure(code: str, *words: object) -> int:
    """Peak bytes of a process of its own that runs `code` with these words."""
    command = [sys.executable, "-c", code + PEAK, *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[3:])} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def row(model: str, dtype: str, pictures: dict[str, int], predicted: Memory, measured: int) -> dict[str, Any]:
    found = {
        "model": model,
        "dtype": dtype,
        **pictures,
        "predicted_mib": predicted.total / MIB,
        "measured_mib": measured / MIB,
        "ratio": predicted.total / measured,
    }
    if model in PUBLISHED_GB:
        found |= {"measured_gb": measured / GB, "published_gb": PUBLISHED_GB[model]}
    print(", ".join(f"{key} {one:.3f}" if isinstance(one, float) else f"{one}" for key, one in found.items()))
    return found


def vlm_rows(name: str, process: int, photo: Path) -> list[dict[str, Any]]:
    """One tile in both dtypes, then the 17 of a square picture."""
    cfg, rows = SIZES[name], []
    assert isinstance(cfg, VLMConfig)
    cfg = replace(cfg, image_token_id=CFG.image_token_id)  # that of the random model's words
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / name
            write_released(folder, cfg, getattr(torch, dtype))
            for tiles, options in ((1, ["--no-split"]), (17, [])):
                words = [
                    "chat",
                    folder,
                    "--image",
                    photo,
                    "--device",
                    "cpu",
                    "--max-tokens",
                    ANSWER,
                    *options,
                ]
                measured = measure(CHAT, *words, QUESTION)
                tokens = tiles * cfg.tokens_per_image + 48
                predicted = vlm_memory(
                    cfg, tiles=tiles, tokens=tokens, answer=ANSWER, dtype=dtype, process=process
                )
                rows.append(row(name, dtype, {"tiles": tiles}, predicted, measured))
    return rows


def policy_rows(process: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        policy = write_random(Path(place))
        for dtype in DTYPES:
            for num in (1, 3):
                predicted = policy_memory(SMOLVLA_BASE, cameras=num, words=48, dtype=dtype, process=process)
                measured = measure(ACT, policy, dtype, num)
                rows.append(row("smolvla-base", dtype, {"cameras": num}, predicted, measured))
    return rows


def main() -> None:
    process = process_bytes()
    with tempfile.TemporaryDirectory() as place:
        photo = Path(place) / "photo.png"
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photo)
        rows = policy_rows(process)
        for name in PUBLISHED_GB:
            rows += vlm_rows(name, process, photo)
    result = {"process_mib": process / MIB, "rows": rows}
    write_json(OUT, {**result, **stamp("make bench-memory"), "versions": versions()})
    if wrong := [one for one in rows if abs(one["ratio"] - 1) > TOLERANCE]:
        sys.exit(f"{len(wrong)} predictions are more than {TOLERANCE:.0%} away, first: {wrong[0]}")


if __name__ == "__main__":
    main()
