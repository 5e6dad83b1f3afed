"""A vision-language model with its processor: messages in, words out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tailorbird.checkpoint.gguf import read_gguf
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.processor import read_object, read_processor
from tailorbird.checkpoint.released import vlm_config
from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.errors import ConfigError
from tailorbird.infer.config import ImageOptions, LoadOptions, Sampling
from tailorbird.infer.generate import Generation, generate, stream
from tailorbird.infer.tokens import every_logit
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.processing.chat import CHATML, Conversation, find_format
from tailorbird.processing.processor import Processor
from tailorbird.processing.text import ChatTokenizer
from tailorbird.types import Prompts

GREEDY, AS_SAVED = Sampling(), ImageOptions()
Messages = str | Conversation  # a string is one message of the user


class ChatModel:
    """What `load_vlm` returns.

    model: evaluated without gradients, on its device. end_ids: tokens at which an answer stops.
    """

    def __init__(self, model: LM | VLM, processor: Processor, end_ids: frozenset[int]) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.end_ids = end_ids | {processor.end_id}

    @property
    def device(self) -> torch.device:
        return self.model.decoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.decoder.norm.weight.dtype

    def encode(self, *conversations: Messages, reply: bool = True) -> Prompts:
        """Messages to ids, masks and pixels, on the CPU.

        Args:
            conversations: each a row of the batch, a list of {"role": ..., "content": ...} with content a
                text or a list of {"type": "text", "text": ...}, {"type": "image", "image": path, array, ...}
                and {"type": "video", "video": path}; or just a string.
            reply: end where the assistant begins to speak; False for conversations to learn from.
        Raises:
            DataError: a message is malformed, or a picture or video cannot be read.
        """
        return self.processor.encode([_as_messages(one) for one in conversations], reply=reply)

    def logits(self, prompts: Prompts) -> Tensor:
        """(B, T, V): what follows each position; those of padding mean nothing."""
        return every_logit(self.model, prompts)

    def chat(
        self, messages: Messages, sampling: Sampling = GREEDY, cancelled: Callable[[], bool] = lambda: False
    ) -> Generation:
        """Answer one conversation. Errors are those of `encode`, and a prompt longer than the context."""
        return self.chat_batch([messages], sampling, cancelled)[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling = GREEDY,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Generation]:
        """Answer several conversations side by side, each as it would be answered alone."""
        prompts = self.encode(*conversations)
        return generate(
            self.model, prompts, sampling, end_ids=self.end_ids, decode=self._decode, cancelled=cancelled
        )

    def stream(
        self, messages: Messages, sampling: Sampling = GREEDY, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """Yield the answer in pieces as they become certain. Closing the iterator stops the work."""
        steps = stream(
            self.model,
            self.encode(messages),
            sampling,
            end_ids=self.end_ids,
            decode=self._decode,
            cancelled=cancelled,
        )
        with closing(steps):
            for (piece,) in steps:
                if piece is not None and piece.text:
                    yield piece.text

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids)


def _as_messages(messages: Messages) -> Conversation:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def load_vlm(
    path_or_id: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    images: ImageOptions = AS_SAVED,
) -> ChatModel:
    """Load a SmolVLM or SmolVLM2 to talk to, or a SmolLM2 from a GGUF file.

    Args:
        path_or_id: folder in the hub's layout, id on the hub, or a file that ends in .gguf.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is the first GPU if there is one.
        dtype: of the weights; None leaves them as the file has them, and takes fp32 for a GGUF file.
        revision: branch, tag or commit on the hub.
        images: what to do with pictures otherwise than the model's settings say.
    Raises:
        CheckpointError: there is no such model, or it is damaged, or of another kind.
        ConfigError: the device is not here.
    """
    where, file = find_device(device), Path(path_or_id)
    if file.suffix == ".gguf" and not file.is_dir():
        tower = read_gguf(file, dtype=dtype, device=where)
        chat = find_format(tower.template, str(file)) if tower.template else CHATML
        words = Processor(tokenizer=ChatTokenizer(tower.tokenizer), chat=chat, tokens_per_tile=0)
        return ChatModel(tower.model, words, frozenset(tower.end_ids))
    loaded = read_vlm(find_model(path_or_id, revision), device=where, dtype=dtype)
    return ChatModel(loaded.model, with_options(loaded.processor, images), loaded.end_ids)


def open_model(path_or_id: str, load: LoadOptions, images: ImageOptions) -> ChatModel:
    """`load_vlm` for settings that came as words."""
    dtype = None if load.dtype == "auto" else getattr(torch, load.dtype)
    return load_vlm(path_or_id, device=load.device, dtype=dtype, revision=load.revision, images=images)


def open_processor(path_or_id: str, load: LoadOptions, images: ImageOptions) -> Processor:
    """The processor of a model without its weights. Errors are those of `load_vlm`."""
    folder = find_model(path_or_id, load.revision)
    cfg = vlm_config(read_object(folder / "config.json"), folder / "config.json")
    return with_options(read_processor(folder, cfg), images)


def find_device(device: str) -> str:
    """Raises ConfigError for a device that is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}): name cpu, cuda, cuda:1 or auto"
        ) from None
    return device


def with_options(processor: Processor, images: ImageOptions) -> Processor:
    tiles = replace(
        processor.tiles,
        split=processor.tiles.split and images.split,
        upscale=processor.tiles.upscale and images.upscale,
        longest_edge=images.longest_edge or processor.tiles.longest_edge,
    )
    return replace(processor, tiles=tiles, fast=images.fast)
