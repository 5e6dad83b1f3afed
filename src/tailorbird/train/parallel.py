"""Several processes learn together: who they are, what they tell each other, and who holds which weights.

torchrun starts them; one process alone needs nothing of it. Numbers that all must agree on go over gloo, on
the CPU; gradients and shards go where the weights are, on GPUs over NCCL.
"""

import atexit
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from tailorbird.errors import ConfigError, TailorbirdError
from tailorbird.model.decoder import DecoderBlock
from tailorbird.model.vision import VisionBlock
from tailorbird.model.vla import VLA
from tailorbird.progress import console
from tailorbird.train.config import TrainConfig, require_shardable
from tailorbird.train.lora import adapted_layers

PATIENCE = timedelta(minutes=30)  # of a process for the others: the slowest evaluates, saves, or has died
BUCKET = 32 << 20  # bytes of gradients that are added up at once
GONE = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timeout", "NCCL")
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes that learn together. One alone is the usual case: then nothing is sent.

    local, beside: which one it is on its machine, and how many are there.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, the same bits on each. It waits for them."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        with explained():
            dist.all_reduce(summed)
        return summed.tolist()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """What is in the block the first process does while the others wait; then they do it."""
        if not self.is_first:
            self.total(0.0)
        yield
        if self.is_first:
            self.total(0.0)

    def any(self, fact: bool) -> bool:
        return self.total(fact)[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """A JSON value of each process, in the order of their ranks. It waits for them."""
        if self.world == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [int(one) for one in self.total(*(len(text) * (i == self.rank) for i in range(self.world)))]
        texts = [text.new_zeros(max(lengths)) for _ in lengths]
        with explained():
            dist.all_gather(texts, torch.nn.functional.pad(text, (0, max(lengths) - len(text))))
        return [json.loads(bytes(one[:length].tolist())) for one, length in zip(texts, lengths, strict=True)]

    def added(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Figures of all processes by name, those of one name added up."""
        sums: dict[str, float] = {}
        for one in self.gather(dict(figures)):
            for name, value in one.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def device(self, asked: str) -> str:
        """Where this process computes: each takes a GPU of its own unless one is named."""
        has_choice = asked == "cuda" or (asked == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local}" if self.world > 1 and has_choice else asked


def join_team() -> Team:
    """The team of which torchrun's environment tells; this process alone if it tells of none.

    It may be called again. Only the first process speaks from then on.

    Raises:
        ConfigError: the environment tells of a team in part.
        TailorbirdError: the others do not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    try:
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK", "beside": "LOCAL_WORLD_SIZE"}
        team = Team(**{field: int(os.environ[name]) for field, name in names.items()})
    except KeyError as error:
        raise ConfigError(
            f"WORLD_SIZE is set and {error} is not: start all processes with torchrun"
        ) from None
    if not dist.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(team.local)
        with explained():
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(
                backend, store=_meeting_place(), rank=team.rank, world_size=team.world, timeout=PATIENCE
            )
        atexit.register(dist.destroy_process_group)
        console.quiet = not team.is_first
    return team


def _meeting_place() -> PrefixStore | None:
    """Where processes find each other; None is the usual one.

    torchrun has one for all its attempts, and the addresses of a killed team are still there when the next
    one comes. Each of several machines counts attempts for itself: there torchrun must make a new one, which
    it does with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def explained() -> Iterator[None]:
    """Say of what another process's end does here that it is that, and no fault of this one."""
    try:
        yield
    except RuntimeError as error:
        if not dist.is_available() or not any(sign in str(error) for sign in GONE):
            raise
        raise TailorbirdError(
            f"another process of the team has ended or does not answer ({str(error).splitlines()[0]}): "
            "its own message says why; the same command goes on from the newest checkpoint"
        ) from error


class Spread(Protocol):
    """How weights and gradients are spread over the team."""

    def call(self, network: M, function: Callable[..., T], *inputs: Any) -> T:
        """function(network, *inputs), with all the weights that it needs."""

    def measure(self, network: M, function: Callable[[M], T]) -> T:
        """The same without gradients, for a network that is not called again before its weights change."""

    def begin_pass(self, *, is_last: bool) -> None:
        """Before each forward pass of a step: gradients are needed after the last backward pass."""

    def add_up(self, weights: Iterable[nn.Parameter]) -> None:
        """Make of the gradients of this process those of all."""


class Whole:
    """Every process has all weights.

    The sums are made here and not by DistributedDataParallel: parts of a model begin to learn at some step,
    a narrow copy may compute, and a loss is no `forward`; each of them would need its wrapper made anew.
    """

    def __init__(self, team: Team) -> None:
        self._team = team

    def call(self, network: M, function: Callable[..., T], *inputs: Any) -> T:
        return function(network, *inputs)

    def measure(self, network: M, function: Callable[[M], T]) -> T:
        return function(network)

    def begin_pass(self, *, is_last: bool) -> None:
        pass

    def add_up(self, weights: Iterable[nn.Parameter]) -> None:
        """All processes have computed the same graph, so that the same weights have a gradient on each."""
        if self._team.world == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        while gradients:
            bucket = [gradients.pop()]
            while gradients and sum(one.nbytes for one in bucket) + gradients[-1].nbytes <= BUCKET:
                bucket.append(gradients.pop())
            flat = torch.cat([one.flatten() for one in bucket])
            dist.all_reduce(flat)
            for one, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(summed.view(one.shape))


class _Root(nn.Module):
    """What is called instead of a network: its own weights are there while anything is done with it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(self.network, *inputs)


class Sharded:
    """Every process holds a part of each weight, gradient and moment, and all of a block while it computes.

    It replaces the networks' parameters. A policy is one shard: its blocks are not called as modules only.
    """

    def __init__(self, networks: Mapping[int, tuple[nn.Module, torch.dtype]]) -> None:
        self._roots = {key: _sharded(network, dtype) for key, (network, dtype) in networks.items()}

    def call(self, network: M, function: Callable[..., T], *inputs: Any) -> T:
        return self._roots[id(network)](function, *inputs)

    @torch.no_grad()
    def measure(self, network: M, function: Callable[[M], T]) -> T:
        root = self._roots[id(network)]
        try:
            return root(function)
        finally:
            root.reshard()  # without a backward pass nothing else does it

    def begin_pass(self, *, is_last: bool) -> None:
        for root in self._roots.values():
            root.set_requires_gradient_sync(is_last)

    def add_up(self, weights: Iterable[nn.Parameter]) -> None:
        pass  # the backward pass has


def _sharded(network: nn.Module, dtype: torch.dtype) -> Any:
    """dtype: in which it computes; the shards stay as they are, and gradients are added up in fp32."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for weight in network.parameters():
        weight.data = weight.data.contiguous()
    if not isinstance(network, VLA):
        for module in network.modules():
            if isinstance(module, VisionBlock | DecoderBlock):
                fully_shard(module, mp_policy=policy)
    root = _Root(network)
    fully_shard(root, mp_policy=policy, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the weight of all
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return root


def same_everywhere(model: nn.Module, team: Team) -> None:
    """Give all processes the weights of the first."""
    if team.world > 1:
        for weight in model.parameters():
            dist.broadcast(weight.data, 0)


def check_sharding(model: nn.Module, cfg: TrainConfig) -> None:
    """Raises ConfigError for what cannot be learned in shards."""
    require_shardable(cfg, updates=bool(adapted_layers(model)), is_policy=isinstance(model, VLA))


def is_shard(value: Tensor) -> bool:
    return isinstance(value, DTensor)


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor spread as another one is; every process takes its part of the value it has."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(
        value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
    )


def positions_of(positions: Sequence[Any]) -> Any:
    """Where all processes are in the data: the lanes of each together; one place if they share it."""
    if len(positions) > 1 and all(isinstance(one, dict) for one in positions):
        return {name: place for one in positions for name, place in one.items()}
    return positions[0]
