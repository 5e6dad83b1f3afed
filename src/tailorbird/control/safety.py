"""What stands between a policy and a robot: limits, a watchdog, a breaker and an emergency stop."""

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf, isnan
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tailorbird.control.breaker import Breaker
from tailorbird.control.limiter import Limiter, Vector, differ
from tailorbird.errors import ConfigError

Action = NDArray[np.float32]  # (A,), physical units
Mode = Literal["absolute", "delta", "velocity"]
FAR = 0.1  # of a dimension's range: an action beyond its bounds by more is a sign of a policy gone wrong


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A small description of a robot: what its actions mean, and what they may be.

    Attributes:
        names: of the action's dimensions.
        mode: absolute: positions. delta: displacements within a tick. velocity: displacements per second.
        low, high: of the action itself, (A,), in its units; infinite where there is no bound.
        max_velocity: of the motion that the actions command, (A,), in the position's units per second.
        max_acceleration: of that motion, (A,), in the position's units per second squared.
        keep: dimensions of displacements or velocities that are positions all the same, such as the closing
            of a gripper: a robot that holds keeps them. They are bounded as positions are.
    Raises:
        ConfigError: sizes differ, a bound is not a number, or a motion could never stop.
    """

    names: tuple[str, ...]
    mode: Mode
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_velocity: tuple[float, ...] | None = None
    max_acceleration: tuple[float, ...] | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"dimensions of an action need names, each another: {self.names}")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode is one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        for field in ("low", "high", "max_velocity", "max_acceleration"):
            values = getattr(self, field)
            if values is not None and (len(values) != len(self.names) or any(map(isnan, values))):
                raise ConfigError(f"{field} needs {len(self.names)} numbers, has {values}")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"low must not be above high: {self.low}, {self.high}")
        for field in ("max_velocity", "max_acceleration"):
            if min(getattr(self, field) or (inf,)) <= 0:
                raise ConfigError(f"{field} must be positive: {getattr(self, field)}")
        if set(self.keep) - (set(self.names) if self.mode != "absolute" else set()):
            raise ConfigError(
                f"{self.mode} actions {self.names} cannot keep {self.keep}: name dimensions that would be "
                f"displacements or velocities"
            )
        rows = zip(self.names, self.low, self.high, self.are_positions, strict=True)
        if never := [name for name, low, high, kept in rows if not kept and not low <= 0 <= high]:
            raise ConfigError(f"{never} could never stand still: 0 must be between low and high")

    @property
    def are_positions(self) -> tuple[bool, ...]:
        """By dimension."""
        return tuple(self.mode == "absolute" or name in self.keep for name in self.names)

    @classmethod
    def free(cls, dim: int, *, mode: Mode = "absolute") -> "Limits":
        """No bounds at all; a guard still refuses what is not finite, and what is stale."""
        return cls(names=tuple(f"a{i}" for i in range(dim)), mode=mode, low=(-inf,) * dim, high=(inf,) * dim)

    @classmethod
    def load(cls, path: Path) -> "Limits":
        """Read the fields above from a .toml or .json file.

        Raises:
            ConfigError: the file cannot be read, or does not describe limits.
        """
        try:
            text = path.read_text()
            data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no limits in {path}: {error}. It should be a .toml or .json file") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or not {"names", "mode", "low", "high"} <= data.keys() <= known:
            raise ConfigError(
                f"{path} has {list(data) if isinstance(data, dict) else data!r}; limits have names, mode, "
                f"low and high, and may have max_velocity, max_acceleration and keep"
            )
        return cls(**{name: _checked(name, value, path) for name, value in data.items()})


def _checked(name: str, value: object, path: Path) -> Any:
    """A field of `Limits` as a file has it, in which a list stands for a tuple."""
    kinds = (str,) if name in ("names", "mode", "keep") else (float, int)
    items = [value] if name == "mode" else value
    if not isinstance(items, list) or any(type(item) not in kinds for item in items):
        raise ConfigError(f"{path}: {name} should be of {kinds[0].__name__}, is {value!r}")
    return value if name == "mode" else tuple(map(kinds[0], items))


class Guard:
    """Turns what a policy wants into what a robot may do, tick by tick, and counts what it changed.

    Use one per robot, from the loop's thread; `stop` and `release` may come from anywhere. A robot that
    holds brakes as hard as its limits allow and stays: positions are kept, displacements and velocities go
    to zero.

    Args:
        limits: the robot.
        hz: ticks a second.
        max_age_s: an action whose observation is older is not executed.
        max_scene_age_s: nor is one that was made with older pictures.
        failures: of the policy in a row after which it is not asked for `cool_down_s`.
        clamped_chunks: in a row, each with an action far beyond the bounds or not finite, after which the
            robot is stopped.
    Raises:
        ConfigError: a setting is not positive.
    """

    def __init__(
        self,
        limits: Limits,
        hz: float,
        *,
        max_age_s: float = 10.0,
        max_scene_age_s: float = 10.0,
        failures: int = 5,
        cool_down_s: float = 1.0,
        clamped_chunks: int = 10,
    ) -> None:
        ages = max_age_s, max_scene_age_s
        if not min(hz, *ages, cool_down_s) > 0 or min(failures, clamped_chunks) < 1:
            raise ConfigError(
                f"must be positive: {hz=}, {max_age_s=}, {max_scene_age_s=}, {cool_down_s=}, {failures=}, "
                f"{clamped_chunks=}"
            )
        self.limits = limits
        self.counts: Counter[str] = Counter()
        self.ticks = 0
        self._max_ages_s, self._clamped_chunks = ages, clamped_chunks
        self._positions = np.array(limits.are_positions)
        self._low, self._high = np.array(limits.low), np.array(limits.high)
        self._limiter = limiter = _build_limiter(limits, hz)
        limiter.rest(np.clip(0.0, limiter.low, limiter.high))
        self._breaker = Breaker(failures, cool_down_s)
        self._last_failure: str | None = None
        # no lock around this one: the handler of a signal would wait for the thread that it interrupted
        self._stopped: str | None = None
        self._begun = False
        self._chunk_is_clamped, self._chunk_ran, self._clamped_in_row = False, False, 0

    def begin(self, position: Action | None = None) -> None:
        """Begin an episode: the robot stands still.

        Args:
            position: where, (A,), in the action's units; counts in dimensions that are positions. None if
                unknown: then the first action is taken to be where the robot is, and an absolute position
                cannot be held before it.
        Raises:
            ConfigError: it is no such position.
        """
        at = self._limiter.position if position is None else np.asarray(position, np.float64)
        if at.shape != self._low.shape or not np.isfinite(at[self._positions]).all():
            raise ConfigError(f"a robot with the actions {self.limits.names} cannot stand at {at.tolist()}")
        self._limiter.rest(np.where(self._positions, at, 0.0))
        self._begun = position is not None
        self._chunk_is_clamped = self._chunk_ran = False
        self._clamped_in_row = 0

    def __call__(
        self, wanted: Action | None, age_s: float, scene_age_s: float = 0.0
    ) -> tuple[Action, tuple[str, ...]]:
        """The action to execute in this tick, (A,), and what was done to the wanted one.

        Args:
            age_s: since the observation that the wanted action answers.
            scene_age_s: since the oldest picture that it was made with.
        Returns:
            `position`, `velocity` and `acceleration` name the limits that changed it. `stopped`, `no action`,
            `wrong shape`, `not finite`, `stale` and `stale pictures` say why the robot holds instead.
        Raises:
            ConfigError: it has to hold before the first action, and does not know where it is.
        """
        self.ticks += 1
        refusal = self._refusal(wanted, age_s, scene_age_s)
        if wanted is None or refusal is not None:
            done: tuple[str, ...] = (refusal or "no action",)
            self._hold(done[0])
        else:
            done = self._follow(np.asarray(wanted, np.float64))
        self.counts.update(done)
        return self._limiter.position.astype(np.float32), done

    def _refusal(self, wanted: Action | None, age_s: float, scene_age_s: float) -> str | None:
        if self._stopped is not None:
            return "stopped"
        if wanted is None:
            return "no action"
        if np.shape(wanted) != self._low.shape:
            return "wrong shape"
        if not (np.abs(wanted) <= np.finfo(np.float32).max).all():
            return "not finite"
        if not age_s <= self._max_ages_s[0]:
            return "stale"
        return None if scene_age_s <= self._max_ages_s[1] else "stale pictures"

    def halt(self) -> Action:
        """The action of a robot that holds, once nobody ticks any more: it is not counted."""
        self._hold("nothing")
        return self._limiter.position.astype(np.float32)

    def _hold(self, reason: str) -> None:
        if not self._begun and self.limits.mode == "absolute":
            raise ConfigError(
                f"{reason} before the first action, and no position to hold: give one to begin()"
            )
        if reason == "not finite":
            self._note_clamped()
        self._limiter.move(np.where(self._positions, self._limiter.position, 0.0), self._positions)

    def _follow(self, wanted: Vector) -> tuple[str, ...]:
        self._chunk_ran = True
        inside = np.clip(wanted, self._low, self._high)
        target = np.clip(inside, self._limiter.low, self._limiter.high)
        if not self._begun:
            self._limiter.rest(np.where(self._positions, target, 0.0))
            self._begun = True
        stepped, bent = self._limiter.move(target, np.zeros_like(self._positions))
        if (np.abs(wanted - target) > FAR * (self._limiter.high - self._limiter.low)).any():
            self._note_clamped()
        done = {
            "position": differ(inside, wanted),
            "velocity": differ(target, inside) | (stepped & self._positions),
            "acceleration": bent | (stepped & ~self._positions),
        }
        return tuple(name for name, where in done.items() if where.any())

    def _note_clamped(self) -> None:
        if self._chunk_is_clamped:
            return
        self._chunk_is_clamped = True
        self._clamped_in_row += 1
        self.counts["clamped chunk"] += 1
        if self._clamped_in_row >= self._clamped_chunks:
            self.stop(f"{self._clamped_in_row} chunks in a row were far beyond the limits or not finite")

    def missed(self) -> None:
        """A tick began too late."""
        self.counts["deadline missed"] += 1

    def failed(self, error: Exception, now_s: float) -> None:
        """The policy had no chunk to give."""
        self._last_failure = f"{type(error).__name__}: {error}"
        was_open = self._breaker.is_open
        self._breaker.failed(now_s)
        self.counts["policy failed"] += 1
        self.counts["breaker opened"] += self._breaker.is_open and not was_open

    def succeeded(self) -> None:
        """A new chunk is there, from which the next actions come."""
        self._breaker.succeeded()
        if self._chunk_ran and not self._chunk_is_clamped:
            self._clamped_in_row = 0
        self._chunk_is_clamped = self._chunk_ran = False

    def may_ask(self, now_s: float) -> bool:
        """Whether the policy may be asked. While the breaker is open, True is the one trial: then do ask."""
        return self._breaker.may_ask(now_s)

    @property
    def stopped(self) -> str | None:
        """Why the robot was stopped, until it is released."""
        return self._stopped

    def stop(self, reason: str) -> None:
        """Hold from the next tick on, whatever comes. For any thread, and for handlers of signals."""
        if self._stopped is None:
            self._stopped = reason

    def release(self) -> None:
        """Follow the policy again. Nothing but this ends a stop."""
        self._clamped_in_row, self._chunk_is_clamped = 0, False
        self._stopped = None

    def report(self) -> dict[str, Any]:
        """All that was done, for a record in JSON."""
        return {
            "ticks": self.ticks,
            "counts": {name: count for name, count in sorted(self.counts.items()) if count},
            "stopped": self._stopped,
            "failures_in_row": self._breaker.in_row,
            "last_failure": self._last_failure,
        }


def _build_limiter(limits: Limits, hz: float) -> Limiter:
    """Positions are bounded to the second order, displacements and velocities, being speeds, to the first."""
    positions = np.array(limits.are_positions)
    velocity, acceleration = (
        np.full(len(positions), inf) if bound is None else np.array(bound)
        for bound in (limits.max_velocity, limits.max_acceleration)
    )
    per_s = hz if limits.mode == "delta" else 1.0  # from a displacement to a speed
    fastest = np.where(positions, inf, velocity / per_s)
    return Limiter(
        low=_round_up(np.maximum(limits.low, -fastest)),
        high=-_round_up(-np.minimum(limits.high, fastest)),
        step=np.where(positions, velocity / hz, acceleration / hz / per_s),
        bend=np.where(positions, acceleration / hz**2, inf),
    )


def _round_up(values: Vector | Sequence[float]) -> Vector:
    """To float32, so that an action that is rounded to it stays within its bounds."""
    rounded = np.asarray(values, np.float32)
    up = np.where(rounded < values, np.nextafter(rounded, np.float32(inf)), rounded)
    return up.astype(np.float64)
