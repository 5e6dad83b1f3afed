"""A policy as a folder: what goes in comes out, and what is damaged is refused by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tailorbird.checkpoint.files import WINDOW, load_weights, read_tensors, write_tensors
from tailorbird.checkpoint.lerobot import Asked
from tailorbird.checkpoint.policy import POLICY_FILES, fingerprint, read_policy, write_policy
from tailorbird.errors import CheckpointError, MissingStats
from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLMConfig
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.types import Inputs
from tiny import TINY_VLA


@pytest.fixture
def model() -> VLA:
    built = VLA(TINY_VLA)
    initialise(built, 0)
    return built


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(
        cameras=("wrist", "front"),
        image=ImageSpec(size=16, crop=(0.1, 0.2, 0.5, 0.6)),
        state=Normalizer(mean=(0.1, 0.2, 0.3, 0.4, 1 / 3), std=(1.0, 2.0, 3.0, 4.0, 1e-3)),
        action=Normalizer(mean=(0.0, 1.0, 2.0), std=(0.5, 0.25, 0.125)),
        tokenizer=InstructionTokenizer(train_tokenizer(["open the drawer"], 300), 24),
        hz=12.5,
    )


@pytest.fixture
def folder(tmp_path: Path, model: VLA, pipeline: Pipeline) -> Path:
    write_policy(tmp_path, model.state_dict(), model.cfg, pipeline)
    return tmp_path


def test_a_policy_comes_back_bit_for_bit_and_acts_the_same(
    folder: Path, model: VLA, pipeline: Pipeline
) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(POLICY_FILES)
    loaded, chain = read_policy(folder)
    assert loaded.cfg == TINY_VLA
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert replace(chain, tokenizer=pipeline.tokenizer) == pipeline
    assert (chain.tokenizer.json, chain.tokenizer.max_tokens) == (pipeline.tokenizer.json, 24)

    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (1, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    noise = torch.randn(1, 7, 3, generator=generator)

    def act(network: VLA, prepare: Callable[..., Inputs]) -> Tensor:
        return network.sample(network.encode(prepare(frames.unbind(1), torch.ones(1, 5), ["open"])), noise)

    assert torch.equal(act(loaded, chain.prepare), act(model, pipeline.prepare))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrowed_while_it_is_read_a_policy_is_what_it_is_when_narrowed_afterwards(
    folder: Path, model: VLA, dtype: torch.dtype
) -> None:
    narrowed = read_policy(folder, dtype=dtype)[0].state_dict()
    for name, value in model.narrow(dtype).state_dict().items():
        assert narrowed[name].dtype == value.dtype, name
        assert torch.equal(narrowed[name], value), name
    assert {value.dtype for value in narrowed.values()} == {dtype, torch.float32}


def test_a_policy_saved_in_several_dtypes_keeps_them(tmp_path: Path, model: VLA, pipeline: Pipeline) -> None:
    write_policy(tmp_path, model.narrow(torch.bfloat16).state_dict(), model.cfg, pipeline)
    loaded = read_policy(tmp_path)[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert {value.dtype for value in loaded.values()} == {torch.bfloat16, torch.float32}


def test_a_narrow_policy_is_never_in_memory_as_wide_as_its_file(tmp_path: Path, pipeline: Pipeline) -> None:
    """Needs Linux."""
    cfg = replace(
        TINY_VLA,
        vlm=VLMConfig(
            vision=VisionConfig(num_layers=1),
            decoder=DecoderConfig(num_layers=2, vocab=20_000),
            image_token_id=1,
        ),
        expert=ExpertConfig(num_layers=2),
    )
    image = ImageSpec(size=512, crop=(0.0, 0.0, 1.0, 1.0))
    write_policy(tmp_path, VLA(cfg).state_dict(), cfg, replace(pipeline, image=image))
    wide = (tmp_path / "model.safetensors").stat().st_size
    code = """
