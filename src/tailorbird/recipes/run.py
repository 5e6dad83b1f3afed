"""A policy drives one robot by the wall clock, and one can see how."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from tailorbird.control.clock import RealClock
from tailorbird.control.config import LoopConfig
from tailorbird.control.runtime import Tick, drive
from tailorbird.control.safety import Guard, Limits
from tailorbird.control.thinkers import Thinker
from tailorbird.errors import ConfigError, Interrupted, StorageError
from tailorbird.live.feed import Feed, Moment, Timed, Watcher
from tailorbird.live.trace import TraceWriter
from tailorbird.live.view import Ends, View, summary
from tailorbird.perf.trace import check_name
from tailorbird.progress import console
from tailorbird.recipes.body import build_body
from tailorbird.recipes.mind import open_mind
from tailorbird.recipes.run_config import RunConfig
from tailorbird.wire import ActionChunk, Committed, Observation

SWITCH_S = 5e-4  # Python's threads give way this often, so that drawing does not make ticks late


@dataclass(frozen=True, kw_only=True)
class Watching:
    """Who else looks on besides the terminal.

    rerun: a file that ends in .rrd, or "viewer". trace: a file that ends in .json.
    """

    rerun: str | None = None
    trace: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.trace)
        if self.rerun not in (None, "viewer") and Path(str(self.rerun)).suffix != ".rrd":
            raise ConfigError(f'--rerun {self.rerun}: name a file that ends in .rrd, or "viewer"')

    def open(self, title: str) -> list[Watcher]:
        """Raises StorageError if a file cannot be written, ConfigError if Rerun is not there."""
        watchers: list[Watcher] = []
        with ExitStack() as opened:
            if self.rerun is not None:
                from tailorbird.live.recording import Recording

                watchers.append(recording := Recording(self.rerun, title))
                opened.callback(recording.close)
            if self.trace is not None:
                watchers.append(TraceWriter(self.trace, title))
            opened.pop_all()
        return watchers


def run(env: str, policy: str, cfg: RunConfig, limits: Path | None, watching: Watching) -> None:
    """Play the episodes and print what happened.

    Ctrl-C stops the robot, which then holds; a second one leaves. What is recorded is kept either way.

    Raises:
        ConfigError: the settings do not fit the robot or the policy.
        CheckpointError: there is no such policy.
        Interrupted: it was stopped, by hand or by the guard.
    """
    bounds = None if limits is None else Limits.load(limits)
    with build_body(env, cfg, bounds) as body, open_mind(policy, cfg) as mind:
        clock, title = RealClock(), f"{env}, {policy}, {cfg.mode}"
        timed, ends = Timed(body.robot, clock), Ends()
        _warm_up(body.sample, mind.thinker, cfg)
        guard = Guard(bounds or body.robot.limits, cfg.rate, max_age_s=cfg.max_age_s)
        watchers = watching.open(title)
        view = View(console, title, cfg.rate)
        feed = Feed([view, *watchers])
        loop = _loop_of(cfg, halt=body.halt)
        # the last is over first: a watcher that hangs does not keep the power on
        with _stopped_by_hand(guard), suppress(KeyboardInterrupt), feed, body.power, body.turn:
            for episode in range(cfg.episodes):
                if guard.stopped is not None:
                    break
                mind.reset(cfg.seed + episode)
                timed.take_spans()  # how the last episode halted belongs to none of this one's ticks
                guard.begin(body.begin(cfg.seed + episode))
                watch = partial(_hand_over, feed, timed, episode)
                ends.add(drive(timed, mind.thinker, clock, loop, guard=guard, watch=watch))
    console.print(summary(view.figures, guard.counts, ends, feed))
    for target in (watching.trace, watching.rerun):
        if target is not None and Path(target).exists():
            console.print(f"written: {target}")
    if feed.failures:
        raise StorageError("not all of the run is recorded: " + "; ".join(feed.failures))
    if guard.stopped is not None:
        raise Interrupted(f"stopped: {guard.stopped}")


def _hand_over(feed: Feed, timed: Timed, episode: int, tick: Tick) -> None:
    feed.put(Moment(episode=episode, tick=tick, spans=timed.take_spans()))


def _loop_of(cfg: RunConfig, *, halt: bool) -> LoopConfig:
    return LoopConfig(
        hz=cfg.rate,
        execute=cfg.execute,
        max_ticks=max(1, round(cfg.seconds * cfg.rate)),
        mode=cfg.mode,
        ensemble=cfg.ensemble,
        halt=halt,
    )


def _warm_up(sample: Observation, thinker: Thinker[ActionChunk], cfg: RunConfig) -> None:
    """The first calls pay for setting up: no robot has to wait for them.

    Raises:
        ConfigError: the policy's chunks are too short for the settings.
    """
    thinker.start(sample)
    chunk = thinker.wait()
    if cfg.execute > (num := len(chunk.actions)):
        raise ConfigError(f"the policy's chunks have {num} actions, not {cfg.execute}: lower --execute")
    if cfg.mode == "rtc":
        thinker.start(replace(sample, committed=Committed(actions=chunk.actions, frozen=1)))
        thinker.wait()


@contextmanager
def _stopped_by_hand(guard: Guard) -> Iterator[None]:
    """Ctrl-C is an emergency stop, the next one an end. A terminated process ends at once, in order."""

    def stop(_number: int, _: FrameType | None) -> None:
        if guard.stopped is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third one must not interrupt switching off
            raise KeyboardInterrupt
        guard.stop("Ctrl-C")
        console.print("stopped, the robot holds; Ctrl-C again leaves")

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    old = signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, end)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGINT, old[0])
        signal.signal(signal.SIGTERM, old[1])
