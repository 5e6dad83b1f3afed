"""Frozen dataclasses to JSON and back, strictly: an unknown or missing field is an error, not a default."""

import reprlib
import sys
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tailorbird.errors import ConfigError

T = TypeVar("T")


def to_json(settings: Any) -> dict[str, Any]:
    return asdict(settings)


def from_json(cls: type[T], data: Any, where: str) -> T:
    """Rebuild settings of type `cls` from what `to_json` gave. `where` names the source in errors."""
    return _build(cls, data, where)


def _build(kind: Any, data: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(data, list | tuple):
        inner = [args[0]] * len(data) if args[-1:] == (...,) else args
        if len(inner) == len(data):
            return tuple(
                _build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, data, strict=True))
            )
    elif origin is dict and isinstance(data, dict):
        return {key: _build(args[1], value, f"{where}.{key}") for key, value in data.items()}
    elif origin is Literal and data in args:
        return data
    elif len(args) == 2 and type(None) in args:  # may be None
        (rest,) = (arg for arg in args if arg is not type(None))
        return None if data is None else _build(rest, data, where)
    elif kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        if not abs(data) > sys.float_info.max:
            return float(data)
    elif isinstance(kind, type) and type(data) is kind:
        return data
    raise ConfigError(f"{where} should be {kind}, is {reprlib.repr(data)}")


def _build_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} should be the fields of {kind.__name__}, is {reprlib.repr(data)}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if data.keys() - known.keys() or needed - data.keys():
        raise ConfigError(
            f"{where}: unknown {sorted(data.keys() - known.keys())}, missing {sorted(needed - data.keys())}; "
            f"{kind.__name__} has {sorted(known)}"
        )
    return kind(**{name: _build(hints[name], value, f"{where}.{name}") for name, value in data.items()})
