"""What is exported acts the same elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from lerobot_folder import write_folder
from tailorbird.checkpoint.policy import write_policy
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.infer import export
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.wire import Observation

Typed = Callable[..., tuple[int | str | None, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps: each is written out."""
    policy = load_policy(write_folder(tmp_path_factory.mktemp("policy") / "ten"), device="cpu", num_steps=2)
    folder = tmp_path_factory.mktemp("two")
    write_policy(folder, policy.model.state_dict(), policy.model.cfg, policy.pipeline)
    return folder


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(folder, device="cpu")


def observations(num: int) -> list[Observation]:
    rng = np.random.default_rng(num)
    return [
        Observation(
            images={name: rng.integers(0, 256, (20, 24, 3), np.uint8) for name in ("top", "image")},
            state=np.array([i, 1, 2, 3, 4], np.float32),
            task="pick it up" if i else "put it down there",
        )
        for i in range(num)
    ]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_another_runtime_acts_as_the_policy_does_for_any_number_of_robots(
    policy: Policy, folder: Path, tmp_path: Path, typed: Typed, suffix: str
) -> None:
    out = tmp_path / f"policy{suffix}"
    code, printed = typed("export", folder, out)
    assert code == 0
    assert "actions within" in printed
    for num in (1, 4):
        seen, noise = observations(num), torch.randn(num, 7, 11)
        inputs = policy.pipeline.read(seen)
        given = (inputs.pixels, inputs.ids, inputs.ids_valid, inputs.state, noise)
        if suffix == ".onnx":
            session = onnxruntime.InferenceSession(out)
            told = json.loads(session.get_modelmeta().custom_metadata_map["tailorbird"])
            assert told["pipeline"]["cameras"] == ["top", "image"]
            feed = {name: value.numpy() for name, value in zip(export.INPUTS, given, strict=True)}
            found = torch.from_numpy(session.run(None, feed)[0])
        else:
            found = torch.export.load(out).module()(*given)
        expected = np.stack([chunk.actions for chunk in policy.act_batch(seen, noise)])
        assert np.abs(policy.pipeline.write(found) - expected).max() < 1e-4


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"says no format: name a file \.onnx or \.pt2"):
        export.export_policy(policy, tmp_path / "policy.tflite")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="would act otherwise"):
        export.export_policy(policy, tmp_path / "policy.pt2")
    monkeypatch.setattr(export, "SINGLE_BYTES", 10)
    with pytest.raises(ConfigError, match="do not fit into one file of ONNX"):
        export.export_policy(policy, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []
