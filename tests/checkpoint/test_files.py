"""Safetensors in one file or in shards: read whole, refused by name, and never mapped whole into memory."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from released import CFG, write_released
from tailorbird.checkpoint import files
from tailorbird.checkpoint.files import TensorReader, list_tensors, write_shards
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import revert
from tailorbird.checkpoint.vlm import load_model
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.sizes import SMOLVLM2_256M

INDEX = "model.safetensors.index.json"
EMBED, HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in one file and in shards. Copy before changing."""
    root = tmp_path_factory.mktemp("made")
    write_released(root / "whole")
    write_released(root / "shards", shard_bytes=30_000)
    return root


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "whole", tmp_path / "whole")


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "shards", tmp_path / "shards")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder, CFG)
    assert "\n" not in str(caught.value)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_shards_hold_what_the_one_file_holds_and_none_is_too_large(made: Path) -> None:
    index = json.loads((made / "shards" / INDEX).read_text())
    expected = load_file(made / "whole/model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    parts = sorted((made / "shards").glob("model-*.safetensors"))
    assert [part.name for part in parts] == [
        f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)
    ]
    found: dict[str, Tensor] = {}
    for part in parts:
        weights = load_file(part)
        assert len(weights) == 1 or sum(value.nbytes for value in weights.values()) <= 30_000
        assert all(index["weight_map"][key] == part.name for key in weights)
        found |= weights
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("window", [64, 1000, 1 << 23], ids=["rows apart", "a few rows", "whole"])
def test_tensors_read_in_windows_are_those_of_the_file(
    made: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WINDOW", window)
    first, second = load_model(made / "whole", CFG), load_model(made / "shards", CFG)
    theirs = revert(first.state_dict(), vlm_rules(CFG))
    expected = load_file(made / "whole/model.safetensors")
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[key], value) for key, value in expected.items())
    again = second.state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.state_dict().items())
    assert all(value.data_ptr() % 64 == 0 for value in first.state_dict().values())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_umask_lets_them_read(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_shards(tmp_path, {"a": torch.ones(3), "b": torch.ones(4)}, 12)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_tensor_without_axes_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": torch.tensor(3.0), "b": torch.ones(0, 4)}, 10**9)
    stored = list_tensors(tmp_path / "model.safetensors")
    into, reader = torch.zeros((), dtype=torch.bfloat16), TensorReader(stored)
    reader.copy("a", into)
    reader.copy("b", torch.empty(0, 4))
    assert into == 3
    assert not reader.are_equal("a", "b") or stored["a"].shape != stored["b"].shape


def test_weights_are_converted_on_their_way(made: Path) -> None:
    exact = load_model(made / "whole", CFG).state_dict()
    for name, value in load_model(made / "whole", CFG, dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(value, exact[name].bfloat16()), name
    with pytest.raises(ConfigError, match=r"loaded as torch\.int8: name a float, such as torch\.bfloat16"):
        load_model(made / "whole", CFG, dtype=torch.int8)


def test_a_model_can_be_trained_after_it_is_loaded(made: Path) -> None:
    model = load_model(made / "whole", CFG)
    assert all(value.requires_grad and value.is_leaf for value in model.parameters())


def test_a_missing_a_renamed_and_an_unknown_tensor_are_named(whole: Path) -> None:
    path = whole / "model.safetensors"
    rewrite(path, lambda weights: weights.update(extra=weights.pop("model.text_model.norm.weight")))
    refused(
        whole,
        r"model\.safetensors: the checkpoint lacks 1 tensors of the table "
        r"\['model\.text_model\.norm\.weight'\] and has 1 in no rule \['extra'\].*Use the config\.json",
    )
    rewrite(path, lambda weights: weights.pop("extra"))
    refused(whole, r"model\.safetensors: the checkpoint lacks 1 tensors .* has 0 in no rule \[\]")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (EMBED, (300, 30), r"decoder\.embed\.weight has shape \(300, 30\), the model needs \(301, 30\)"),
        (
            "model.text_model.layers.1.self_attn.k_proj.weight",
            (17, 30),
            r"rows, decoder\.blocks\.1\.attn\.qkv\.weight is made of \(48, 16, 16\)",
        ),
        (
            "model.text_model.layers.1.self_attn.k_proj.weight",
            (16, 31),
            r"shapes .* which do not stack to decoder\.blocks\.1\.attn\.qkv\.weight",
        ),
    ],
    ids=["alone", "rows of a stack", "columns of a stack"],
)
def test_a_tensor_of_another_shape_is_named(
    whole: Path, key: str, shape: tuple[int, ...], message: str
) -> None:
    rewrite(whole / "model.safetensors", lambda weights: weights.update({key: torch.zeros(shape)}))
    refused(whole, r"model\.safetensors: .*" + message + r".*Use the config\.json that was saved with it")


@pytest.mark.parametrize("keep", [0, 5, 200, 20_000, -1])
def test_a_cut_file_is_named(whole: Path, shards: Path, keep: int) -> None:
    for path in (whole / "model.safetensors", sorted(shards.glob("model-*"))[1]):
        os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
        refused(path.parent, rf"{path.name} is damaged .* save or fetch the checkpoint again")


def test_a_missing_shard_is_named(shards: Path) -> None:
    path = sorted(shards.glob("model-*"))[1]
    path.unlink()
    refused(shards, rf"{path.name} is missing: save or fetch the checkpoint again")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", ".safetensors", "x.bin", 3, None],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(shards: Path, name: object) -> None:
    shutil.copy(sorted(shards.glob("model-*"))[0], shards.parent / "x.safetensors")
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"][EMBED] = name
    (shards / INDEX).write_text(json.dumps(index))
    refused(shards, rf"index\.json names the shard {re.escape(repr(name))}, which is no file beside it")


