"""A fine-tuning step against lerobot's: same loss, same gradients, same weights after it, and it loads there.

Both begin with the same checkpoint in lerobot's layout and read the same rows of one dataset, lerobot through
its own processors. Noise and time are drawn here and given to both.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from lerobot_reference import MODEL, build_policy, make_processors, save_policy
from released import write_released
from tailorbird.checkpoint.smolvla import vla_rules
from tailorbird.checkpoint.table import convert
from tailorbird.data.config import LoadConfig
from tailorbird.data.frames import load_frames
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.data.loader import Loader
from tailorbird.data.order import batch_rows, seed_of
from tailorbird.infer.policy import load_policy
from tailorbird.model.flow import sample_time
from tailorbird.model.vla import VLA
from tailorbird.recipes.config import TuneConfig, smolvla
from tailorbird.recipes.finetune import finetune, load_for
from tailorbird.train.config import Learn, LearnConfig
from tailorbird.train.optim import lr_at
from tailorbird.train.stages import choose
from tailorbird.train.state import State, start_state
from tailorbird.train.update import update
from tailorbird.train.vla import VLALesson

pytestmark = pytest.mark.parity

BATCH, STEPS = 5, 3
FREE: dict[Learn, dict[str, bool]] = {  # lerobot's switches
    "expert": {"train_expert_only": True, "freeze_vision_encoder": True},
    "all_but_vision": {"train_expert_only": False, "freeze_vision_encoder": True},
    "everything": {"train_expert_only": False, "freeze_vision_encoder": False},
}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_released(folder)
    return folder


def stats_of(data: LeRobotDataset) -> dict[str, dict[str, Tensor]]:
    return {
        key: {name: torch.tensor(value).float() for name, value in data.stats[key].items()}
        for key in ("observation.state", "action")
    }


def tuning(part: Learn = "expert") -> TuneConfig:
    """lerobot's preset at a hundred times the rate: what differs shows in few steps."""
    cfg = smolvla()
    schedule = replace(cfg.train, batch=BATCH, steps=STEPS, lr=1e-2, decay_steps=0, warmup=2, held_out=0.25)
    often = replace(schedule, log_every=1, eval_every=STEPS, save_every=STEPS, threads=1)
    learn = LearnConfig(part=part)
    return replace(cfg, train=often, learn=learn, rename={"front": "camera1"}, without=("camera2",))


