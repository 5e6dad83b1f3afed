"""What a model will cost before any of its weights is there: parameters, operations, least times, memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tailorbird.checkpoint.fill import without_weights
from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot import EMPTY, OWN_VLM, lerobot_sizes
from tailorbird.checkpoint.lerobot_steps import short
from tailorbird.checkpoint.released import vlm_config
from tailorbird.checkpoint.settings import from_json
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.config import DecoderConfig, VLAConfig, VLMConfig
from tailorbird.model.cost import (
    NUMBERS,
    Cost,
    Device,
    chunk_cost,
    floor_s,
    named_device,
    policy_cost,
    prefix_length,
    vlm_cost,
)
from tailorbird.model.sizes import SIZES
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM
from tailorbird.perf.memory import Memory, policy_memory, process_bytes, vlm_memory
from tailorbird.perf.roofline import measure_device

ANSWER = 32  # tokens that the memory of a VLM is reckoned with
LOADED_IN = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """stages: in running order. memory: by dtype. devices: this one, measured, then those asked for."""

    what: str  # in words: what is reckoned with
    parameters: dict[str, int]
    stages: dict[str, Cost]
    memory: dict[str, Memory]
    devices: tuple[Device, ...]

    def floors_ms(self, device: Device) -> dict[str, dict[str, float]]:
        """By dtype, then stage, in those dtypes that the device has a rate for."""
        return {
            dtype: {name: 1e3 * floor_s([cost], device, dtype) for name, cost in self.stages.items()}
            for dtype, number in NUMBERS.items()
            if number.computed_in in device.flops
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "parameters": self.parameters,
            "stages": {
                name: {"flops": cost.flops, "weights": cost.weights, "cached": cost.cached}
                for name, cost in self.stages.items()
            },
            "memory_bytes": {
                dtype: {**asdict(one), "total": one.total} for dtype, one in self.memory.items()
            },
            "devices": [{**asdict(one), "floors_ms": self.floors_ms(one)} for one in self.devices],
        }


def estimate(what: str, *, on: Sequence[str] = (), pictures: int | None = None, words: int = 48) -> Estimate:
    """Reads the configuration only; the hub is not asked for weights. Measures this device for seconds.

    Args:
        what: name of a size, folder of a model or a policy, or id on the hub.
        on: names in `DEVICES`, of whatever case.
        pictures: cameras of a policy, tiles of a prompt; None is all cameras, or one tile.
        words: tokens of the instruction or the question.
    Raises:
        ConfigError: there is no such device, or no such size or folder. CheckpointError: it is damaged.
    """
    if words < 1 or (pictures is not None and pictures < 0):
        raise ConfigError(f"{words=} must be at least 1, {pictures=} at least 0")
    named = [named_device(name) for name in on]
    cfg, cameras = _read(what)
    process = process_bytes()
    if isinstance(cfg, VLAConfig):
        cameras = cameras if pictures is None else pictures
        places, calls = prefix_length(cfg, cameras, words), cfg.num_steps * (1 + (cfg.solver != "euler"))
        stages = chunk_cost(policy_cost(cfg, cameras=cameras, words=words), cfg)
        memory = {
            dtype: policy_memory(cfg, cameras=cameras, words=words, dtype=dtype, process=process)
            for dtype in LOADED_IN
        }
        text = f"{cameras} cameras, {places} positions, {calls} calls of the expert for {cfg.chunk} actions"
    else:
        tiles = 1 if pictures is None else pictures
        tokens = tiles * cfg.tokens_per_image + words
        stages = vlm_cost(cfg, tiles=tiles, tokens=tokens)
        memory = {
            dtype: vlm_memory(cfg, tiles=tiles, tokens=tokens, answer=ANSWER, dtype=dtype, process=process)
            for dtype in LOADED_IN
        }
        text = f"{tiles} tiles, {tokens} tokens, then one; memory for an answer of {ANSWER}"
    return Estimate(
        what=text,
        parameters=_parameters(cfg),
        stages=stages,
        memory=memory,
        devices=(measure_device(), *named),
    )


def tables(found: Estimate) -> list[RenderableType]:
    """Parameters and operations, memory, and for each device the least times."""
    return [_parts(found), _stages(found), _memory(found), *(_floors(found, one) for one in found.devices)]


def _read(what: str) -> tuple[VLAConfig | VLMConfig, int]:
    """The configuration, and how many cameras a policy has: three for a size, as smolvla_base has."""
    folder = Path(what)
    if what in SIZES:
        cfg = SIZES[what]
        assert not isinstance(cfg, DecoderConfig)  # no size is one
        return cfg, 3
    if not folder.is_dir():
        if what.count("/") != 1:
            raise ConfigError(f"{what!r} is no size ({', '.join(SIZES)}), no folder and no id on the hub")
        folder = find_model(what, weights=False, inner=(OWN_VLM,))
    place = folder / "config.json"
    config = read_object(place)
    if "format" in config:
        try:
            cfg = from_json(VLAConfig, config["model"], f"{place}: model")
            return cfg, len(config["pipeline"]["cameras"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{place} lacks {error}: save or fetch the policy again") from error
    if "type" in config:
        cfg = lerobot_sizes(folder)
        features = config.get("input_features") or {}
        seen = [key for key, one in features.items() if one.get("type") == "VISUAL"]
        return cfg, sum(not short(key).startswith(EMPTY) for key in seen)
    return vlm_config(config, place), 0


def _parameters(cfg: VLAConfig | VLMConfig) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with without_weights():
        model = VLA(cfg) if isinstance(cfg, VLAConfig) else VLM(cfg)
    for name, value in model.named_parameters():
        counts[name.removeprefix("vlm.").split(".")[0]] += value.numel()
    return dict(counts)


def _table(title: str, *columns: str) -> Table:
    rows = Table(*columns, title=title)
    for column in rows.columns[1:]:
        column.justify = "right"
    return rows


def _parts(found: Estimate) -> Table:
    rows = _table("parameters", "part", "parameters")
    for name, num in found.parameters.items():
        rows.add_row(name, f"{num:,}")
    rows.add_section()
    rows.add_row("all", f"{sum(found.parameters.values()):,}")
    return rows


def _stages(found: Estimate) -> Table:
    rows = _table(found.what, "stage", "GFLOP", *(f"{dtype}, MB read" for dtype in LOADED_IN))
    for name, cost in found.stages.items():
        read = (f"{cost.num_bytes(dtype) / 1e6:,.0f}" for dtype in LOADED_IN)
        rows.add_row(name, f"{cost.flops / 1e9:,.2f}", *read)
    return rows


def _memory(found: Estimate) -> Table:
    rows = _table("peak memory of a process on a CPU, engine torch, MiB", "", *found.memory)
    parts = {dtype: {**asdict(one), "all": one.total} for dtype, one in found.memory.items()}
    for name in next(iter(parts.values())):
        if name == "all":
            rows.add_section()
        rows.add_row(name, *(f"{one[name] / 2**20:,.0f}" for one in parts.values()))
    return rows


def _floors(found: Estimate, device: Device) -> Table:
    floors = found.floors_ms(device)
    rows = _table(f"least time in ms: {device.name}, {device.source}", "stage", *floors)
    for name in found.stages:
        rows.add_row(name, *(_ms(one[name]) for one in floors.values()))
    rows.add_section()
    rows.add_row("all", *(_ms(sum(one.values())) for one in floors.values()))
    return rows


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
