"""The training loop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from tailorbird.data.loader import Loader
from tailorbird.data.order import seed_of
from tailorbird.errors import ConfigError, TailorbirdError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.progress import console, track
from tailorbird.provenance import cores
from tailorbird.train.config import TrainConfig
from tailorbird.train.learn import count
from tailorbird.train.log import Metrics, read_metrics
from tailorbird.train.optim import average, build_optimizer, lr_at, start_average
from tailorbird.train.state import State, load_state, newest_checkpoint, save_state
from tailorbird.train.step import vla_loss
from tailorbird.types import Batch


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run came to.

    `finished` is False when Ctrl-C or SIGTERM ended it early; the checkpoint is saved then.
    """

    checkpoint: Path
    step: int
    loss: float  # of the last step, nan if no step was left to do
    seconds: float  # of all calls that led here
    finished: bool


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """Set on the first Ctrl-C or SIGTERM, so that the step can end and be saved.

    A second Ctrl-C acts at once.
    """
    stop = threading.Event()

    def ask(_: int, __: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.signal(kind, ask) for kind in kinds}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def train(
    cfg: TrainConfig,
    model: VLA,
    loader: Loader,
    pipeline: Pipeline,
    run: Path,
    evaluate: Callable[[VLA], dict[str, float]],
) -> Trained:
    """Learn from the newest checkpoint of `run` on, or from the model as it is.

    What learns is what requires a gradient; `learn.choose` says so. It computes where the model is.

    A run that was interrupted and continued is bit for bit the run that was not, on the same CPU. On a GPU
    some sums have no fixed order.

    Args:
        evaluate: called with the averaged weights every `eval_every` steps; its numbers are logged.
    Raises:
        ConfigError: the model does not expect as many given actions as are to be learned from.
        TailorbirdError: the loss is no longer finite; the last checkpoint is from before.
    """
    if cfg.max_delay > model.cfg.max_delay:
        raise ConfigError(f"{cfg.max_delay=} is more than the model's {model.cfg.max_delay}: set both")
    torch.set_num_threads(cfg.threads or cores())
    # convolutions on a CPU are a third faster so
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, numbers = start_average(model), count(model)
    state = State(model=model.train(), mean=mean, optimizer=build_optimizer(model, cfg))
    newest, loss = newest_checkpoint(run), math.nan
    if newest:
        load_state(newest, state, pipeline, cfg)
        console.print(f"continuing {run} at step {state.step}")
    start, earlier_s, waiting_s, held_out = state.step, state.seconds, 0.0, ""
    began = waited = time.perf_counter()
    learned, frozen = numbers["learned_parameters"], numbers["frozen_parameters"]
    console.print(
        f"{learned:,} parameters learn, {frozen:,} are frozen, on {next(model.parameters()).device}"
    )
    with Metrics(run, start) as metrics, track("train", cfg.steps, start) as bar, _stop_request() as stop:
        if not read_metrics(run):
            metrics.add(0, **numbers)
        for step, batch in enumerate(loader.stream(start, cfg.steps), start):
            waiting_s += time.perf_counter() - waited
            loss, norm = _update(state, batch, cfg)
            if not math.isfinite(loss + norm):
                raise TailorbirdError(
                    f"step {step}: loss {loss}, gradient norm {norm}. Begin again with a lower --train.lr "
                    f"and another --out; the last good weights: {newest or 'none were saved'}"
                )
            done, finished = state.step, state.step == cfg.steps
            state.seconds = earlier_s + time.perf_counter() - began
            if done % cfg.log_every == 0 or finished:
                mean_loss = sum(state.losses) / len(state.losses)
                state.losses.clear()
                spent = state.seconds - earlier_s
                speed, share = (done - start) * cfg.batch / spent, waiting_s / spent
                lr = lr_at(step, cfg)
                metrics.add(done, loss=mean_loss, lr=lr, norm=norm, samples_s=speed, wait=share)
                speeds = f"{speed:.0f} samples/s, waiting for data {share:.0%}"
                bar.advance(0, f"loss {mean_loss:.3f}{held_out}, {speeds}")
            if done % cfg.eval_every == 0 or finished:
                found = evaluate(mean)
                metrics.add(done, **found)
                held_out = "".join(f", {name.replace('_', ' ')} {value:.3f}" for name, value in found.items())
            stopping = stop.is_set()  # asked once: what ends the loop must also save
            if done % cfg.save_every == 0 or finished or stopping:
                newest = save_state(run, state, pipeline, cfg)
            bar.advance()
            if stopping:
                break
            waited = time.perf_counter()
    assert newest is not None
    return Trained(
        checkpoint=newest,
        step=state.step,
        loss=loss,
        seconds=state.seconds,
        finished=state.step >= cfg.steps,
    )


def _update(state: State, batch: Batch, cfg: TrainConfig) -> tuple[float, float]:
    """One step. Returns the loss and the gradient's norm; if they are not finite, nothing was changed."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr_at(state.step, cfg)
    generator = torch.Generator().manual_seed(seed_of(cfg.seed, state.step))
    batch = batch.to(next(state.model.parameters()).device)
    if cfg.past_end == "held":
        batch = replace(batch, valid=torch.ones_like(batch.valid))
    with torch.random.fork_rng(devices=[]):  # dropout has no generator of its own
        torch.manual_seed(seed_of(cfg.seed, state.step))
        loss = vla_loss(state.model, batch, cfg.draws, generator)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip).item()
    value = loss.item()
    if math.isfinite(value + norm):
        state.optimizer.step()
        state.optimizer.zero_grad()
        average(state.mean, state.model, state.step, cfg.ema)
        state.step += 1
        state.losses.append(value)
    return value, norm
