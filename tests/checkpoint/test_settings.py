"""Settings to JSON and back, strictly."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from tailorbird.checkpoint.settings import from_json, to_json
from tailorbird.errors import ConfigError
from tailorbird.model.sizes import SMOLVLA_BASE, TINY
from tailorbird.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    name: str = "a"
    on: bool = False
    kind: Literal["slow", "fast"] = "slow"
    pair: tuple[int, str] = (1, "x")
    many: tuple[float, ...] = ()
    parts: tuple[Inner, ...] = ()
    limit: int | None = None
    best: Inner | None = None
    counts: dict[str, int] = field(default_factory=dict)


FULL = Outer(
    inner=Inner(size=3, share=0.25),
    name="b",
    on=True,
    kind="fast",
    pair=(7, "y"),
    many=(1.0, 2.5),
    parts=(Inner(size=1), Inner(size=2)),
    limit=9,
    best=Inner(size=4),
    counts={"push": 2},
)


@pytest.mark.parametrize("settings", [FULL, Outer(inner=Inner(size=1)), TINY, SMOLVLA_BASE, TrainConfig()])
def test_settings_come_back_equal_through_a_file(settings: Any) -> None:
    text = json.dumps(to_json(settings))
    again = from_json(type(settings), json.loads(text), "here")
    assert repr(again) == repr(settings)  # tells 1 from 1.0 and a list from a tuple
    assert again == settings


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"size": 3}, r"here: unknown \['size'\], missing \[\]; Outer has \['best', "),
        ({"inner": {}}, r"here\.inner: unknown \[\], missing \['size'\]; Inner has"),
        ({"inner": {"size": 1, "sise": 2}}, r"here\.inner: unknown \['sise'\]"),
        ({"inner": 3}, r"here\.inner should be the fields of Inner, is 3"),
        ({"inner": {"size": 1.0}}, r"here\.inner\.size should be .*int.*, is 1\.0"),
        ({"inner": {"size": True}}, r"here\.inner\.size should be .*int.*, is True"),
        ({"inner": {"size": 1, "share": "0.5"}}, r"here\.inner\.share should be .*float.*, is '0\.5'"),
        ({"inner": {"size": 1, "share": True}}, r"here\.inner\.share should be .*float.*, is True"),
        ({"name": None}, r"here\.name should be .*str.*, is None"),
        ({"on": 1}, r"here\.on should be .*bool.*, is 1"),
        ({"kind": "medium"}, r"here\.kind should be .*'slow', 'fast'.*, is 'medium'"),
        ({"pair": [1, "x", 2]}, r"here\.pair should be tuple\[int, str\], is \[1, 'x', 2\]"),
        ({"pair": [1, 2]}, r"here\.pair\[1\] should be .*str.*, is 2"),
        ({"many": "12"}, r"here\.many should be tuple\[float, \.\.\.\], is '12'"),
        ({"many": [1, "2"]}, r"here\.many\[1\] should be .*float.*, is '2'"),
        ({"parts": [{"size": 1}, {}]}, r"here\.parts\[1\]: .* missing \['size'\]"),
        ({"limit": "9"}, r"here\.limit should be .*int.*, is '9'"),
        ({"best": {"size": None}}, r"here\.best\.size should be .*int.*, is None"),
        ({"counts": {"push": "2"}}, r"here\.counts\.push should be .*int.*, is '2'"),
        ({"counts": [2]}, r"here\.counts should be dict\[str, int\], is \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        from_json(Outer, to_json(FULL) | change, "here")


def test_what_is_no_object_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"here should be the fields of Inner, is \[1\]"):
        from_json(Inner, [1], "here")


def test_a_whole_number_is_a_number_and_a_missing_default_is_filled_in() -> None:
    built = from_json(Outer, {"inner": {"size": 1, "share": 2}}, "here")
    assert built == Outer(inner=Inner(size=1, share=2.0))
    assert isinstance(built.inner.share, float)


def test_the_checks_of_the_settings_themselves_still_apply() -> None:
    with pytest.raises(ConfigError, match="steps=0 must be at least 1"):
        from_json(TrainConfig, to_json(TrainConfig()) | {"steps": 0}, "here")
