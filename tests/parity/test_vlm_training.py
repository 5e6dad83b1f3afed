"""Steps of training against transformers and torch.optim: same losses, same gradients, same weights after."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import build_reference, config
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration

from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import convert
from tailorbird.model.build import build_model
from tailorbird.model.config import VLMConfig
from tailorbird.model.vlm import VLM
from tailorbird.train.config import LearnConfig, VLMTrainConfig
from tailorbird.train.lesson import Lesson
from tailorbird.train.optim import lr_at
from tailorbird.train.stages import choose
from tailorbird.train.state import State, start_state
from tailorbird.train.update import update
from tailorbird.train.vlm import Packed, VLMLesson, portion_of
from tailorbird.types import Rows

pytestmark = pytest.mark.parity

CFG = VLMTrainConfig(steps=9, lr=1e-3, warmup=2, clip=0.5, weight_decay=0.1, ema=0.0)
STEPS, WORDS = 3, 12


class Batches(Lesson[VLM, Packed]):
    """The losses of a VLMLesson, of rows that a test makes."""

    loss = VLMLesson.loss

    def __init__(self, model: VLMConfig) -> None:
        self.cfg, self.model = CFG, model

    @property
    def settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def steps(self, start: int, stop: int) -> Iterator[Sequence[Packed]]:
        raise NotImplementedError

    def evaluate(self, model: VLM) -> dict[str, float]:
        raise NotImplementedError

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        raise NotImplementedError


def batch_of(cfg: VLMConfig, step: int) -> Rows:
    """Two images in the first row, one in the second, which is shorter; no word is learned twice alike."""
    generator = torch.Generator().manual_seed(step)
    per, num = cfg.tokens_per_image, 2 * cfg.tokens_per_image + WORDS
    ids = torch.randint(3, 97, (2, num), generator=generator)
    ids[0, 1 : 1 + per] = ids[0, per + 3 : 2 * per + 3] = ids[1, 2 : 2 + per] = cfg.image_token_id
    segment = torch.zeros_like(ids)
    segment[1, -per:] = -1
    learned = torch.rand(ids.shape, generator=generator) < 0.6
    return Rows(
        ids=ids,
        positions=torch.arange(num).expand(2, -1),
        segment=segment,
        learned=learned & (segment >= 0),
        pixels=torch.rand(3, 3, 37, 37, generator=generator) * 2 - 1,
        tiles=(2, 1),
        names=(("a",), ("b",)),
        sources=(("one",), ("other",)),
    )


def loss_there(reference: SmolVLMForConditionalGeneration, rows: Rows, cfg: VLMConfig) -> Tensor:
    assert rows.pixels is not None
    zeros = torch.zeros(3, 37, 37)  # the reference wants as many images in every row
    pixels = torch.stack([rows.pixels[:2], torch.stack([rows.pixels[2], zeros])])
    labels = rows.ids.masked_fill(~rows.learned | (rows.ids == cfg.image_token_id), -100)
    mask = (rows.segment >= 0).long()
    return reference(input_ids=rows.ids, pixel_values=pixels, attention_mask=mask, labels=labels).loss


@pytest.mark.parametrize(("tied", "parts"), [(False, 1), (True, 1), (False, 2)])
def test_steps_equal_those_of_transformers_and_torchs_adamw(tied: bool, parts: int) -> None:
    cfg = config(tied=tied, shuffle=2)
    reference = build_reference(cfg, seed=0).train()
    model = build_model(cfg)
    assert isinstance(model, VLM)
    model.load_state_dict(convert(reference.state_dict(), vlm_rules(cfg)))
    state = start_state(model, choose(model, LearnConfig(), 0), CFG)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    named = [(name, one) for name, one in reference.named_parameters() if one.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": CFG.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, CFG.lr, CFG.betas)
    seen: dict[str, Tensor] = {}
    _keep_gradients(state, seen)
    for step in range(STEPS):
        rows = batch_of(cfg, step)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, CFG)
        loss = loss_there(reference, rows, cfg)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), CFG.clip)
        expected = {name: one.grad.clone() for name, one in named if one.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        portions = [portion_of(part, cfg.image_token_id, 0) for part in _split(rows, parts)]
        ours = update(state, portions, Batches(cfg), CFG)
        assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
        assert ours.norm == pytest.approx(norm.item(), rel=1e-5)
        for name, gradient in convert(expected, vlm_rules(cfg)).items():
            torch.testing.assert_close(seen[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
    after = convert(reference.state_dict(), vlm_rules(cfg))
    for name, value in model.state_dict().items():
        mine, theirs = value, after[name]
        if name.endswith("attn.qkv.bias"):  # a key's bias shifts a whole softmax: its gradient is noise
            mine, theirs = (torch.cat(one.chunk(3)[::2]) for one in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5, msg=name)
        assert not torch.equal(value, start[name]), name


def _keep_gradients(state: State[VLM], seen: dict[str, Tensor]) -> None:
    """Copy them as the optimizer gets them."""
    named = dict(state.model.named_parameters())

    def keep(*_: object) -> None:
        seen.update({name: one.grad.clone() for name, one in named.items() if one.grad is not None})

    state.optimizer.register_step_pre_hook(keep)


def _split(rows: Rows, parts: int) -> list[Rows]:
    if parts == 1:
        return [rows]
    assert rows.pixels is not None
    return [
        replace(
            rows,
            **{name: getattr(rows, name)[i : i + 1] for name in ("ids", "positions", "segment", "learned")},
            **{name: getattr(rows, name)[i : i + 1] for name in ("tiles", "names", "sources")},
            pixels=rows.pixels.split(list(rows.tiles))[i],
        )
        for i in range(2)
    ]
