"""Teach a policy that acts already: another robot, another task, more data."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot import OWN_VLM, Asked
from tailorbird.checkpoint.policy import fingerprint, read_policy
from tailorbird.data.lerobot import ACTION, STATE, LeRobotDataset, find_dataset
from tailorbird.errors import ConfigError
from tailorbird.model.int8 import is_int8
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.recipes.config import TuneConfig
from tailorbird.recipes.fit import learn
from tailorbird.storage import locked
from tailorbird.train.loop import Trained
from tailorbird.train.parallel import join_team
from tailorbird.train.stages import choose


def finetune(cfg: TuneConfig, policy: Path | str, data_path: Path | str, out: Path) -> Trained:
    """Go on training a policy on a dataset, continuing what `out` already holds.

    Raises:
        CheckpointError: there is no policy, or it is damaged.
        DataError: the dataset cannot be used.
        ConfigError: policy and dataset do not fit, or `out` holds a run with other settings, policy or data.
    """
    data = LeRobotDataset(find_dataset(data_path))
    folder = find_model(policy, inner=(OWN_VLM,))
    with locked(out) if join_team().is_first else nullcontext():
        begun = {
            "policy": fingerprint(folder),
            "learn": asdict(cfg.learn),
            "fingerprint": data.fingerprint,
            "augment": asdict(cfg.augment),
        }
        model, pipeline = load_for(data, folder, cfg)
        groups = choose(model, cfg.learn, cfg.train.seed)
        return learn(model, groups, pipeline, data, cfg, out, begun)


def load_for(data: LeRobotDataset, folder: Path, cfg: TuneConfig) -> tuple[VLA, Pipeline]:
    """The policy with the cameras, the rate and, unless it keeps its own, the statistics of the dataset.

    Raises:
        ConfigError: a camera of the policy is neither there nor declared absent, or the dataset's states or
            actions have other sizes.
        MissingStats: there are no statistics of the kind that the policy works with.
    """
    widths = {STATE: data.state.shape[1], ACTION: data.action.shape[1]}
    own = {"policy": None, "dataset": data.stats}
    if cfg.stats not in own and Path(cfg.stats).exists():
        raise ConfigError(
            f"--stats {cfg.stats} is a path: say dataset for those of --data, policy, or a set's name"
        )
    source = str(data.root) if cfg.stats == "dataset" else None
    asked = Asked(cfg.rename, cfg.without, own.get(cfg.stats, cfg.stats), widths, source)
    model, pipeline = read_policy(folder, asked=asked)
    if is_int8(model):
        raise ConfigError(f"{folder} is int8, which does not learn: go on from the policy it was made from")
    pipeline = replace(pipeline, hz=data.fps)
    there = {STATE: pipeline.state.width, ACTION: pipeline.action.width}
    if there != widths:
        raise ConfigError(
            f"the statistics of {folder} are of {there} values, {data.root} has {widths}: "
            "choose --stats dataset"
        )
    if missing := [name for name in pipeline.robot_cameras if name not in data.cameras]:
        raise ConfigError(
            f"{data.root} has the cameras {', '.join(data.cameras) or 'none'}, the policy asks for "
            f"{', '.join(missing)}: say which is which with --rename THEIRS POLICYS, and which there is not "
            "with --without POLICYS"
        )
    pipeline.tokenizer(data.tasks)  # refuses here, not in the middle of training, an instruction too long
    return model, pipeline
