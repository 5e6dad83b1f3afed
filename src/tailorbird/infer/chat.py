"""A vision-language model with its processor: messages in, words out."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tailorbird.checkpoint.components import read_text
from tailorbird.checkpoint.folder import model_kind, read_object
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.processor import read_processor
from tailorbird.checkpoint.released import vlm_config
from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.infer.config import Engine, ImageOptions, LoadOptions, Sampling
from tailorbird.infer.device import find_device, find_dtype
from tailorbird.infer.generate import Generation, Piece, Reason, generate, stream
from tailorbird.infer.openvino import require_cpu
from tailorbird.infer.tokens import every_logit
from tailorbird.infer.vlm_openvino import compile_vlm, find_precision
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.processing.chat import Conversation
from tailorbird.processing.processor import Processor
from tailorbird.processing.template import find_format
from tailorbird.processing.text import ChatTokenizer
from tailorbird.types import Prompts

GREEDY, AS_SAVED = Sampling(), ImageOptions()
Messages = str | Conversation  # a string is one message of the user


def ask(question: str, *, images: Sequence[Any] = (), videos: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """One message of the user: what to look at, then the question.

    images: paths, arrays, tensors or PIL pictures. videos: paths.
    """
    shown = [("image", image) for image in images] + [("video", video) for video in videos]
    content: list[dict[str, Any]] = [{"type": kind, kind: source} for kind, source in shown]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


class Stream(Iterator[str]):
    """The pieces of one answer as they become certain. Closing it stops the work.

    reason: why the answer ended; None before it did.
    """

    def __init__(self, steps: Generator[tuple[Piece | None, ...], None, None], lead: str) -> None:
        self._steps, self._lead = steps, lead
        self.reason: Reason | None = None

    def __next__(self) -> str:
        with _room():
            for (piece,) in self._steps:
                assert piece is not None  # a single row has a piece until its last one
                self.reason = piece.reason
                text = piece.text.removeprefix(self._lead) if piece.text else ""
                self._lead = "" if piece.text else self._lead
                if text:
                    return text
        raise StopIteration

    def close(self) -> None:
        self._steps.close()


class ChatModel:
    """What `load_vlm` returns.

    model: evaluated without gradients, on its device. end_ids: tokens at which an answer stops. precision:
    what is computed in; what goes in and comes out is in `dtype`.
    """

    def __init__(self, model: LM | VLM, processor: Processor, end_ids: frozenset[int]) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.end_ids = end_ids | {processor.end_id}
        chat = processor.chat
        self.precision = str(self.dtype).removeprefix("torch.")
        self._lead = chat.border.removeprefix(chat.reply_border)  # between "Assistant:" and its words

    @property
    def device(self) -> torch.device:
        return self.model.decoder.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.decoder.dtype

    def encode(self, messages: Messages, *, reply: bool = True) -> Prompts:
        """Messages to ids, masks and pixels: a batch of one.

        Args:
            messages: a list of {"role": ..., "content": ...} with content a text or a list of
                {"type": "text", "text": ...}, {"type": "image", "image": path, array, ...} and
                {"type": "video", "video": path}; or just a string.
            reply: end where the assistant begins to speak; False for conversations to learn from.
        Raises:
            DataError: a message is malformed, or a picture or video cannot be read.
        """
        return self.encode_batch([messages], reply=reply)

    def encode_batch(self, conversations: Sequence[Messages], *, reply: bool = True) -> Prompts:
        """Several conversations, padded on the left. Arguments and errors are those of `encode`."""
        if isinstance(conversations, str):
            raise DataError(f"a batch is a list of conversations, got the string {conversations[:40]!r}")
        return self.processor.encode([_as_messages(one) for one in conversations], reply=reply)

    def logits(self, prompts: Prompts) -> Tensor:
        """(B, T, V): what follows each position; those of padding mean nothing."""
        with _room():
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
        prompts = self.encode_batch(conversations)
        with _room():
            answers = generate(
                self.model, prompts, sampling, end_ids=self.end_ids, decode=self._decode, cancelled=cancelled
            )
        return [replace(answer, text=answer.text.removeprefix(self._lead)) for answer in answers]

    def stream(
        self, messages: Messages, sampling: Sampling = GREEDY, cancelled: Callable[[], bool] = lambda: False
    ) -> Stream:
        """Answer in pieces. Errors are those of `chat`; those of the messages come at once."""
        prompts = self.encode(messages)
        steps = stream(
            self.model, prompts, sampling, end_ids=self.end_ids, decode=self._decode, cancelled=cancelled
        )
        return Stream(steps, self._lead)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids)


def _as_messages(messages: Messages) -> Conversation:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


@contextmanager
def _room() -> Iterator[None]:
    """Say what helps when the GPU's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}): load in bfloat16, show pictures whole "
            "(no splitting), or use the device cpu"
        ) from error


