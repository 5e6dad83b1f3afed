"""Fetching models by name: the real client of the hub, against a small server that speaks like it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import SHA, environment, serving
from released import CFG, write_released
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.errors import CheckpointError

ID = "someone/toy-vlm"
FETCH = """
import json, sys
from tailorbird.checkpoint.hub import find_model
from tailorbird.errors import CheckpointError
try:
    inner = tuple(name for name in sys.argv[3:] if "/" in name)
    root = find_model(*sys.argv[1:3], weights=sys.argv[3:] != ["without weights"], inner=inner)
    files = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
    print(json.dumps({"root": str(root), "files": files}))
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A folder in shards, with what nothing here reads."""
    root = tmp_path / "remote"
    write_released(root, shard_bytes=30_000)
    (root / "onnx").mkdir()
    for name in ("pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "README.md", "merges.txt"):
        (root / name).write_bytes(b"nothing")
    return root


@pytest.fixture
def endpoint(remote: Path, asked: list[str]) -> Iterator[str]:
    with serving(remote, "models", ID, asked) as address:
        yield address


def fetch(home: Path, endpoint: str, *args: str, **more: str) -> dict[str, object]:
    command = [sys.executable, "-c", FETCH, *args]
    env = environment(home, endpoint, **more)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_is_fetched_by_name_once_and_then_found_without_the_hub(
    tmp_path: Path, remote: Path, asked: list[str]
) -> None:
    home = tmp_path / "home"
    with serving(remote, "models", ID, asked) as endpoint:
        found = fetch(home, endpoint, ID, "v3.0")
        root = Path(str(found["root"]))
        assert root.name == SHA
        assert read_vlm(root).model.cfg == CFG
        wanted = {
            file.name for file in remote.iterdir() if file.suffix in (".json", ".jinja", ".safetensors")
        }
        assert set(found["files"]) == wanted  # type: ignore[call-overload]
        assert not [path for path in asked if "/resolve/" in path and path.rsplit("/", 1)[1] not in wanted]
        loads = sum("/resolve/" in path for path in asked)
        assert fetch(home, endpoint, ID) == fetch(home, endpoint, ID, SHA) == found
        assert sum("/resolve/" in path for path in asked) == loads, "nothing is fetched twice"
    assert fetch(home, endpoint, ID, "v3.0") == found, "the server is gone"
    asked.clear()
    with serving(remote, "models", ID, asked) as endpoint:
        assert fetch(home, endpoint, ID, "v3.0", HF_HUB_OFFLINE="1") == found
    assert asked == []
    missing = str(fetch(home, endpoint, ID, "v9", HF_HUB_OFFLINE="1")["error"])
    assert missing.startswith(f"{ID} at revision v9 is no folder here, and the hub did not give it")
    assert "Check the network and HF_HUB_OFFLINE" in missing


def test_the_words_of_a_model_are_fetched_without_its_weights_and_those_later(
    tmp_path: Path, endpoint: str, remote: Path, asked: list[str]
) -> None:
    home = tmp_path / "home"
    found = fetch(home, endpoint, ID, "main", "without weights")
    names = {file.name for file in remote.iterdir() if file.suffix in (".json", ".jinja")}
    assert set(found["files"]) == names  # type: ignore[call-overload]
    assert not [path for path in asked if path.endswith(".safetensors")]
    whole = fetch(home, endpoint, ID)
    assert whole["root"] == found["root"]
    assert read_vlm(Path(str(whole["root"]))).model.cfg == CFG


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("someone/else",), "someone/else is no folder here, .* knows no such model. Check the spelling"),
        ((ID, "v9"), f"{ID} at revision v9 is no folder here, .* no such revision. Name a branch, a tag"),
        (("no such/name!",), "no such/name! is no folder here, .* no id looks like that. Check the spelling"),
        (("someone/gated",), "someone/gated is no folder here, .* on request.* run `hf auth login`"),
    ],
    ids=["name", "revision", "impossible name", "gated"],
)
def test_what_the_hub_does_not_give_is_one_line_with_the_remedy(
    tmp_path: Path, endpoint: str, args: tuple[str, ...], message: str
) -> None:
    error = str(fetch(tmp_path / "home", endpoint, *args)["error"])
    assert "\n" not in error
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(error)


def test_no_hub_at_all_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    error = str(fetch(tmp_path / "home", "http://127.0.0.1:9", ID)["error"])
    assert error.startswith(f"{ID} is no folder here, and the hub did not give it: it cannot be reached")
    assert "\n" not in error


def test_a_folder_is_found_as_it_is(tmp_path: Path) -> None:
    assert find_model(tmp_path) == tmp_path
    assert find_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["toy", "a/b/c", "/no/where", "../toy", "./toy"])
def test_what_is_neither_folder_nor_id_is_not_asked_for(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is no folder here, and no hub id of the form user/name"):
        find_model(name)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file: name the folder"):
        find_model(tmp_path / "model.safetensors")
    (tmp_path / "A.GGUF").touch()
    with pytest.raises(CheckpointError, match=r"A\.GGUF is a file: name the folder"):
        find_model(tmp_path / "A.GGUF")


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a folder has no revisions: .* 'v3\.0'"):
        find_model(tmp_path, "v3.0")


def test_a_file_in_a_folder_is_fetched_when_it_is_named(tmp_path: Path, endpoint: str) -> None:
    plain = fetch(tmp_path / "plain", endpoint, ID, "main")["files"]
    named = fetch(tmp_path / "named", endpoint, ID, "main", "onnx/config.json")["files"]
    absent = fetch(tmp_path / "absent", endpoint, ID, "main", "vlm/config.json")["files"]
    assert named == sorted([*plain, "onnx/config.json"])  # type: ignore[misc]
    assert absent == plain
