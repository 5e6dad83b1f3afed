"""The training loop."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from tailorbird.data.loader import Loader
from tailorbird.data.order import seed_of
from tailorbird.errors import TailorbirdError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.progress import console, track
from tailorbird.provenance import cores
from tailorbird.train.config import TrainConfig
from tailorbird.train.log import Metrics
from tailorbird.train.optim import average, build_optimizer, lr_at
from tailorbird.train.state import checkpoint_at, load_state, newest_checkpoint, save_state
from tailorbird.train.step import vla_loss


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run came to.

    `finished` is False when Ctrl-C or SIGTERM ended it early; the checkpoint is saved then.
    """

    checkpoint: Path
    step: int
    loss: float
    seconds: float  # of this call, without what earlier calls spent
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

    A run that was interrupted and continued is bit for bit the run that was not, on the same machine.

    Args:
        evaluate: called with the averaged weights every `eval_every` steps; its numbers are logged.
    Raises:
        TailorbirdError: the loss is no longer finite; the last checkpoint is from before.
    """
    torch.set_num_threads(cfg.threads or cores())
    # convolutions on a CPU are a third faster so
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = build_optimizer(model, cfg)
    newest = newest_checkpoint(run)
    start = load_state(newest, model, mean, optimizer, cfg) if newest else 0
    if start:
        console.print(f"continuing {run} at step {start}")
    if start >= cfg.steps:
        return Trained(
            checkpoint=checkpoint_at(run, start), step=start, loss=math.nan, seconds=0.0, finished=True
        )
    began = waited = time.perf_counter()
    waiting_s = 0.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    with Metrics(run, start) as metrics, track("train", cfg.steps, start) as bar, _stop_request() as stop:
        for step, batch in enumerate(loader.stream(start, cfg.steps), start):
            waiting_s += time.perf_counter() - waited
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, cfg)
            generator = torch.Generator().manual_seed(seed_of(cfg.seed, step))
            loss = vla_loss(model, batch, cfg.draws, generator)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.clip)
            if not math.isfinite(loss.item() + norm.item()):
                raise TailorbirdError(
                    f"step {step}: loss {loss.item()}, gradient norm {norm.item()}. Continue from "
                    f"{newest or 'the start'} with a lower --train.lr"
                )
            optimizer.step()
            optimizer.zero_grad()
            average(mean, model, step, cfg.ema)
            done = step + 1
            last = stop.is_set() or done == cfg.steps
            if done % cfg.log_every == 0 or last:
                spent = time.perf_counter() - began
                speed = (done - start) * cfg.batch / spent
                share = waiting_s / spent
                metrics.add(
                    done, loss=loss.item(), lr=lr_at(step, cfg), norm=norm.item(), samples_s=speed, wait=share
                )
                bar.advance(0, f"loss {loss.item():.3f}, {speed:.0f} samples/s, waiting for data {share:.0%}")
            if done % cfg.eval_every == 0 or last:
                metrics.add(done, **evaluate(mean))
            if done % cfg.save_every == 0 or last:
                newest = save_state(run, done, model, mean, optimizer, pipeline, cfg)
            bar.advance()
            if last:
                break
            waited = time.perf_counter()
    seconds = time.perf_counter() - began
    assert newest is not None
    return Trained(
        checkpoint=newest, step=done, loss=loss.item(), seconds=seconds, finished=done == cfg.steps
    )
