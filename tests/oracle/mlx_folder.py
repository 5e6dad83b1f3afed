"""Write a small SmolVLM in the hub's layout, and what we answer with it.

    PYTHONPATH=tests python tests/oracle/mlx_folder.py OUT

OUT/model is the folder, OUT/picture.png a picture, OUT/answers.json the ids of each prompt and of our greedy
answer. mlx_greedy.py beside it reads them with `mlx-vlm`, in an environment of its own, without torch.

What mlx-vlm cannot hold, the model has not: heads that are no share of the width, a tied output head, words
without a name, and numbers of patches a side that are no power of two.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from released import CFG, END_ID, make_model, make_processor
from tailorbird.checkpoint.vlm import read_vlm, write_vlm
from tailorbird.infer.config import Sampling
from tailorbird.infer.generate import generate
from tailorbird.train.config import VLM_TARGETS, LoraConfig
from tailorbird.train.lora import adapt, merged_weights

NUM = 24
SHAPE = replace(
    CFG,
    vision=replace(CFG.vision, image_size=48),
    decoder=replace(
        CFG.decoder, width=48, max_positions=256, vocab=make_processor().tokenizer.highest_id + 1
    ),
)


def write_model(folder: Path) -> None:
    """As after fine-tuning: low-rank updates that have moved, merged."""
    model, generator = make_model(SHAPE), torch.Generator().manual_seed(3)
    adapt(model, LoraConfig(rank=3, dora=True, targets=VLM_TARGETS), seed=1)
    for name, value in model.named_parameters():
        if name.endswith((".up", ".magnitude")):
            value.data += 0.2 * torch.randn(value.shape, generator=generator)
    write_vlm(folder, merged_weights(model), SHAPE, make_processor(SHAPE), end_ids=frozenset({END_ID}))


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    write_model(out / "model")
    picture = np.random.default_rng(0).integers(256, size=(50, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(out / "picture.png")
    found = read_vlm(out / "model")
    words = {"type": "text", "text": "what do you see?"}
    shown = {"type": "image", "image": str(out / "picture.png")}
    answers = []
    for content in ([words], [shown, words]):
        talk = [{"role": "user", "content": content}]
        prompts = found.processor.encode([talk])
        (said,) = generate(found.model, prompts, Sampling(max_tokens=NUM), end_ids=found.end_ids, decode=str)
        answers.append(
            {"pictures": len(content) - 1, "prompt": prompts.ids[0].tolist(), "answer": list(said.ids)}
        )
    (out / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
