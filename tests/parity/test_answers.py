"""From messages to words, the whole way, against transformers: one folder that it wrote, both read it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference import build_reference
from torch import Tensor
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, SmolVLMProcessor

from released import edit
from tailorbird import load_vlm
from tailorbird.checkpoint.processor import processor_files
from tailorbird.infer.chat import ChatModel, with_options
from tailorbird.infer.config import ImageOptions, Sampling
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.processing.chat import SMOLVLM
from tailorbird.processing.processor import Processor
from tailorbird.processing.text import ChatTokenizer
from tailorbird.processing.tiles import TileSpec
from tailorbird.processing.video import VideoSpec
from tailorbird.storage import write_json
from vocabulary import build_tokenizer

pytestmark = pytest.mark.parity

TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
WORDS = build_tokenizer()
SHAPES = {
    "grouped heads, blocks of 2 x 2": (2, 2, 32),
    "a key head per query head, blocks of 3 x 3": (6, 3, 48),
    "blocks of 4 x 4, as released": (2, 4, 64),
}


def config(num_kv_heads: int, shuffle: int, side: int) -> VLMConfig:
    return VLMConfig(
        vision=VisionConfig(image_size=side, patch_size=8, width=24, num_layers=2, num_heads=3, mlp_dim=40),
        decoder=DecoderConfig(
            width=30,
            num_layers=3,
            num_heads=6,
            num_kv_heads=num_kv_heads,
            head_dim=8,
            mlp_dim=44,
            vocab=WORDS.get_vocab_size() + 3,
            max_positions=600,
            rope_theta=5000.0,
        ),
        shuffle=shuffle,
        image_token_id=WORDS.token_to_id("<image>"),
    )


class Reference:
    """The reference's model, tokenizer and image processor, read from a folder."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.model = SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = SmolVLMProcessor.__new__(SmolVLMProcessor)  # the constructor wants torchvision
        self.processor.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.processor.image_processor = SmolVLMImageProcessorPil.from_pretrained(folder)
        self.processor.video_processor = SimpleNamespace(num_frames=64, fps=1)
        self.processor.chat_template = DEFAULT_CHAT_TEMPLATE
        self.processor.fake_image_token, self.processor.image_token = "<fake_token_around_image>", "<image>"
        self.processor.global_image_token, self.processor.video_token = "<global-img>", "<video>"
        self.processor.image_token_id = self.processor.tokenizer.convert_tokens_to_ids("<image>")
        self.processor.image_seq_len = tokens

    def read(self, conversations: list[Any]) -> dict[str, Tensor]:
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def answer(self, inputs: dict[str, Tensor], num: int) -> list[list[int]]:
        told = self.model.generate(**inputs, do_sample=False, max_new_tokens=num, eos_token_id=-1)
        return told[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ChatModel, Reference]:
    folder = tmp_path_factory.mktemp("model")
    cfg = config(*request.param)
    build_reference(cfg, seed=0).save_pretrained(folder, max_shard_size="60kB")
    side = cfg.vision.image_size
    processor = Processor(
        tokenizer=ChatTokenizer(WORDS.to_str()),
        chat=SMOLVLM,
        tokens_per_tile=cfg.tokens_per_image,
        tiles=TileSpec(longest_edge=4 * side, tile=side),
        video=VideoSpec(max_frames=5, fps=1.0, longest_edge=side),
    )
    for name, content in processor_files(processor, cfg).items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_json(folder / name, content)
    edit(folder / "generation_config.json", eos_token_id=WORDS.token_to_id("<end_of_utterance>"))
    ours = load_vlm(folder, device="cpu")
    ours.end_ids = frozenset()  # both speak to the last token
    return ours, Reference(folder, cfg.tokens_per_image)


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(*items: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item}
        for item in items
    ]
    return [{"role": "user", "content": content}]


