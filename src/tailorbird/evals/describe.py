"""What something is, in tables: a model size, a policy, a dataset, a run."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tailorbird.checkpoint.files import INDEX, SINGLE
from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot import OWN_VLM, VLM, lerobot_sizes
from tailorbird.checkpoint.lerobot_steps import mode_of
from tailorbird.checkpoint.policy import read_policy
from tailorbird.checkpoint.processor import read_processor
from tailorbird.checkpoint.released import vlm_config
from tailorbird.data.lerobot import ACTION, STATE, LeRobotDataset, find_dataset
from tailorbird.errors import ConfigError, MissingStats
from tailorbird.evals.results import load_conditions, table
from tailorbird.model.build import build_model
from tailorbird.model.config import ModelConfig
from tailorbird.model.int8 import is_int8
from tailorbird.model.sizes import SIZES
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Scale
from tailorbird.storage import read_json


def describe(what: str) -> list[RenderableType]:
    """Tables about a size's name or a folder; about all sizes if `what` is empty.

    Raises:
        ConfigError: it is none of these.
        CheckpointError, DataError: it is damaged.
    """
    folder = Path(what)
    if not what:
        return [_sizes(SIZES)]
    if what in SIZES:
        return [_parts(SIZES[what])]
    if not folder.exists() and what.count("/") == 1:
        folder = find_model(what, inner=(OWN_VLM,))
    if (folder / "meta").is_dir():
        return _dataset(LeRobotDataset(find_dataset(folder)))
    if (folder / "chat_template.jinja").exists() or (folder / "preprocessor_config.json").exists():
        return _vlm(folder)
    if any((folder / name).exists() for name in (SINGLE, INDEX)):
        return _policy(folder)
    if (folder / "rollouts").is_dir():
        return _run(folder)
    raise ConfigError(
        f"{what} is no size ({', '.join(SIZES)}) and no folder of a model, a dataset or a run; for a "
        "training run, name one of its checkpoints"
    )


def _facts(facts: Mapping[str, str]) -> Table:
    rows = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        rows.add_row(Text(name, style="bold"), value)
    return rows


def _sizes(sizes: Mapping[str, ModelConfig]) -> Table:
    rows = Table("size", "parameters", "fp32", "bf16")
    for column in rows.columns[1:]:
        column.justify = "right"
    for name, cfg in sizes.items():
        num = sum(p.numel() for p in build_model(cfg, "meta").parameters())
        rows.add_row(name, f"{num:,}", f"{4 * num / 1e9:.2f} GB", f"{2 * num / 1e9:.2f} GB")
    return rows


def _parts(cfg: ModelConfig) -> Table:
    """Parameters by module, two levels deep."""
    counts: Counter[str] = Counter()
    for name, parameter in build_model(cfg, "meta").named_parameters():
        counts[".".join(name.split(".")[:-1][:2])] += parameter.numel()
    rows = Table("module", "parameters")
    rows.columns[1].justify = "right"
    for name, num in counts.items():
        rows.add_row(name, f"{num:,}")
    rows.add_section()
    rows.add_row("all", f"{counts.total():,}")
    return rows


def _policy(folder: Path) -> list[RenderableType]:
    try:
        model, pipeline = read_policy(folder)
    except MissingStats as error:  # as in smolvla_base: a policy all the same
        return [_facts({"statistics": str(error)}), _parts(lerobot_sizes(folder))]
    cfg, image = model.cfg, pipeline.image
    part = (
        f"part {image.crop}" if isinstance(image, ImageSpec) else "whole, with black on the left and on top"
    )
    rate = "a rate that is not recorded" if pipeline.hz is None else f"{pipeline.hz:g} Hz"
    theirs = pipeline.lerobot or {}
    modes = theirs.get("normalization_mapping") or {}
    source = {"vlm": str(theirs.get("vlm_model_name", VLM))} if theirs else {}
    facts = {
        **source,
        "parameters": f"{sum(p.numel() for p in build_model(cfg, 'meta').parameters()):,}",
        **({"weights": "int8, for the engine openvino"} if is_int8(model) else {}),
        "cameras": ", ".join(pipeline.cameras),
        "pictures": f"{pipeline.image.size} px, {part}",
        "state": _scaled(pipeline.state, pipeline.state_dim, modes.get("STATE")),
        "action": _scaled(pipeline.action, pipeline.action_dim, modes.get("ACTION")),
        "chunk": f"{cfg.chunk} actions at {rate}, {cfg.num_steps} flow steps",
        "instructions": f"at most {pipeline.tokenizer.max_tokens} of {pipeline.tokenizer.vocab} tokens",
    }
    return [_facts(facts), _parts(cfg)]


def _scaled(scale: Scale, model_width: int, mode: str | None) -> str:
    """How many values, and what the model makes of them."""
    filled = f", filled up to {model_width}" if model_width > scale.width else ""
    return f"{scale.width} values{filled}, {mode_of(scale, mode)}"


def _vlm(folder: Path) -> list[RenderableType]:
    cfg = vlm_config(read_object(folder / "config.json"), folder / "config.json")
    processor = read_processor(folder, cfg)
    tiles, video, words = processor.tiles, processor.video, cfg.decoder
    split = "split" if tiles.split else "shown whole"
    facts = {
        "pictures": f"long side to {tiles.longest_edge} px, {split}, tiles of {tiles.tile} px",
        "tokens": f"{cfg.tokens_per_image} a tile; vocabulary {words.vocab}, context {words.max_positions}",
        "videos": f"{video.fps:g} frames a second, at most {video.max_frames}",
        "chat": processor.chat.name,
    }
    return [_facts(facts), _parts(cfg)]


def _dataset(data: LeRobotDataset) -> list[RenderableType]:
    seconds = len(data) / data.fps
    facts = {
        "format": f"LeRobot {data.version}",
        "episodes": f"{len(data.episodes)}, {len(data)} frames at {data.fps:g} Hz, {seconds / 60:.1f} min",
        "cameras": ", ".join(data.cameras),
    }
    tasks = Table("task", "episodes")
    first = data.task_index[[episode.start for episode in data.episodes]]
    for task, num in zip(data.tasks, np.bincount(first, minlength=len(data.tasks)), strict=True):
        tasks.add_row(task, str(num))
    return [_facts(facts), tasks, _stats(data)]


def _stats(data: LeRobotDataset) -> Table:
    columns = ("min", "mean", "max", "std")
    rows = Table("feature", "", *columns)
    for key in (STATE, ACTION):
        found: dict[str, Any] = data.stats[key]
        for i, name in enumerate(data.info["features"][key].get("names") or range(len(found["mean"]))):
            rows.add_row(key, str(name), *(f"{found[s][i]:.3f}" for s in columns))
    return rows


def _run(folder: Path) -> list[RenderableType]:
    parts: list[RenderableType] = [table(load_conditions(folder))]
    if (folder / "result.json").exists():
        result = read_json(folder / "result.json")
        parts.append(_facts({name: str(result[name]) for name in ("command", "commit", "hardware", "date")}))
    return parts
