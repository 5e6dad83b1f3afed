"""The small files of a folder in the hub's layout: what kind of model, how it is spoken to, where it ends."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailorbird.errors import CheckpointError, DataError
from tailorbird.storage import read_json


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError if it is missing or something else."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing: save or fetch the checkpoint again")
    try:
        value = read_json(path)
    except (DataError, OSError) as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object: save or fetch the checkpoint again")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def read_words(path: Path) -> str:
    """A text file. Raises CheckpointError if it is missing or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: save or fetch the checkpoint again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): fetch the checkpoint again") from error


def model_kind(folder: Path) -> str:
    """The model_type of its config.json.

    Raises:
        CheckpointError: there is no config.json, or it does not say.
    """
    kind = read_object(folder / "config.json").get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(
            f"{folder}/config.json: model_type is {reprlib.repr(kind)}, so nobody knows what this is: "
            "name a folder or hub id of a SmolVLM or SmolLM2"
        )
    return kind


def read_template(folder: Path) -> tuple[str, Path] | None:
    """The chat template and its file, None if there is none. Of several it is the one named "default".

    Raises:
        CheckpointError: there is one that cannot be read.
    """
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_words(path), path
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        value = template = read_optional(folder / name).get("chat_template")
        if value is None:
            continue
        if isinstance(value, list):
            named = [one for one in value if isinstance(one, dict) and one.get("name") == "default"]
            template = named[0].get("template") if named else None
        if not isinstance(template, str) or not template:
            raise CheckpointError(
                f"{folder / name}: chat_template is {reprlib.repr(value)} and should be a text, or a list "
                "with one that is named default: fetch it again"
            )
        return template, folder / name
    return None


def read_end_ids(
    folder: Path, config: Mapping[str, Any], vocab: int, *, required: bool = False
) -> frozenset[int]:
    """The tokens that end an answer: from generation_config.json, else from `config` of config.json.

    Only eos_token_id is read: bos_token_id is 0 in the releases, which is <|endoftext|> and begins nothing.

    Raises:
        CheckpointError: they are no tokens of the vocabulary, or `required` and there are none.
    """
    path = folder / "generation_config.json"
    value = read_optional(path).get("eos_token_id")
    if value is None:
        path, value = folder / "config.json", config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if (required and not ids) or not all(type(one) is int and 0 <= one < vocab for one in ids):
        raise CheckpointError(
            f"{path}: eos_token_id is {reprlib.repr(value)}, which names none of {vocab} tokens, so no reply "
            "would end: set it to the id of the token that ends a turn"
        )
    return frozenset(ids)
