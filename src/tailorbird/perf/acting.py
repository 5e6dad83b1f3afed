"""Where the time of one chunk of actions goes, stage by stage, and how near each is to what is possible."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot import OWN_VLM
from tailorbird.errors import ConfigError
from tailorbird.infer.config import LoadOptions
from tailorbird.infer.graphs import ReplayedVLA
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.model.cost import Device, chunk_cost, floor_s, policy_cost
from tailorbird.perf.trace import time_stages
from tailorbird.wire import Observation

ENGINES: dict[type, str] = {CompiledVLA: "openvino", ReplayedVLA: "graphs"}


@dataclass(frozen=True, kw_only=True)
class Acting:
    """ms: medians, in running order. floors_ms: the least times of those stages that compute."""

    ms: dict[str, float]
    floors_ms: dict[str, float]
    engine: str
    dtype: str
    device: str


def is_policy(path_or_id: str, revision: str | None = None) -> bool:
    """Whether this is a policy, of Tailorbird or of lerobot, rather than a VLM. Fetches no weights."""
    if Path(path_or_id).is_file():
        return False  # a language model in one file
    folder = find_model(path_or_id, revision, weights=False, inner=(OWN_VLM,))
    return not {"format", "type"}.isdisjoint(read_object(folder / "config.json"))


def open_policy(path_or_id: str, load: LoadOptions) -> Policy:
    """`load_policy` for settings that came as words."""
    dtype = None if load.dtype == "auto" else load.dtype
    return load_policy(
        path_or_id, device=load.device, dtype=dtype, engine=load.engine, revision=load.revision
    )


def measure_policy(policy: Policy, seen: Observation, device: Device, *, repeats: int = 3) -> Acting:
    """Medians over whole calls of `act`, after one that warms up.

    device: what can be reached, from `measure_device`.
    """
    if repeats < 1:
        raise ConfigError(f"{repeats=} must be at least 1")
    policy.act(seen)
    runs = [time_stages(policy, [seen]) for _ in range(repeats)]
    ms = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    model, num_words = policy.model, policy.pipeline.read([seen]).ids.shape[1]
    kind = model.precision if isinstance(model, CompiledVLA) else str(model.expert.dtype)
    dtype = kind.removeprefix("torch.")
    costs = policy_cost(model.cfg, cameras=len(policy.pipeline.seen_cameras), words=num_words)
    parts = {name: [cost] for name, cost in costs.items()}
    parts |= {"denoise": [costs["state"], chunk_cost(costs, model.cfg)["steps"]]}
    floors = {name: 1e3 * floor_s(part, device, dtype) for name, part in parts.items()}
    return Acting(
        ms=ms,
        floors_ms={stage: floors[kind] for stage in ms if (kind := stage.split()[0]) in floors},
        engine=ENGINES.get(type(model), "torch"),
        dtype=dtype,
        device=f"{device.name}, {device.source}",
    )


def table(found: Acting) -> Table:
    """The stages for the terminal; the floors are of this device as it was measured."""
    rows = Table("component", "ms", "share", "floor, ms", "of the floor")
    rows.title, rows.caption = f"{found.engine}, {found.dtype}", f"floors: {found.device}"
    for column in rows.columns[1:]:
        column.justify = "right"
    total = sum(found.ms.values())
    for stage, ms in found.ms.items():
        floor = found.floors_ms.get(stage)
        least = ("", "") if floor is None else (f"{floor:.2f}", f"{floor / ms:.0%}")
        rows.add_row(stage, f"{ms:.1f}", f"{ms / total:.1%}", *least)
    rows.add_section()
    floor = sum(found.floors_ms.values())
    rows.add_row("all", f"{total:.1f}", "100%", f"{floor:.2f}", f"{floor / total:.0%}")
    return rows
