"""The training loop, for whatever is learned."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Generic, Self

import torch

from tailorbird.errors import ConfigError, DataError, TailorbirdError
from tailorbird.progress import Bar, console, track
from tailorbird.provenance import cores
from tailorbird.train.config import TrainConfig
from tailorbird.train.guard import FILE, Outcome, named, parts_of, write_down
from tailorbird.train.lesson import Lesson, M, P
from tailorbird.train.log import Metrics, read_metrics
from tailorbird.train.optim import lr_of
from tailorbird.train.parallel import Team, explained, join_team
from tailorbird.train.saver import Saver
from tailorbird.train.stages import Group, count, enter
from tailorbird.train.state import State, checkpoint_at, load_state, newest_checkpoint, snapshot, start_state
from tailorbird.train.tally import add_step, figures_of, joined
from tailorbird.train.update import update


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run came to.

    `finished` is False when a signal ended it early; the checkpoint is saved then.
    """

    checkpoint: Path
    best: Path | None  # by `TrainConfig.best`
    step: int
    loss: float  # of the last step, nan if no step was left to do
    seconds: float  # of all calls that led here
    finished: bool
    stopped_by: int | None  # the signal


# What asks for an end: a person, a system, and the ones that clusters send before a job's time is up.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class _Stop(threading.Event):
    """A request to stop, and the signal that made it."""

    signal: int | None = None


