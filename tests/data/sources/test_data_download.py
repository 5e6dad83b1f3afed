"""Published sets from a small server that speaks like the hub, fetched by the real client."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import Hub, environment, serving
from tailorbird.data.sources import fetch
from tailorbird.data.sources.known import find_known
from tailorbird.errors import DataError, StorageError

ID = "HuggingFaceM4/the_cauldron"
CARD = "---\nlicense: cc-by-4.0\n---\n# A set\n"
FILES = {
    "README.md": CARD.encode(),
    "ai2d/train-0.parquet": b"first" * 5000,
    "ai2d/train-1.parquet": b"second" * 5000,
    "vqav2/train-0.parquet": b"third" * 7000,
}


class Shaky(Hub):
    """Says the licence; stops in the middle of one file; and asks for terms if there is a mark."""

    slow = ""
    halfway, go = threading.Event(), threading.Event()

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        is_gated = (self.root.parent / "gated").exists()
        if "/revision/" in self.path:
            about = {**json.loads(body), "gated": "auto" if is_gated else False}
            body = json.dumps({**about, "cardData": {"license": "cc-by-4.0"}}).encode()
        elif "/tree/" in self.path and (self.root.parent / "strange").exists():
            body = body.replace(b"vqav2/", b"../")
        elif is_gated and "/resolve/" in self.path:
            body, status, headers = b"{}", 403, {"X-Error-Code": "GatedRepo"}
        elif self.command == "GET" and self.slow and self.path.endswith(self.slow):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.halfway.set()
            self.go.wait(60)
            return
        super().reply(body, status, headers)


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def endpoint(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    for name, data in FILES.items():
        (tmp_path / "remote" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "remote" / name).write_bytes(data)
    with serving(tmp_path / "remote", "datasets", ID, asked, Shaky) as address:
        yield address


RUN = """
import json, sys
from tailorbird.__main__ import main
folder, lines = sys.argv[1], json.loads(sys.argv[2])
for words in lines:
    sys.argv = ["tailorbird", "data", "download", *words, "--out", folder]
    try:
        main()
        print("ended: 0")
    except SystemExit as end:
        print(f"ended: {end.code}")
