"""config.json of a released SmolVLM, and back.

Fields that are missing take the defaults of the reference's classes: released files lean on them. Fields that
those classes do not have cannot change the reference's numbers and are ignored here too, unless NEUTRAL names
them: they would make another model.
"""

import reprlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig

LARGEST = 2**28  # of any size in a file: products of three still fit into what PyTorch counts with, mostly
KINDS = ("smolvlm", "idefics3")  # SmolVLM2, and the first SmolVLM; their classes have the same defaults
NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {  # what each field may be, for there is no other code path
    "": {"quantization_config": (None,)},
    "vision_config": {"hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,)},
    "text_config": {
        "model_type": ("llama",),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (None, 1.0),
        "qk_layer_norms": (None, False),
        "use_resampler": (None, False),
        "quantization_config": (None,),
    },
}


@dataclass(frozen=True)
class Fields:
    """One level of a config.json, read with the reference's defaults and this file's name in every error."""

    source: str
    place: str
    values: Mapping[str, Any]

    def inner(self, name: str) -> "Fields":
        values = self.values.get(name)
        if values is not None and not isinstance(values, dict):
            raise self.wrong(name, "the fields of an object")
        return Fields(self.source, name, values or {})

    def whole(self, name: str, default: int) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or abs(value) > LARGEST:
            raise self.wrong(name, "a whole number up to 2^28")
        return value

    def real(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.wrong(name, "a positive number")
        return float(value)

    def truth(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def side(self, name: str, default: int) -> int:
        """A length, or height and width that are equal."""
        value = self.values.get(name, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or abs(value) > LARGEST:
            raise self.wrong(name, "one whole number up to 2^28: pictures and patches are square")
        return value

    def require(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        for name, allowed in neutral.items():
            if self.values.get(name, allowed[0]) not in allowed:
                raise self.wrong(name, " or ".join(map(repr, allowed)) + ", which is all that is supported")

    def wrong(self, name: str, needed: str) -> CheckpointError:
        where = f"{self.place}.{name}" if self.place else name
        return CheckpointError(
            f"{self.source}: {where} is {reprlib.repr(self.values.get(name))} and should be {needed}. "
            "Use a model of the SmolVLM family, with the config.json that was saved with its weights"
        )


def vlm_config(config: Mapping[str, Any], source: object) -> VLMConfig:
    """The model that a released config.json describes. `source` names the file in errors.

    Whether the head is the embedding is said at the top level: the reference does not ask text_config.
    The top level's pad_token_id is not read, in the releases it lies outside the vocabulary.

    Raises:
        CheckpointError: it describes another kind of model, or sizes that do not fit each other.
    """
    top = Fields(str(source), "", config)
    kind = config.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{source} describes a model of type {reprlib.repr(kind)}, and {' and '.join(KINDS)} are read: "
            "name a folder or hub id of a SmolVLM"
        )
    vision, text = top.inner("vision_config"), top.inner("text_config")
    for part in (top, vision, text):
        part.require(NEUTRAL[part.place])
    with consistent(source):
        return VLMConfig(
            vision=vision_sizes(vision, patch_size=32, width=1152, num_heads=16),
            decoder=decoder_sizes(
                text,
                tied=top.truth("tie_word_embeddings", False),
                norm_eps=1e-5 if config.get("text_config") is None else 1e-6,
            ),
            shuffle=top.whole("scale_factor", 2),
            image_token_id=top.whole("image_token_id", 128257),
        )


@contextmanager
def consistent(source: object) -> Iterator[None]:
    """Name the file when sizes do not fit each other."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(
            f"{source}: {error}. Use the config.json that was saved with the weights"
        ) from error


def vision_sizes(fields: Fields, *, patch_size: int, width: int, num_heads: int) -> VisionConfig:
    """An image tower; the arguments are what is true of it if the file does not say."""
    return VisionConfig(
        image_size=fields.side("image_size", 224),
        patch_size=fields.side("patch_size", patch_size),
        width=fields.whole("hidden_size", width),
        num_layers=fields.whole("num_hidden_layers", 12),
        num_heads=fields.whole("num_attention_heads", num_heads),
        mlp_dim=fields.whole("intermediate_size", 3072),
        norm_eps=fields.real("layer_norm_eps", 1e-6),
    )


def decoder_sizes(fields: Fields, *, tied: bool, norm_eps: float) -> DecoderConfig:
    """A language model of the Llama kind; `norm_eps` if the file does not say."""
    width, num_heads = fields.whole("hidden_size", 4096), fields.whole("num_attention_heads", 32)
    if num_heads < 1:
        raise fields.wrong("num_attention_heads", "at least 1")
    absent = {name for name in ("head_dim", "num_key_value_heads") if fields.values.get(name) is None}
    if "head_dim" in absent and width % num_heads:
        raise fields.wrong(
            "hidden_size", f"a multiple of num_attention_heads={num_heads}, without a head_dim"
        )
    return DecoderConfig(
        width=width,
        num_layers=fields.whole("num_hidden_layers", 32),
        num_heads=num_heads,
        num_kv_heads=num_heads if "num_key_value_heads" in absent else fields.whole("num_key_value_heads", 0),
        head_dim=width // num_heads if "head_dim" in absent else fields.whole("head_dim", 0),
        mlp_dim=fields.whole("intermediate_size", 11008),
        vocab=fields.whole("vocab_size", 32000),
        max_positions=fields.whole("max_position_embeddings", 2048),
        rope_theta=_rope_theta(fields),
        norm_eps=fields.real("rms_norm_eps", norm_eps),
        tied=tied,
    )


def _rope_theta(fields: Fields) -> float:
    """Old files have rope_theta and rope_scaling beside each other, new ones rope_parameters with both."""
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    rope = fields.inner(name)
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind != "default" or rope.values.get("partial_rotary_factor") not in (None, 1.0):
        raise fields.wrong(
            name, "of rope_type 'default', turning whole heads, which is all that is supported"
        )
    return rope.real("rope_theta", fields.real("rope_theta", 10_000.0))


def released_config(cfg: VLMConfig, *, pad_id: int, end_ids: frozenset[int], dtype: str) -> dict[str, Any]:
    """config.json as SmolVLM2 has it, with nothing left to defaults.

    Raises:
        CheckpointError: the image tower has a stem, which no release has.
    """
    vision, text = cfg.vision, cfg.decoder
    if vision.stem:
        raise CheckpointError(
            f"an image tower with a stem of {vision.stem} has no released form: save it as a policy instead"
        )
    end: int | list[int] = min(end_ids) if len(end_ids) == 1 else sorted(end_ids)
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "torch_dtype": dtype,
        "image_token_id": cfg.image_token_id,
        "scale_factor": cfg.shuffle,
        "tie_word_embeddings": text.tied,
        "pad_token_id": pad_id,
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": vision.norm_eps,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": text.width,
            "intermediate_size": text.mlp_dim,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "vocab_size": text.vocab,
            "max_position_embeddings": text.max_positions,
            "rms_norm_eps": text.norm_eps,
            "rope_theta": text.rope_theta,  # read by older libraries
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": text.tied,
            "pad_token_id": pad_id,
            "eos_token_id": end,
        },
    }
