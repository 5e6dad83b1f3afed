"""Values of rows that came from strangers: taken as what they should be, or refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from tailorbird.data.sample import BadSample


def as_list(value: object, where: str, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadSample("damaged row", f"{where} has no list of {what}")
    return value


def maybe_list(value: object, where: str, what: str) -> Sequence[Any]:
    """As `as_list`; nothing is an empty one."""
    return () if value is None else as_list(value, where, what)


def as_object(value: object, where: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadSample("damaged row", f"{where} has no {what}")
    return value


def as_text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str):
        raise BadSample("damaged row", f"{where} has no {what}")
    return value