"""


def start(endpoint: str, folder: Path, *lines: list[str]) -> subprocess.Popen[str]:
    """A process that takes these command lines one after the other."""
    command = [sys.executable, "-c", RUN, str(folder), json.dumps(lines)]
    env = environment(folder.parent / "home", endpoint)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(endpoint: str, folder: Path, *lines: list[str]) -> list[str]:
    """What was printed, and how it ended, of each command line."""
    process = start(endpoint, folder, *lines)
    printed, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return re.findall(r".*?^ended: [^\n]*", printed, re.DOTALL | re.MULTILINE)


def found(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.rglob("*") if f.is_file() and ".cache" not in f.parts)
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_sizes_and_licence_are_said_first_and_one_configuration_is_fetched_once(
    tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    line = ["cauldron", "--config", "ai2d"]
    first, second = run(endpoint, tmp_path / "data", line, line)
    assert re.match(r"cauldron: 5.5e-05 GB in 2 files .* licence cc-by-4.0\n", first)
    assert first.endswith("ended: 0")
    assert second.endswith("ended: 0")
    wanted = {name: data for name, data in FILES.items() if not name.startswith("vqav2")}
    assert found(tmp_path / "data/cauldron") == wanted
    loads = [path for path in asked if "/resolve/" in path]
    assert len(loads) <= 2 * len(wanted), "a look and a load for each, and nothing the second time"


def test_a_killed_download_goes_on_and_what_came_whole_is_kept(
    tmp_path: Path, endpoint: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shaky, "slow", "ai2d/train-1.parquet")
    folder = tmp_path / "data/cauldron"
    with start(endpoint, tmp_path / "data", ["cauldron"]) as process:
        assert Shaky.halfway.wait(60)
        deadline = time.monotonic() + 30
        while len(found(folder)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # the client notes what it has
        process.kill()
        Shaky.go.set()
    there = found(folder)
    assert there == {name: data for name, data in FILES.items() if name != Shaky.slow}, "nothing half"
    monkeypatch.undo()
    before = len(asked)
    assert run(endpoint, tmp_path / "data", ["cauldron"])[0].endswith("ended: 0")
    assert found(folder) == FILES
    again = {path.partition(f"{'a' * 40}/")[2] for path in asked[before:] if "/resolve/" in path}
    assert again == {"ai2d/train-1.parquet"}


def test_a_file_that_changed_on_the_disk_is_removed_and_then_fetched_again(
    tmp_path: Path, endpoint: str
) -> None:
    assert run(endpoint, tmp_path / "data", ["cauldron"])[0].endswith("ended: 0")
    path = tmp_path / "data/cauldron/ai2d/train-0.parquet"
    state = path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a bad disk would
    damaged, repaired = run(endpoint, tmp_path / "data", ["cauldron"], ["cauldron"])
    assert "1 files of cauldron are not what the hub states, first ai2d/train-0.parquet" in damaged
    assert repaired.endswith("ended: 0")
    assert found(tmp_path / "data/cauldron") == FILES


def test_a_set_that_is_too_large_or_not_there_is_refused_before_anything_is_fetched(
    tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    lines = ["cauldron", "--max-gb", "0.00001"], ["cauldron", "--config", "nope"], ["vista"]
    large, nothing, unknown = run(endpoint, tmp_path / "data", *lines)
    assert "and 1e-05 are allowed: raise --max-gb, or name a --config" in large
    assert "has no files nope/*: it has README.md, ai2d, vqav2" in nothing
    assert "ended: error: the hub did not give TIGER-Lab/VISTA-400K (RepositoryNotFoundError" in unknown
    assert not any("/resolve/" in path for path in asked)
    with pytest.raises(DataError, match="finevideo has no configurations: leave out x"):
        fetch.plan(find_known("finevideo"), ["x"])


def test_a_gated_set_names_the_page_where_its_terms_are_accepted(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "gated").touch()
    (printed,) = run(endpoint, tmp_path / "data", ["cauldron"])
    assert f"after you accept its terms at https://huggingface.co/datasets/{ID}\n" in printed
    assert f"accept them at https://huggingface.co/datasets/{ID}, run `hf auth login`" in printed
    assert found(tmp_path / "data/cauldron") == {}


def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_fetched(
    tmp_path: Path, endpoint: str
) -> None:
    (tmp_path / "strange").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-0.parquet").write_bytes(b"mine")
    (told,) = run(endpoint, tmp_path / "data", ["cauldron"])
    assert "names a file '../train-0.parquet', which leads out of its folder" in told
    assert found(tmp_path / "data") == {"train-0.parquet": b"mine"}


def test_checksums_of_large_and_small_files_are_compared(tmp_path: Path) -> None:
    data = b"content"
    sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    large = fetch.Remote("a.parquet", len(data), sha256, "")
    small = fetch.Remote(
        "b.md", len(data), None, "6b584e8ece562ebffc15d38808cd6b98fc3d97ea"
    )  # git hash-object
    known = find_known("cauldron")
    what = fetch.Plan(known=known, commit="c", licence="", gated=False, patterns=(), files=(large, small))
    for name in ("a.parquet", "b.md"):
        (tmp_path / name).write_bytes(data)
    fetch.verify(what, tmp_path)
    for name in ("a.parquet", "b.md"):
        (tmp_path / name).write_bytes(b"c0ntent")
        with pytest.raises(DataError, match=f"not what the hub states, first {name}: they were removed"):
            fetch.verify(what, tmp_path)
        (tmp_path / name).write_bytes(data)


def test_a_disk_that_is_too_small_is_said_before(tmp_path: Path) -> None:
    vast = fetch.Remote("a.parquet", 10**18, None, "")
    known = find_known("cauldron")
    what = fetch.Plan(known=known, commit="c", licence="", gated=False, patterns=(), files=(vast,))
    with pytest.raises(StorageError, match=r"needs 1e\+09 GB more"):
        fetch.download(what, tmp_path, max_gb=1e10)