def load_vlm(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    engine: Engine = "torch",
    revision: str | None = None,
    images: ImageOptions = AS_SAVED,
) -> ChatModel:
    """Load a SmolVLM or SmolVLM2 to talk to; or a language model, SmolLM2, that sees nothing.

    Args:
        path_or_id: folder in the hub's layout, id on the hub, or a GGUF file of a language model.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is the first GPU if there is one.
        dtype: of the weights; None leaves them as the file has them, and takes fp32 for a GGUF file and for
            the engine openvino.
        engine: "torch" is exact. "openvino" compiles for the CPU, in float32, bfloat16, int8 or int4 (weights
            only), to the tolerances of tests/infer/test_vlm_openvino.py.
        revision: branch, tag or commit on the hub.
        images: what to do with pictures otherwise than the model's settings say.
    Raises:
        CheckpointError: there is no such model, or it is damaged, or of another kind.
        ConfigError: the device or the engine is not here, or an option means nothing for this model.
    """
    if engine == "torch":
        return _load(path_or_id, find_device(device), find_dtype(dtype), revision, images)
    if engine not in get_args(Engine):
        raise ConfigError(f"there is no engine {engine}: name {', '.join(get_args(Engine))}")
    precision = find_precision(dtype)
    chat = _load(path_or_id, require_cpu(device), torch.float32, revision, images)
    compile_vlm(chat.model, precision)
    chat.precision = precision
    return chat


def _load(
    path_or_id: str | Path, where: str, kind: torch.dtype | None, revision: str | None, images: ImageOptions
) -> ChatModel:
    file = Path(path_or_id)
    if file.is_file() or file.suffix.lower() == ".gguf":
        _require(revision is None, f"{file} is a file: it has no revision {revision}")
        return _language_model(file, where, kind, images)
    folder = find_model(path_or_id, revision)
    with _room():
        if model_kind(folder) == "llama":
            return _language_model(folder, where, kind, images)
        loaded = read_vlm(folder, device=where, dtype=kind)
    return ChatModel(loaded.model, with_options(loaded.processor, images), loaded.end_ids)


def _language_model(source: Path, device: str, dtype: torch.dtype | None, images: ImageOptions) -> ChatModel:
    _require(images == AS_SAVED, f"{source} is a language model: it sees no pictures to treat otherwise")
    tower = read_text(source, dtype=dtype, device=device)
    if not tower.template:
        raise CheckpointError(
            f"{source} has no chat template, so it was not taught to answer: take a model named Instruct"
        )
    chat = find_format(tower.template, str(source))
    processor = Processor(tokenizer=ChatTokenizer(tower.tokenizer), chat=chat, tokens_per_tile=0)
    return ChatModel(tower.model, processor, frozenset(tower.end_ids))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(f"{otherwise}. Leave the option out")


def open_model(path_or_id: str, load: LoadOptions, images: ImageOptions) -> ChatModel:
    """`load_vlm` for settings that came as words."""
    dtype = None if load.dtype == "auto" else load.dtype
    return load_vlm(
        path_or_id,
        device=load.device,
        dtype=dtype,
        engine=load.engine,
        revision=load.revision,
        images=images,
    )


def open_processor(path_or_id: str, revision: str | None, images: ImageOptions) -> Processor:
    """The processor of a model; its weights are not fetched. Errors are those of `load_vlm`."""
    folder = find_model(path_or_id, revision, weights=False)
    cfg = vlm_config(read_object(folder / "config.json"), folder / "config.json")
    return with_options(read_processor(folder, cfg), images)


def with_options(processor: Processor, images: ImageOptions) -> Processor:
    tiles = replace(
        processor.tiles,
        split=processor.tiles.split and images.split,
        upscale=processor.tiles.upscale and images.upscale,
        longest_edge=images.longest_edge or processor.tiles.longest_edge,
    )
    return replace(processor, tiles=tiles, fast=images.fast)
