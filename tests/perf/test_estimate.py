"""`tailorbird info --estimate`: from a name or a folder without weights to tables and JSON."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hub import environment, serving
from lerobot_folder import write_folder
from released import CFG, edit, write_released
from tailorbird.checkpoint.policy import write_policy
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.config import VLAConfig
from tailorbird.model.cost import DEVICES, chunk_cost, floor_s, policy_cost, vlm_cost
from tailorbird.model.init import initialise
from tailorbird.model.sizes import SIZES, SMOLVLA_BASE, SMOLVLM2_256M
from tailorbird.model.vla import VLA
from tailorbird.perf import estimate as module
from tailorbird.perf.estimate import estimate
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tiny import TINY_VLA

Typed = Callable[..., tuple[int | str | None, str]]


@pytest.fixture
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only takes time and is tested elsewhere: the process and the device."""
    monkeypatch.setattr(module, "process_bytes", lambda: 300 * 2**20)
    monkeypatch.setattr(module, "measure_device", lambda: DEVICES["L4"])


@pytest.mark.usefixtures("_unmeasured")
def test_a_size_is_estimated_stage_by_stage() -> None:
    found = estimate("smolvla-base", on=["h200"])
    assert found.stages == chunk_cost(policy_cost(SMOLVLA_BASE, cameras=3, words=48), SMOLVLA_BASE)
    assert sum(found.parameters.values()) == 450_046_176
    assert found.what == "3 cameras, 241 positions, 10 calls of the expert for 50 actions"
    assert [one.name for one in found.devices] == ["L4", "H200"]
    floors = found.floors_ms(DEVICES["H200"])
    assert list(floors) == ["float32", "bfloat16", "float16", "int8", "int4"]
    whole = 1e3 * floor_s(found.stages.values(), DEVICES["H200"], "bfloat16")
    assert sum(floors["bfloat16"].values()) == pytest.approx(whole, rel=1e-12)


@pytest.mark.usefixtures("_unmeasured")
def test_a_vlm_is_estimated_for_the_tiles_asked_for() -> None:
    found = estimate("smolvlm2-256m", pictures=17, words=12)
    assert found.stages == vlm_cost(SMOLVLM2_256M, tiles=17, tokens=17 * 64 + 12)
    assert found.memory["float32"].weights == 2 * found.memory["bfloat16"].weights


@pytest.mark.usefixtures("_unmeasured")
@pytest.mark.parametrize("name", SIZES)
def test_every_size_can_be_estimated(name: str) -> None:
    assert all(cost.flops > 0 for cost in estimate(name).stages.values())


@pytest.mark.usefixtures("_unmeasured")
def test_folders_are_estimated_without_their_weights(tmp_path: Path) -> None:
    write_released(tmp_path / "vlm")
    (tmp_path / "vlm/model.safetensors").unlink()
    assert estimate(str(tmp_path / "vlm")).stages == vlm_cost(CFG, tiles=1, tokens=CFG.tokens_per_image + 48)

    native = tmp_path / "native"
    native.mkdir()
    write_native(native, TINY_VLA)
    (native / "model.safetensors").unlink()
    assert estimate(str(native), words=6).stages == costs(TINY_VLA, cameras=2, words=6)
    edit(native / "config.json", model=None)
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'model'"):
        estimate(str(native))


@pytest.mark.usefixtures("_unmeasured")
def test_a_policy_of_lerobot_is_estimated_with_the_cameras_that_it_has(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "policy")
    (folder / "model.safetensors").unlink()
    assert estimate(str(folder)).what.startswith("2 cameras, ")
    assert estimate(str(folder), pictures=1).what.startswith("1 cameras, ")


def test_of_a_model_on_the_hub_no_weights_are_fetched(tmp_path: Path) -> None:
    write_released(tmp_path / "remote")
    asked: list[str] = []
    with serving(tmp_path / "remote", "models", "someone/toy-vlm", asked) as endpoint:
        done = subprocess.run(
            [sys.executable, "-m", "tailorbird", "info", "someone/toy-vlm", "--estimate", "--json"],
            env=environment(tmp_path / "home", endpoint),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["vision"] > 0
    assert any("config.json" in path for path in asked)
    assert not any("safetensors" in path for path in asked if "/resolve/" in path)


def costs(cfg: VLAConfig, *, cameras: int, words: int) -> object:
    return chunk_cost(policy_cost(cfg, cameras=cameras, words=words), cfg)


def write_native(folder: Path, cfg: VLAConfig) -> None:
    model = VLA(cfg)
    initialise(model, 0)
    pipeline = Pipeline(
        cameras=("wrist", "front"),
        image=ImageSpec(size=16, crop=(0.1, 0.2, 0.5, 0.6)),
        state=Normalizer(mean=(0.0,) * 5, std=(1.0,) * 5),
        action=Normalizer(mean=(0.0,) * 3, std=(1.0,) * 3),
        tokenizer=InstructionTokenizer(train_tokenizer(["open the drawer"], 300), 24),
        hz=12.5,
    )
    write_policy(folder, model.state_dict(), cfg, pipeline)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("smolvla-base", {"on": ["H900"]}, r"no device 'H900': there are H200, H100"),
        ("smolvla", {}, r"'smolvla' is no size \(smolvlm2-256m"),
        ("tiny", {"words": 0}, "words=0 must be at least 1"),
        ("tiny", {"pictures": -1}, "pictures=-1 at least 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(what: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        estimate(what, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_unmeasured")
def test_the_command_prints_tables_with_where_the_figures_are_from(typed: Typed) -> None:
    end, printed = typed("info", "tiny", "--estimate", "--on", "Jetson AGX Orin")
    assert end == 0
    for text in ("expert", "steps", "weights", "L4, theoretical", "Jetson AGX Orin, theoretical", "all"):
        assert text in printed


def test_the_command_prints_json(typed: Typed) -> None:
    end, printed = typed("info", "tiny", "--estimate", "--json", "--on", "l4", "--pictures", 2)
    found = json.loads(printed)
    assert end == 0
    assert found["what"].startswith("2 cameras, ")
    assert found["devices"][0]["source"].startswith("measured")
    assert found["devices"][1]["flops"]["bfloat16"] == 121e12
    assert found["memory_bytes"]["float32"]["total"] > found["memory_bytes"]["float32"]["weights"]
    assert found["stages"].keys() == {"vision", "prefix", "state", "steps"}


def test_options_of_an_estimate_without_an_estimate_are_refused(typed: Typed) -> None:
    end, _ = typed("info", "tiny", "--on", "H200")
    assert "belong to --estimate: add it" in str(end)
