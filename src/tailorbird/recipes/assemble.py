"""A VLM from components: a trained image tower, a fresh connector, a trained language model."""

from dataclasses import dataclass, replace
from pathlib import Path

from tailorbird.checkpoint.components import VisionTower, read_text, read_vision
from tailorbird.checkpoint.gguf import TextTower
from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.errors import ConfigError
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.connector import Connector
from tailorbird.model.init import (
    grow_vocabulary,
    initialise_connector,
    initialise_vision,
    resize_positions,
)
from tailorbird.model.vision import Vision
from tailorbird.model.vlm import VLM
from tailorbird.processing.chat import SMOLVLM
from tailorbird.processing.processor import Processor
from tailorbird.processing.tiles import TileSpec
from tailorbird.processing.video import VideoSpec
from tailorbird.recipes.markers import Vocabulary, add_markers
from tailorbird.recipes.parts import FRESH, Parts

ENDED = "<|im_end|>"  # what ends a turn in the text models of the family
TILES_A_SIDE = 4  # a picture's long side in tiles, as in all releases


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A VLM that has learned nothing yet about pictures. notes: what was done, for people."""

    model: VLM
    processor: Processor
    end_ids: frozenset[int]
    notes: tuple[str, ...]


def init(parts: Parts, out: Path) -> Assembled:
    """Assemble and save, all or nothing.

    Raises:
        ConfigError: the parts do not fit each other, or `out` holds something.
        CheckpointError: a component cannot be read.
    """
    import torch

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: choose another --out, or delete it")
    made = assemble(parts)
    dtype = getattr(torch, parts.dtype)
    weights = {name: value.to(dtype) for name, value in made.model.state_dict().items()}
    write_vlm(out, weights, made.model.cfg, made.processor, end_ids=made.end_ids)
    return made


def assemble(parts: Parts) -> Assembled:
    """Put a VLM together, in fp32. The same parts give the same weights, bit for bit.

    New tokens start as `grow_vocabulary` says, but for `<end_of_utterance>`: it is a copy of `<|im_end|>`, if
    there is such a token. The turn ends where the text model ended it, and both tokens end an answer. The
    head is always a table of its own, as in the released family.

    Raises:
        ConfigError: the parts do not fit each other.
        CheckpointError: a component cannot be read.
    """
    import torch

    notes: list[str] = []
    vision = _build_vision(parts, notes)
    text = read_text(parts.text, dtype=torch.float32)
    words = add_markers(text.tokenizer, text.model.cfg.vocab)
    cfg = VLMConfig(
        vision=vision.cfg,
        decoder=_decoder_config(text.model.cfg, parts, words, notes),
        shuffle=parts.shuffle,
        image_token_id=words.image_id,
    )
    with torch.device("meta"):
        model = VLM(cfg)
    copies = {words.end_id: words.tokenizer.id(ENDED)} if words.tokenizer.has(ENDED) else {}
    weights = grow_vocabulary(text.model, words.num_words, words.size, copies, parts.seed)
    connector = Connector(vision.cfg.width, cfg.decoder.width, cfg.shuffle)
    for name, part in {"vision": vision.model, "connector": connector}.items():
        weights |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    model.eval()
    initialise_connector(model, words.num_words, parts.seed)
    return Assembled(
        model=model,
        processor=_processor(cfg, words),
        end_ids=frozenset({words.end_id, *text.end_ids}),
        notes=(*_summary(parts, model, text, words), *notes),
    )


def _build_vision(parts: Parts, notes: list[str]) -> VisionTower:
    """The tower for the wanted image size, whose grid the ratio must divide."""
    if parts.vision == FRESH:
        cfg = VisionConfig(image_size=parts.image_size or VisionConfig().image_size)
        _require_ratio(cfg, parts.shuffle)
        fresh = Vision(cfg)
        initialise_vision(fresh, parts.seed)
        notes.append("NOTE: the image tower is random: good for trying things out, and for nothing else")
        return VisionTower(fresh, cfg)
    tower, own = read_vision(parts.vision)
    cfg = own if parts.image_size is None else replace(own, image_size=parts.image_size)
    _require_ratio(cfg, parts.shuffle)
    if cfg.grid != own.grid:
        positions = resize_positions(tower.positions.weight.data, cfg.grid)
        tower.positions = type(tower.positions).from_pretrained(positions)
        notes.append(
            f"NOTE: the position embedding of {own.grid} x {own.grid} patches ({own.image_size} px) was "
            f"interpolated bicubically to {cfg.grid} x {cfg.grid} ({cfg.image_size} px): train the tower too"
        )
    return VisionTower(tower, cfg)


def _require_ratio(cfg: VisionConfig, shuffle: int) -> None:
    if cfg.grid % shuffle:
        fitting = ", ".join(f"{n} ({(cfg.grid // n) ** 2} tokens)" for n in range(1, 33) if cfg.grid % n == 0)
        raise ConfigError(
            f"--shuffle {shuffle} does not divide the grid of {cfg.grid} x {cfg.grid} patches that "
            f"{cfg.image_size} px in patches of {cfg.patch_size} give: take one of {fitting}, or another "
            "--image-size"
        )


def _decoder_config(cfg: DecoderConfig, parts: Parts, words: Vocabulary, notes: list[str]) -> DecoderConfig:
    theta, context = parts.rope_theta or cfg.rope_theta, parts.context or cfg.max_positions
    if theta != cfg.rope_theta:
        notes.append(
            f"NOTE: RoPE theta is {theta:g}, the text model learned {cfg.rope_theta:g}: it speaks worse "
            "until it is trained"
        )
    if context > cfg.max_positions:
        notes.append(
            f"NOTE: a context of {context} tokens, the text model learned {cfg.max_positions}: train on long "
            "prompts before you rely on it"
        )
    return replace(cfg, vocab=words.size, max_positions=context, rope_theta=theta, tied=False)


def _processor(cfg: VLMConfig, words: Vocabulary) -> Processor:
    """Frames of videos are never split, so they need not be larger than a tile; SmolVLM2-2.2B does so too."""
    tile = cfg.vision.image_size
    return Processor(
        tokenizer=words.tokenizer,
        chat=SMOLVLM,
        tokens_per_tile=cfg.tokens_per_image,
        tiles=TileSpec(tile=tile, longest_edge=TILES_A_SIDE * tile),
        video=VideoSpec(longest_edge=tile),
    )


def _summary(parts: Parts, model: VLM, text: TextTower, words: Vocabulary) -> list[str]:
    def count(*names: str) -> str:
        found = model.state_dict().items()
        return f"{sum(v.numel() for k, v in found if k.startswith(names)):,} parameters"

    vision, decoder = model.cfg.vision, model.cfg.decoder
    head = "a copy of its embedding, then its own" if text.model.head is None else "its own"
    return [
        f"image tower: {count('vision.')}, {vision.image_size} px in patches of {vision.patch_size}, "
        f"from {parts.vision}",
        f"connector: {count('connector.')}, new, {model.cfg.tokens_per_image} tokens per tile",
        f"text model: {count('decoder.', 'head.')}, context {decoder.max_positions}, head {head}, "
        f"from {parts.text}",
        f"all: {count('')}",
        f"added: {words.size - words.num_words} tokens, {words.num_words} to {words.size - 1}; "
        f"vocabulary {words.size}",
    ]
