"""One way to train a VLM, in a process of its own.

PYTHONPATH=tests python bench/trainers.py WAY MODEL TALKS

WAY: transformers; tailorbird; or exact, which is tailorbird with the peer's own pixels.

A request a line, an answer a line, both JSON. {"ask": "plan", "num": 7}, of ours alone: what each of so many
steps learns from. {"ask": "run", "plan": [...]}: learn from that, from the weights of MODEL; the answer
is the losses, and of each step its seconds and those among them of waiting for data. {"ask": "prepare",
"rows": [...]}: the seconds that one core takes for each row, from its files to what is learned from.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoTokenizer,
    SmolVLMForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, SmolVLMProcessor

from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.data.config import RowsConfig, ShowConfig
from tailorbird.data.encode import Encoder
from tailorbird.data.mixture import Mixture, Part
from tailorbird.data.rows import RowLoader
from tailorbird.data.sources.readers import open_source
from tailorbird.model.vlm import VLM
from tailorbird.train.config import LearnConfig, VLMTrainConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.loop import train
from tailorbird.train.stages import choose
from tailorbird.train.vlm import Packed, VLMLesson
from turns import Answering, answer_requests

LR, BETAS, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.999), 0.01, 1.0
ROWS = RowsConfig(tokens=1024, tiles=16, lanes=2, workers=2)
Step = dict[str, Any]  # see `describe`


class Ours:
    """A run as `tailorbird train` makes it, without questions on the way."""

    def __init__(self, model: Path, talks: Path, rows: RowsConfig = ROWS, *, fast: bool = True) -> None:
        processor = replace(read_vlm(model).processor, fast=fast)
        self.model, self.source, self.rows = model, open_source(talks), rows
        self.encoder = Encoder(processor=processor, cfg=ShowConfig(), tokens=rows.tokens, tiles=rows.tiles)

    def lesson(self, num: int, workers: int) -> "Timed":
        """Of so many steps, for the weights that the model's folder holds."""
        cfg = VLMTrainConfig(
            **{"steps": num, "log_every": 1, "eval_every": num, "save_every": num, "ema": 0.0},
            **{"lr": LR, "final_lr": 1.0, "warmup": 0, "betas": BETAS, "clip": CLIP},
            weight_decay=WEIGHT_DECAY,
            threads=torch.get_num_threads(),
            log=(),
        )
        folder, mixture = read_vlm(self.model, dtype=torch.float32), Mixture([Part(source=self.source)])
        loader = RowLoader(mixture, self.encoder, replace(self.rows, workers=workers))
        lesson = Timed(cfg, folder.model.cfg, loader, self.encoder.processor, folder.end_ids, [])
        lesson.start = folder.model
        return lesson

    def plan(self, num: int) -> list[Step]:
        lesson = self.lesson(num, workers=0)
        for _ in lesson.steps(0, num):
            pass
        return lesson.taken

    def run(self, plan: Sequence[Step]) -> dict[str, Any]:
        lesson = self.lesson(len(plan), self.rows.workers)
        with tempfile.TemporaryDirectory() as out:
            train(lesson.cfg, lesson, lesson.start, choose(lesson.start, LearnConfig(), 0), Path(out))
            losses = [row["loss"] for row in read_metrics(Path(out)) if "loss" in row]
        assert lesson.taken == list(plan), "a run learns from other rows than were planned"
        return {"losses": losses, "seconds": lesson.seconds, "waiting_s": lesson.waiting_s}

    def prepare(self, row: int) -> object:
        return self.encoder.encode(self.source[row], row)


class Timed(VLMLesson):
    """It notes what every step learns from, how long it takes, and how much of that is waiting."""

    start: VLM

    def steps(self, start: int, stop: int) -> Iterator[Sequence[Packed]]:
        self.taken: list[Step] = []
        self.seconds: list[float] = []
        self.waiting_s: list[float] = []
        self.ended = time.perf_counter()
        for portions in super().steps(start, stop):
            self.waiting_s.append(time.perf_counter() - self.ended)
            self.taken.append(describe(portions))
            yield portions
            self.note()

    def evaluate(self, model: VLM) -> dict[str, float]:
        """Asked after the last step, before what it came to is saved: that is no part of it."""
        self.note()
        return {}

    def note(self) -> None:
        now = time.perf_counter()
        if len(self.seconds) < len(self.taken):
            self.seconds.append(now - self.ended)
        self.ended = now


def describe(portions: Sequence[Packed]) -> Step:
    """rows: of the file, with their lengths in tokens. places: of each packed row. learned: tokens."""
    rows = [portion.rows for portion in portions]
    return {
        "rows": [int(name.rpartition(":")[2]) for one in rows for row in one.names for name in row],
        "lengths": [num for one in rows for row in one.segment for num in (row + 1).bincount()[1:].tolist()],
        "places": [one.ids.shape[1] for one in rows for _ in one.names],
        "learned": int(sum(portion.weight for portion in portions)),
        "tiles": sum(sum(one.tiles) for one in rows),
    }


