"""A VLM of a million numbers that has learned nothing yet, with a tokenizer of its own."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from sight import KINDS, invent
from sight_pen import SIDE, Pen
from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.init import initialise_connector, initialise_vision
from tailorbird.model.vlm import VLM
from tailorbird.processing.chat import SMOLVLM
from tailorbird.processing.processor import Processor
from tailorbird.processing.tiles import TileSpec
from tailorbird.processing.video import VideoSpec
from tailorbird.recipes.markers import Vocabulary, add_markers

NUM_WORDS = 512
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = (
    "You are provided the following series of six frames from a 0:00:06 [H:MM:SS] video.\n",
    "Frame from 00:03:",
    "User: Assistant:\n\n",
)
VISION = VisionConfig(image_size=SIDE, patch_size=9, width=96, num_layers=3, num_heads=4, mlp_dim=256)
PAPER = 0.9  # about the level of paper, of [-1, 1]


def build(folder: Path, seed: int = 0) -> None:
    """Write one, in the released layout."""
    words = learn_words()
    model = new_model(words, seed)
    processor = Processor(
        tokenizer=words.tokenizer,
        chat=SMOLVLM,
        tokens_per_tile=model.cfg.tokens_per_image,
        tiles=TileSpec(longest_edge=SIDE, tile=SIDE, split=False),
        video=VideoSpec(max_frames=6, fps=1.0, longest_edge=SIDE),
    )
    write_vlm(folder, model.state_dict(), model.cfg, processor, end_ids=frozenset({words.end_id}))


def learn_words() -> Vocabulary:
    """Byte-level BPE of what is asked and answered in training, and of what a prompt is made of."""
    texts = list(CORPUS)
    for kind in KINDS:
        for _, asked in invent(Pen("train", f"words of {kind}"), kind, 150):
            texts += [text for one in asked for text in (f"{one.question} {one.answer}", f" {one.answer}")]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_WORDS,
        special_tokens=MARKERS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return add_markers(backend.to_str(), NUM_WORDS)


@torch.no_grad()
def new_model(words: Vocabulary, seed: int) -> VLM:
    """Drawn anew.

    The tower sees departures from paper: or almost all that it says is that paper is white.
    """
    cfg = VLMConfig(
        vision=VISION,
        decoder=DecoderConfig(
            width=128,
            num_layers=3,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            mlp_dim=256,
            vocab=words.size,
            max_positions=512,
            rope_theta=10_000.0,
        ),
        shuffle=4,
        image_token_id=words.image_id,
    )
    torch.manual_seed(seed)
    model = VLM(cfg).eval()
    nn.init.normal_(model.decoder.embed.weight, std=0.1)
    initialise_vision(model.vision, seed)
    patches = model.vision.patches
    assert patches.bias is not None
    patches.bias -= PAPER * patches.weight.sum((1, 2, 3))
    model.vision.positions.weight *= 0.3  # as little as the pictures differ
    initialise_connector(model, words.size, seed)
    return model
