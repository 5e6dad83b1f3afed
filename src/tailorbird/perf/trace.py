"""The stages of one call of a policy: when each ran, and as a file that Perfetto and Chrome show."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tailorbird.errors import ConfigError
from tailorbird.infer.graphs import ReplayedVLA
from tailorbird.infer.policy import Policy
from tailorbird.storage import new_file
from tailorbird.wire import Observation


@dataclass
class Stopwatch:
    """Times of stages, in ms and in running order. `around` makes a function one of them."""

    device: torch.device
    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Until the device is done. Inside torch's profiler the stage is an event too."""
        began = time.perf_counter()
        with record_function(name):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.ms[name] = 1e3 * (time.perf_counter() - began)

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return work(*args, **kwargs)

        return timed


def time_stages(policy: Policy, seen: Sequence[Observation]) -> dict[str, float]:
    """One call of `act_batch`, in ms by stage: prepare, vision, prefix, state, step 1 to the last, write.

    A step is a call of the expert; what happens between stages is in none of them. Of CUDA graphs, which
    nobody sees into, denoise is the state and all steps.
    """
    watch, model, watched = Stopwatch(policy.device), copy(policy.model), copy(policy)
    velocity = model.velocity

    def step(*args: Any) -> torch.Tensor:
        num = sum(name.startswith("step") for name in watch.ms) + 1
        with watch.stage(f"step {num}"):
            return velocity(*args)

    organs = {"see": watch.around("vision", model.see), "look": watch.around("prefix", model.look)}
    if isinstance(model, ReplayedVLA):
        organs |= {"act_on": watch.around("denoise", model.act_on)}
    else:
        organs |= {"feel": watch.around("state", model.feel), "velocity": step}
    for name, work in organs.items():
        setattr(model, name, work)  # of the copy: its class, and the policy's own model, keep theirs
    chain = copy(policy.pipeline)
    object.__setattr__(chain, "write", watch.around("write", chain.write))  # of the copy, too
    watched.model, watched.pipeline = model, chain
    object.__setattr__(watched, "prepare", watch.around("prepare", watched.prepare))
    watched.act_batch(seen)
    return watch.ms


def check_name(path: Path | None) -> None:
    """Raises ConfigError if a trace cannot be written under this name."""
    if path is not None and path.suffix != ".json":
        raise ConfigError(f"--trace {path}: name a file that ends in .json, as viewers want it")


def write_trace(path: Path, policy: Policy, seen: Observation) -> None:
    """Write one call, stages and torch's operators. What OpenVINO does has no operators, its stages show it.

    The policy should have acted once before, or the file shows how it warms up.
    """
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (policy.device.type == "cuda")
    with profile(activities=kinds) as profiler:
        time_stages(policy, [seen])
    with new_file(path) as temporary:
        profiler.export_chrome_trace(str(temporary))
