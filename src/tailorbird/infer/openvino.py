"""Torch modules compiled by OpenVINO for the CPU: weights packed once, neighbouring operations fused."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tailorbird.errors import ConfigError
from tailorbird.infer.config import Precision

if TYPE_CHECKING:
    import openvino as ov

MOST = 768  # channels that share a scale: for more, OpenVINO 2026.4 has a slow kernel only
Array = NDArray[np.generic]


class Held:
    """Inputs that stay the same from call to call."""

    def __init__(self, *inputs: Tensor) -> None:
        self.arrays = [_plain(value) for value in inputs]


class Compiled:
    """Calls of a torch module, tensors in and out, in OpenVINO. Any size of a dimension fits any call.

    What goes in and comes out is fp32, bool or int64 whatever is computed in. Calls from several threads wait
    for each other. The module's weights may be dropped afterwards: OpenVINO has its own copy.
    """

    def __init__(self, module: nn.Module, example: Sequence[Tensor], dtype: Precision, width: int) -> None:
        """Trace the module on an example.

        Args:
            width: of most of its linear layers.
            dtype: what is computed in. int8: linear layers that are quantised (infer/quant.py) multiply int8
                by int8, and everything else is in bfloat16 where the processor has it, else in float32.
        Raises:
            ConfigError: OpenVINO is not installed, or the processor has no bfloat16.
        """
        openvino = import_openvino()
        model = trace(module, example)
        core = find_core()
        self._request = core.compile_model(model, "CPU", settings(core, dtype, width)).create_infer_request()
        self._num_outputs = len(model.outputs)
        self._tensor, self._lock = openvino.Tensor, threading.Lock()
        self._held: Held | None = None

    def __call__(self, *inputs: Tensor, held: Held | None = None) -> list[Tensor]:
        """held: the last inputs, if they may be those of the call before; only others are handed over."""
        arrays = [_plain(value) for value in inputs]
        with self._lock:
            if held is not None and held is not self._held:
                self._hand_over(held.arrays, len(arrays))
                self._held = held
            self._hand_over(arrays, 0)
            self._request.infer()
            outputs = (self._request.get_output_tensor(i).data for i in range(self._num_outputs))
            return [torch.from_numpy(output.copy()) for output in outputs]  # the next call writes there again

    def _hand_over(self, arrays: Sequence[Array], start: int) -> None:
        for i, array in enumerate(arrays, start):
            self._request.set_input_tensor(i, self._tensor(array, shared_memory=True))


def trace(module: nn.Module, example: Sequence[Tensor]) -> ov.Model:
    """The graph of a module. Raises ConfigError when OpenVINO is not installed.

    OpenVINO's `convert_model` does these steps too, and reports its use to its makers.
    """
    import_openvino()
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing as such, and that sizes of the configuration are fixed
        decoder = TorchScriptPythonDecoder(
            module.eval(), example_input=tuple(example), trace_kwargs={"check_trace": False}
        )
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    apply_moc_transformations(model, cf=False)
    return model


def group_of(width: int) -> int:
    """Channels of a token that share a scale when they are rounded to int8: what divides a layer evenly."""
    return next(size for size in range(min(width, MOST), 0, -1) if width % size == 0)


def find_name(dtype: str | torch.dtype, names: tuple[Precision, ...]) -> Precision:
    """Raises ConfigError when it is none of the names."""
    name = str(dtype).removeprefix("torch.")
    for precision in names:
        if name == precision:
            return precision
    raise ConfigError(f"the engine openvino does not compute in {name}: name {', '.join(names)}")


def settings(core: ov.Core, dtype: Precision, width: int) -> dict[str, Any]:
    """How OpenVINO computes: one call at a time, on torch's number of threads.

    What is beside the narrow weights of int8 and int4 is in bfloat16 where the processor has it.

    Raises:
        ConfigError: bfloat16 is asked for, and the processor has none.
    """
    narrow = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == "bfloat16" and not narrow:
        raise ConfigError("this processor has no bfloat16: name float32 or int8")
    return {
        "INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" or not narrow else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_of(width) if dtype == "int8" else 0,
    }


def require_cpu(device: str | torch.device) -> str:
    """Raises ConfigError when OpenVINO is not installed, or a device other than the CPU is asked for."""
    if str(device) not in ("auto", "cpu"):
        raise ConfigError(f"the engine openvino computes on the cpu, not on {device}: take the engine torch")
    import_openvino()
    return "cpu"


def import_openvino() -> Any:
    """The package. Raises ConfigError when it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(
            f"the engine openvino is not installed ({error}): pip install 'tailorbird[openvino]', or take "
            "the engine torch"
        ) from None
    return openvino


@cache
def find_core() -> ov.Core:
    """The one of this process, which lives as long as it does.

    Each core, when it dies, frees the stack on which signals are handled: after that of several, OpenVINO
    2026.4 leaves none, and the next Ctrl-C is a segmentation fault.
    """
    return import_openvino().Core()


def _plain(value: Tensor) -> Array:
    value = value.float() if value.is_floating_point() else value
    return value.detach().contiguous().numpy()
