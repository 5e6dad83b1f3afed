"""What is released: names and shapes, and a SmolVLM that a test can afford, in the released layout."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.vlm import VLM
from tailorbird.processing.chat import SMOLVLM
from tailorbird.processing.processor import Processor
from tailorbird.processing.text import ChatTokenizer
from tailorbird.processing.tiles import TileSpec
from tailorbird.processing.video import VideoSpec

GOLDEN = Path(__file__).parent / "golden"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)(?:\.\.(\d+))?\}")
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
]
IMAGE_ID, END_ID = SPECIAL.index("<image>"), SPECIAL.index("<end_of_utterance>")
CFG = VLMConfig(  # 6 x 6 patches and a rim of one pixel that nothing reads
    vision=VisionConfig(image_size=37, patch_size=6, width=24, num_layers=2, num_heads=3, mlp_dim=40),
    decoder=DecoderConfig(
        width=30,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=44,
        vocab=301,
        max_positions=64,
        rope_theta=5000.0,
        norm_eps=2e-5,
    ),
    shuffle=2,
    image_token_id=IMAGE_ID,
)


def variant(*, tied: bool = False, shuffle: int = 2, num_kv_heads: int = 2, side: int = 37) -> VLMConfig:
    decoder = replace(CFG.decoder, tied=tied, num_kv_heads=num_kv_heads)
    return replace(CFG, decoder=decoder, shuffle=shuffle, vision=replace(CFG.vision, image_size=side))


def words() -> str:
    """A tokenizer.json with the special tokens of the family."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["what do you see in this picture? a small bird sews two leaves"], trainer)
    return backend.to_str()


def make_processor(cfg: VLMConfig = CFG) -> Processor:
    return Processor(
        tokenizer=ChatTokenizer(words()),
        chat=SMOLVLM,
        tokens_per_tile=cfg.tokens_per_image,
        tiles=TileSpec(longest_edge=2 * cfg.vision.image_size, tile=cfg.vision.image_size),
        video=VideoSpec(max_frames=7, fps=2.0, longest_edge=3 * cfg.vision.image_size),
    )


def make_model(cfg: VLMConfig = CFG, seed: int = 0) -> VLM:
    """All weights are random and large, norms and biases too."""
    model = build_model(cfg)
    assert isinstance(model, VLM)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        std = value[0].numel() ** -0.5 if value.dim() > 1 else 0.2
        nn.init.normal_(value, mean=float("norm" in name and "weight" in name), std=std, generator=generator)
    return model.eval()


def write_released(
    folder: Path, cfg: VLMConfig = CFG, dtype: torch.dtype = torch.float32, **options: Any
) -> VLM:
    model = make_model(cfg).to(dtype)
    write_vlm(folder, model.state_dict(), cfg, make_processor(cfg), end_ids=frozenset({END_ID}), **options)
    return model


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor of a release, from a file in tests/golden."""
    shapes: dict[str, tuple[int, ...]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, text = line.split()
        found = RANGE.search(name)
        numbers = range(int(found[1]), int(found[2]) + 1, int(found[3] or 1)) if found else [0]
        for number in numbers:
            shapes[RANGE.sub(str(number), name)] = tuple(map(int, text.split("x")))
    return shapes


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None deletes."""
    value = json.loads(path.read_text()) if path.exists() else {}
    value = {key: one for key, one in {**value, **changes}.items() if one is not None}
    path.write_text(json.dumps(value))
