"""The network that computes a step: narrow, recomputed or compiled, seen from outside of the model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tailorbird.model.cache import DenseCache
from tailorbird.model.decoder import DecoderBlock
from tailorbird.model.expert import CrossBlock
from tailorbird.model.vision import VisionBlock
from tailorbird.train.config import TrainConfig
from tailorbird.train.lora import Adapted
from tailorbird.train.stages import Group, narrow

M = TypeVar("M", bound=nn.Module)


def build_network(model: M, groups: Sequence[Group], cfg: TrainConfig) -> M:
    """What computes for a model: itself, or a narrow copy of it whose gradients reach its fp32 weights."""
    network = model if cfg.precision == "float32" else _narrow_copy(model, groups)
    for module in network.modules():
        if isinstance(module, VisionBlock | DecoderBlock | CrossBlock):
            if cfg.compile:
                module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
            if cfg.checkpointing:
                module.forward = _recomputed(module.forward)  # type: ignore[method-assign]
    return network


def _narrow_copy(model: M, groups: Sequence[Group]) -> M:
    """A bf16 copy. What is bf16 already and never learns it shares with the model."""
    learned = {name for group in groups for name in group.weights}
    shared = {
        id(one): one
        for name, one in model.named_parameters()
        if name not in learned and one.dtype == torch.bfloat16
    }
    network = copy.deepcopy(model, shared)
    narrow(network, torch.bfloat16)
    for module in network.modules():
        if isinstance(module, Adapted):
            module.widen()
    own = dict(network.named_parameters())
    for group in groups:
        for name, weight in group.weights.items():
            own[name].requires_grad_(True).register_post_accumulate_grad_hook(_pour_into(weight))
    refresh(network, groups)
    return network


def _pour_into(weight: nn.Parameter) -> Callable[[Tensor], None]:
    """Moves a gradient to the fp32 weight, where those of all parts of a step add up."""

    def pour(narrow_weight: Tensor) -> None:
        assert narrow_weight.grad is not None
        gradient, narrow_weight.grad = narrow_weight.grad.float(), None
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    return pour


@torch.no_grad()
def refresh(network: nn.Module, groups: Sequence[Group]) -> None:
    """Round the fp32 weights into the network that computes, if it is another."""
    own = dict(network.named_parameters())
    pairs = [(own[name], weight) for group in groups for name, weight in group.weights.items()]
    if apart := [(mine, theirs) for mine, theirs in pairs if mine is not theirs]:
        torch._foreach_copy_([mine for mine, _ in apart], [theirs for _, theirs in apart])


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that keeps its inputs alone, and is computed again for the gradients.

    Not where it fills a cache, which it would do twice: a policy's decoder hands its keys and values on so.
    """

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled() or any(isinstance(one, DenseCache) for one in inputs):
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)

    return run
