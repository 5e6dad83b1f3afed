"""Peaks of this machine, and of a GPU where there is one."""

import pytest
import torch

from tailorbird.model.cost import DEVICES, NUMBERS, Cost, floor_s
from tailorbird.perf.roofline import measure_device, products


def test_the_peaks_of_this_processor_are_measured_and_say_so() -> None:
    found = measure_device(seconds=0.02)
    assert found.flops.keys() == {"float32", "bfloat16", "int8"}
    assert all(1e9 < rate < 1e15 for rate in found.flops.values())
    assert 1e8 < found.bytes_s < 1e13
    assert found.source == f"measured, threads: {torch.get_num_threads()}"
    assert floor_s([Cost(flops=10**12)], found, "int4") == 1e12 / found.flops["bfloat16"]


def test_every_kernel_that_is_timed_makes_the_same_product() -> None:
    for dtype, kernels in products(torch.device("cpu"), 5, 64, 32).items():
        first, *others = (kernel().float() for kernel in kernels)
        assert first.shape == (5, 32)
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-2, atol=1e-1 if dtype == "bfloat16" else 1e-4)
        if dtype == "int8":
            assert first.unique().item() == 64


def test_figures_of_named_devices_are_theoretical_and_say_so() -> None:
    assert {"H200", "H100", "A100", "RTX 4090", "L4", "Jetson AGX Orin"} == DEVICES.keys()
    for device in DEVICES.values():
        assert device.source.startswith("theoretical")
        assert device.flops["float32"] < device.flops["bfloat16"] < device.flops["int8"]
        assert all(number.computed_in in device.flops for number in NUMBERS.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peaks_of_a_gpu_are_measured() -> None:
    found = measure_device("cuda", seconds=0.1)
    assert found.flops.keys() == {"float32", "bfloat16", "float16", "int8"}
    assert found.source == "measured"
    assert found.flops["bfloat16"] > found.flops["float32"]
