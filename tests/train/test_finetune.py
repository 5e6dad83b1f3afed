"""Policies that go on learning: from where they are, on other data, in the layout that they have."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import CONFIG, HZ

sys.path.insert(0, str(Path(__file__).parents[1]))
from lerobot_reference import build_policy, save_policy
from released import write_released
from tailorbird.checkpoint.policy import read_policy, write_policy
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.errors import ConfigError, MissingStats
from tailorbird.infer.policy import load_policy
from tailorbird.infer.quant import policy_layers
from tailorbird.model.int8 import shrink
from tailorbird.processing.normalize import Normalizer
from tailorbird.recipes.config import TuneConfig, smolvla, tune
from tailorbird.recipes.finetune import finetune, load_for
from tailorbird.train.config import LearnConfig, LoraConfig, VLATrainConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.state import checkpoint_at

SHORT: VLATrainConfig = replace(CONFIG, steps=2, log_every=1, save_every=2, eval_every=2)
CFG = TuneConfig(train=SHORT)


@pytest.fixture
def policy(whole: Path) -> Path:
    return checkpoint_at(whole, CONFIG.steps)


@pytest.fixture
def moved(discs: Path, tmp_path: Path) -> Path:
    """The same data with other statistics."""
    root = tmp_path / "moved"
    root.mkdir()
    for path in discs.iterdir():
        if path.name != "meta":
            (root / path.name).symlink_to(path)
    (root / "meta").mkdir()
    for path in (discs / "meta").iterdir():
        if path.name == "stats.json":
            stats = json.loads(path.read_text())
            stats["action"]["mean"] = [2.0, -3.0]
            (root / "meta/stats.json").write_text(json.dumps(stats))
        else:
            (root / "meta" / path.name).symlink_to(path)
    return root


def mean_of(folder: Path) -> tuple[float, ...]:
    action = read_policy(folder)[1].action
    assert isinstance(action, Normalizer)
    return action.mean


def test_learning_begins_with_the_weights_of_the_policy(policy: Path, discs: Path, tmp_path: Path) -> None:
    gentle = replace(CFG, train=replace(SHORT, lr=1e-6, ema=0.0))
    trained = finetune(gentle, policy, discs, tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (policy, trained.checkpoint))
    for name, value in after.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-5, msg=name)
    assert not torch.equal(before["action_out.weight"], after["action_out.weight"])
    assert load_policy(trained.checkpoint).act(LeRobotDataset(discs).observe(3)).actions.shape == (4, 2)


def test_int8_weights_do_not_learn(policy: Path, discs: Path, tmp_path: Path) -> None:
    model, pipeline = read_policy(policy)
    shrink(model, policy_layers(model))
    (tmp_path / "int8").mkdir()
    write_policy(tmp_path / "int8", model.state_dict(), model.cfg, pipeline)
    with pytest.raises(ConfigError, match="is int8, which does not learn"):
        finetune(CFG, tmp_path / "int8", discs, tmp_path / "run")


def test_statistics_are_the_datasets_or_stay_the_policys(policy: Path, moved: Path, tmp_path: Path) -> None:
    finetune(CFG, policy, moved, tmp_path / "data")
    finetune(replace(CFG, stats="policy"), policy, moved, tmp_path / "own")
    assert mean_of(checkpoint_at(tmp_path / "data", 2)) == (2.0, -3.0)
    assert mean_of(checkpoint_at(tmp_path / "own", 2)) == mean_of(policy)


def test_a_policy_of_ours_has_no_sets_of_statistics_to_choose_from(
    policy: Path, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="statistics of its own"):
        finetune(replace(CFG, stats="so100"), policy, discs, tmp_path / "run")


def test_statistics_by_path_are_refused_with_the_words_that_there_are(
    policy: Path, discs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is a path: say dataset for those of --data"):
        finetune(replace(CFG, stats=str(discs)), policy, discs, tmp_path / "run")


def test_low_rank_updates_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one layer"):
        LoraConfig(rank=2, targets=())


def test_a_camera_that_the_dataset_lacks_is_named_with_those_that_there_are(
    policy: Path, discs: Path, tmp_path: Path
) -> None:
    config = json.loads((policy / "config.json").read_text())
    config["pipeline"]["cameras"] = ["wrist"]
    other = tmp_path / "other"
    other.mkdir()
    for path in policy.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has the cameras front, the policy asks for wrist: .*--rename"):
        finetune(CFG, other, discs, tmp_path / "run")
    misspelt = LearnConfig(lora=LoraConfig(rank=2, targets=("nothing",)))
    with pytest.raises(ConfigError, match=r"'nothing'.* names no layer"):
        finetune(replace(CFG, rename={"front": "wrist"}, learn=misspelt), other, discs, tmp_path / "run")
    # what was refused has not begun: the folder is free for the corrected command
    trained = finetune(replace(CFG, rename={"front": "wrist"}), other, discs, tmp_path / "run")
    assert read_policy(trained.checkpoint)[1].robot_cameras == ("front",)


def test_another_policy_or_another_part_in_the_same_folder_is_refused(
    policy: Path, whole: Path, discs: Path, tmp_path: Path
) -> None:
    finetune(CFG, policy, discs, tmp_path / "run")
    part = replace(CFG, learn=LearnConfig(part="expert"))
    for cfg, start in ((CFG, checkpoint_at(whole, 10)), (part, policy)):
        with pytest.raises(ConfigError, match="begun with other settings"):
            finetune(cfg, start, discs, tmp_path / "run")
    assert finetune(CFG, policy, discs, tmp_path / "run").finished


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)])
def test_what_waited_in_bf16_comes_out_as_a_policy_that_acts(
    policy: Path, discs: Path, tmp_path: Path, lora: LoraConfig
) -> None:
    learn = LearnConfig(part="expert", lora=lora, frozen_dtype="bfloat16")
    trained = finetune(replace(CFG, learn=learn), policy, discs, tmp_path / "run")
    seen = LeRobotDataset(discs).observe(3)
    before, after = (load_policy(folder, device="cpu").act(seen) for folder in (policy, trained.checkpoint))
    assert abs(after.actions - before.actions).max() < 1.0
    assert {value.dtype for value in load_file(trained.checkpoint / "model.safetensors").values()} == {
        torch.float32
    }


def test_a_frozen_part_comes_out_as_it_went_in(policy: Path, discs: Path, tmp_path: Path) -> None:
    for name, learn in {
        "expert": LearnConfig(part="expert"),
        "lora": LearnConfig(lora=LoraConfig(rank=2)),
    }.items():
        trained = finetune(replace(CFG, learn=learn), policy, discs, tmp_path / name)
        before, after = (load_file(folder / "model.safetensors") for folder in (policy, trained.checkpoint))
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], before[key]) for key in after if key.startswith("vlm."))
        first = read_metrics(tmp_path / name)[0]
        assert first["frozen_parameters"] > first["learned_parameters"] > 0


@pytest.mark.parity
def test_a_policy_whose_statistics_belong_to_nobody_learns_with_those_of_the_dataset(
    discs: Path, tmp_path: Path
) -> None:
    write_released(tmp_path / "vlm")
    stats = {f"so100.buffer.{key}": {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("action",)}
    base = save_policy(build_policy(tmp_path / "vlm", state=6, action=6), stats, tmp_path / "base")
    cfg = replace(smolvla(), train=replace(SHORT, batch=3), rename={"front": "camera1"}, without=("camera2",))
    data = LeRobotDataset(discs)
    model, pipeline = load_for(data, base, cfg)
    assert (model.cfg.state_dim, pipeline.state.width, pipeline.hz) == (9, 3, HZ)
    trained = finetune(cfg, base, discs, tmp_path / "run")
    assert json.loads((trained.checkpoint / "config.json").read_text())["type"] == "smolvla"
    with pytest.raises(MissingStats):
        finetune(replace(cfg, stats="policy"), base, discs, tmp_path / "own")


def test_the_recipe_for_small_policies_lets_everything_learn_and_smolvlas_only_the_expert() -> None:
    assert (tune().learn.part, smolvla().learn.part) == ("everything", "expert")
