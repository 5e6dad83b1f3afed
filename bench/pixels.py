"""Time from a camera frame to the pixels that SmolVLM reads, against transformers' processor, in one run.

reference   transformers' image processor with Pillow
exact       ours, by Pillow: equal bytes
fast        ours, by tensor operations; "reused" if the caller hands in the memory

python bench/pixels.py        prints rows, writes results/pixels.json; a minute on two cores
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tailorbird.processing.tiles import TileSpec
from tailorbird.progress import console
from tailorbird.provenance import stamp, versions
from tailorbird.sim.config import SimConfig
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.storage import write_json

RESULTS = Path(__file__).parents[1] / "results"
SIDE, REPEATS, BATCHES = 256, 5, (1, 8)


def photograph(num: int) -> Tensor:
    """What a simulated camera sees, (num, SIDE, SIDE, 3) uint8."""
    env = MetaWorld("drawer-open-v3", SimConfig(size=SIDE))
    frames = []
    for seed in range(num):
        env.restart(seed)
        (picture,) = env.observe().images.values()
        frames.append(torch.from_numpy(picture.copy()))
    env.close()
    return torch.stack(frames)


def compare(frames: Tensor, *, split: bool) -> list[dict[str, Any]]:
    """A row for each way. Raises if the exact pixels are not the reference's or the fast ones too far off."""
    spec = TileSpec(split=split)
    peer = SmolVLMImageProcessorPil(
        size={"longest_edge": spec.longest_edge},
        max_image_size={"longest_edge": spec.tile},
        do_image_splitting=split,
    )
    pictures = [[frame.numpy()] for frame in frames]
    memory = {dtype: spec.fast(frames, dtype) for dtype in (torch.float32, torch.bfloat16)}
    ways: dict[tuple[str, str], Callable[[], Tensor]] = {
        ("reference", "float32"): lambda: peer(pictures, return_tensors="pt").pixel_values,
        ("exact", "float32"): lambda: torch.stack([spec.exact(frame) for frame in frames]),
        ("fast", "float32"): lambda: spec.fast(frames),
        ("fast", "bfloat16"): lambda: spec.fast(frames, torch.bfloat16),
        ("fast, reused", "float32"): lambda: spec.fast(frames, out=memory[torch.float32]),
        ("fast, reused", "bfloat16"): lambda: spec.fast(frames, out=memory[torch.bfloat16]),
    }
    expected = ways["reference", "float32"]()
    apart = {way: (prepare().float() - expected).abs() * 127.5 for way, prepare in ways.items()}
    assert not apart["exact", "float32"].any()
    assert all(float(one.max()) <= 2.6 for one in apart.values()), "two levels, and what bfloat16 rounds"
    rows: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):  # in turn, so that a busy moment of the machine hits all
        for way, prepare in ways.items():
            began = time.perf_counter()
            prepare()
            rows[way].append((time.perf_counter() - began) * 1e3 / len(frames))
    slow = statistics.median(rows["reference", "float32"])
    return [
        {
            **{"px": SIDE, "frames": len(frames), "split": split, "path": way[0], "dtype": way[1]},
            "ms_p50": statistics.median(ms),
            "ms_spread": [min(ms), max(ms)],
            "ratio": slow / statistics.median(ms),
            "largest_difference_of_255": float(apart[way].max()),
            "share_of_values_that_differ": float((apart[way].round() > 0).float().mean()),
        }
        for way, ms in rows.items()
    ]


def main() -> None:
    frames = photograph(max(BATCHES))
    rows = [row for split in (True, False) for num in BATCHES for row in compare(frames[:num], split=split)]
    there = importlib.util.find_spec("torchvision") is not None
    result = {
        "unit": "ms a frame",
        "rows": rows,
        "torchvision_processor": "not run: not compared here" if there else "not run: no torchvision",
        "threads": torch.get_num_threads(),
    }
    write_json(RESULTS / "pixels.json", {**result, **stamp("make bench-pixels"), "versions": versions()})
    for row in rows:
        console.print(" ".join(f"{row[name]}" for name in ("frames", "split", "path", "dtype")), end=": ")
        console.print(f"{row['ms_p50']:.1f} ms, {row['ratio']:.1f}x, {row['largest_difference_of_255']:.2f}")


if __name__ == "__main__":
    main()
