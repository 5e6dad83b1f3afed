"""Teach a tiny model to see, in two stages, from nothing, and count its answers to questions held out.

python bench/train_check.py        20 minutes on two cores; works in runs/train-check, anew each time

First pictures (shapes, charts, documents), then clips with some of them: bench/sight.py draws them. Beside it
the same language model is taught from the same conversations without what they show. Then the first loss and
the answers of the model that sees are compared over three ways to the same enlarged pictures:

exact    pixels by Pillow, as the released processor makes them
tensor   pixels by tensor operations, as training makes them
bypass   the picture's features before the bare words, without markers or turns

Writes results/train_check.json, and fails if a kind stays below FLOORS.
"""

import json
import os
import shutil
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import multiprocessing

from publish import write_readme
from sight import Question, generate, is_right, language_only_ceiling, read_questions
from sight_model import build
from sight_ways import compare
from tailorbird.data.config import RowsConfig, ShowConfig
from tailorbird.infer.chat import ChatModel, ask, load_vlm
from tailorbird.infer.config import Sampling
from tailorbird.progress import console, track
from tailorbird.provenance import cores, stamp, versions
from tailorbird.recipes.vlm import teach
from tailorbird.recipes.vlm_config import VLMRunConfig, video, vision
from tailorbird.storage import write_json
from tailorbird.train.config import LearnConfig, Pace
from tailorbird.train.log import read_metrics

ROOT = Path(__file__).parents[1]
HERE = Path("runs/train-check")
FLOORS = {"shapes": 0.8, "charts": 0.55, "documents": 0.65, "clips": 0.7}  # of the answers must be right
PICTURES = ("shapes", "charts", "documents")
SHORT = Sampling(max_tokens=8)
AT_ONCE = 50  # questions
NEW = "questions never asked in training"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything. drawn: to learn from, by kind. steps: of each training."""

    drawn: Mapping[str, int]
    held: int = 400
    compared: int = 100  # of each kind of pictures, by the three ways
    vision_steps: int
    video_steps: int
    blind_steps: int
    lanes: int = 4
    processes: int = 1  # of one thread each, that learn together


FULL = Plan(
    drawn={"shapes": 24000, "charts": 22000, "documents": 16000, "clips": 5000},
    vision_steps=5200,
    video_steps=1100,
    blind_steps=600,
    processes=cores(),
)


def draw(plan: Plan, out: Path) -> None:
    """Everything, one kind a process; then the same conversations without what they show."""
    with ProcessPoolExecutor(cores()) as pool:
        jobs = [
            pool.submit(generate, out, kind, num, split=split, seed=seed)
            for kind, drawn in plan.drawn.items()
            for split, num, seed in (("train", drawn, 1), ("held", plan.held, 2))
        ]
        for job in jobs:
            file = job.result()
            rows = map(json.loads, file.read_text().splitlines())
            lines = [json.dumps({**row, "messages": list(map(_blind, row["messages"]))}) for row in rows]
            blind_of(file).write_text("".join(f"{line}\n" for line in lines))


def _blind(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):
        content = [item for item in content if item["type"] == "text"]
    return {**message, "content": content}


def blind_of(file: Path) -> Path:
    return file.with_name(f"blind-{file.name}")


def settings(recipe: VLMRunConfig, steps: int, rows: RowsConfig, lr: float) -> VLMRunConfig:
    """A published stage at the size of this check: everything learns, faster and from far less."""
    train = replace(
        recipe.train,
        steps=steps,
        lr=lr,
        warmup=min(100, steps // 4),
        betas=(0.9, 0.98),
        weight_decay=0.05,
        neftune=0.0,
        precision="float32",
        checkpointing=False,
        ema=0.99,
        device="cpu",
        threads=1,
        log=(),
        log_every=50,
        eval_every=max(1, steps // 4),
        save_every=steps,
    )
    return replace(
        recipe, epochs=0.0, when_dry="repeat", rows=rows, show=ShowConfig(), train=train, answers=0
    )


def train_all(plan: Plan, data: Path, here: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """The folders of what sees and of what does not, and the minutes of each training."""
    build(here / "new")
    files = {kind: data / f"{kind}-train.jsonl" for kind in plan.drawn}
    at_once = plan.lanes // plan.processes
    narrow = RowsConfig(tokens=160, tiles=8, lanes=plan.lanes, at_once=at_once, lengths=(160,), workers=0)
    wide = replace(narrow, tokens=384, tiles=24, lengths=(384,))
    first = settings(vision(), plan.vision_steps, narrow, 1e-3)
    second = settings(video(), plan.video_steps, wide, 7e-4)
    second = replace(second, learn=LearnConfig(vision=Pace(rate=0.5, start=plan.video_steps // 10)))
    blind = settings(vision(), plan.blind_steps, narrow, 1e-3)
    pictures = [f"{files[kind]}={weight}" for kind, weight in zip(PICTURES, (0.4, 0.4, 0.2), strict=True)]
    clips = [f"{files['clips']}=0.7", *(f"{files[kind]}=0.1" for kind in PICTURES)]
    unseen = [f"{blind_of(files[kind])}=0.25" for kind in files]
    runs = {
        "language_only": (blind, here / "new", unseen),
        "vision": (first, here / "new", pictures),
        "video": (second, here / "vision/model", clips),
    }
    minutes = {}
    for name, (cfg, start, sources) in runs.items():
        began = time.perf_counter()
        console.print(f"{name}: {cfg.train.steps} steps")
        teach_together(plan.processes, cfg, start, sources, here / name)
        minutes[name] = (time.perf_counter() - began) / 60
    return {name: here / name / "model" for name in runs}, minutes


def teach_together(processes: int, *task: Any) -> None:
    """`teach`, by several processes: in a model so small threads would mostly wait for each other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    multiprocessing.spawn(_teach_as_one, (processes, port, task), nprocs=processes)


