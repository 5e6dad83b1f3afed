"""The small description of a robot that a guard goes by."""

import json
from dataclasses import asdict
from math import nan
from pathlib import Path

import pytest

from tailorbird.control.safety import Limits
from tailorbird.errors import ConfigError

HAND = Limits(
    names=("x", "y", "grip"),
    mode="delta",
    low=(-0.1, -0.3, -1.0),
    high=(0.2, 0.3, 1.0),
    max_velocity=(3.0, 5.0, 8.0),
    max_acceleration=(20.0, 10.0, 90.0),
    keep=("grip",),
)


def test_what_is_kept_is_a_position_and_so_is_everything_absolute() -> None:
    assert HAND.are_positions == (False, False, True)
    assert Limits.free(2).are_positions == (True, True)
    assert Limits.free(2, mode="velocity").are_positions == (False, False)


def test_limits_are_read_from_toml_and_json(tmp_path: Path) -> None:
    toml, plain = tmp_path / "hand.toml", tmp_path / "hand.json"
    toml.write_text("""
names = ["x", "y", "grip"]
mode = "delta"
low = [-0.1, -0.3, -1]
high = [0.2, 0.3, 1]
max_velocity = [3, 5, 8]
max_acceleration = [20.0, 10.0, 90.0]
keep = ["grip"]
""")
    plain.write_text(json.dumps(asdict(HAND)))
    assert Limits.load(toml) == Limits.load(plain) == HAND


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names = [", "no limits in"),
        ("names = ['a']", r"has \['names'\]; limits have names, mode"),
        ("names=['a']\nmode='delta'\nlow=[0]\nhigh=[1]\nspeed=[1]", "'speed'"),
        ("names='a'\nmode='delta'\nlow=[0]\nhigh=[1]", "names should be of str, is 'a'"),
        ("names=['a']\nmode='delta'\nlow=[true]\nhigh=[1]", "low should be of float"),
        ("names=['a']\nmode='delta'\nlow=['0']\nhigh=[1]", "low should be of float"),
        ("names=['a']\nmode=['delta']\nlow=[0]\nhigh=[1]", "mode should be of str"),
        ("names=['a']\nmode='torque'\nlow=[0]\nhigh=[1]", "mode is one of absolute, delta, velocity"),
    ],
)
def test_a_file_that_is_no_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Limits.load(path)


def test_a_file_that_is_not_there_or_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no limits in"):
        Limits.load(tmp_path / "none.toml")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"has \[1, 2\]"):
        Limits.load(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ()}, "need names"),
        ({"names": ("a", "a"), "low": (0, 0), "high": (1, 1)}, "need names"),
        ({"low": (0.0, 0.0)}, "low needs 1 numbers"),
        ({"max_velocity": ()}, "max_velocity needs 1"),
        ({"high": (nan,)}, "high needs 1 numbers"),
        ({"low": (2.0,)}, "low must not be above high"),
        ({"max_velocity": (0.0,)}, "max_velocity must be positive"),
        ({"max_acceleration": (-1.0,)}, "max_acceleration must be positive"),
        ({"keep": ("a",)}, "absolute actions .* cannot keep"),
        ({"mode": "delta", "keep": ("b",)}, "delta actions .* cannot keep"),
        ({"mode": "velocity", "low": (0.5,)}, "could never stand still"),
    ],
)
def test_limits_that_contradict_themselves_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(**{"names": ("a",), "mode": "absolute", "low": (-1.0,), "high": (1.0,)} | fields)  # type: ignore[arg-type]
