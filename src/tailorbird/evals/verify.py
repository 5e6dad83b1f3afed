"""How far a policy is from the truth, and whether it heeds what it is shown and told."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tailorbird.checkpoint.files import read_tensors, write_tensors
from tailorbird.checkpoint.hub import find_model
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.evals.config import VerifyConfig
from tailorbird.evals.scenes import blackened, fit_scenes, retold, swapped
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.storage import new_file
from tailorbird.wire import Observation

FEW = 5  # calls of the network that count as the beginning


@dataclass(frozen=True, kw_only=True)
class Course:
    """What came of some situations and noises, on the CPU."""

    velocities: Tensor  # (K, B, L, A), each from where its own side had got to; K calls of the network
    actions: Tensor  # (B, L, A), physical units
    noise: Tensor  # (B, L, A)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Between two courses. Errors are of the velocity along the whole way, in normalised units.

    pcc: Pearson correlation of the velocities, or of the actions.
    """

    pcc_1_step: float
    pcc_5_steps: float
    pcc_full: float
    pcc_actions: float
    max_abs_error: float
    mean_abs_error: float
    max_action_error: float  # physical units
    mean_action_error: float


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


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Everything that a layer gives out in the block, in fp32 on the CPU."""
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, out: found.append(out.float().cpu()))
    try:
        yield found
    finally:
        handle.remove()


def follow(policy: Policy, seen: Sequence[Observation], noise: Tensor) -> Course:
    with outputs_of(policy.model.action_out) as velocities:
        actions = _act(policy, seen, noise)
    return Course(velocities=torch.stack(velocities), actions=actions, noise=noise)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of all values. NaN where one side never varies, unless both are equal.

    As 1 - |u - v|^2 / 2 of the unit vectors: exact where it is close to 1.
    """
    if torch.equal(a, b):
        return 1.0
    u, v = ((x.double() - x.double().mean()).flatten() for x in (a, b))
    if not (u.norm() > 0 and v.norm() > 0):
        return math.nan
    return 1 - float((u / u.norm() - v / v.norm()).square().sum()) / 2


def compare(tested: Course, truth: Course) -> Distance:
    """Raises DataError when they are not of the same noises and number of steps."""
    ours, theirs = tested.velocities, truth.velocities
    if ours.shape != theirs.shape or not torch.equal(tested.noise, truth.noise):
        raise DataError(
            f"the two sides do not belong together: velocities of {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}, or other noises. Use the same --scenes, steps and solver for both"
        )
    error, action = (ours - theirs).abs(), (tested.actions - truth.actions).abs()
    return Distance(
        pcc_1_step=correlation(ours[:1], theirs[:1]),
        pcc_5_steps=correlation(ours[:FEW], theirs[:FEW]),
        pcc_full=correlation(ours, theirs),
        pcc_actions=correlation(tested.actions, truth.actions),
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        max_action_error=float(action.max()),
        mean_action_error=float(action.mean()),
    )


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
    if cfg.against not in ("fp32", "reference"):
        load_course(Path(cfg.against))  # refused now, not after the model is loaded
    dtype = None if cfg.dtype == "float32" else cfg.dtype
    policy = load_policy(model, device=cfg.device, dtype=dtype, revision=cfg.revision, stats=cfg.stats)
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
        from tailorbird.evals.reference import Reference

        if cfg.stats is not None:
            raise ConfigError("lerobot takes the policy's own statistics: leave out --stats, or save it anew")
        folder = find_model(model, cfg.revision)
        return Reference(folder, policy.pipeline, str(policy.device)).follow(seen, noise)
    if cfg.against == "fp32":
        if cfg.dtype == "float32":
            return follow(policy, seen, noise)
        wide = load_policy(model, device=cfg.device, revision=cfg.revision, stats=cfg.stats)
        return follow(wide, seen, noise)
    return load_course(Path(cfg.against))


def save_course(path: Path, course: Course) -> None:
    with new_file(path) as temporary:
        write_tensors(temporary, vars(course))


def load_course(path: Path) -> Course:
    """Raises CheckpointError when the file is missing or holds no course."""
    if not path.is_file():
        raise CheckpointError(f"--against {path}: no such file. Name one from --save, or reference, or fp32")
    try:
        return Course(**read_tensors(path))
    except TypeError:
        raise CheckpointError(
            f"{path} was not written by `tailorbird verify --save`: write it anew"
        ) from None


def _act(policy: Policy, seen: Sequence[Observation], noise: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([chunk.actions for chunk in policy.act_batch(seen, noise)]))