def _teach_as_one(rank: int, processes: int, port: int, task: tuple[Any, ...]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    teach(*task)


def answers(chat: ChatModel, questions: Sequence[Question], *, blind: bool = False) -> list[bool]:
    """Which of the questions are answered rightly, by the likeliest words."""
    right: list[bool] = []
    with track("answers", len(questions)) as bar:
        for start in range(0, len(questions), AT_ONCE):
            part = questions[start : start + AT_ONCE]
            asked = [_asked(one, blind) for one in part]
            said = chat.chat_batch(asked, SHORT)
            right += [is_right(a.text, q.asked.answer) for a, q in zip(said, part, strict=True)]
            bar.advance(len(part))
    return right


def _asked(one: Question, blind: bool) -> list[dict[str, Any]]:
    kind = "videos" if one.shown.suffix == ".mp4" else "images"
    return ask(one.asked.question, **({} if blind else {kind: [one.shown]}))


def table(
    questions: Sequence[Question], right: Sequence[bool], blind: Sequence[bool], known: Set[str]
) -> dict[str, Any]:
    """Of one kind: shares of right answers, altogether, by what is asked about, and of what never was."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(questions):
        groups[one.asked.about].append(i)
        if one.asked.question not in known:
            groups[NEW].append(i)

    def figures(which: Sequence[int]) -> dict[str, float]:
        return {
            "accuracy": sum(right[i] for i in which) / len(which),
            "language_only_accuracy": sum(blind[i] for i in which) / len(which),
            "language_only_ceiling": language_only_ceiling([questions[i].asked for i in which]),
            "questions": len(which),
        }

    return {**figures(range(len(questions))), "about": {name: figures(some) for name, some in groups.items()}}


def judge(data: Path, folders: Mapping[str, Path], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    seeing, blind = (load_vlm(folders[name], device="cpu") for name in ("video", "language_only"))
    found = {}
    for kind in kinds:
        known = {one.asked.question for one in read_questions(data / f"{kind}-train.jsonl")}
        questions = read_questions(data / f"{kind}-held.jsonl")
        right, guessed = answers(seeing, questions), answers(blind, questions, blind=True)
        found[kind] = table(questions, right, guessed, known)
        _say(kind, found[kind])
    return found


def _say(kind: str, found: Mapping[str, Any]) -> None:
    for name, one in {kind: found, **found["about"]}.items():
        console.print(
            f"{name:34} {one['accuracy']:6.1%} seeing, {one['language_only_accuracy']:6.1%} language only, "
            f"{one['language_only_ceiling']:6.1%} at most without looking, {one['questions']} questions"
        )


def losses(run: Path) -> list[float]:
    """Of the rows that a run holds out of its own, as it went on: the last ones say whether it was done."""
    return [row["held_out_loss"] for row in read_metrics(run) if "held_out_loss" in row]


def check(plan: Plan, here: Path) -> dict[str, Any]:
    began = time.perf_counter()
    data = here / "data"
    draw(plan, data)
    drawn = time.perf_counter()
    folders, minutes = train_all(plan, data, here)
    trained = time.perf_counter()
    kinds = judge(data, folders, list(plan.drawn))
    pictures = [
        one for kind in PICTURES for one in read_questions(data / f"{kind}-held.jsonl")[: plan.compared]
    ]
    ways = compare(folders["video"], pictures)
    ended = time.perf_counter()
    return {
        "accuracy": {kind: found["accuracy"] for kind, found in kinds.items()},
        "language_only_accuracy": {kind: found["language_only_accuracy"] for kind, found in kinds.items()},
        "kinds": kinds,
        "held_out_losses": {name: losses(folder.parent) for name, folder in folders.items()},
        "loss_gap": ways,
        "minutes": {
            "drawing": (drawn - began) / 60,
            **minutes,
            "judging": (ended - trained) / 60,
            "all": (ended - began) / 60,
        },
        "plan": asdict(plan),
    }


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    found = check(FULL, HERE)
    write_json(
        ROOT / "results/train_check.json", {**found, **stamp("make train-check"), "versions": versions()}
    )
    write_readme("train-check")
    if low := [kind for kind, floor in FLOORS.items() if found["accuracy"][kind] < floor]:
        sys.exit(f"too few right answers about {', '.join(low)}: {FLOORS} are expected")


if __name__ == "__main__":
    main()
