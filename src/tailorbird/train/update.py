"""One step: gradients of all its parts, then the optimizer, or nothing at all."""

from collections.abc import Sequence

import torch

from tailorbird.data.order import seed_of
from tailorbird.train.config import TrainConfig
from tailorbird.train.guard import NUM_RECENT, Outcome, judge
from tailorbird.train.lesson import Lesson, M, P
from tailorbird.train.network import refresh
from tailorbird.train.optim import average, set_rates
from tailorbird.train.parallel import whole
from tailorbird.train.stages import enter
from tailorbird.train.state import State


def update(state: State[M], portions: Sequence[P], lesson: Lesson[M, P], cfg: TrainConfig) -> Outcome:
    """Learn from the portions of the step at which `state` stands, unless it would do harm, and go on.

    The gradient is that of the sum of all losses over the sum of all weights: each token or action counts the
    same, in whatever portion of whatever process it is. The weights are known before the first pass.
    """
    step, parameters, team = state.step, list(state.model.parameters()), state.team
    weight = max(team.total(sum(portion.weight for portion in portions))[0], 1.0)
    if any(group.pace.start == step for group in state.groups):
        enter(state.network, state.groups, step)
    sums = []
    for number, portion in enumerate(portions):
        state.spread.begin_pass(is_last=number == len(portions) - 1)
        with torch.random.fork_rng(devices=[]):  # dropout has no generator of its own
            torch.manual_seed(seed_of(cfg.seed, step, number * team.world + team.rank))
            by_source = state.spread.call(state.network, lesson.loss, portion)  # (sources,)
        (by_source.sum() / weight).backward()
        sums.append(by_source.detach())
    state.spread.add_up(parameters)
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, cfg.clip)).item()
    losses: list[list[float]] = [one.tolist() for one in sums]
    loss = team.total(sum(map(sum, losses)))[0] / weight
    why = judge(loss, norm, state.recent, cfg.spike)
    if not why:
        set_rates(state.optimizer, step, cfg)
        state.optimizer.step()
        if state.network is not state.model:
            refresh(state.network, state.groups)
        if state.mean is not None:
            average(state.mean, state.groups, step, cfg.ema)
        state.recent = [*state.recent, loss][-NUM_RECENT:]
    state.optimizer.zero_grad()
    state.step += 1
    return Outcome(loss=loss, norm=norm, losses=losses, why=why)
