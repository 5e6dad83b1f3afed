"""Prompts in, answers out, whole or piece by piece."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from tailorbird.infer.config import Sampling
from tailorbird.infer.tokens import draw_tokens, num_answer_tokens, prompt_lengths
from tailorbird.infer.words import Words
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.types import Prompts

Reason = Literal["end", "stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one step adds to one answer."""

    id: int | None  # None: cancelled before another token was drawn
    text: str  # "" while a character or a stop string is undecided
    reason: Reason | None  # why the answer ends here; None: it goes on


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One whole answer."""

    text: str  # without the end token, up to the stop string
    ids: tuple[int, ...]  # all that were drawn, the end token too
    reason: Reason
    num_prompt_tokens: int
    prefill_s: float  # until the first token of the batch, the images included
    decode_s: float  # from then until the answer ended


def generate(
    model: LM | VLM,
    prompts: Prompts,
    sampling: Sampling,
    *,
    end_ids: frozenset[int],
    decode: Callable[[list[int]], str],
    tiles_at_once: int = 8,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Generation]:
    """Answer every prompt. Arguments and errors are those of `stream`."""
    num_rows = len(prompts.ids)
    ids: list[list[int]] = [[] for _ in range(num_rows)]
    texts, ends = [""] * num_rows, [0.0] * num_rows
    reasons: list[Reason] = ["length"] * num_rows
    began, first = time.perf_counter(), 0.0
    steps = stream(
        model,
        prompts,
        sampling,
        end_ids=end_ids,
        decode=decode,
        tiles_at_once=tiles_at_once,
        cancelled=cancelled,
    )
    for step in steps:
        now = time.perf_counter()
        first = first or now
        for row, piece in enumerate(step):
            if piece is None:
                continue
            ids[row] += [] if piece.id is None else [piece.id]
            texts[row] += piece.text
            ends[row], reasons[row] = now, piece.reason or reasons[row]
    return [
        Generation(
            text=text,
            ids=tuple(row),
            reason=reason,
            num_prompt_tokens=length,
            prefill_s=first - began,
            decode_s=end - first,
        )
        for text, row, reason, length, end in zip(
            texts, ids, reasons, prompt_lengths(prompts), ends, strict=True
        )
    ]


def stream(
    model: LM | VLM,
    prompts: Prompts,
    sampling: Sampling,
    *,
    end_ids: frozenset[int],
    decode: Callable[[list[int]], str],
    tiles_at_once: int = 8,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Piece | None, ...], None, None]:
    """Answer prompts token by token: a piece for every row, None for rows that ended in an earlier step.

    Closing it stops the work. An answer that fills the model's context ends with "length".

    Args:
        end_ids: tokens that end an answer and are not part of its text.
        decode: ids to text, as `Words` needs it.
        tiles_at_once: tiles that pass the image tower together; bounds its memory.
        cancelled: asked before every group of tiles and every token.
    Raises:
        DataError: a prompt alone is longer than the model's context, images and prompts do not fit each
            other, or the logits are not finite.
    """
    budgets = num_answer_tokens(model, prompts, sampling)
    rows = [_Row(Words(decode, sampling.stop), budget, end_ids) for budget in budgets]
    drawn = draw_tokens(model, prompts, sampling, tiles_at_once=tiles_at_once, cancelled=cancelled)
    with closing(drawn) as tokens:
        while not all(row.ended for row in rows):
            step = None if cancelled() else next(tokens, None)
            if step is None:
                yield tuple(row.cancel() for row in rows)
                return
            yield tuple(row.take(token) for row, token in zip(rows, step, strict=True))


class _Row:
    """One answer on its way: when it ends, and why."""

    def __init__(self, words: Words, budget: int, end_ids: frozenset[int]) -> None:
        self._words, self._left, self._end_ids = words, budget, end_ids
        self.ended = False

    def take(self, token: int) -> Piece | None:
        if self.ended:
            return None
        self._left -= 1
        is_end = token in self._end_ids
        text = "" if is_end else self._words.feed([token])
        if is_end or (not self._words.stopped and not self._left):
            text += self._words.flush()  # it may complete a stop string
        reason: Reason | None = None
        if is_end:
            reason = "end"
        elif self._words.stopped:
            reason = "stop"
        elif not self._left:
            reason = "length"
        self.ended = reason is not None
        return Piece(id=token, text=text, reason=reason)

    def cancel(self) -> Piece | None:
        if self.ended:
            return None
        self.ended = True
        return Piece(id=None, text=self._words.flush(), reason="cancelled")
