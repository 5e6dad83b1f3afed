"""What a training needs, before it runs: memory by what it is for, operations, hours.

A pass forward and back is made on the meta device, where tensors have shapes and no numbers, by the code that
trains; the bytes that are alive in it and its operations are counted. So precision, checkpointing, low-rank
updates and frozen parts count as they are. Attention is taken for a fused kernel.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tailorbird.errors import ConfigError
from tailorbird.model.cost import Device
from tailorbird.model.decoder import DecoderBlock
from tailorbird.model.vision import VisionBlock
from tailorbird.perf.passes import FLOPS, Alive, fused_attention
from tailorbird.train.config import TrainConfig
from tailorbird.train.lesson import M
from tailorbird.train.network import build_network
from tailorbird.train.optim import start_average
from tailorbird.train.parallel import BUCKET, check_sharding
from tailorbird.train.stages import Group, part_of

MFU = 0.4  # share of a GPU's peak that is assumed
BLOCK = 256  # numbers of a moment in 8 bits that share a scale; fewer than 16 blocks are kept in fp32


@dataclass(frozen=True, kw_only=True)
class Trial(Generic[M]):
    """A training on the meta device.

    call: one pass forward, to the loss. passes: of a step, over all processes.
    """

    model: M
    groups: Sequence[Group]
    cfg: TrainConfig
    call: Callable[[M], Tensor]
    passes: int


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What each of `gpus` processes needs.

    parts: of the model, the numbers that learn and those that do not.
    held: bytes that stay from step to step, and the gradients, by what they are for.
    work: bytes at the widest moment of a step besides.
    flops: operations of a step, all processes together.
    """

    parts: Mapping[str, tuple[int, int]]
    held: Mapping[str, int]
    work: int
    flops: int
    gpus: int

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + self.work

    def hours(self, steps: int, device: Device, precision: str) -> float:
        """At the share `MFU` of the device's peak."""
        return steps * self.flops / (MFU * device.flops[precision] * self.gpus) / 3600


def foresee(trial: Trial[M], gpus: int = 1) -> Foreseen:
    """The memory of the time when everything learns, on each of `gpus` processes.

    Raises:
        ConfigError: the passes of a step cannot be shared by so many, or shards cannot learn so.
    """
    model, cfg = trial.model, replace(trial.cfg, compile=False)
    sharded = gpus > 1 and cfg.parallel == "fsdp"
    if gpus < 1 or trial.passes % gpus:
        raise ConfigError(f"{gpus} GPUs cannot share the {trial.passes} passes of a step: choose a divisor")
    if sharded:
        check_sharding(model, cfg)
    network = build_network(model, trial.groups, cfg)
    held = _held(trial, network)
    with fused_attention(), FlopCounterMode(display=False, custom_mapping=FLOPS) as counted:
        trial.call(network).backward()
    is_only = trial.passes == gpus and not sharded
    if is_only:  # gradients come into being in its course
        model.zero_grad()
    there = [*model.parameters(), *network.parameters()]
    alive = Alive(before=there + [one.grad for one in there if one.grad is not None])
    with fused_attention(), alive:
        trial.call(network).backward()
    flops, work = counted.get_total_flops(), alive.peak - is_only * held["gradients"]
    if sharded:
        held = {name: -(-num // gpus) for name, num in held.items() if name != "narrow copy"}
        work += _gathered(network, cfg)
    elif gpus > 1:
        work = max(work, min(BUCKET, held["gradients"]))  # what is added up at once, after the passes
    parts = _parts(model, trial.groups)
    return Foreseen(parts=parts, held=held, work=max(work, 0), flops=flops * trial.passes, gpus=gpus)


def _held(trial: Trial[M], network: M) -> dict[str, int]:
    own = {id(one): one for one in trial.model.parameters()}
    learned = [weight for group in trial.groups for weight in group.weights.values()]
    held = {"weights": sum(one.nbytes for one in own.values())}
    held["gradients"] = sum(one.nbytes for one in learned)
    held["moments"] = 2 * sum(_moment(one, trial.cfg) for one in learned)
    held["narrow copy"] = sum(one.nbytes for one in network.parameters() if id(one) not in own)
    means = start_average(trial.model, trial.groups).parameters() if trial.cfg.ema else ()
    held["averaged weights"] = sum(one.nbytes for one in means if id(one) not in own)
    return {name: num for name, num in held.items() if num}


def _moment(weight: Tensor, cfg: TrainConfig) -> int:
    """Bytes of one of the two."""
    num = weight.numel()
    if cfg.optimizer == "adamw8bit" and num >= 16 * BLOCK and num % BLOCK == 0:
        return num + 4 * num // BLOCK
    return 4 * num


def _gathered(network: nn.Module, cfg: TrainConfig) -> int:
    """Bytes of what is whole while shards compute: two blocks, the gradients of two, and what is no block."""
    size = getattr(torch, cfg.precision).itemsize
    blocks = [one for one in network.modules() if isinstance(one, VisionBlock | DecoderBlock)]
    sizes = [sum(one.numel() for one in block.parameters()) for block in blocks]
    rest = sum(one.numel() for one in network.parameters()) - sum(sizes)
    return (size + 4) * (rest + 2 * max(sizes, default=0))


def _parts(model: nn.Module, groups: Sequence[Group]) -> dict[str, tuple[int, int]]:
    names = {name for group in groups for name in group.weights}
    learned, frozen = Counter[str](), Counter[str]()
    for name, weight in model.named_parameters():
        (learned if name in names else frozen)[part_of(name)] += weight.numel()
    return {part: (learned[part], frozen[part]) for part in dict.fromkeys([*learned, *frozen])}


def tables(found: Foreseen, cfg: TrainConfig) -> list[Table]:
    """Parameters, and memory."""
    return [_parameters(found), _memory(found, cfg)]


def _parameters(found: Foreseen) -> Table:
    table = _table("parameters", "part", "learn", "frozen")
    for part, numbers in found.parts.items():
        table.add_row(part, *(f"{num:,}" for num in numbers))
    table.add_section()
    table.add_row("all", *(f"{sum(nums):,}" for nums in zip(*found.parts.values(), strict=True)))
    return table


def _memory(found: Foreseen, cfg: TrainConfig) -> Table:
    how = f", by {cfg.parallel}" if found.gpus > 1 else ""
    again = "computed again" if cfg.checkpointing else "kept"
    table = _table(f"memory of each of {found.gpus} GPUs{how}, MiB", "", "MiB")
    for name, num in {**found.held, f"activations ({again}), work": found.work}.items():
        table.add_row(name, f"{num / 2**20:,.1f}")
    table.add_section()
    table.add_row("all, without what CUDA itself takes", f"{found.peak / 2**20:,.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
