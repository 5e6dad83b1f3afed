"""What compiled calls leave alone in the process around them."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

INTERRUPTED = """
import signal
import torch
from torch import nn
from tailorbird.infer.openvino import Compiled

def compiled():
    return Compiled(nn.Linear(4, 3), [torch.zeros(1, 4)], "float32", 4)

first, second = compiled(), compiled()
del first  # the older one first
del second
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits its neglect
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("stopped in order")
"""


def test_ctrl_c_is_no_crash_after_models_have_come_and_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", INTERRUPTED], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "stopped in order\n"), done.stderr
