"""What a released folder says about pictures, videos, words and turns, and back.

Pictures are settled by processor_config.json (since transformers 5) or preprocessor_config.json, videos by
either or by video_preprocessor_config.json. Fields that are missing or null take the defaults of the
reference's classes.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailorbird.checkpoint.folder import read_object, read_optional, read_template, read_words
from tailorbird.checkpoint.released import LARGEST
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.model.config import VLMConfig
from tailorbird.processing.pieces import AROUND, WHOLE
from tailorbird.processing.processor import Processor
from tailorbird.processing.template import find_format
from tailorbird.processing.text import IMAGE, ChatTokenizer
from tailorbird.processing.tiles import TileSpec
from tailorbird.processing.video import VideoSpec

EDGE, TILE = 4 * 364, 364  # defaults of the reference's classes
FIXED: dict[str, Any] = {  # what the pixels are made by, with no other code path
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
    "do_convert_rgb": True,
    "resample": 1,  # LANCZOS
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
OTHER = "use a model whose pictures are prepared as SmolVLM's"


def read_processor(folder: Path, cfg: VLMConfig) -> Processor:
    """All that a model does besides the network.

    Raises:
        CheckpointError: a file is missing or damaged, asks for pixels that are not made here, or contradicts
            the model.
    """
    joint = read_optional(folder / "processor_config.json")
    pictures, picture_file = _part(folder, joint, "image_processor", ("preprocessor_config.json",))
    videos, video_file = _part(
        folder, joint, "video_processor", ("video_preprocessor_config.json", "preprocessor_config.json")
    )
    for settings, source in ((pictures, picture_file), (videos, video_file)):
        _require_fixed(settings, source)
        tile = _edge(settings, "max_image_size", TILE, source)
        if tile != cfg.vision.image_size:
            raise CheckpointError(
                f"{source}: max_image_size makes tiles of {tile} px, the image tower of config.json reads "
                f"{cfg.vision.image_size} px: fetch both files of one model"
            )
    length = joint.get("image_seq_len", cfg.tokens_per_image)
    if length != cfg.tokens_per_image:
        raise CheckpointError(
            f"{folder}/processor_config.json: image_seq_len is {reprlib.repr(length)}, and by config.json a "
            f"tile has {cfg.tokens_per_image} tokens: fetch both files of one model"
        )
    found = read_template(folder)
    if found is None:
        raise CheckpointError(
            f"{folder} has no chat template: chat_template.jinja is missing, take that of an Instruct model "
            "of the family"
        )
    template, template_file = found
    tokenizer = _tokenizer(folder / "tokenizer.json", cfg)
    try:
        return Processor(
            tokenizer=tokenizer,
            chat=find_format(template, str(template_file)),
            tokens_per_tile=cfg.tokens_per_image,
            tiles=TileSpec(
                longest_edge=_edge(pictures, "size", EDGE, picture_file),
                tile=cfg.vision.image_size,
                split=_truth(pictures, "do_image_splitting", picture_file),
                upscale=_truth(pictures, "upscale", picture_file),
            ),
            video=_video(videos, video_file),
        )
    except (ConfigError, DataError) as error:
        reason = " ".join(str(error).split())  # that of a template engine has several lines
        raise CheckpointError(f"{folder}: {reason}") from error


def processor_files(processor: Processor, cfg: VLMConfig) -> dict[str, Any]:
    """The files of a processor by name: JSON, or text. Old and new transformers read this layout."""
    tiles, video, tokenizer = processor.tiles, processor.video, processor.tokenizer
    pad = tokenizer.decode([processor.pad_id], skip_special=False)
    named = {"bos_token": "<|im_start|>", "eos_token": processor.chat.end, "pad_token": pad}
    sampling = {
        "fps": video.fps,
        "max_frames": video.max_frames,
        "video_size": {"longest_edge": video.longest_edge},
    }
    pixels = {**FIXED, "max_image_size": {"longest_edge": tiles.tile}, "processor_class": "SmolVLMProcessor"}
    return {
        "preprocessor_config.json": {
            **pixels,
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": tiles.longest_edge},
            "do_image_splitting": tiles.split,
            **(
                {} if tiles.upscale else {"upscale": False}
            ),  # ours alone: the reference enlarges all the same
            "video_sampling": sampling,
        },
        "video_preprocessor_config.json": {
            **pixels,
            "video_processor_type": "SmolVLMVideoProcessor",
            "size": {"longest_edge": video.longest_edge},
            "video_sampling": sampling,
        },
        "processor_config.json": {
            "image_seq_len": cfg.tokens_per_image,
            "processor_class": "SmolVLMProcessor",
        },
        "tokenizer.json": tokenizer.json,
        "tokenizer_config.json": {
            **named,
            "tokenizer_class": "PreTrainedTokenizerFast",  # as tokenizer.json has it, nothing added
            "clean_up_tokenization_spaces": False,
            "model_max_length": cfg.decoder.max_positions,
            "processor_class": "SmolVLMProcessor",
            "extra_special_tokens": {
                "end_of_utterance_token": processor.chat.end,
                "fake_image_token": AROUND,
                "global_image_token": WHOLE,
                "image_token": IMAGE,
            },
        },
        "special_tokens_map.json": named,
        "chat_template.jinja": processor.chat.template,
    }


def _part(
    folder: Path, joint: Mapping[str, Any], name: str, files: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
    """One processor's settings and where they are from, in the reference's order."""
    if name in joint:
        if not isinstance(joint[name], dict):
            raise CheckpointError(f"{folder}/processor_config.json: {name} is no object: fetch it again")
        return joint[name], f"{folder}/processor_config.json, {name}"
    for file in files:
        if (folder / file).exists():
            return read_object(folder / file), str(folder / file)
    raise CheckpointError(
        f"{folder} does not say how pictures are prepared: {files[-1]} is missing, save or fetch the "
        "checkpoint again"
    )


def _require_fixed(settings: Mapping[str, Any], source: str) -> None:
    for name, needed in FIXED.items():
        value = settings.get(name)
        close = name == "rescale_factor" and isinstance(value, float) and abs(value * 255 - 1) < 1e-6
        if value is not None and value != needed and not close:
            raise CheckpointError(
                f"{source}: {name} is {reprlib.repr(value)}, and only {needed!r} is supported: {OTHER}"
            )


def _edge(settings: Mapping[str, Any], name: str, default: int, source: str) -> int:
    value = settings.get(name)
    if value is None:
        return default
    edge = value.get("longest_edge") if isinstance(value, dict) else None
    if type(edge) is not int or not 1 <= edge <= LARGEST:
        raise CheckpointError(
            f"{source}: {name} is {reprlib.repr(value)}, and only {{'longest_edge': pixels}} is "
            f"supported: {OTHER}"
        )
    return edge


def _truth(settings: Mapping[str, Any], name: str, source: str) -> bool:
    value = settings.get(name)
    if not isinstance(value, bool | None):
        raise CheckpointError(
            f"{source}: {name} is {reprlib.repr(value)} and should be true or false: fetch it again"
        )
    return value is not False


def _video(settings: Mapping[str, Any], source: str) -> VideoSpec:
    """`size` goes before `video_sampling`, whose `fps` and `max_frames` go before those beside it.

    So does the reference. Where it has no number of frames and refuses all videos, ours are the defaults of
    VideoSpec: the first SmolVLM says nothing about videos.
    """
    sampling = settings.get("video_sampling") or {}
    if not isinstance(sampling, dict):
        raise CheckpointError(
            f"{source}: video_sampling is {reprlib.repr(sampling)} and should be an object: fetch it again"
        )
    given = {
        "fps": sampling.get("fps", settings.get("fps")),
        "max_frames": sampling.get("max_frames", settings.get("num_frames")),
    }
    for name, value in given.items():
        kinds = (int, float) if name == "fps" else (int,)
        if value is not None and (type(value) not in kinds or not abs(value) <= LARGEST):
            raise CheckpointError(
                f"{source}: {name} is {reprlib.repr(value)} and should be a number: fetch it again"
            )
    edge = _edge(
        settings if settings.get("size") is not None else {"size": sampling.get("video_size")},
        "size",
        EDGE,
        source,
    )
    return VideoSpec(longest_edge=edge, **{name: value for name, value in given.items() if value is not None})


def _tokenizer(path: Path, cfg: VLMConfig) -> ChatTokenizer:
    try:
        tokenizer = ChatTokenizer(read_words(path))
        image = tokenizer.id(IMAGE)
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if tokenizer.highest_id >= cfg.decoder.vocab:
        raise CheckpointError(
            f"{path} has words with ids up to {tokenizer.highest_id}, the model of config.json "
            f"{cfg.decoder.vocab} rows: fetch both files of one model"
        )
    if image != cfg.image_token_id:
        raise CheckpointError(
            f"{path}: the id of {IMAGE} is {image}, image_token_id in config.json is {cfg.image_token_id}: "
            "fetch both files of one model"
        )
    return tokenizer
