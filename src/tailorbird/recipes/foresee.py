"""What a training would need: recipes up to their first step. Nothing is written, and no VLM is fetched."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tailorbird.checkpoint.fill import without_weights
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot import OWN_VLM
from tailorbird.checkpoint.vlm import read_outline
from tailorbird.data.lerobot import LeRobotDataset, find_dataset
from tailorbird.errors import ConfigError
from tailorbird.model.cost import named_device
from tailorbird.model.vla import VLA
from tailorbird.perf.passes import Shape, vla_pass, vlm_pass
from tailorbird.perf.training import MFU, Foreseen, Trial, foresee, tables
from tailorbird.processing.pipeline import Pipeline
from tailorbird.progress import console
from tailorbird.recipes.config import RunConfig, TuneConfig
from tailorbird.recipes.finetune import load_for
from tailorbird.recipes.fit import build_pipeline, sized
from tailorbird.recipes.vlm import FULL, fitting, look, num_steps
from tailorbird.recipes.vlm_config import VLMRunConfig
from tailorbird.recipes.vlm_data import described, open_parts
from tailorbird.train.config import LearnConfig, TrainConfig, VLATrainConfig
from tailorbird.train.stages import choose
from tailorbird.train.step import foretold

Fleet = tuple[str, int]  # the GPU's name, and how many


def foresee_taught(
    cfg: VLMRunConfig, model: str | Path, data: Sequence[str], media: Path | None, fleet: Fleet
) -> None:
    """Of a vision-language model, in rows as large as the data make them; arguments: of `recipes.vlm.teach`.

    Raises:
        ConfigError, CheckpointError, DataError: as `teach`; or there is no such GPU.
    """
    named_device(fleet[0])
    base = read_outline(find_model(model, weights=False))
    base = replace(base, processor=replace(base.processor, fast=True, decoder=cfg.rows.decoder))
    cfg = fitting(cfg, base.model)
    found = look(cfg, open_parts(data, media, cfg), base)
    if cfg.epochs:
        cfg = cfg.lasting(num_steps(cfg, found))
    rows, token, gpus = cfg.rows, base.model.cfg.image_token_id, fleet[1]
    if gpus < 1 or rows.lanes % gpus:
        raise ConfigError(f"{gpus} GPUs cannot share {rows.lanes} rows: make --rows.lanes a multiple")
    share = rows.lanes // gpus
    shape = Shape(
        rows=min(rows.at_once, share),
        tokens=rows.tokens,
        tiles=max(max(one.tiles) for one in found.held_out),
        learned=max(int(foretold(one, token).sum(1).max()) for one in found.held_out),
    )
    groups = choose(base.model, cfg.learn, cfg.train.seed)
    trial = Trial(
        model=base.model,
        groups=groups,
        cfg=cfg.train,
        call=vlm_pass(shape),
        passes=gpus * -(-share // shape.rows),
    )
    for line in described(found.mixture):
        console.print(line)
    what = f"{rows.lanes} rows, about {rows.lanes * rows.tokens * FULL:,.0f} tokens"
    _tell(foresee(trial, fleet[1]), cfg.train, fleet[0], what)


def foresee_new(cfg: RunConfig, data_path: Path | str, fleet: Fleet) -> None:
    """Of a policy from nothing; the arguments of `recipes.fit.fit`."""
    named_device(fleet[0])
    data = LeRobotDataset(find_dataset(data_path))
    pipeline = build_pipeline(cfg, data)
    with without_weights():
        model = VLA(sized(cfg, data))
    _foresee_policy(model, pipeline, data, cfg.train, LearnConfig(), fleet)


def foresee_tuned(cfg: TuneConfig, policy: Path | str, data_path: Path | str, fleet: Fleet) -> None:
    """Of a policy that goes on learning; the arguments of `recipes.finetune.finetune`."""
    named_device(fleet[0])
    data = LeRobotDataset(find_dataset(data_path))
    model, pipeline = load_for(data, find_model(policy, inner=(OWN_VLM,)), cfg)
    _foresee_policy(model.to("meta"), pipeline, data, cfg.train, cfg.learn, fleet)


def _foresee_policy(
    model: VLA,
    pipeline: Pipeline,
    data: LeRobotDataset,
    cfg: VLATrainConfig,
    learn: LearnConfig,
    fleet: Fleet,
) -> None:
    model.cfg = replace(model.cfg, max_delay=max(model.cfg.max_delay, cfg.max_delay))
    groups = choose(model, learn, cfg.seed)
    call = vla_pass(pipeline, data, cfg, model)
    trial = Trial(model=model, groups=groups, cfg=cfg, call=call, passes=cfg.accumulate)
    what = f"{cfg.batch} observations with {cfg.draws} noises each"
    _tell(foresee(trial, fleet[1]), cfg, fleet[0], what)


def _tell(found: Foreseen, cfg: TrainConfig, gpu: str, what: str) -> None:
    device = named_device(gpu)
    for table in tables(found, cfg):
        console.print(table)
    console.print(
        f"{cfg.steps:,} steps of {what}, {found.flops / 1e12:,.4g} TFLOP; about "
        f"{found.hours(cfg.steps, device, cfg.precision):,.3g} hours on {found.gpus} x {device.name}, if "
        f"{MFU:.0%} of its peak in {cfg.precision} is reached: assumed, not measured"
    )
