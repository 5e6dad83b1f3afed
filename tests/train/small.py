"""A dataset and a model so small that a whole training run takes a second. Also a program, to be killed:

small.py DATA OUT {SIGINT,SIGKILL,full disk} STEP
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tailorbird.data.config import Augment, LoadConfig
from tailorbird.data.frames import load_frames
from tailorbird.data.lerobot import ACTION, STATE, LeRobotDataset
from tailorbird.data.loader import Loader, split_episodes
from tailorbird.data.stats import describe_frames
from tailorbird.data.video import encode
from tailorbird.data.writer import DatasetWriter, Demonstration, Layout
from tailorbird.errors import StorageError
from tailorbird.model.config import VLAConfig
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.train.config import LearnConfig, VLATrainConfig
from tailorbird.train.loop import Trained, train
from tailorbird.train.stages import Group, choose
from tailorbird.train.state import newest_checkpoint
from tailorbird.train.vla import VLALesson
from tailorbird.train.vla_step import draw, measure, vla_loss
from tailorbird.types import Batch
from tiny import TINY_VLA

CAMERA, HZ, LENGTHS = "front", 10, (12, 14, 17, 20)
MODEL = replace(TINY_VLA, state_dim=3, action_dim=2, chunk=4, num_steps=3)
CONFIG = VLATrainConfig(  # no two of the periods coincide at a step that is saved
    steps=12,
    batch=6,
    lr=2e-3,
    warmup=3,
    held_out=0.25,
    threads=1,
    log_every=4,
    eval_every=6,
    save_every=5,
)
AUGMENT = Augment(shift_px=1, brightness=0.1, contrast=0.1)


def write_dataset(root: Path) -> None:
    """Four episodes of 32 px: a disc moves, the state says where it is, the action where it should go."""
    names = ("x", "y", "size")
    writer = DatasetWriter(
        root,
        Layout(fps=HZ, robot="disc", state_names=names, action_names=names[:2], cameras={CAMERA: (32, 32)}),
    )
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1)
    for number, length in enumerate(LENGTHS):
        begin, end = rng.uniform(6, 26, (2, 2))
        places = np.linspace(begin, end, length)
        size = rng.uniform(3, 6, length)
        far = np.linalg.norm(grid - places[:, None, None], axis=-1)  # (T, 32, 32)
        light = 230 / (1 + np.exp(far - size[:, None, None]))
        frames = np.stack([light, light * 0.7, np.full_like(light, 20.0 * number)], axis=-1).astype(np.uint8)
        writer.add(
            Demonstration(
                task=("push it left", "push it right")[number % 2],
                state=np.column_stack([places, size]).astype(np.float32),
                action=((end - places) / 8).astype(np.float32),
                videos={CAMERA: encode(frames, HZ)},
                picture_stats={CAMERA: describe_frames(frames)},
            )
        )
    writer.finish()


class Interrupting(Loader):
    """Does something just before the batch of one step."""

    act: Callable[[], object]
    step = -1

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().stream(start, stop), start):
            if step == self.step:
                self.act()
            yield batch


def load(root: Path, cache: Path, cfg: VLATrainConfig = CONFIG) -> tuple[Interrupting, Batch]:
    """The batches to learn from, and one of the episode that is held out."""
    data = LeRobotDataset(root)
    pipeline = Pipeline(
        cameras=data.cameras,
        image=ImageSpec(size=16),
        state=Normalizer.from_stats(data.stats, STATE, str(root)),
        action=Normalizer.from_stats(data.stats, ACTION, str(root)),
        tokenizer=InstructionTokenizer(train_tokenizer(data.tasks, 300), 24),
        hz=data.fps,
    )
    frames = load_frames(data, pipeline.image, pipeline.robot_cameras, cache, 1)
    learned, held_out = split_episodes(data, cfg.held_out, cfg.seed)
    load = LoadConfig(chunk=MODEL.chunk, batch=cfg.batch, seed=cfg.seed, augment=AUGMENT)
    loader = Interrupting(data, frames, pipeline, rows=learned, cfg=load)
    return loader, loader.load(held_out)


def new_model(seed: int = 0, cfg: VLAConfig = MODEL) -> VLA:
    model = VLA(cfg)
    initialise(model, seed)
    return model


def fit(
    root: Path,
    run: Path,
    cfg: VLATrainConfig = CONFIG,
    *,
    at: int = -1,
    act: Callable[[], object] = lambda: None,
    model: VLAConfig = MODEL,
    **changes: float,
) -> Trained:
    """Train; before step `at` call `act`."""
    cfg = replace(cfg, **changes)  # type: ignore[arg-type]
    loader, held_out = load(root, root.with_name("frames"), cfg)
    loader.step, loader.act = at, act
    pipeline = loader.pipeline
    start = new_model(cfg=model)
    return teach(cfg, start, loader, run, lambda m: measure(m, held_out, pipeline, cfg.seed))


def teach(
    cfg: VLATrainConfig,
    model: VLA,
    loader: Loader,
    run: Path,
    evaluate: Callable[[VLA], dict[str, float]] = lambda model: {},
    groups: Sequence[Group] = (),
    pipeline: Pipeline | None = None,
) -> Trained:
    """Train a model, all of it if no groups are given, on a loader's batches."""
    lesson = VLALesson(cfg, model.cfg, loader, pipeline or loader.pipeline, evaluate)
    return train(cfg, lesson, model, groups or choose(model, LearnConfig(), 0), run)


def mean_loss(model: VLA, batch: Batch, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Per action that is learned."""
    drawn = draw(model.cfg, batch, draws, generator)
    return vla_loss(model, drawn) / drawn.valid.sum().clamp_min(1)


def main() -> None:
    root, run, deed, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

    def act() -> None:
        if deed == "SIGKILL":  # what is being written beside the training is another test's
            while newest_checkpoint(run) is None:
                time.sleep(0.01)
        if deed == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), signal.Signals[deed])

    try:
        print(fit(root, run, at=step, act=act))
    except StorageError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
