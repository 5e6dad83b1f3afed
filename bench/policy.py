"""A chunk of actions of a SmolVLA by every path, beside lerobot's in one run.

The policy has the size of smolvla_base and random weights, drawn so large that every layer matters. Each path
is a process of its own that stays warm (bench/contender.py); they are asked in turn, so that a busy moment of
the machine hits all. A call is whole: from the cameras' bytes to actions in physical units, on both sides.
Peaks of memory are of a process, its loading included. Correlation and largest error are to lerobot in fp32,
of where the velocities lead, without the noise that all start from.

PYTHONPATH=tests python bench/policy.py [--quick]

Writes results/policy_cpu.json and README.md: a quarter of an hour on two cores, 3 GB of disk, 20 GB of
memory.
With --quick one camera alone, into runs/bench, for `tailorbird bench policy --check`.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contender import observe
from publish import write_readme
from released import words
from tailorbird.evals.course import correlation
from tailorbird.infer.policy import load_policy
from tailorbird.model.cost import chunk_cost, floor_s, policy_cost
from tailorbird.model.sizes import SMOLVLA_BASE
from tailorbird.model.vla import VLA
from tailorbird.perf.results import tables
from tailorbird.perf.roofline import measure_device
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.progress import console
from tailorbird.provenance import cores, stamp, versions
from tailorbird.recipes.quantise import quantise_policy
from tailorbird.storage import write_json
from turns import Asked
from verify import write_random

ROOT = Path(__file__).parents[1]
RESULTS, QUICK = ROOT / "results", ROOT / "runs/bench/policy_cpu.json"
ROUNDS = {1: 3, 2: 3, 3: 5}  # by cameras; a round is one call of each path, on pictures of its own
MAX_WORDS = 48  # what the policy cuts an instruction to
REFERENCE = ("lerobot", "float32")


@dataclass(frozen=True)
class Way:
    """A way to act. tier: as in the README; peer: the dtype of lerobot that it is measured against."""

    name: str
    dtype: str
    tier: str
    peer: str

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.dtype


PEERS = (Way("lerobot", "float32", "peer", "float32"), Way("lerobot", "bfloat16", "peer", "bfloat16"))
GROUPS = (  # which run side by side, each with the peers: all at once would take more than 20 GB
    (Way("torch", "float32", "exact", "float32"), Way("torch", "bfloat16", "exact", "bfloat16")),
    (
        Way("openvino", "float32", "tolerance", "float32"),
        Way("openvino", "bfloat16", "tolerance", "bfloat16"),
        Way("openvino", "int8", "task-gated", "bfloat16"),
    ),
)


class Contender(Asked):
    """A process that acts one way, from a folder of the policy."""

    def __init__(self, way: Way, folder: Path) -> None:
        self.way = way
        super().__init__(" ".join(way.key), "contender.py", *way.key, str(folder))


def draw(model: VLA) -> None:
    """Weights so large that every layer matters to the actions, which those of training's start do not."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        spread = value[0].numel() ** -0.5 if value.dim() > 1 else 0.3
        is_scale = value.dim() == 1 and name.endswith("weight")
        value.data = torch.randn(value.shape, generator=generator) * spread + is_scale


Answers = dict[tuple[str, str], list[dict[str, Any]]]


def play(contenders: Sequence[Contender], cameras: int, rounds: int) -> Answers:
    """Each path's answers to the same observations, after one call that warms up."""
    found: Answers = {one.way.key: [] for one in contenders}
    for scene in range(-1, rounds):
        told = []
        for one in contenders:
            answer = one.ask(cameras=cameras, scene=max(scene, 0))
            told.append(f"{' '.join(one.way.key)} {answer['ms']:.0f}")
            if scene >= 0:
                found[one.way.key].append(answer)
        title = f"round {scene + 1} of {rounds}" if scene >= 0 else "warm-up"
        print(f"cameras {cameras}, {title}, ms: {', '.join(told)}", flush=True)
    return found


