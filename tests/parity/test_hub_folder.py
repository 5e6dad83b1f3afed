"""A fine-tuned model as a folder in the hub's layout: transformers says with it what we say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Idefics3Processor, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from released import CFG, END_ID, make_model, make_processor
from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.infer.chat import load_vlm
from tailorbird.infer.config import Sampling
from tailorbird.train.config import VLM_TARGETS, LoraConfig
from tailorbird.train.lora import adapt, merged_weights

pytestmark = pytest.mark.parity

NUM = 20
ROOMY = replace(CFG, decoder=replace(CFG.decoder, max_positions=256))
PICTURE = np.random.default_rng(0).integers(256, size=(50, 90, 3), dtype=np.uint8)
WORDS = {"type": "text", "text": "what do you see in this picture?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its low-rank updates have moved, and are merged."""
    path, generator = tmp_path_factory.mktemp("made") / "it", torch.Generator().manual_seed(3)
    model = make_model(ROOMY, seed=2)
    adapt(model, LoraConfig(rank=3, dora=True, targets=VLM_TARGETS), seed=1)
    for name, value in model.named_parameters():
        if name.endswith(".up"):
            value.data += 0.2 * torch.randn(value.shape, generator=generator)
    processor = make_processor(ROOMY)
    write_vlm(path, merged_weights(model), ROOMY, processor, end_ids=frozenset({END_ID}))
    return path


@pytest.mark.parametrize(
    "content", [[WORDS], [{"type": "image", "image": PICTURE}, WORDS]], ids=["words", "picture"]
)
def test_transformers_reads_the_same_prompt_and_says_the_same_greedy_words(
    folder: Path, content: list[dict[str, Any]]
) -> None:
    ours = load_vlm(folder)
    talk = [{"role": "user", "content": content}]
    expected = ours.chat(talk, Sampling(max_tokens=NUM)).ids
    processor = Idefics3Processor(  # that of SmolVLM needs torchvision, for videos
        SmolVLMImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        image_seq_len=ROOMY.tokens_per_image,
    )
    text = processor.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    images = [PICTURE] if len(content) > 1 else None
    inputs = processor(text=text, images=images, return_tensors="pt")
    assert inputs["input_ids"].tolist() == ours.encode(talk).ids.tolist()
    theirs = SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
    said = theirs.generate(**inputs, max_new_tokens=NUM, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert said.tolist() == list(expected)
    assert len(set(expected)) > 2
