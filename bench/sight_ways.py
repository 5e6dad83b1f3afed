"""Three ways to the same pictures, compared on a model that sees: loss and right answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sight import Question, is_right
from tailorbird.infer.chat import ChatModel, ask, load_vlm
from tailorbird.infer.config import ImageOptions, Sampling
from tailorbird.model.vlm import VLM

CAMERA = 160  # px a side of the pictures compared: all ways must bring them to the size of a tile
MOST = 8  # tokens of an answer
UNLABELLED = -100


def compare(folder: Path, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Of every way the mean loss of a token of the answers, and the share of right answers.

    difference, points: from the exact way.
    """
    shown = [_enlarged(one.shown) for one in questions]
    fast = ImageOptions(fast=True)
    exact, tensor = load_vlm(folder, device="cpu"), load_vlm(folder, device="cpu", images=fast)
    found = {
        "exact": _chat(exact, questions, shown),
        "tensor": _chat(tensor, questions, shown),
        "bypass": _bypass(exact, questions, shown),
    }
    for one in found.values():
        one["loss_difference"] = one["loss"] - found["exact"]["loss"]
        one["points"] = 100 * (one["accuracy"] - found["exact"]["accuracy"])
    return found


def _enlarged(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((CAMERA, CAMERA), Image.Resampling.BICUBIC))


@torch.no_grad()
def _chat(chat: ChatModel, questions: Sequence[Question], shown: Sequence[np.ndarray]) -> dict[str, float]:
    losses, right = list[Tensor](), list[bool]()
    for one, picture in zip(questions, shown, strict=True):
        asked = ask(one.asked.question, images=[picture])
        told = chat.encode([*asked, {"role": "assistant", "content": one.asked.answer}], reply=False)
        labels = told.ids.masked_fill(~told.learned, UNLABELLED)
        losses.append(_losses(chat.logits(told), labels))
        right.append(is_right(chat.chat(asked, Sampling(max_tokens=MOST)).text, one.asked.answer))
    return {"loss": float(torch.cat(losses).mean()), "accuracy": sum(right) / len(right)}


@torch.no_grad()
def _bypass(chat: ChatModel, questions: Sequence[Question], shown: Sequence[np.ndarray]) -> dict[str, float]:
    """One bilinear tile, its features before the question and the answer; no markers, no turns."""
    model, words = chat.model, chat.processor.tokenizer
    assert isinstance(model, VLM)
    losses, right = list[Tensor](), list[bool]()
    side, end = model.cfg.vision.image_size, torch.tensor([chat.processor.end_id])
    for one, picture in zip(questions, shown, strict=True):
        pixels = torch.from_numpy(picture.copy()).movedim(-1, 0)[None].float()  # (1, 3, CAMERA, CAMERA)
        features = model.encode_images(F.interpolate(pixels, (side, side), mode="bilinear") / 127.5 - 1)
        asked, told = (
            torch.tensor([word.id for word in words.span(text, None, None)])
            for text in (one.asked.question, f" {one.asked.answer}")
        )
        told = torch.cat([told, end])
        before = features.shape[1] + len(asked)
        logits = _logits(model, features, torch.cat([asked, told]))
        labels = torch.cat([torch.full((before,), UNLABELLED), told])[None]
        losses.append(_losses(logits, labels))
        said = _greedy(model, features, asked, chat.end_ids)
        right.append(is_right(words.decode(said), one.asked.answer))
    return {"loss": float(torch.cat(losses).mean()), "accuracy": sum(right) / len(right)}


def _logits(model: VLM, features: Tensor, ids: Tensor) -> Tensor:
    """(1, tokens of the picture + T, V)"""
    x = torch.cat([features, model.decoder.embed(ids[None])], dim=1)  # (1, tokens + T, C)
    return model.logits(model.decoder(x))


def _greedy(model: VLM, features: Tensor, asked: Tensor, end_ids: frozenset[int]) -> list[int]:
    said: list[int] = []
    while len(said) < MOST:
        ids = torch.cat([asked, torch.tensor(said, dtype=asked.dtype)])
        token = int(_logits(model, features, ids)[0, -1].argmax())
        if token in end_ids:
            break
        said.append(token)
    return said


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each token that is learned, (num,). logits: (1, T, V); labels: (1, T)."""
    losses = F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], reduction="none")
    return losses[labels[0, 1:] != UNLABELLED]
