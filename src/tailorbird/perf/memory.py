"""Peak memory of one process that loads a model and answers once on a CPU, from the configuration.

It is the process itself, measured in a fresh one when asked, the weights as they are loaded, the pictures,
and the work at its widest. bench/memory.py compares it with what processes need.
"""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from tailorbird.checkpoint.fill import without_weights
from tailorbird.errors import ConfigError
from tailorbird.model.config import VLAConfig, VLMConfig
from tailorbird.model.cost import prefix_length
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM

STATUS = Path("/proc/self/status")
TILES_AT_ONCE = 8  # of `draw_tokens`
SLACK = 1.4  # of the C library, which keeps some freed blocks: 1.1 to 2.4 times what is alive was measured
KEPT_BELOW = 32 << 20  # bytes; glibc gives larger blocks back as soon as they are freed
PROCESS = """
import tailorbird.__main__, tailorbird.infer.chat, tailorbird.infer.policy
import torch
from tailorbird.model.sizes import TINY
from tailorbird.model.vlm import VLM
from tailorbird.perf.memory import peak_bytes
model, side = VLM(TINY.vlm), TINY.vlm.vision.image_size
with torch.inference_mode():
    for kind in (torch.float32, torch.bfloat16):
        features = model.to(kind).encode_images(torch.zeros(1, 3, side, side, dtype=kind))
        model.logits(model.decoder(features))
print(peak_bytes())
"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak, by what they are for."""

    process: int  # interpreter, libraries, what they set up
    weights: int
    pixels: int  # as prepared, and in the model's dtype
    work: int  # of the widest stage, with the keys and values that are there by then

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def peak_bytes() -> int:
    """The most memory that this process has had, shared libraries and mapped files included.

    The system's ru_maxrss would not do: a child starts with that of the process that made it.

    Raises:
        ConfigError: the system does not say.
    """
    if not STATUS.exists():
        raise ConfigError(f"peak memory is read from {STATUS}, which this system lacks: estimate on Linux")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def process_bytes() -> int:
    """Of a fresh process that has imported all and run a tiny model: a few seconds.

    Raises:
        ConfigError: as `peak_bytes`, or the process failed.
    """
    done = subprocess.run([sys.executable, "-c", PROCESS], check=False, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"a fresh process could not be measured ({reason}): see what `tailorbird doctor` finds"
        )
    return int(done.stdout)


def policy_memory(cfg: VLAConfig, *, cameras: int, words: int, dtype: str, process: int) -> Memory:
    """Of one chunk of actions. dtype: of what the release has in bf16."""
    size, decoder = getattr(torch, dtype).itemsize, cfg.vlm.decoder
    places = prefix_length(cfg, cameras, words)
    layers = decoder.num_layers + cfg.expert.num_layers  # of the decoder, and what the expert makes of them
    kv = 2 * layers * decoder.num_kv_heads * decoder.head_dim
    return Memory(
        process=process,
        weights=_weights(cfg, dtype),
        pixels=_pixels(cfg.vlm, cameras, size),
        work=_work(cfg.vlm, cameras, places, size, head=0, cache=kv * places),
    )


def vlm_memory(cfg: VLMConfig, *, tiles: int, tokens: int, answer: int, dtype: str, process: int) -> Memory:
    """Of a prompt of `tiles` pictures and `tokens` tokens, theirs included, and of its answer."""
    size, decoder = getattr(torch, dtype).itemsize, cfg.decoder
    kv = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim
    together, head = min(tiles, TILES_AT_ONCE), decoder.width * decoder.vocab
    return Memory(
        process=process,
        weights=_weights(cfg, dtype),
        pixels=_pixels(cfg, tiles, size),
        work=_work(cfg, together, tokens, size, head=head, cache=kv * (tokens + answer)),
    )


def _weights(cfg: VLAConfig | VLMConfig, dtype: str) -> int:
    kind = getattr(torch, dtype)
    with without_weights():
        model = VLA(cfg).narrow(kind) if isinstance(cfg, VLAConfig) else VLM(cfg).to(kind)
    return sum(value.nbytes for value in model.parameters())


def _pixels(cfg: VLMConfig, images: int, size: int) -> int:
    return images * 3 * cfg.vision.image_size**2 * (4 if size == 4 else 4 + size)


def _work(cfg: VLMConfig, images: int, tokens: int, size: int, *, head: int, cache: int) -> int:
    """Bytes of the widest stage: what is alive in an MLP, a copy of the largest weight, and what stays.

    size: of a value. oneDNN reorders a weight of 16 bits in each call; MKL, for fp32, copies none.
    """
    vision, decoder = cfg.vision, cfg.decoder
    patches, connector = images * vision.grid**2, vision.width * cfg.shuffle**2 * decoder.width
    around, inside = 2 * vision.width + 2 * vision.mlp_dim, 2 * decoder.width + 4 * decoder.mlp_dim
    stages = (  # rows, what is alive of each, the largest block of it, the largest weight, what stays
        (patches, around, vision.mlp_dim, vision.width * vision.mlp_dim, 0),
        (patches, 2 * vision.width, vision.width, connector, 0),
        (tokens, inside, decoder.mlp_dim, max(head, decoder.width * decoder.mlp_dim), cache),
    )
    widest = 0.0
    for rows, alive, block, weight, stays in stages:
        slack = SLACK if rows * block * size < KEPT_BELOW else 1
        widest = max(widest, slack * rows * alive + weight * (size < 4) + stays)
    return int(widest * size)
