"""A lesson that is watched: answers to held-out questions at each evaluation, and how busy the device is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.data.config import ShowConfig
from tailorbird.data.encode import dressed
from tailorbird.data.sample import BadSample, Source
from tailorbird.errors import DataError
from tailorbird.infer.config import Sampling
from tailorbird.infer.generate import generate
from tailorbird.model.cost import vlm_cost
from tailorbird.model.vlm import VLM
from tailorbird.processing.chat import Message, TextItem
from tailorbird.processing.processor import Processor
from tailorbird.progress import console
from tailorbird.recipes.data_check import spread
from tailorbird.recipes.data_preview import show_item
from tailorbird.storage import read_json, write_json
from tailorbird.train.config import Part
from tailorbird.train.vlm import Packed, VLMLesson
from tailorbird.types import Prompts

FILE = "answers.json"
TRIES = 5  # rows looked at for each question wanted


@dataclass(frozen=True, kw_only=True)
class Question:
    """prompt: what is asked, encoded. expected: what the row has for an answer. shown: for people."""

    name: str
    prompt: Prompts
    expected: str
    shown: list[dict[str, Any]]


def questions(
    sources: Sequence[Source], num: int, processor: Processor, show: ShowConfig, tokens: int
) -> list[Question]:
    """So many first questions of rows, spread over the sources; those that fit in so many tokens."""
    found: list[Question] = []
    for number, source in enumerate(sources):
        wanted = len(found) + (num - len(found)) // (len(sources) - number)
        for row in spread(len(source), TRIES * num):
            if len(found) >= wanted:
                break
            try:
                found.append(_question(source, row, processor, show, tokens))
            except DataError:
                continue  # rows that cannot be used are counted where they are learned from
    return found


def _question(source: Source, row: int, processor: Processor, show: ShowConfig, tokens: int) -> Question:
    sample = source[row]
    first = next((i for i, one in enumerate(sample.messages) if one.role == "assistant"), 0)
    if not first:
        raise BadSample("no question", f"{sample.name} begins with an answer, or has none")
    asked = sample.messages[:first]
    problems: list[str] = []
    shown = [show_item(item, problems.append) for message in asked for item in message.items]
    encoded = processor.row(dressed(asked, show), max_tokens=tokens)
    return Question(
        name=sample.name,
        prompt=processor.collate([encoded]),
        expected=_words(sample.messages[first]),
        shown=shown,
    )


def _words(message: Message) -> str:
    return "".join(item.text for item in message.items if isinstance(item, TextItem)).strip()


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is watched of a run.

    run: its folder; None for the processes that do not write.
    answer_tokens: at most so many in an answer. peak: operations a second that the device could do.
    learned: parts whose weights learn. updates: only low-rank ones do.
    """

    run: Path | None
    questions: Sequence[Question]
    answer_tokens: int
    peak: float
    learned: frozenset[Part]
    updates: bool


class WatchedLesson(VLMLesson):
    """It counts operations as it hands out steps, and answers when it is asked to evaluate."""

    watch: Watch  # before it is used
    step, flops, began = 0, 0.0, 0.0

    def steps(self, start: int, stop: int) -> Iterator[Sequence[Packed]]:
        self.step, self.flops, self.began = start, 0.0, time.perf_counter()
        for portions in super().steps(start, stop):
            self.flops += sum(self._flops(portion) for portion in portions)
            self.step += 1
            yield portions

    def _flops(self, portion: Packed) -> float:
        """Operations of a pass forward and back; what is computed twice to save memory counts once."""
        rows, learned, watch = portion.rows, self.watch.learned, self.watch
        num, length = rows.ids.shape
        cost = vlm_cost(self.model, tiles=1, tokens=length)
        tiles, whole = sum(rows.tiles), 2 if watch.updates else 3
        vision = tiles * (cost["vision"].flops + cost["connector"].flops)
        head = 2 * self.model.decoder.width * self.model.decoder.vocab * portion.weight
        seen = vision * (whole if "vision" in learned else 1)
        return whole * (num * cost["prefill"].flops + head) + seen

    def figures(self) -> dict[str, float]:
        spent = time.perf_counter() - self.began
        return {**super().figures(), "mfu": self.flops / spent / self.watch.peak}

    def evaluate(self, model: VLM) -> dict[str, float]:
        began = time.perf_counter()
        found = super().evaluate(model)
        self.answer(model)
        self.began += time.perf_counter() - began  # it is no time of a pass
        return found

    def answer(self, model: VLM) -> None:
        """Add the answers of this step to answers.json; those of later ones, from before a restart, go."""
        watch, sampling = self.watch, Sampling(max_tokens=self.watch.answer_tokens)
        said = [self._said(model, one.prompt, sampling) for one in watch.questions]  # by all, if all compute
        if watch.run is None or not said:
            return
        path, first = watch.run / FILE, watch.questions[0]
        before = read_json(path)["answers"] if path.exists() else []
        told = [{"name": one.name, "expected": one.expected, "shown": one.shown} for one in watch.questions]
        kept = [one for one in before if one["step"] < self.step]
        write_json(path, {"questions": told, "answers": [*kept, {"step": self.step, "said": said}]})
        console.print(f"step {self.step}, {first.name}: {said[0]!r}, expected {first.expected!r}")

    def _said(self, model: VLM, prompt: Prompts, sampling: Sampling) -> str:
        decode = self.processor.tokenizer.decode
        ends = self.end_ids | {self.processor.end_id}
        (answer,) = generate(model, prompt, sampling, end_ids=ends, decode=decode)
        return answer.text.strip()
