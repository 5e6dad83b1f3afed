"""Distances with known answers, a policy against itself, and against lerobot."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lerobot_reference import build_policy, save_policy
from released import write_released
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.evals.config import VerifyConfig
from tailorbird.evals.course import Course, compare, correlation, load_course, save_course
from tailorbird.evals.scenes import fit_scenes, load_scenes
from tailorbird.evals.verify import verify
from tailorbird.evals.verify_report import check_plot, draw, table
from tailorbird.infer.policy import load_policy
from tailorbird.progress import console

QUICK = VerifyConfig(device="cpu", scenes=2, runs=2, dtype="float32")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, state of 5 and actions of 4 values, in lerobot's layout."""
    vlm, folder = tmp_path_factory.mktemp("vlm"), tmp_path_factory.mktemp("policy")
    write_released(vlm)
    generator = torch.Generator().manual_seed(0)
    stats = {
        key: {"mean": torch.randn(width, generator=generator), "std": 0.5 + torch.rand(width)}
        for key, width in (("observation.state", 5), ("action", 4))
    }
    return save_policy(build_policy(vlm), stats, folder)


@pytest.mark.parity
def test_in_fp32_a_policy_is_as_far_from_lerobot_as_rounding(policy: Path) -> None:
    found = verify(str(policy), replace(QUICK, against="reference"))
    assert found.distance.pcc_full > 1 - 1e-9
    assert found.distance.max_abs_error < 1e-4
    assert found.distance.max_action_error < 1e-4
    assert found.behaviour.variance == 0
    assert found.tested.velocities.shape == (10, 2, 7, 11)


@pytest.mark.parity
def test_a_wrong_weight_is_found(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*args: object, **options: object) -> object:
        found = load_policy(*args, **options)  # type: ignore[arg-type]
        found.model.state_in.weight.mul_(1.5)
        return found

    monkeypatch.setattr("tailorbird.evals.verify.load_policy", damaged)
    found = verify(str(policy), replace(QUICK, against="reference"))
    assert found.distance.pcc_full < 0.999999
    assert not found.passed


def test_a_policy_is_not_far_from_itself_in_bf16_and_heeds_what_it_sees(policy: Path) -> None:
    found = verify(str(policy), replace(QUICK, dtype="bfloat16", runs=20))
    assert found.distance.max_abs_error > 0
    assert 0.99 < found.distance.pcc_full < 1
    row = found.row()
    assert row["deterministic"]
    assert row["instruction_sensitive"]
    assert row["camera_sensitive"]
    assert row["order_sensitive"]
    assert row["states_from"] == "the policy's statistics, and chance"


def test_what_was_saved_is_what_it_is_compared_with(policy: Path, tmp_path: Path) -> None:
    first = verify(str(policy), QUICK)
    save_course(tmp_path / "a.safetensors", first.tested)
    again = verify(str(policy), replace(QUICK, against=str(tmp_path / "a.safetensors")))
    assert again.distance.max_abs_error == again.distance.max_action_error == 0
    assert again.distance.pcc_full == 1
    with pytest.raises(DataError, match="do not belong together"):
        verify(str(policy), replace(QUICK, against=str(tmp_path / "a.safetensors"), seed=1))


def test_files_that_hold_no_course_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_course(tmp_path / "none")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="was not written by"):
        load_course(tmp_path / "other.safetensors")


def test_without_lerobot_one_is_told_how_to_get_it(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lerobot.policies.smolvla.modeling_smolvla", None)
    with pytest.raises(ConfigError, match=r"lerobot cannot be imported.*pip install 'lerobot\[smolvla\]"):
        verify(str(policy), replace(QUICK, against="reference"))


def test_correlation_has_its_known_values() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert correlation(x, x) == 1
    assert correlation(x, -2 * x + 3) == pytest.approx(-1)
    assert correlation(x, 2 * x + 3) == pytest.approx(1, abs=1e-12)
    theirs = torch.corrcoef(torch.stack([x.flatten(), x.flatten() ** 2]).double())[0, 1]
    assert correlation(x, x**2) == pytest.approx(float(theirs))
    assert math.isnan(correlation(x, torch.ones(5, 7)))
    assert correlation(torch.ones(3), torch.ones(3)) == 1


def test_errors_are_counted_over_the_steps_that_they_name() -> None:
    noise, actions = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    v = torch.randn(10, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    other = v.clone()
    other[7, 0, 0, 0] += 0.5
    one, two = (Course(velocities=each, actions=actions, noise=noise) for each in (v, other))
    found = compare(one, two)
    assert found.pcc_1_step == found.pcc_5_steps == 1
    assert 0.99 < found.pcc_full < 1
    assert found.max_abs_error == pytest.approx(0.5)
    assert found.mean_abs_error == pytest.approx(0.5 / v.numel())


def test_each_camera_sees_another_scene_and_the_scenes_differ(policy: Path) -> None:
    seen, _ = fit_scenes(load_policy(policy, device="cpu").pipeline, 8)
    assert len({one.task for one in seen}) == len(load_scenes()) == 8
    for one in seen:
        first, second = one.images.values()
        assert first.shape == (192, 192, 3)
        assert (first != second).any()


@pytest.mark.parametrize("num", [9, 100])
def test_more_scenes_than_there_are_cannot_be_had(policy: Path, num: int) -> None:
    with pytest.raises(ConfigError, match="scenes from 2 to 8"):
        verify(str(policy), replace(QUICK, scenes=num))


def test_the_findings_are_shown_and_drawn(policy: Path, tmp_path: Path) -> None:
    found = verify(str(policy), replace(QUICK, min_pcc=1.1))
    assert not found.passed
    with console.capture() as printed:
        console.print(table(found))
    assert "FAIL" in printed.get()
    for hz in (None, 20.0):
        draw(replace(found, hz=hz), tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        check_plot(tmp_path / "a.svg")


def test_what_cannot_be_compared_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--against .*nowhere: no such file"):
        verify("no/policy", replace(QUICK, against=str(tmp_path / "nowhere")))
