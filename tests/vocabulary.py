"""A tokenizer like that of SmolVLM, small enough to be trained in a test."""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "User: What is in the picture? Assistant: Paris and a boat.",
    "You are provided the following series of twelve frames from a 0:00:12 [H:MM:SS] video.\n",
    "Frame from 00:03: the end\n\n of the world, the row and the column of the image",
    "System: You are a helpful assistant <row_1_col_1> <global-img>\n\n",
]
START = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<global-img>", *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)))
V1 = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")  # all that the first release has
V2 = (*MARKERS, *V1)


def build_tokenizer(added: tuple[str, ...] = V2, **flags: bool) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizers of the release. flags: of the added tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=list(START),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(name, normalized=False, **flags) for name in added])
    return backend


def tokenizer_json(added: tuple[str, ...] = V2, **changes: Any) -> str:
    """changes: parts of tokenizer.json to replace."""
    return json.dumps({**json.loads(build_tokenizer(added).to_str()), **changes})