@contextmanager
def _stop_request() -> Iterator[_Stop]:
    """Set on the first of `STOPS`, so that the step can end and be saved.

    A second Ctrl-C acts at once.
    """
    stop = _Stop()

    def ask(kind: int, __: FrameType | None) -> None:
        stop.signal = kind
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    kinds = STOPS if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.signal(kind, ask) for kind in kinds}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def train(cfg: TrainConfig, lesson: Lesson[M, P], model: M, groups: Sequence[Group], run: Path) -> Trained:
    """Learn from the newest checkpoint of `run` on, or from the model as it is.

    It computes where the model is. A run that was interrupted and continued is bit for bit the run that was
    not, on the same CPU: all that is random is a function of the seed, the step and the data. On a GPU some
    sums have no fixed order.

    Args:
        groups: what learns, from `stages.choose`.
    Raises:
        TailorbirdError: a loss or gradient is not finite, or a loss far too high; the weights and the last
            checkpoint are from before, and bad_step.json names the samples.
    """
    team = join_team()
    torch.set_num_threads(cfg.threads or max(1, cores() // team.beside))
    # convolutions on a CPU are a third faster so
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state, loss = start_state(model, groups, cfg, team), math.nan
    newest = checkpoint_at(run, found) if (found := _begun(run, team)) is not None else None
    if newest:
        load_state(newest, state, lesson, cfg)
        console.print(f"continuing {run} at step {state.step}")
    enter(state.network, state.groups, state.step)
    numbers = count(model, state.groups)
    console.print(
        f"{numbers['learned_parameters']:,} parameters learn, {numbers['frozen_parameters']:,} are frozen, "
        f"on {next(model.parameters()).device}"
    )
    with (
        explained(),
        Metrics(run, state.step, cfg.log) if team.is_first else _Mute() as metrics,
        track("train", cfg.steps, state.step) as bar,
        _stop_request() as stop,
        Saver(newest) as saver,
    ):
        if team.is_first and not read_metrics(run):
            metrics.add(0, **numbers)
        course, stopping = _Course(cfg, lesson, state, run, _Outlets(metrics, bar, saver)), False
        for portions in _in_step(lesson.steps(state.step, cfg.steps), team):
            loss = course.step(portions)
            stopping = team.any(stop.is_set())  # asked once: what ends the loop must also save
            course.report(stopping=stopping)
            if stopping:
                break
        if not stopping and state.step < cfg.steps:
            course.end_early()
        saver.join()
        team.total(0.0)  # the first has written: the others may look
    assert saver.newest is not None
    return Trained(
        checkpoint=saver.newest,
        best=checkpoint_at(run, state.best[0]) if state.best else None,
        step=state.step,
        loss=loss,
        seconds=state.seconds,
        finished=state.step == cfg.steps or not stopping,
        stopped_by=stop.signal,
    )


def _begun(run: Path, team: Team) -> int | None:
    """The step to go on from, as the first process sees it."""
    newest = newest_checkpoint(run)
    return team.gather(None if newest is None else int(newest.name[5:]))[0]


def _in_step(steps: Iterator[Sequence[P]], team: Team) -> Iterator[Sequence[P]]:
    """The steps that every process has."""
    while True:
        portions = next(steps, None)
        if team.any(portions is None) or portions is None:
            return
        yield portions


class _Mute:
    """The log of a process that is not the first."""

    def add(self, step: int, **values: float) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class _Outlets:
    metrics: Metrics | _Mute
    bar: Bar
    saver: Saver


class _Course(Generic[M, P]):
    """The steps of one call, and what is said and saved of them."""

    def __init__(
        self, cfg: TrainConfig, lesson: Lesson[M, P], state: State[M], run: Path, out: _Outlets
    ) -> None:
        self.cfg, self.lesson, self.state, self.run, self.out = cfg, lesson, state, run, out
        self.earlier_s, self.waiting_s, self.evaluating_s = state.seconds, 0.0, 0.0
        self.began = self.waited = time.perf_counter()
        self.samples = self.tokens = 0
        self.held_out, self.first, self.saved = "", state.step, state.step

    def step(self, portions: Sequence[P]) -> float:
        """Take one step. Returns its loss, nan if it was left out."""
        self.waiting_s += time.perf_counter() - self.waited
        state, cfg = self.state, self.cfg
        outcome = update(state, portions, self.lesson, cfg)
        state.seconds = self.earlier_s + time.perf_counter() - self.began
        if outcome.why:
            self._leave_out(outcome, portions)
            return math.nan
        state.losses.append(outcome.loss)
        add_step(state.sums, portions, outcome)
        self.samples += sum(one.samples for one in portions)
        self.tokens += sum(one.tokens for one in portions)
        return outcome.loss

    def _leave_out(self, outcome: Outcome, portions: Sequence[P]) -> None:
        """Count a bad step and go on, or stop. It is written down either way."""
        state, cfg, step = self.state, self.cfg, self.state.step - 1
        parts = [part for one in state.team.gather(parts_of(outcome, portions)) for part in one]
        path = self.run / FILE
        if state.team.is_first:
            write_down(self.run, step, outcome, parts)
        if state.skipped >= cfg.skip_bad_steps:
            self.out.saver.join()
            raise TailorbirdError(
                f"step {step}: {outcome.why}. It was computed from {named(parts)} ({path} has all). Begin "
                "again with a lower --train.lr and another --out, or go on past such steps with "
                f"--train.skip-bad-steps; the last good weights: {self.out.saver.newest or 'none were saved'}"
            )
        state.skipped += 1
        self.out.metrics.add(state.step, skipped=state.skipped)
        console.print(
            f"step {step} left out, {state.skipped} of {cfg.skip_bad_steps}: {outcome.why} ({path})"
        )

    def report(self, *, stopping: bool) -> None:
        """Say, measure and save what is due after a step."""
        state, cfg = self.state, self.cfg
        finished, must_save = state.step == cfg.steps, stopping
        if (state.step % cfg.log_every == 0 or finished) and state.losses:
            self._log()
        if state.step % cfg.eval_every == 0 or finished:
            must_save |= self._evaluate()
        self.out.saver.check()
        if state.step % cfg.save_every == 0 or finished or must_save:
            self._save()
        self.out.bar.advance()
        self.waited = time.perf_counter()

    def end_early(self) -> None:
        """Say, measure and save what is still due where the data have ended."""
        state = self.state
        if self.out.saver.newest is None and state.step == self.first:
            raise DataError("there is nothing to learn from: not one step could be made of the data")
        console.print(f"the data have ended after {state.step} of {self.cfg.steps} steps")
        if state.losses:
            self._log()
        if state.step % self.cfg.eval_every and state.step > self.first:
            self._evaluate()
        if self.saved != state.step:
            self._save()

    def _save(self) -> None:
        write = snapshot(self.run, self.state, self.lesson, self.cfg)
        there = checkpoint_at(self.run, self.state.step)
        self.out.saver.submit(write if self.state.team.is_first else lambda: there)
        self.saved = self.state.step

    def _log(self) -> None:
        state, spent = self.state, self.state.seconds - self.earlier_s - self.evaluating_s
        samples, tokens = state.team.total(self.samples, self.tokens)
        sums = joined(state.team.gather(state.sums))
        figures = {"loss": sum(state.losses) / len(state.losses), **self._rates(), **figures_of(sums)}
        figures |= {"samples_s": samples / spent, "wait": self.waiting_s / spent}
        speed = f"{figures['samples_s']:.0f} samples/s"
        if "padding" in figures:
            figures["tokens_s"] = tokens / spent
            speed = f"{figures['tokens_s']:.0f} tokens/s, padding {figures['padding']:.0%}"
        figures |= state.team.added(self.lesson.figures())
        if "mfu" in figures:
            figures["mfu"] /= state.team.world
            speed += f", {figures['mfu']:.0%} of the peak"
        self.out.metrics.add(state.step, **figures)
        wait = f"waiting for data {figures['wait']:.0%}"
        self.out.bar.advance(0, f"loss {figures['loss']:.3f}{self.held_out}, {speed}, {wait}")
        state.losses.clear()
        state.sums.clear()

    def _rates(self) -> dict[str, float]:
        """The highest learning rate of the last step, and that of each part where they differ."""
        groups, step = self.state.groups, self.state.step - 1
        rates = {part: lr_of(group.pace, step, self.cfg) for group in groups for part in group.parts}
        each = {f"lr/{part}": rate for part, rate in rates.items() if rate}
        return {"lr": max(rates.values())} | (each if len(groups) > 1 else {})

    def _evaluate(self) -> bool:
        """Measure. Returns whether it is the best so far."""
        state, cfg = self.state, self.cfg
        model = state.network if state.mean is None else state.mean
        model.eval()
        began = time.perf_counter()
        found = state.team.gather(state.spread.measure(model, self.lesson.evaluate))[0]
        self.evaluating_s += time.perf_counter() - began
        state.network.train()
        self.out.metrics.add(state.step, **found)
        self.held_out = "".join(
            f", {name.replace('_', ' ')} {value:.3f}" for name, value in found.items() if "/" not in name
        )
        if not cfg.best:
            return False
        if cfg.best not in found:
            raise ConfigError(
                f"--train.best {cfg.best}: the evaluation has {', '.join(found) or 'no figures'}, choose one"
            )
        value = found[cfg.best]
        sign = 1 if cfg.best_is == "lowest" else -1
        if math.isnan(value) or (state.best is not None and sign * value >= sign * state.best[1]):
            return False
        state.best = (state.step, value)
        return True
