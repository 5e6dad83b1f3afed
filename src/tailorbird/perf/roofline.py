"""How fast this device can be: products of matrices and reading of memory, by the fastest public kernels.

All figures are measured; theoretical ones of other devices are in model/cost.py. A peak is the best of many
short repeats, since whatever else runs can only slow it down.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.model.cost import DEVICES, Device
from tailorbird.provenance import hardware

Work = Callable[[], Tensor]
TOWER = (1024, 768, 3072)  # rows, inputs, outputs: an MLP of the 86M tower on one picture of 512 px
SQUARE = (8192, 8192, 8192)  # fills a GPU
READ_BYTES = 256 << 20  # many times what any cache holds


@torch.inference_mode()
def measure_device(device: str | torch.device = "cpu", *, seconds: float = 0.3) -> Device:
    """Measure for `seconds` each kernel, about three in all; on a CPU with as many threads as torch uses."""
    where = torch.device(device)
    rows, width, out = _sizes(where)
    flops = {
        dtype: 2 * rows * width * out / min(_shortest_s(work, where, seconds) for work in kernels)
        for dtype, kernels in products(where, rows, width, out).items()
    }
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else hardware()
    reading = READ_BYTES / min(_shortest_s(work, where, seconds) for work in _readers(where))
    threads = "" if where.type == "cuda" else f", threads: {torch.get_num_threads()}"
    return Device(name, flops, reading, f"measured{threads}")


@torch.inference_mode()
def peak_flops(device: str | torch.device, dtype: str, *, seconds: float = 0.3) -> float:
    """Operations a second in a dtype: the vendor's of a GPU that is known, else measured so long a kernel."""
    where = torch.device(device)
    if where.type == "cuda":
        name = torch.cuda.get_device_name(where)
        if known := next((one for key, one in DEVICES.items() if key in name), None):
            return known.flops[dtype]
    rows, width, out = _sizes(where)
    kernels = products(where, rows, width, out)[dtype]
    return 2 * rows * width * out / min(_shortest_s(work, where, seconds) for work in kernels)


def _sizes(where: torch.device) -> tuple[int, int, int]:
    return SQUARE if where.type == "cuda" else TOWER


def products(where: torch.device, rows: int, width: int, out: int) -> dict[str, list[Work]]:
    """The kernels of each kind of numbers that run here."""
    kinds = [torch.float32, torch.bfloat16] + [torch.float16] * (where.type == "cuda")
    found: dict[str, list[Work]] = {}
    for kind in kinds:
        x = torch.randn(rows, width, device=where, dtype=kind)
        weight = torch.randn(out, width, device=where, dtype=kind)
        found[str(kind).removeprefix("torch.")] = [partial(F.linear, x, weight), *_packed(x, weight)]
    x8, w8 = (torch.ones(n, width, device=where, dtype=torch.int8) for n in (rows, out))
    found["int8"] = [partial(torch._int_mm, x8, w8.t())]
    return found


def _packed(x: Tensor, weight: Tensor) -> Iterator[Work]:
    """oneDNN with a weight in its own order, where this PyTorch has that."""
    if x.is_cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        try:
            own = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        except RuntimeError:  # a processor without instructions for this type
            return
        yield lambda: torch.ops.mkldnn._linear_pointwise(x, own, None, "none", [], "")


def _readers(where: torch.device) -> Iterator[Work]:
    values = torch.ones(READ_BYTES // 4, device=where)
    yield values.sum
    yield partial(torch.dot, values[: len(values) // 2], values[len(values) // 2 :])


def _shortest_s(work: Work, where: torch.device, seconds: float) -> float:
    """The least time of one run, of those that `seconds` allow and two at least, after one that warms up."""
    times: list[float] = []
    work()
    while len(times) < 2 or sum(times) < seconds:
        _wait(where)
        began = time.perf_counter()
        work()
        _wait(where)
        times.append(time.perf_counter() - began)
    return min(times)


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
