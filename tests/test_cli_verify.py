"""The command `verify` as typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tailorbird.checkpoint.policy import write_policy
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tiny import TINY_VLA


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera, in Tailorbird's layout."""
    folder, model = tmp_path_factory.mktemp("policy"), VLA(TINY_VLA)
    initialise(model, 0)
    pipeline = Pipeline(
        cameras=("front",),
        image=ImageSpec(size=16),
        state=Normalizer(mean=(1.0,) * 5, std=(2.0,) * 5),
        action=Normalizer(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0)),
        tokenizer=InstructionTokenizer(train_tokenizer(["push the puck to the target"], 290), 64),
        hz=10.0,
    )
    write_policy(folder, model.state_dict(), model.cfg, pipeline)
    return folder


Typed = Callable[..., tuple[int | str | None, str]]


@pytest.fixture
def verify(typed: Typed) -> Typed:
    """The command, made quick."""
    return lambda *words: typed("verify", *words, "--scenes", 2, "--runs", 3, "--device", "cpu")


def test_machines_read_one_line_and_people_a_table(verify: Typed, policy: Path) -> None:
    end, printed = verify(policy, "--json", "--min-change", 0)
    row = json.loads(printed)
    assert end == 0
    assert row["model"] == str(policy)
    assert row["dtype"] == "bfloat16"
    assert row["deterministic"]
    assert row["order_sensitive"] is None
    end, printed = verify(policy, "--min-change", 0)
    assert end == 0
    assert "pcc_full" in printed
    assert "one camera" in printed


def test_a_limit_that_is_not_kept_ends_with_1(verify: Typed, policy: Path) -> None:
    end, printed = verify(policy, "--min-change", 1e9)
    assert end == 1
    assert "FAIL" in printed


def test_what_is_saved_can_be_compared_with_and_drawn(verify: Typed, policy: Path, tmp_path: Path) -> None:
    stored, picture = tmp_path / "a.safetensors", tmp_path / "a.png"
    words = (policy, "--dtype", "float32", "--min-change", 0)
    assert verify(*words, "--save", stored)[0] == 0
    assert load_file(stored)["actions"].shape == (2, 7, 3)
    end, printed = verify(*words, "--against", stored, "--json", "--plot", picture)
    assert end == 0
    assert json.loads(printed)["max_abs_error"] == 0
    assert picture.exists()


def test_a_policy_in_our_own_layout_has_no_reference(verify: Typed, policy: Path) -> None:
    end, _ = verify(policy, "--against", "reference")
    assert "lerobot does not read" in str(end)


def test_int8_is_verified_against_what_it_was_made_from(
    verify: Typed, typed: Typed, policy: Path, tmp_path: Path
) -> None:
    assert typed("quantise", policy, "--out", tmp_path / "int8", "--observations", 2)[0] == 0
    asked = (tmp_path / "int8", "--engine", "openvino", "--dtype", "int8", "--min-change", 0, "--json")
    assert "name what it was made from" in str(verify(*asked)[0])
    end, printed = verify(*asked, "--against", policy)
    row = json.loads(printed)
    assert end == 0
    assert (row["engine"], row["dtype"]) == ("openvino", "int8")
    assert 0.99 < row["pcc_full"] < 1
    code, _ = typed("quantise", policy, "--out", tmp_path / "more", "--observations", 9)
    assert "there are 8 scenes" in str(code)
