"""Train a VLA on a LeRobot dataset: the parts, put together."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tailorbird.checkpoint.policy import disagreements
from tailorbird.data.config import LoadConfig
from tailorbird.data.frames import load_frames
from tailorbird.data.lerobot import ACTION, STATE, LeRobotDataset, find_dataset
from tailorbird.data.loader import Loader, split_episodes
from tailorbird.errors import ConfigError
from tailorbird.infer.device import find_device
from tailorbird.model.build import build_model
from tailorbird.model.config import VLAConfig
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.progress import console
from tailorbird.provenance import cores
from tailorbird.recipes.config import RunConfig, TuneConfig
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import claim, locked
from tailorbird.train.config import LearnConfig
from tailorbird.train.loop import Trained, train
from tailorbird.train.parallel import join_team
from tailorbird.train.stages import Group, choose
from tailorbird.train.vla import VLALesson
from tailorbird.train.vla_step import measure

HELD_OUT_FRAMES = 256  # measured at each evaluation


def build_pipeline(cfg: RunConfig, data: LeRobotDataset) -> Pipeline:
    """The chain for this data: its cameras, statistics and rate, and a tokenizer trained on its words."""
    if not data.cameras:
        raise ConfigError(f"{data.root} has no camera: there is nothing to see")
    vocab = cfg.model.vlm.decoder.vocab
    words = train_tokenizer([*INSTRUCTIONS.values(), *data.tasks], vocab)
    pipeline = Pipeline(
        cameras=data.cameras,
        image=ImageSpec(size=cfg.model.vlm.vision.image_size, crop=cfg.crop),
        state=Normalizer.from_stats(data.stats, STATE, str(data.root)),
        action=Normalizer.from_stats(data.stats, ACTION, str(data.root)),
        tokenizer=InstructionTokenizer(words, cfg.max_tokens),
        hz=data.fps,
    )
    pipeline.tokenizer(data.tasks)  # refuses here, not in the middle of training, an instruction too long
    if wrong := disagreements(sized(cfg, data), pipeline):
        raise ConfigError(f"the model and {data.root} do not fit ({'; '.join(wrong)}): change --model")
    return pipeline


def sized(cfg: RunConfig, data: LeRobotDataset) -> VLAConfig:
    """The model's configuration with the state and action sizes of the data."""
    return replace(cfg.model, state_dim=data.state.shape[1], action_dim=data.action.shape[1])


def new_model(cfg: RunConfig, data: LeRobotDataset) -> VLA:
    """An untrained model for this data's state and action sizes. The same seed gives the same weights."""
    model = build_model(sized(cfg, data))
    assert isinstance(model, VLA)
    initialise(model, cfg.train.seed)
    return model


def fit(cfg: RunConfig, data_path: Path | str, out: Path) -> Trained:
    """Train on a dataset, continuing what `out` already holds.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: `out` holds a run with other settings or data.
    """
    with join_team().first_alone():
        data = LeRobotDataset(find_dataset(data_path))
    with locked(out) if join_team().is_first else nullcontext():
        return _fit(cfg, data, out)


def _fit(cfg: RunConfig, data: LeRobotDataset, out: Path) -> Trained:
    begun = {"fingerprint": data.fingerprint, "augment": asdict(cfg.augment)}
    model = new_model(cfg, data)
    groups = choose(model, LearnConfig(), cfg.train.seed)
    return learn(model, groups, build_pipeline(cfg, data), data, cfg, out, begun)


def learn(
    model: VLA,
    groups: Sequence[Group],
    pipeline: Pipeline,
    data: LeRobotDataset,
    cfg: RunConfig | TuneConfig,
    out: Path,
    begun: Mapping[str, Any],
) -> Trained:
    """Train a model on a dataset that its pipeline suits, continuing what `out` already holds.

    groups: what learns of it.
    begun: what must be the same for `out` to be continued. A refused command must not claim the folder.
    """
    team = join_team()
    device = find_device(team.device(cfg.train.device))
    model.cfg = replace(model.cfg, max_delay=max(model.cfg.max_delay, cfg.train.max_delay))
    if model.cfg.max_delay and pipeline.lerobot is not None:
        console.print("lerobot cannot go on from given actions: the policy is saved in Tailorbird's layout")
        pipeline = replace(pipeline, lerobot=None)
    with team.first_alone():
        if team.is_first:
            claim(out / "data.json", dict(begun))
        frames = load_frames(data, pipeline.image, pipeline.robot_cameras, out / "frames", cores())
    learned, held_out = split_episodes(data, cfg.train.held_out, cfg.train.seed)
    load = LoadConfig(chunk=model.cfg.chunk, batch=cfg.train.batch, seed=cfg.train.seed, augment=cfg.augment)
    loader = Loader(data, frames, pipeline, rows=learned, cfg=load)
    num = min(len(held_out), HELD_OUT_FRAMES if isinstance(cfg, RunConfig) else cfg.train.batch)
    apart = loader.load(held_out[np.linspace(0, len(held_out) - 1, num).astype(int)]).to(device)

    def evaluate(mean: VLA) -> dict[str, float]:
        return measure(mean, apart, pipeline, cfg.train.seed)

    lesson = VLALesson(cfg.train, model.cfg, loader, pipeline, evaluate, team)
    return train(cfg.train, lesson, model.to(device), groups, out)
