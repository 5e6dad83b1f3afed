"""Predicted memory: sums with known answers, and processes that are measured."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from released import CFG, write_released
from tailorbird.errors import ConfigError
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.cost import prefix_length
from tailorbird.model.sizes import SMOLVLA_BASE, SMOLVLM2_256M
from tailorbird.perf import memory
from tailorbird.perf.memory import Memory, peak_bytes, policy_memory, process_bytes, vlm_memory
from tiny import TINY_VLA

CHAT = """
from tailorbird.__main__ import main
from tailorbird.perf.memory import peak_bytes
main()
print(peak_bytes())
"""
MIDDLE = VLMConfig(  # 66 million parameters, two layers as wide as the 256M's
    vision=VisionConfig(num_layers=2),
    decoder=DecoderConfig(num_layers=2),
    image_token_id=CFG.image_token_id,
)


def test_the_parts_of_a_peak_add_up() -> None:
    found = Memory(process=1, weights=20, pixels=300, work=4000)
    assert found.total == 4321


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_weights_and_pixels_are_counted_exactly(dtype: str, size: int) -> None:
    found = vlm_memory(SMOLVLM2_256M, tiles=3, tokens=200, answer=10, dtype=dtype, process=7)
    assert found.process == 7
    assert found.weights == 256_484_928 * size
    assert found.pixels == 3 * 3 * 512**2 * {"float32": 4, "bfloat16": 6}[dtype]


def test_a_narrow_policy_keeps_what_the_release_keeps_wide() -> None:
    narrow, wide = (
        policy_memory(SMOLVLA_BASE, cameras=1, words=48, dtype=dtype, process=0)
        for dtype in ("bfloat16", "float32")
    )
    assert wide.weights == 4 * 450_046_176
    assert 2 * 450_046_176 < narrow.weights < 1.01 * 2 * 450_046_176
    positions = prefix_length(TINY_VLA, 2, 5)
    assert positions == 2 * TINY_VLA.vlm.tokens_per_image + 5 + 1


def test_more_tiles_than_are_looked_at_together_need_no_wider_work() -> None:
    def work(tiles: int) -> int:
        return vlm_memory(SMOLVLM2_256M, tiles=tiles, tokens=99, answer=1, dtype="float32", process=0).work

    assert work(1) < work(8) == work(17)


@pytest.fixture(scope="module")
def process() -> int:
    return process_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_process_that_answers_needs_what_was_predicted(tmp_path: Path, process: int, dtype: str) -> None:
    """Needs Linux. The released sizes are measured by bench/memory.py."""
    write_released(tmp_path / "vlm", MIDDLE, getattr(torch, dtype))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    words = ["chat", str(tmp_path / "vlm"), "--image", str(tmp_path / "photo.png"), "--no-split"]
    command = [sys.executable, "-c", CHAT, *words, "--device", "cpu", "--max-tokens", "3", "what?"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens = MIDDLE.tokens_per_image + 20
    predicted = vlm_memory(MIDDLE, tiles=1, tokens=tokens, answer=3, dtype=dtype, process=process)
    assert predicted.total == pytest.approx(int(done.stdout.split()[-1]), rel=0.1)


def test_a_system_that_does_not_tell_the_peak_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    with pytest.raises(ConfigError, match="estimate on Linux"):
        peak_bytes()


def test_a_process_that_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESS", "raise OSError('no room')")
    with pytest.raises(ConfigError, match="OSError: no room"):
        process_bytes()


def test_a_long_prompt_is_wider_than_its_pictures_and_keeps_its_keys_and_values() -> None:
    def work(tokens: int, answer: int) -> int:
        return vlm_memory(
            SMOLVLM2_256M, tiles=1, tokens=tokens, answer=answer, dtype="float32", process=0
        ).work

    assert work(100, 1) == work(100, 500) < work(7000, 1)
    assert work(7000, 501) - work(7000, 1) == 2 * 30 * 3 * 64 * 500 * 4