import sys
from pathlib import Path
import torch
from tailorbird.checkpoint.policy import read_policy
from tailorbird.perf.memory import peak_bytes
before = peak_bytes()
model, _ = read_policy(Path(sys.argv[1]), dtype=torch.bfloat16)
print(peak_bytes() - before, sum(value.nbytes for value in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    grown, narrow = map(int, done.stdout.split())
    assert wide > 150e6
    assert narrow < 0.55 * wide
    assert grown < 1.05 * narrow + 3 * WINDOW < 0.8 * wide


def test_reading_a_policy_does_not_import_the_compiler(folder: Path) -> None:
    """It would cost a second and 75 MB, and PyTorch does so where it draws numbers on the meta device."""
    code = """
import sys
from pathlib import Path
from tailorbird.checkpoint.policy import read_policy
read_policy(Path(sys.argv[1]))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_saved_name_of_a_camera_that_is_left_out_is_dropped(
    tmp_path: Path, model: VLA, pipeline: Pipeline
) -> None:
    named = replace(pipeline, rename={"a": "wrist", "wrist": "front"})
    write_policy(tmp_path, model.state_dict(), model.cfg, named)
    assert read_policy(tmp_path)[1].robot_cameras == ("a", "wrist")
    less = read_policy(tmp_path, asked=Asked(without=("wrist",)))[1]
    assert (less.rename, less.robot_cameras) == ({"wrist": "front"}, ("wrist",))


def test_statistics_that_are_missing_are_named_by_where_they_should_be(folder: Path) -> None:
    widths = {"observation.state": 5, "action": 3}
    with pytest.raises(MissingStats, match=r"for 'observation.state': my/data holds \[\]"):
        read_policy(folder, asked=Asked(stats={}, widths=widths, source="my/data"))


def test_weights_in_the_memory_layout_of_training_are_saved_all_the_same(
    tmp_path: Path, model: VLA, pipeline: Pipeline
) -> None:
    model.to(memory_format=torch.channels_last)
    write_policy(tmp_path, model.state_dict(), model.cfg, pipeline)
    stem = read_policy(tmp_path)[0].vlm.vision.stem[0].weight
    assert torch.equal(stem, model.vlm.vision.stem[0].weight)
    assert stem.is_contiguous()


@pytest.mark.parametrize("name", POLICY_FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{folder}.*{name}(.|\n)*(save|Save) or fetch"):
        read_policy(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/config.json does not exist. Save or fetch it again"):
        read_policy(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_cut_weights_are_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is damaged .* save or fetch the checkpoint again"
    ):
        read_policy(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "a list", "no text", "nested without end", "a number without end"],
)
def test_a_broken_text_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"is no policy that can be loaded.*Save or fetch it again"
    ) as caught:
        read_policy(folder)
    assert str(folder) in str(caught.value)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_another_format_number_is_refused_with_what_to_do(folder: Path) -> None:
    edit(folder, lambda config: config.update(format=2))
    with pytest.raises(CheckpointError, match=r"config.json has policy format 2, this version reads 1: save"):
        read_policy(folder)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda c: c.pop("pipeline"), "pipeline"),
        (lambda c: c["pipeline"].pop("hz"), "hz"),
        (lambda c: c["pipeline"].update(hz="fast"), "config.json: hz should be"),
        (lambda c: c["pipeline"].update(cameras="front"), "config.json: cameras should be"),
        (lambda c: c["pipeline"].update(max_tokens=None), "config.json: max_tokens should be"),
        (lambda c: c["pipeline"]["state"].update(std=[1.0, 1.0, 1.0, 1.0, -1.0]), "deviations not negative"),
        (lambda c: c["pipeline"]["image"].update(sise=3), r"config.json: image: unknown \['sise'\]"),
        (lambda c: c["model"].update(chunk=0), "chunk"),
        (lambda c: c["pipeline"].update(hz=10**400), "config.json: hz should be"),
        (lambda c: c["pipeline"].update(hz=[[[[[[[[]]]]]]]]), r"is \[{7}\.\.\.\]{7}"),
        (lambda c: c["model"]["expert"].update(num_layers=1), "lacks"),
        (lambda c: c["model"]["vlm"]["vision"].update(num_layers=10**9), "too few for the 10000"),
        (lambda c: c["model"]["vlm"]["decoder"].update(head_dim=2**62), "no model has such sizes"),
        (lambda c: c["model"].update(depth=3), r"config.json: model: unknown \['depth'\]"),
        (lambda c: c["model"]["vlm"].pop("decoder") and c["model"].pop("vlm"), r"missing \['vlm'\]"),
    ],
)
def test_a_changed_config_is_refused_with_its_place(
    folder: Path, change: Callable[[dict[str, Any]], object], place: str
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=place):
        read_policy(folder)


def test_weights_of_another_size_are_refused_by_tensor(folder: Path) -> None:
    edit(folder, lambda config: config["model"]["vlm"]["decoder"].update(mlp_dim=99))
    reason = r"model.safetensors: vlm.decoder.blocks.0.mlp.gate.weight has shape .*, the model needs \(99, "
    with pytest.raises(CheckpointError, match=reason):
        read_policy(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"].update(state_dim=6), "state values: 6 and 5"),
        (lambda c: c["model"].update(action_dim=9), "action values: 9 and "),
        (lambda c: c["pipeline"]["image"].update(size=77), "pictures, px: .* and 77"),
        (lambda c: c["model"]["vlm"]["decoder"].update(vocab=50), "words: 50 and "),
    ],
)
def test_a_pipeline_that_does_not_fit_its_model_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=f"config.json: model and pipeline differ in {words}"):
        read_policy(folder)


def test_a_policys_fingerprint_is_that_of_its_files(folder: Path) -> None:
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    edit(folder, lambda config: config["pipeline"].update(hz=99.0))
    assert fingerprint(folder) != before
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no policy: tokenizer.json is missing"):
        fingerprint(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda w: w.pop("state_in.bias"),
            r"lacks 1 tensors \['state_in.bias'\] and has 0 unknown ones \[\]",
        ),
        (
            lambda w: w.update(extra=torch.zeros(2)),
            r"lacks 0 tensors \[\] and has 1 unknown ones \['extra'\]",
        ),
    ],
)
def test_missing_and_unknown_tensors_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], reason: str
) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=f"model.safetensors {reason}: it belongs to a model"):
        read_policy(folder)


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="weight has shape"):
        load_weights(model, {"bias": torch.zeros(3), "weight": torch.zeros(3, 3)}, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_built_model_takes_the_weights_into_its_own_memory(tmp_path: Path) -> None:
    model, weights = nn.Linear(2, 3), {"bias": torch.zeros(3), "weight": torch.ones(3, 2)}
    load_weights(model, weights, tmp_path)
    weights["weight"].zero_()
    assert torch.equal(model.weight, torch.ones(3, 2))


def test_a_tensor_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tensors(tmp_path)


def test_the_systems_refusal_to_write_tensors_keeps_its_number(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_tensors(tmp_path / "nowhere/x.safetensors", {"a": torch.zeros(2)})
    assert caught.value.filename == str(tmp_path / "nowhere/x.safetensors")


def test_a_file_larger_than_allowed_is_a_storage_error_with_the_remedy(tmp_path: Path) -> None:
    code = """
import resource, sys, torch
from pathlib import Path
from tailorbird.checkpoint.files import write_tensors
from tailorbird.errors import StorageError
from tailorbird.storage import new_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    with new_folder(Path(sys.argv[1])) as folder:
        write_tensors(folder / "x.safetensors", {"a": torch.zeros(10_000)})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "it")], capture_output=True, text=True)
    assert "raise the limit, then run the same command again" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