@dataclass
class Both:
    """The reference, its inputs, and ours, before the first step."""

    theirs: Any
    before: Any  # processor
    loader: Loader
    state: State[VLA]
    folder: Path

    def batch_there(self, step: int) -> dict[str, Any]:
        data, cfg = self.loader.data, self.loader.cfg
        rows = self.loader.rows[batch_rows(len(self.loader.rows), cfg.batch, cfg.seed, step)]
        seen = [data.observe(row) for row in rows]
        pictures = torch.stack([torch.from_numpy(one.images["front"].copy()) for one in seen])
        return self.before(
            {
                "observation.images.camera1": pictures.movedim(-1, 1).float() / 255,
                "observation.state": torch.from_numpy(data.state[rows]),
                "action": torch.from_numpy(data.chunk(rows, cfg.chunk)[0]),
                "task": [one.task for one in seen],
            }
        )

    def drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """Noise and time as our step draws them."""
        cfg = self.state.model.cfg
        generator = torch.Generator().manual_seed(seed_of(0, step))
        noise = torch.randn(BATCH, cfg.chunk, cfg.action_dim, generator=generator)
        return noise, sample_time(BATCH, generator)

    def loss_there(self, step: int) -> Tensor:
        noise, t = self.drawn(step)
        return self.theirs.forward(self.batch_there(step), noise=noise, time=t)[0]

    def named(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return convert(values, vla_rules(self.state.model.cfg))


def build(vlm: Path, discs: Path, tmp_path: Path, part: Learn) -> Both:
    data = LeRobotDataset(discs)
    theirs = build_policy(vlm, state=3, action=2, **FREE[part])
    folder = save_policy(theirs, stats_of(data), tmp_path / "theirs")
    cfg = tuning(part)
    model, pipeline = load_for(data, folder, cfg)
    groups = choose(model, cfg.learn, 0)
    frames = load_frames(data, pipeline.image, pipeline.robot_cameras, tmp_path / "frames", 1)
    load = LoadConfig(chunk=model.cfg.chunk, batch=BATCH)
    loader = Loader(data, frames, pipeline, rows=torch.arange(len(data)).numpy(), cfg=load)
    state = start_state(model, groups, cfg.train)
    theirs.train()
    return Both(theirs, make_processors(theirs, stats_of(data))[0], loader, state, folder)


@pytest.mark.parametrize("part", FREE)
def test_steps_of_adamw_change_the_weights_as_those_of_lerobot_do(
    vlm: Path, discs: Path, tmp_path: Path, part: Learn
) -> None:
    both, cfg = build(vlm, discs, tmp_path, part), tuning(part).train
    preset = both.theirs.config.get_optimizer_preset()
    optimizer = torch.optim.AdamW(
        both.theirs.parameters(), cfg.lr, preset.betas, preset.eps, preset.weight_decay
    )
    start = {name: value.clone() for name, value in both.state.model.state_dict().items()}
    lesson = VLALesson(cfg, both.state.model.cfg, both.loader, both.loader.pipeline, lambda model: {})
    past_the_end = 0
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, cfg)
        loss = both.loss_there(step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(both.theirs.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        batch = both.loader.at(step)
        past_the_end += int((~batch.valid).sum())
        ours = update(both.state, lesson.portions(batch, step), lesson, cfg)
        assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
        assert ours.norm == pytest.approx(norm.item(), rel=1e-4)
    assert past_the_end  # lerobot learns to hold the last action there
    after = both.named(both.theirs.state_dict())
    moved = 0.0
    for name, value in both.state.model.named_parameters():
        mine, their = value.detach(), after[name]
        if name.endswith("attn.qkv.bias"):  # a key's bias shifts a whole softmax: its gradient is noise
            mine, their = (torch.cat(one.chunk(3)[::2]) for one in (mine, their))
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-4)
        if not value.requires_grad:
            assert torch.equal(value, start[name]), name
        moved = max(moved, (value.detach() - start[name]).abs().max().item())
    assert moved > 100 * 1e-4  # far more than what is allowed to differ


@pytest.mark.parametrize("steps", [600, 30_000, 40_000])
def test_the_learning_rate_is_that_of_lerobots_schedule(vlm: Path, steps: int) -> None:
    config, cfg = build_policy(vlm).config, replace(smolvla().train, steps=steps)
    one = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], config.optimizer_lr)
    scheduler = config.get_scheduler_preset().build(one, steps)
    rate = scheduler.lr_lambdas[0]
    for step in (0, 1, 7, 19, 20, 21, 999, 1000, 1001, steps // 2, steps - 1):
        assert lr_at(step, cfg) == pytest.approx(config.optimizer_lr * rate(step), rel=1e-9), step


def test_the_preset_is_lerobots(vlm: Path) -> None:
    preset, cfg = build_policy(vlm).config.get_optimizer_preset(), smolvla().train
    found = (cfg.lr, cfg.betas, cfg.weight_decay, cfg.clip)
    assert found == (preset.lr, preset.betas, preset.weight_decay, preset.grad_clip_norm)


def test_what_was_trained_here_loads_in_lerobot_and_has_the_same_loss_there(
    vlm: Path, discs: Path, tmp_path: Path
) -> None:
    both = build(vlm, discs, tmp_path, "expert")
    trained = finetune(tuning(), both.folder, discs, tmp_path / "run")
    theirs = MODEL.SmolVLAPolicy.from_pretrained(trained.checkpoint, strict=True)
    ours = load_policy(trained.checkpoint, device="cpu")
    again = Both(
        theirs, make_processors(theirs, stats_of(both.loader.data))[0], both.loader, both.state, both.folder
    )
    noise, t = again.drawn(0)
    batch = both.loader.at(0)
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * batch.actions
    loss = (ours.model(batch.inputs, x_t, t) - (noise - batch.actions)).square().mean()
    assert loss.item() == pytest.approx(again.loss_there(0).item(), rel=1e-5)
    assert loss.item() != pytest.approx(both.loss_there(0).item(), rel=1e-2)  # it has learned


def test_a_robot_with_other_values_than_the_policys_can_be_learned(
    vlm: Path, discs: Path, tmp_path: Path
) -> None:
    data = LeRobotDataset(discs)
    other = {"observation.state": (6,), "action": (5,)}
    stats = {key: {"mean": torch.zeros(n), "std": torch.ones(n)} for key, n in other.items()}
    folder = save_policy(build_policy(vlm, state=6, action=5), stats, tmp_path / "theirs")
    trained = finetune(tuning(), folder, discs, tmp_path / "run")
    theirs = MODEL.SmolVLAPolicy.from_pretrained(trained.checkpoint, strict=True)
    assert theirs.config.input_features["observation.state"].shape == (3,)
    assert theirs.config.output_features["action"].shape == (2,)
    seen = data.observe(0)
    assert load_policy(trained.checkpoint, device="cpu").act(seen).actions.shape == (7, 2)
