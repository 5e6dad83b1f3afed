"""Settings of the control loop."""

from dataclasses import dataclass
from typing import Literal

from tailorbird.errors import ConfigError

Mode = Literal["sync", "async", "reuse", "rtc"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a robot is driven.

    Attributes:
        hz: ticks a second.
        execute: age in ticks at which a chunk is replaced.
        max_ticks: length of an episode.
        mode: sync: the robot holds while the next chunk is made, and executes it from its start. async: it
            goes on meanwhile, and what is past when the chunk arrives is dropped. rtc: so too, and the policy
            is told what will be executed by then. reuse: as async; `tailorbird.control.reuse.Reuse` thinks.
        ensemble: the chunks that cover a tick are averaged (ACT, arXiv 2304.13705), instead of the newest.
        errors: raise: an error of the policy ends the episode. hold: it is counted, the robot goes on with
            what is left and then holds, and the policy is asked again as the guard's breaker allows.
        answer_s: after which a policy that has not answered counts as failed; the first chunk is not waited
            for any longer.
        halt: hold once when the loop ends, however it ends. A simulation that stands still between steps
            needs none.
    """

    hz: float
    execute: int
    max_ticks: int
    mode: Mode = "async"
    ensemble: bool = False
    errors: Literal["raise", "hold"] = "hold"
    answer_s: float = 30.0
    halt: bool = True

    def __post_init__(self) -> None:
        if not min(self.hz, self.answer_s) > 0 or self.execute < 1 or self.max_ticks < 1:
            raise ConfigError(f"rate, execute, max_ticks and answer_s must be positive: {self}")
