"""A training run of a VLA on a LeRobot dataset, put together from the parts."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailorbird.data.config import Augment
from tailorbird.model.config import VLAConfig
from tailorbird.model.sizes import TINY
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.train.config import TrainConfig

if TYPE_CHECKING:
    from tailorbird.data.lerobot import LeRobotDataset
    from tailorbird.model.vla import VLA
    from tailorbird.processing.pipeline import Pipeline
    from tailorbird.train.loop import Trained

HELD_OUT_FRAMES = 256  # measured at each evaluation


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Model, pictures and schedule. What the data decides (cameras, statistics, rate) is read from the data.

    crop: top, left, height and width of the part of each frame that the model sees, as fractions.
    max_tokens: longest instruction that the policy accepts.
    """

    model: VLAConfig = TINY
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    max_tokens: int = 32
    augment: Augment = field(default_factory=Augment)
    train: TrainConfig = field(default_factory=TrainConfig)


def tiny() -> RunConfig:
    """1.8 million parameters, from nothing, for a handful of simulated tasks.

    Expect: 80 to 90 % success on the five tasks of `make demo` after 4,000 steps on 720 demonstrations; seven
        minutes
    on two CPU cores.
    """
    return RunConfig(crop=(0.14, 0.306, 0.667, 0.667))


def build_pipeline(cfg: RunConfig, data: "LeRobotDataset") -> "Pipeline":
    """The chain for this data: its cameras, statistics and rate, and a tokenizer trained on its words."""
    from tailorbird.data.lerobot import ACTION, STATE
    from tailorbird.processing.image import ImageSpec
    from tailorbird.processing.normalize import Normalizer
    from tailorbird.processing.pipeline import Pipeline
    from tailorbird.processing.text import InstructionTokenizer, train_tokenizer

    vocab = cfg.model.vlm.decoder.vocab
    words = train_tokenizer([*INSTRUCTIONS.values(), *data.tasks], vocab)
    return Pipeline(
        cameras=data.cameras,
        image=ImageSpec(size=cfg.model.vlm.vision.image_size, crop=cfg.crop),
        state=Normalizer.from_stats(data.stats, STATE, str(data.root)),
        action=Normalizer.from_stats(data.stats, ACTION, str(data.root)),
        tokenizer=InstructionTokenizer(words, cfg.max_tokens),
        hz=data.fps,
    )


def new_model(cfg: RunConfig, data: "LeRobotDataset") -> "VLA":
    """An untrained model for this data's state and action sizes. The same seed gives the same weights."""
    from tailorbird.model.build import build_model
    from tailorbird.model.init import initialise
    from tailorbird.model.vla import VLA

    sized = replace(cfg.model, state_dim=data.state.shape[1], action_dim=data.action.shape[1])
    model = build_model(sized)
    assert isinstance(model, VLA)
    initialise(model, cfg.train.seed)
    return model


def fit(cfg: RunConfig, data_path: Path | str, out: Path) -> "Trained":
    """Train on a dataset, continuing what `out` already holds.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: `out` holds a run with other settings.
    """
    import numpy as np

    from tailorbird.data.frames import load_frames
    from tailorbird.data.lerobot import LeRobotDataset, find_dataset
    from tailorbird.data.loader import Loader, split_episodes
    from tailorbird.provenance import cores
    from tailorbird.train.loop import train
    from tailorbird.train.step import measure

    data = LeRobotDataset(find_dataset(data_path))
    pipeline = build_pipeline(cfg, data)
    frames = load_frames(data, pipeline.image, pipeline.cameras, out / "frames", cores())
    learned, held_out = split_episodes(data, cfg.train.held_out, cfg.train.seed)
    loader = Loader(
        data,
        frames,
        pipeline,
        rows=learned,
        chunk=cfg.model.chunk,
        batch=cfg.train.batch,
        seed=cfg.train.seed,
        augment=cfg.augment,
    )
    apart = loader.load(held_out[np.linspace(0, len(held_out) - 1, HELD_OUT_FRAMES).astype(int)])

    def evaluate(model: "VLA") -> dict[str, float]:
        return measure(model, apart, pipeline.action, cfg.train.seed)

    return train(cfg.train, new_model(cfg, data), loader, pipeline, out, evaluate)
