"""Int8 weights for the layers that bear it, after a look at what each of them would lose."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.errors import ConfigError
from tailorbird.infer.openvino import group_of
from tailorbird.model.int8 import LEVELS, may_be_int8, shrink, to_int8
from tailorbird.model.vla import VLA


@dataclass(frozen=True)
class LayerError:
    """What int8 makes of one layer's outputs on the calibration inputs."""

    name: str
    error: float  # root of the mean squared difference over that of the outputs
    num_weights: int
    is_int8: bool


def quantise(
    model: nn.Module, layers: dict[str, nn.Linear], run: Callable[[], None], max_error: float
) -> list[LayerError]:
    """Give layers int8 weights, except those whose outputs change by more than `max_error`.

    Both weights and inputs are rounded when the errors are measured, inputs in groups of about the size that
    the compiled model takes.

    Args:
        layers: by their names in the model.
        run: calls the model on inputs like those that it will see.
        max_error: relative, root mean square. int8 alone costs 0.01 to 0.02.
    Returns:
        One entry a layer, the worst first.
    Raises:
        ConfigError: no layer stays within `max_error`, or `run` does not reach one.
    """
    if max_error <= 0:
        raise ConfigError(f"{max_error=} must be above 0; 0.05 keeps layers that lose more than 5 % in float")
    with _watch(layers) as sums:
        run()
    if unseen := [name for name in layers if name not in sums]:
        raise ConfigError(f"calibration does not reach {', '.join(unseen[:3])}: it must call the whole model")
    errors = {name: float((wrong / whole.clamp_min(1e-20)).sqrt()) for name, (wrong, whole) in sums.items()}
    found = [
        LayerError(name, error, layers[name].weight.numel(), error <= max_error)
        for name, error in sorted(errors.items(), key=lambda pair: -pair[1])
    ]
    names = [layer.name for layer in found if layer.is_int8]
    if not names:
        raise ConfigError(
            f"no layer stays within an error of {max_error}: the best has {found[-1].error:.3f}. Allow more"
        )
    shrink(model, names)
    return found


@contextmanager
def _watch(layers: dict[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Sums of squares of each layer's error and output while the context lasts."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(name: str, layer: nn.Linear, x: Tensor, y: Tensor) -> None:
        weight, scale = to_int8(layer.weight)
        rounded = F.linear(round_inputs(x.float()), weight.float() * scale)
        bias = 0 if layer.bias is None else layer.bias.float()
        wrong, whole = sums.get(name, (torch.zeros(()), torch.zeros(())))
        own = y.float() - bias  # a bias is exact and would hide the error
        sums[name] = wrong + (rounded - own).square().sum(), whole + own.square().sum()

    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(
                lambda module, inputs, output, name=name: observe(name, module, inputs[0], output)
            )
            stack.callback(hook.remove)
        yield sums


def round_inputs(x: Tensor) -> Tensor:
    """Round to 255 levels, each token and each group of channels to their own. x: (..., C)."""
    parts = [
        (part / step).round() * step
        for part in x.split(group_of(x.shape[-1]), dim=-1)
        for step in [part.abs().amax(-1, keepdim=True).clamp_min(1e-12) / LEVELS]
    ]
    return torch.cat(parts, dim=-1)


def policy_layers(model: VLA) -> dict[str, nn.Linear]:
    """Where the arithmetic is. Ends and cross-attention's projections, wider in the release, stay float.

    Of the decoder's last block only keys and values are computed.
    """
    last = f"vlm.decoder.blocks.{model.cfg.vlm.decoder.num_layers - 1}."
    unread = {f"{last}{name}" for name in ("attn.out", "mlp.gate", "mlp.up", "mlp.down")}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and may_be_int8(name) and name not in unread
    }