def test_an_index_that_differs_from_its_shards_is_refused(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    place = index["weight_map"].pop(EMBED)
    index["weight_map"]["absent"] = place
    (shards / INDEX).write_text(json.dumps(index))
    refused(
        shards,
        rf"{place} lacks 1 tensors \['absent'\] and has 1 more \['{re.escape(EMBED)}'\] than .*index\.json",
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"weight_map": 3}',
        b'{"weight_map": [[1, "a"], ["b", "c"]]}',
        b"\xff\xfe",
        b"[" * 200_000,
    ],
    ids=["empty", "cut", "a list", "no map", "a number", "pairs", "no text", "nested without end"],
)
def test_a_broken_index_is_named(shards: Path, content: bytes) -> None:
    (shards / INDEX).write_bytes(content)
    refused(shards, r"index\.json is no index of shards .*save or fetch the checkpoint again")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_plain_floats_are_refused(whole: Path, dtype: torch.dtype) -> None:
    rewrite(
        whole / "model.safetensors", lambda weights: weights.update({EMBED: torch.zeros(301, 30).to(dtype)})
    )
    refused(whole, rf"1 tensors that are not F64, .*first: {re.escape(EMBED)} \(.*Quantised weights are not")


def test_a_file_of_two_float_types_is_read_if_one_is_asked_for(whole: Path) -> None:
    rewrite(whole / "model.safetensors", lambda weights: weights.update({EMBED: weights[EMBED].half()}))
    refused(whole, r"model\.safetensors mixes torch\.float16, torch\.float32: say which dtype to load")
    assert load_model(whole, CFG, dtype=torch.float32).decoder.embed.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_are_not_read_and_the_way_out_is_told(whole: Path, name: str) -> None:
    (whole / "model.safetensors").rename(whole / name)
    refused(whole, rf"{name}, a pickle, which can run any program and is not read.* save it as safetensors")


def test_a_folder_without_weights_is_named(whole: Path) -> None:
    (whole / "model.safetensors").unlink()
    refused(whole, r"whole has no weights: model\.safetensors and .*index\.json are missing, save or fetch")


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path: Path) -> None:
    cfg = VLMConfig(
        vision=CFG.vision,
        decoder=DecoderConfig(width=64, num_layers=1, tied=True),
        image_token_id=1,
        shuffle=2,
    )
    write_shards(
        tmp_path, {key: torch.ones(shape) for key, shape in shapes_of(cfg).items()}, shard_bytes=10**9
    )
    path = tmp_path / "model.safetensors"
    rewrite(path, lambda weights: weights.update({HEAD: weights[EMBED].clone()}))
    assert load_model(tmp_path, cfg).head is None

    def spoil(weights: dict[str, Tensor]) -> None:
        weights[HEAD][-1, -1] = 2  # in the last window

    rewrite(path, spoil)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: lm_head\.weight differs from"):
        load_model(tmp_path, cfg)


def shapes_of(cfg: VLMConfig) -> dict[str, tuple[int, ...]]:
    from tailorbird.model.build import build_model

    theirs = revert(build_model(cfg, "meta").state_dict(), vlm_rules(cfg))
    return {key: tuple(value.shape) for key, value in theirs.items()}


LOAD = """
import re, sys
from pathlib import Path
import torch
from tailorbird.checkpoint.released import vlm_config
from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.vlm import load_model
from tailorbird.model.build import build_model

def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder = Path(sys.argv[1])
cfg = vlm_config(read_object(folder / "config.json"), folder)
build_model(cfg, "meta")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
model = load_model(folder, cfg, dtype=getattr(torch, sys.argv[2]))
print(memory("VmHWM") - before, sum(value.nbytes for value in model.state_dict().values()))
"""


def growth(folder: Path, cfg: VLMConfig, dtype: str) -> tuple[int, int]:
    """Write random weights in bf16; return what loading them adds to a process at most, and their size."""
    from tailorbird.checkpoint.released import released_config

    folder.mkdir()
    config = released_config(cfg, pad_id=2, end_ids=frozenset({1}), dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config))
    weights = {key: torch.randn(shape, dtype=torch.bfloat16) for key, shape in shapes_of(cfg).items()}
    write_shards(folder, weights, shard_bytes=10**9)
    try:
        command = [sys.executable, "-c", LOAD, str(folder), dtype]
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    return peak, size


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_needs_the_memory_of_the_weights_and_a_few_windows(tmp_path: Path, dtype: str) -> None:
    cfg = VLMConfig(
        vision=VisionConfig(num_layers=2),
        decoder=DecoderConfig(width=576, num_layers=4, vocab=20_000),
        image_token_id=1,
    )
    peak, size = growth(tmp_path / "it", cfg, dtype)
    assert size > 80e6
    assert peak < 1.05 * size + 3 * files.WINDOW


@pytest.mark.full
def test_loading_the_256m_shape_in_bf16_peaks_below_1_1_of_its_weights(tmp_path: Path) -> None:
    peak, size = growth(tmp_path / "it", SMOLVLM2_256M, "bfloat16")
    assert size == 2 * 256_484_928
    print(f"peak {peak / size:.3f} of {size / 1e6:.0f} MB")
    assert peak < 1.1 * size
