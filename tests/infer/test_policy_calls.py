"""What a policy refuses, whoever made it."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tailorbird
from lerobot_folder import write_folder
from tailorbird.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("policy") / "it")


def seen() -> tailorbird.Observation:
    pictures = {name: np.full((9, 12, 3), 80, np.uint8) for name in ("top", "image")}
    state = np.array([0, 1, 2, 3, 4], np.float32)
    return tailorbird.Observation(images=pictures, state=state, task="pick it up")


def test_an_option_that_there_is_not_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"load_policy has no withot: it takes .*without"):
        tailorbird.load_policy(folder, withot=["top"])  # type: ignore[call-arg]


def test_one_camera_may_be_left_out_by_its_bare_name(folder: Path) -> None:
    assert tailorbird.load_policy(folder, without="image").pipeline.seen_cameras == ("top",)


def test_noise_of_another_shape_and_no_observation_are_refused(folder: Path) -> None:
    policy = tailorbird.load_policy(folder, device="cpu")
    assert policy.act_batch([seen()], torch.zeros(1, 7, 11))[0].actions.shape == (7, 4)
    for shape in ((1, 3, 11), (1, 7, 4), (2, 7, 11)):
        with pytest.raises(DataError, match=r"1 observations and noise of .*with \(1, 7, 11\)"):
            policy.act_batch([seen()], torch.zeros(shape))
    with pytest.raises(DataError, match="0 observations and no noise: at least one is needed"):
        policy.act_batch([])