class Theirs:
    """The usual recipe: the processor in the collator, padding to the longest, transformers' own Trainer."""

    def __init__(self, model: Path, talks: Path, *, workers: int = ROWS.workers) -> None:
        self.model, self.folder, self.workers = model, talks.parent, workers
        self.rows = [json.loads(line)["messages"] for line in talks.read_text().splitlines()]
        self.processor = read_processor(model)
        head = self.processor.tokenizer("<end_of_utterance>\nAssistant:", add_special_tokens=False)
        self.head = torch.tensor(head["input_ids"])  # what stands before an answer

    def run(self, plan: Sequence[Step]) -> dict[str, Any]:
        model = SmolVLMForConditionalGeneration.from_pretrained(
            self.model, dtype=torch.float32, attn_implementation="sdpa"
        )
        model.config.use_cache = model.config.text_config.use_cache = False
        clock, num = Clock(), len(plan)
        with tempfile.TemporaryDirectory() as out:
            settings = TrainingArguments(
                **{"output_dir": out, "use_cpu": True, "report_to": "none", "disable_tqdm": True},
                **{"save_strategy": "no", "logging_steps": 1, "max_steps": num},
                **{"learning_rate": LR, "lr_scheduler_type": "constant", "weight_decay": WEIGHT_DECAY},
                **{"adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "max_grad_norm": CLIP},
                dataloader_num_workers=self.workers,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            )
            trainer = Planned(
                model, settings, data_collator=self.collate, train_dataset=self.rows, callbacks=[clock]
            )
            trainer.plan = Order([step["rows"] for step in plan])
            trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        return {"losses": losses, "seconds": clock.seconds, "waiting_s": clock.waiting_s}

    def prepare(self, row: int) -> object:
        return self.collate([self.rows[row]])

    def collate(self, talks: Sequence[list[dict[str, Any]]]) -> dict[str, Tensor]:
        batch = self.processor.apply_chat_template(
            [[{**turn, "content": [*map(self.found, turn["content"])]} for turn in talk] for talk in talks],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return {**batch, "labels": batch["input_ids"].masked_fill(~self.learned(batch["input_ids"]), -100)}

    def found(self, item: dict[str, str]) -> dict[str, str]:
        return {**item, "path": str(self.folder / item["path"])} if item["type"] == "image" else item

    def learned(self, ids: Tensor) -> Tensor:
        """What the assistant says, with the end of its turns: (B, T) bool, as ids."""
        width, places = len(self.head), torch.arange(ids.shape[1])
        begins = torch.zeros_like(ids, dtype=torch.bool)
        begins[:, width:] = (ids.unfold(1, width, 1) == self.head).all(-1)[:, :-1]
        ended = torch.zeros_like(begins)
        ended[:, 1:] = ids[:, :-1] == self.head[0]
        last_begin, last_end = (places.where(one, -1).cummax(1).values for one in (begins, ended))  # (B, T)
        return (last_begin >= 0) & (last_begin > last_end)


def read_processor(folder: Path) -> SmolVLMProcessor:
    """With Pillow: the one that resizes by torchvision, and the constructor, need torchvision."""
    made = SmolVLMProcessor.__new__(SmolVLMProcessor)
    made.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    made.image_processor = SmolVLMImageProcessorPil.from_pretrained(folder)
    made.video_processor = SimpleNamespace(num_frames=64, fps=1)  # asked, though there is no video
    made.chat_template = DEFAULT_CHAT_TEMPLATE
    made.fake_image_token, made.image_token = "<fake_token_around_image>", "<image>"
    made.global_image_token, made.video_token = "<global-img>", "<video>"
    made.image_token_id = made.tokenizer.convert_tokens_to_ids("<image>")
    made.image_seq_len = json.loads((folder / "processor_config.json").read_text())["image_seq_len"]
    return made


class Order(Sampler[list[int]]):
    """The rows of each batch."""

    batch_size, drop_last = 0, False  # asked by accelerate

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self.batches = [list(one) for one in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class Planned(Trainer):
    """Batches of what a plan says, each all that a step learns from."""

    plan: Order

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.plan,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waiting_s: list[float] = []
        self.ended = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.ended = time.perf_counter()

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.waiting_s.append(time.perf_counter() - self.ended)

    def on_step_end(self, *_: object, **__: object) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.ended)
        self.ended = now


def answer(trainer: Ours | Theirs, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["ask"] == "plan":
        assert isinstance(trainer, Ours)
        return {"plan": trainer.plan(asked["num"])}
    if asked["ask"] == "prepare":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = [timed(lambda row=row: trainer.prepare(row)) for row in asked["rows"]]
        torch.set_num_threads(threads)
        return {"seconds": seconds}
    found = trainer.run(asked["plan"])
    gc.collect()  # models hold themselves: what is left would stand in the way of the next
    return found


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    way, model, talks = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

    def build() -> Answering:
        trainer = Theirs(model, talks) if way == "transformers" else Ours(model, talks, fast=way != "exact")
        return lambda asked: answer(trainer, asked)

    answer_requests(build)


if __name__ == "__main__":
    main()
