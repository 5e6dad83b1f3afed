"""Real steps of a training, and the memory at their peak.

`python steps_measured.py JSON` prints the bytes for each of a list of settings, measured in turn. Where the
C library is told to give freed blocks back at once (MALLOC_MMAP_THRESHOLD_), a process has what is alive,
which is what a GPU's own figure says too.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.vlm import VLM
from tailorbird.perf.memory import STATUS, peak_bytes
from tailorbird.train.config import LearnConfig, LoraConfig, VLMTrainConfig
from tailorbird.train.stages import choose
from tailorbird.train.state import start_state
from tailorbird.train.update import update
from tailorbird.train.vlm import Packed, VLMLesson, portion_of
from tailorbird.types import Rows

MODEL = VLMConfig(
    vision=VisionConfig(image_size=96, patch_size=8, width=192, num_layers=3, num_heads=3, mlp_dim=768),
    decoder=DecoderConfig(
        width=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=640,
        vocab=12000,
        max_positions=1024,
        rope_theta=1e4,
        norm_eps=1e-5,
    ),
    shuffle=3,
    image_token_id=5,
)
TOKENS, TILES, LEARNED = 640, 6, 250


def portion(cfg: VLMConfig = MODEL) -> Packed:
    """A row of two samples."""
    ids = torch.randint(20, 1000, (1, TOKENS))
    ids[0, : TILES * cfg.tokens_per_image] = cfg.image_token_id
    half = torch.arange(TOKENS)[None] >= TOKENS // 2
    learned = torch.arange(TOKENS)[None] >= TOKENS - LEARNED
    side = cfg.vision.image_size
    rows = Rows(
        ids=ids,
        positions=torch.arange(TOKENS)[None] - half * (TOKENS // 2),
        segment=half.long(),
        learned=learned,
        pixels=torch.randint(0, 256, (TILES, 3, side, side), dtype=torch.uint8),
        tiles=(TILES,),
        names=(("one", "two"),),
        sources=(("same", "same"),),
    )
    return portion_of(rows, cfg.image_token_id, 0)


class Steps(VLMLesson):
    """A lesson whose data, model's files and settings nobody asks for."""

    def __init__(self, cfg: VLMTrainConfig) -> None:
        self.cfg, self.model = cfg, MODEL


def settings(asked: dict[str, Any]) -> tuple[VLMTrainConfig, LearnConfig, int]:
    """Of a training, of what learns, and the passes of a step."""
    own = dict(asked)
    passes, rank = own.pop("passes", 1), own.pop("rank", 0)
    targets = ("decoder.blocks.*.attn.*", "decoder.blocks.*.mlp.*")
    learn = LearnConfig(lora=LoraConfig(rank=rank, targets=targets)) if rank else LearnConfig()
    return VLMTrainConfig(**{"ema": 0.0, **own}), learn, passes


def measure(asked: dict[str, Any]) -> int:
    cfg, learn, passes = settings(asked)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    (before,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    model = VLM(MODEL)
    state = start_state(model, choose(model, learn, 0), cfg)
    for _ in range(2):
        update(state, [portion() for _ in range(passes)], Steps(cfg), cfg)
    return peak_bytes() - int(before.split()[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure({})  # what the libraries set up once
    print(json.dumps([measure(one) for one in json.loads(sys.argv[1])]))
