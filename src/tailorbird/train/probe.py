"""How long a pass takes here, before a run begins."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from tailorbird.provenance import cores
from tailorbird.train.config import TrainConfig
from tailorbird.train.lesson import Lesson, M, P
from tailorbird.train.network import build_network
from tailorbird.train.stages import Group

AGAIN = 4 / 3  # what is computed again adds a forward pass to one forward and, twice as long, one back


def seconds_of_pass(
    model: M, groups: Sequence[Group], cfg: TrainConfig, lesson: Lesson[M, P], portion: P
) -> float:
    """Of a pass forward and back, the second of two. The model is as before, and without gradients.

    Nothing is compiled for it, so that a compiled run is faster than it says. PyTorch has `cfg.threads` from
    now on.
    """
    torch.set_num_threads(cfg.threads or cores())
    network = build_network(model, groups, replace(cfg, compile=False, checkpointing=False)).train()
    spent = 0.0
    with torch.random.fork_rng(devices=[]):  # dropout draws
        for _ in range(2):
            began = time.perf_counter()
            lesson.loss(network, portion).sum().backward()
            if next(network.parameters()).is_cuda:
                torch.cuda.synchronize()
            spent = time.perf_counter() - began
    for one in model.parameters():
        one.grad = None
    return AGAIN * spent if cfg.checkpointing else spent