CONVERSATIONS = {
    "17 tiles": [ask(noise(20, 20), "What is in the picture?")],
    "three pictures between words": [ask("one", noise(9, 33), "two", noise(40, 10), noise(5, 5), "three?")],
    "unequal prompts": [
        ask(noise(9, 33), "What?"),
        ask("Say something long about the boat in Paris and its frames.", noise(20, 20)),
        ask(noise(30, 8), noise(64, 64)),
    ],
    "turns": [
        [
            *ask(noise(8, 16), "a"),
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            *ask("c"),
        ]
    ],
}


@pytest.mark.parametrize("conversations", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@torch.inference_mode()
def test_ids_pixels_logits_and_greedy_words_are_those_of_the_reference(
    pair: tuple[ChatModel, Reference], conversations: list[Any]
) -> None:
    ours, reference = pair
    theirs, prompts = reference.read(conversations), ours.encode_batch(conversations)
    assert torch.equal(prompts.ids, theirs["input_ids"])
    assert torch.equal(prompts.valid, theirs["attention_mask"].bool())
    flat = theirs["pixel_values"].flatten(0, 1)
    assert prompts.pixels is not None
    assert torch.equal(prompts.pixels, flat[flat.flatten(1).any(1)])

    expected = reference.model(**theirs).logits
    torch.testing.assert_close(ours.logits(prompts)[prompts.valid], expected[prompts.valid], **TOLERANCE)

    told = ours.chat_batch(conversations, Sampling(max_tokens=12))
    assert [list(one.ids) for one in told] == reference.answer(theirs, 12)


@torch.inference_mode()
def test_a_picture_shown_whole_is_answered_like_the_reference_without_splitting(
    pair: tuple[ChatModel, Reference],
) -> None:
    ours, reference = pair
    whole = ChatModel(ours.model, with_options(ours.processor, ImageOptions(split=False)), frozenset())
    whole.end_ids = frozenset()
    conversation = ask("look", noise(20, 50), "and say")
    splits = reference.processor.image_processor.do_image_splitting
    reference.processor.image_processor.do_image_splitting = False
    theirs = reference.read([conversation])
    reference.processor.image_processor.do_image_splitting = splits
    prompts = whole.encode(conversation)
    assert prompts.tiles == (1,)
    assert torch.equal(prompts.ids, theirs["input_ids"])
    torch.testing.assert_close(whole.logits(prompts), reference.model(**theirs).logits, **TOLERANCE)
    assert [list(whole.chat(conversation, Sampling(max_tokens=12)).ids)] == reference.answer(theirs, 12)


@torch.inference_mode()
def test_a_film_is_answered_like_the_references_model_with_its_frames(
    pair: tuple[ChatModel, Reference],
) -> None:
    """Frames go through the reference's picture processor: its video processor wants torchvision."""
    ours, reference = pair
    frames = np.stack([np.asarray(noise(10, 14)) // (i + 1) for i in range(12)])
    film = [{"type": "video", "video": frames, "fps": 3.0}, {"type": "text", "text": "What happens?"}]
    conversation = [{"role": "user", "content": film}]
    prompts = ours.encode(conversation)
    assert prompts.tiles == (4,)
    seen = frames[np.linspace(0, 11, 4, dtype=int)]
    pictures = reference.processor.image_processor(
        [Image.fromarray(frame) for frame in seen],
        do_image_splitting=False,
        size={"longest_edge": ours.processor.video.longest_edge},
        return_tensors="pt",
    )
    assert prompts.pixels is not None
    assert torch.equal(prompts.pixels, pictures["pixel_values"][0])
    theirs = {"input_ids": prompts.ids, "attention_mask": prompts.valid.long(), **pictures}
    torch.testing.assert_close(ours.logits(prompts), reference.model(**theirs).logits, **TOLERANCE)
    assert [list(ours.chat(conversation, Sampling(max_tokens=9)).ids)] == reference.answer(theirs, 9)
