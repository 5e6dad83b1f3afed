"""Files and folders that are written whole or not at all, whatever kills the writer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tailorbird.errors import ConfigError, DataError, StorageError
from tailorbird.storage import changes, claim, drop_folder, new_file, new_folder, read_json, write_json

CRASH = """
import os, signal, sys
from pathlib import Path
from tailorbird.storage import drop_folder, new_file, new_folder

root, events = Path(sys.argv[1]), ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

def write(kind, path):
    if kind == "file":
        with new_file(path) as temporary:
            temporary.write_text("new" * 1000)
    elif kind == "drop":
        drop_folder(path)
    else:
        with new_folder(path) as temporary:
            for name in ("a", "b"):
                (temporary / name).write_text("new" * 1000)

def die_at(number):
    seen = 0
    def hook(event, args):
        nonlocal seen
        seen += event in events
        if seen > number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

kind, point, status = sys.argv[2], 0, 1
while status:  # until one lives to the end
    target = root / str(point) / "it"
    child = os.fork()
    if not child:
        die_at(point)
        write(kind, target)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    point += 1
print(point)
"""


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Without measuring its coverage: that opens files of its own, and much of this code is killed."""
    command = [sys.executable, "-c", code, *map(str, args)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def test_a_folder_that_is_dropped_is_whole_or_gone_whatever_kills_and_the_rest_goes_with_the_next(
    tmp_path: Path,
) -> None:
    for point in range(40):
        for name in ("it", "other"):
            (tmp_path / str(point) / name).mkdir(parents=True)
            fill(tmp_path / str(point) / name, "old")
    done = run_python(CRASH, tmp_path, "drop")
    assert done.returncode == 0, done.stderr
    num, kept = int(done.stdout), 0
    assert 4 < num < 40
    for point in range(num):
        here = tmp_path / str(point)
        if (here / "it").exists():
            kept += 1
            assert [(here / "it" / name).read_text() for name in ("a", "b")] == ["old", "old"]
        drop_folder(here / "other")
        assert [one.name for one in here.iterdir()] == ["it"] * (here / "it").exists()
    assert 0 < kept < num


def test_an_error_inside_the_block_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "deep/value.txt"
    with new_file(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), new_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["value.txt"]


def test_an_error_inside_the_block_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with new_folder(path) as temporary:
        fill(temporary, "old")
    with pytest.raises(RuntimeError, match="half way"), new_folder(path) as temporary:  # noqa: PT012
        (temporary / "a").write_text("new")
        raise RuntimeError("half way")
    assert [(path / name).read_text() for name in ("a", "b")] == ["old", "old"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_is_replaced_and_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    with new_folder(path) as temporary:
        fill(temporary, "old")
        (temporary / "deep").mkdir()
    with new_folder(path) as temporary:
        (temporary / "c").write_text("new")
    assert [file.name for file in path.iterdir()] == ["c"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("before", ["old", None])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_before_any_step_leaves_the_old_or_the_new_and_never_half(
    tmp_path: Path, kind: str, before: str | None
) -> None:
    for point in range(60):
        here = tmp_path / str(point) / "it"
        here.parent.mkdir()
        if before and kind == "file":
            here.write_text(before)
        elif before:
            here.mkdir()
            fill(here, before)
    done = run_python(CRASH, tmp_path, kind)
    assert done.returncode == 0, done.stderr
    points = int(done.stdout)
    assert 3 < points < 60
    found = []
    for point in range(points):
        here = tmp_path / str(point) / "it"
        files = [here] if kind == "file" else [here / "a", here / "b"]
        texts = {file.read_text() if file.exists() else None for file in files}
        assert len(texts) == 1, f"half after being killed at step {point}"
        found.append(texts.pop())
    assert set(found) == {before, "new" * 1000}
    assert found == sorted(found, key=[before, "new" * 1000].index), "once new, it stays new"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_does_not_disturb_the_next(tmp_path: Path, kind: str) -> None:
    path, make = tmp_path / "it", {"file": "new_file", "folder": "new_folder"}[kind]
    code = (
        f"import sys, time\nfrom pathlib import Path\nfrom tailorbird.storage import {make}\n"
        f"with {make}(Path(sys.argv[1])) as t:\n"
        f"    {'t' if kind == 'file' else '(t / chr(98))'}.write_text('half')\n"
        "    print('now', flush=True)\n    time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"now\n"
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert not path.exists()
    if kind == "file":
        with new_file(path) as temporary:
            temporary.write_text("whole")
        assert path.read_text() == "whole"
    else:
        with new_folder(path) as temporary:
            (temporary / "a").write_text("whole")
        assert [file.name for file in path.iterdir()] == ["a"]


WRITE = """
import sys
from pathlib import Path
from tailorbird.storage import new_file, new_folder
make = {"file": new_file, "folder": new_folder}[sys.argv[1]]
for version in range(10**6):
    with make(Path(sys.argv[2])) as temporary:
        (temporary if sys.argv[1] == "file" else temporary / "a").write_text(f"{version:09}" * 200_000)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_reader_sees_whole_versions_while_a_writer_replaces_them(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    file = path if kind == "file" else path / "a"
    writer = subprocess.Popen([sys.executable, "-c", WRITE, kind, path])
    try:
        end = time.monotonic() + 20
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        versions: list[str] = []
        while len(set(versions)) < 20 and time.monotonic() < end:
            text = file.read_text()
            versions.append(text[:9])
            assert text == versions[-1] * 200_000, "half of a version"
    finally:
        writer.kill()
        writer.wait()
    assert versions == sorted(versions)
    assert len(set(versions)) == 20


def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    path.write_text("old")
    (tmp_path / f".value.{os.getpid()}.txt").symlink_to("/dev/full")  # the name that new_file writes to
    with pytest.raises(StorageError, match=r"value\.txt .* the disk is full: free some space") as caught:  # noqa: SIM117
        with new_file(path) as temporary:
            temporary.write_text("new" * 10_000)
    assert isinstance(caught.value, OSError)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["value.txt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_limit_on_file_sizes_is_named_with_its_remedy(tmp_path: Path, kind: str) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from tailorbird.storage import new_file, new_folder\nfrom tailorbird.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "path, kind = Path(sys.argv[1]), sys.argv[2]\n"
        "try:\n"
        "    with (new_file if kind == 'file' else new_folder)(path) as t:\n"
        "        (t if kind == 'file' else t / 'a').write_bytes(bytes(100_000))\n"
        "except StorageError as error:\n    print(error)"
    )
    path = tmp_path / "big"
    done = run_python(code, path, kind)
    assert str(path) in done.stdout, done.stderr
    assert "raise the limit, then run the same command again" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read only", "closed"])
def test_a_folder_without_permission_is_named_with_its_remedy(tmp_path: Path, mode: int) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from tailorbird.storage import write_json\nfrom tailorbird.errors import StorageError\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)\n"  # permissions do not bind root
        "try:\n    write_json(Path('locked/deep/value.json'), 1)\n"
        "except StorageError as error:\n    print(error)"
    )
    tmp_path.chmod(0o755)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o755)
    locked.chmod(mode)
    try:
        done = run_python(code, tmp_path)
    finally:
        locked.chmod(0o755)
    assert "locked/deep/value.json" in done.stdout, done.stderr
    assert "permission denied: choose another folder" in done.stdout


def test_other_errors_of_the_system_keep_their_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "file/value.json", 1)


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"names": ["drawer", "button"], "share": 0.1, "none": None}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_json_without_a_meaning_elsewhere_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"loss": 1.5}


@pytest.mark.parametrize("content", [b'{"cut": ', b"", b"\xff\xfe\x00 not text"])
def test_damaged_json_is_named_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"value\.json is damaged.*Restore it, or make it again"):
        read_json(path)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"value\.json does not exist"):
        read_json(tmp_path / "value.json")


def test_a_folder_that_was_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    claim(path, {"size": 48, "crop": (0.0, 1.0)})
    claim(path, {"crop": [0.0, 1.0], "size": 48})
    with pytest.raises(ConfigError, match=r"begun with other settings .*: size 48, now 64\): use the same"):
        claim(path, {"size": 64, "crop": (0.0, 1.0)})
    assert read_json(path)["size"] == 48


def test_what_differs_is_found_wherever_it_lies() -> None:
    then = {"a": {"b": [1, 2], "c": 3}, "d": 4}
    assert changes(then, {"a": {"b": [1, 2], "c": 5}, "e": None}) == {"a.c": (3, 5), "d": (4, None)}
    assert changes(then, dict(then)) == {}


def test_a_writer_that_is_interrupted_politely_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    code = (
        "import signal, sys, time\nfrom pathlib import Path\nfrom tailorbird.storage import new_file\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits its neglect
        "with new_file(Path(sys.argv[1])) as t:\n    t.write_text('half')\n"
        "    print('now', flush=True)\n    time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"now\n"
    writer.send_signal(signal.SIGINT)
    writer.wait()
    writer.stdout.close()
    assert list(tmp_path.iterdir()) == []