def median_ms(answers: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(one["ms"] for one in answers)


def row(way: Way, cameras: int, found: Answers, floor_ms: float) -> dict[str, Any]:
    """One line of the table: how long, how close to lerobot in fp32, how far from the floor."""
    own, times = found[way.key], [one["ms"] for one in found[way.key]]
    ms, peer_ms = median_ms(own), median_ms(found["lerobot", way.peer])
    ours, theirs = (_moves(answers, cameras) for answers in (own, found[REFERENCE]))
    line = {
        "path": way.name,
        "tier": way.tier,
        "dtype": way.dtype,
        "cameras": cameras,
        "ms_p50": ms,
        "ms_spread": [min(times), max(times)],
        "peer": f"lerobot {way.peer}",
        "peer_ms_p50": peer_ms,
        "ratio": peer_ms / ms,
        "ratio_to_float32": median_ms(found[REFERENCE]) / ms,
        "pcc": correlation(ours, theirs),
        "max_abs_error": float((ours - theirs).abs().max()),
        "share_of_floor": floor_ms / ms,
        "peak_mib": max(one["peak_mib"] for one in own),
    }
    if "stages_ms" in own[0]:
        stages = {
            name: statistics.median(one["stages_ms"][name] for one in own) for name in own[0]["stages_ms"]
        }
        line |= {"stages_ms": stages, "reuse_share": stages["denoise"] / ms}
    return line


def _moves(answers: Sequence[Mapping[str, Any]], cameras: int) -> Tensor:
    """(rounds, L, A): where the velocities led, without the noise in which all paths agree."""
    noise = torch.cat([observe(cameras, scene)[1] for scene in range(len(answers))])
    actions = torch.tensor([one["actions"] for one in answers])
    return actions - noise[..., : actions.shape[-1]]


def measure(folder: Path, rounds: Mapping[int, int]) -> dict[str, Any]:
    policy, int8 = write_random(folder, draw), folder / "int8"
    quantise_policy(load_policy(policy, device="cpu"), int8, data=None, num=1, max_error=0.05)
    device = measure_device()
    num_words = InstructionTokenizer(words(), MAX_WORDS)([observe(1, 0)[0].task])[0].shape[1]
    rows, counts = [], {}
    for group in GROUPS:
        with ExitStack() as stack:
            contenders = [
                stack.enter_context(Contender(way, int8 if way.dtype == "int8" else policy))
                for way in (*PEERS, *group)
            ]
            for cameras, num in rounds.items():
                found = play(contenders, cameras, num)
                cost = policy_cost(SMOLVLA_BASE, cameras=cameras, words=num_words)
                stages = chunk_cost(cost, SMOLVLA_BASE).values()
                for way in (*PEERS, *group) if group is GROUPS[0] else group:
                    rows.append(row(way, cameras, found, 1e3 * floor_s(stages, device, way.dtype)))
            for one in contenders:
                counts[" ".join(one.way.key)] = one.ask(cameras=cameras, scene=0, count=True)
    return {
        "model": "smolvla_base, random weights",
        "rows": sorted(rows, key=lambda line: -line["cameras"]),
        "one_denoise_step": counts,
        "rounds": {str(cameras): num for cameras, num in rounds.items()},
        "steps": SMOLVLA_BASE.num_steps,
        "words": num_words,
        "threads": cores(),
        "device": {"source": device.source, "flops": dict(device.flops), "bytes_s": device.bytes_s},
    }


def main() -> None:
    quick = sys.argv[1:] == ["--quick"]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        result = measure(Path(folder), {1: 3} if quick else ROUNDS)
    peers = {name: metadata.version(name) for name in ("lerobot", "transformers", "openvino")}
    out, command = (
        (QUICK, "make bench-check") if quick else (RESULTS / "policy_cpu.json", "make bench-policy")
    )
    write_json(out, {**result, **stamp(command), "versions": {**versions(), **peers}})
    if not quick:
        write_readme("policy")
    for part in tables(out, "policy"):
        console.print(part)


if __name__ == "__main__":
    main()
