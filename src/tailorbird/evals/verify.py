"""How far a policy is from the truth, and whether it heeds what it is shown and told."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tailorbird.checkpoint.hub import find_model
from tailorbird.errors import ConfigError
from tailorbird.evals.config import VerifyConfig
from tailorbird.evals.course import Course, Distance, compare, correlation, load_course, outputs_of
from tailorbird.evals.reference import Reference
from tailorbird.evals.scenes import blackened, fit_scenes, retold, swapped
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.wire import Observation


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Changes are root mean squares, in standard deviations of the policy's own actions in these scenes.

    variance: the largest of an action's, over runs of the same observation and noise.
    batch_error: the largest difference of a row alone from the same in a batch, in physical units.
    camera_change: of the camera that matters least, when it sees nothing.
    order_change: with the cameras' pictures swapped; None with one camera.
    """

    variance: float
    batch_error: float
    batch_pcc: float
    instruction_change: float
    camera_change: float
    order_change: float | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    model: str
    against: str
    device: str
    states_from: str
    hz: float | None  # of the actions, if the policy knows
    distance: Distance
    behaviour: Behaviour
    tested: Course
    truth: Course
    cfg: VerifyConfig

    def checks(self) -> list[tuple[str, float | None, str, bool]]:
        """What is asked for, what was found, the limit in words, and whether it is kept."""
        low, least, how = self.cfg.limit, self.cfg.min_change, self.behaviour
        order = how.order_change
        return [
            ("pcc_full", self.distance.pcc_full, f">= {low:g}", self.distance.pcc_full >= low),
            ("deterministic", how.variance, "= 0", how.variance == 0),
            ("batch_invariant", how.batch_pcc, f">= {low:g}", how.batch_pcc >= low),
            (
                "instruction_sensitive",
                how.instruction_change,
                f">= {least:g}",
                how.instruction_change >= least,
            ),
            ("camera_sensitive", how.camera_change, f">= {least:g}", how.camera_change >= least),
            ("order_sensitive", order, f">= {least:g}", order is None or order >= least),
        ]

    @property
    def passed(self) -> bool:
        return all(kept for *_, kept in self.checks())

    def row(self) -> dict[str, str | int | float | bool | None]:
        """For machines. What was not measured is None; so is a correlation that does not exist."""
        facts: dict[str, str | int | float | bool | None] = {
            "model": self.model,
            "dtype": self.cfg.dtype,
            "engine": self.cfg.engine,
            "against": self.against,
            "device": self.device,
            "scenes": self.cfg.scenes,
            "runs": self.cfg.runs,
            "states_from": self.states_from,
        }
        found = {**asdict(self.distance), **asdict(self.behaviour)}
        numbers = {
            name: None if value is None or math.isnan(value) else value for name, value in found.items()
        }
        kept = {name: None if value is None else ok for name, value, _, ok in self.checks()}
        del kept["pcc_full"]
        return {**facts, **numbers, **kept, "min_pcc": self.cfg.limit, "passed": self.passed}


def follow(policy: Policy, seen: Sequence[Observation], noise: Tensor) -> Course:
    with outputs_of(policy.model.action_out) as velocities:
        actions = _act(policy, seen, noise)
    return Course(velocities=torch.stack(velocities), actions=actions, noise=noise)


def behave(policy: Policy, seen: Sequence[Observation], noise: Tensor, runs: int) -> Behaviour:
    """Let a policy act on what it knows, and on the same with one thing changed."""
    usual = _act(policy, seen, noise)  # (B, L, A)
    spread = usual.flatten(0, 1).std(0)  # (A)
    moving = spread > 0

    def change(other: Sequence[Observation]) -> float:
        apart = (_act(policy, other, noise) - usual)[..., moving] / spread[moving]
        return float(apart.square().mean().sqrt())

    again = torch.stack([_act(policy, seen[:1], noise[:1]) for _ in range(runs)])  # (runs, 1, L, A)
    alone = torch.cat([_act(policy, [one], noise[i : i + 1]) for i, one in enumerate(seen)])
    cameras = policy.pipeline.robot_cameras
    return Behaviour(
        variance=float((again - again[0]).var(0, correction=0).max()),
        batch_error=float((alone - usual).abs().max()),
        batch_pcc=correlation(alone, usual),
        instruction_change=change(retold(seen)),
        camera_change=min(change(blackened(seen, name)) for name in cameras),
        order_change=change(swapped(seen)) if len(cameras) > 1 else None,
    )


def verify(model: str, cfg: VerifyConfig) -> Verdict:
    """Load a policy, follow it and what it is compared with, and try how it behaves.

    Raises:
        ConfigError, DataError: the two cannot be compared.
    """
    if cfg.against not in ("fp32", "reference") and not Path(cfg.against).is_dir():
        load_course(Path(cfg.against))  # refused now, not after the model is loaded
    policy = load_policy(
        model, device=cfg.device, dtype=cfg.dtype, engine=cfg.engine, revision=cfg.revision, stats=cfg.stats
    )
    if cfg.dtype == "int8" and cfg.against == "fp32":
        raise ConfigError(f"{model} has no full precision: name what it was made from, --against FOLDER")
    seen, states_from = fit_scenes(policy.pipeline, cfg.scenes)
    size = policy.model.cfg
    generator = torch.Generator().manual_seed(cfg.seed)
    noise = torch.randn(len(seen), size.chunk, size.action_dim, generator=generator)
    truth = _truth(model, policy, seen, noise, cfg)
    tested = follow(policy, seen, noise)
    return Verdict(
        model=model,
        against=cfg.against,
        device=str(policy.device),
        states_from=states_from,
        hz=policy.pipeline.hz,
        distance=compare(tested, truth),
        behaviour=behave(policy, seen, noise, cfg.runs),
        tested=tested,
        truth=truth,
        cfg=cfg,
    )


def _truth(
    model: str, policy: Policy, seen: Sequence[Observation], noise: Tensor, cfg: VerifyConfig
) -> Course:
    if cfg.against == "reference":
        if cfg.stats is not None:
            raise ConfigError("lerobot takes the policy's own statistics: leave out --stats, or save it anew")
        folder = find_model(model, cfg.revision)
        return Reference(folder, policy.pipeline, str(policy.device)).follow(seen, noise)
    if cfg.against == "fp32":
        if cfg.dtype == "float32" and cfg.engine == "torch":
            return follow(policy, seen, noise)
        wide = load_policy(model, device=cfg.device, revision=cfg.revision, stats=cfg.stats)
        return follow(wide, seen, noise)
    if Path(cfg.against).is_dir():
        return follow(load_policy(cfg.against, device=cfg.device, stats=cfg.stats), seen, noise)
    return load_course(Path(cfg.against))


def _act(policy: Policy, seen: Sequence[Observation], noise: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([chunk.actions for chunk in policy.act_batch(seen, noise)]))
