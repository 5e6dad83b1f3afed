"""Where the time of one answer goes, stage by stage."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.table import Table

from tailorbird.errors import ConfigError
from tailorbird.infer.chat import ChatModel, ask
from tailorbird.model.cache import Cache
from tailorbird.model.vlm import VLM
from tailorbird.processing.pieces import encode_pieces

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Medians in ms; `ms` is in the order in which the stages run, decode is that of all tokens together."""

    ms: dict[str, float]
    num_tiles: int
    num_prompt_tokens: int
    num_tokens: int
    device: str
    dtype: str


class Clock:
    """Runs a stage several times, waits for the device, and keeps the median."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.ms: dict[str, float] = {}
        self._device, self._repeats = device, repeats

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        seconds = []
        for _ in range(self._repeats + 1):  # the first one warms up
            began = time.perf_counter()
            result = work()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            seconds.append(time.perf_counter() - began)
        self.ms[stage] = 1e3 * statistics.median(seconds[1:])
        return result


@torch.inference_mode()
def measure(chat: ChatModel, image: Path | None, *, num_tokens: int = 32, repeats: int = 3) -> Stages:
    """Answer one question about one picture, each stage on its own.

    Raises:
        ConfigError: the model has no eyes. DataError: the picture cannot be read.
    """
    model, processor = chat.model, chat.processor
    if not isinstance(model, VLM):
        raise ConfigError("this is a language model without eyes: there are no stages to tell apart")
    if min(num_tokens, repeats) < 1:
        raise ConfigError(f"{num_tokens=} and {repeats=} must be at least 1")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    picture = noise if image is None else image
    messages = ask("What is this?", images=[picture])

    clock = Clock(chat.device, repeats)
    pieces, _ = clock("processor", lambda: processor.expand(messages, reply=True))
    clock("tokenizer", lambda: encode_pieces(pieces, processor.tokenizer))
    row = processor.row(messages)
    prompts = clock("preprocessing", lambda: processor.collate([row]).to(chat.device, chat.dtype))
    assert prompts.pixels is not None
    pixels = prompts.pixels
    patches = clock("vision", lambda: torch.cat([model.vision(group) for group in pixels.split(8)]))
    features = clock("connector", lambda: model.connector(patches))
    length = prompts.ids.shape[1] + num_tokens

    caches: list[Cache] = []  # one of each prefill, for one decoding each

    def prefill() -> None:
        caches.append(model.decoder.new_cache(length))
        hidden = model.decoder(model.place(prompts.ids, features), cache=caches[-1])
        model.logits(hidden[:, -1])

    def decode() -> None:
        cache, token = caches.pop(), prompts.ids[:, -1:]
        for _ in range(num_tokens):
            hidden = model.decoder(model.decoder.embed(token), cache=cache)  # (1, 1, C)
            token = model.logits(hidden)[:, -1].argmax(-1, keepdim=True)  # (1, 1)
            token.item()  # as an answer does: its words are shown at once

    clock("prefill", prefill)
    clock("decode", decode)
    return Stages(
        ms=clock.ms,
        num_tiles=len(pixels),
        num_prompt_tokens=prompts.ids.shape[1],
        num_tokens=num_tokens,
        device=str(chat.device),
        dtype=chat.precision,
    )


def table(found: Stages) -> Table:
    """The stages for the terminal."""
    unit = {
        "vision": f"{found.num_tiles} tile{'s' * (found.num_tiles > 1)}",
        "prefill": f"{found.num_prompt_tokens} tokens",
    }
    unit["decode"] = f"{found.num_tokens} tokens, {1e3 * found.num_tokens / found.ms['decode']:.1f} a second"
    rows = Table("component", "ms", "share", "of", title=f"{found.device}, {found.dtype}")
    rows.columns[1].justify = rows.columns[2].justify = "right"
    total = sum(found.ms.values())
    for stage, ms in found.ms.items():
        rows.add_row(stage, f"{ms:.1f}", f"{ms / total:.1%}", unit.get(stage, ""))
    rows.add_section()
    rows.add_row("all", f"{total:.1f}", "100%")
    return rows
