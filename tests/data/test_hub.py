"""Fetching datasets by name: the real client of the hub, against a small server that speaks like it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from synthetic import make_demo, write_dataset

ID, SHA = "someone/toy-arm", "a" * 40


class Hub(BaseHTTPRequestHandler):
    """One dataset at one commit, as huggingface.co serves it to snapshot_download."""

    def __init__(self, root: Path, asked: list[str], *args: object) -> None:
        self.root, self.asked = root, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        files = {str(f.relative_to(self.root)): f for f in self.root.rglob("*") if f.is_file()}
        content = f"/datasets/{ID}/resolve/{SHA}/"
        if path in (f"/api/datasets/{ID}/revision/{revision}" for revision in ("main", "v3.0", SHA)):
            names = [{"rfilename": name} for name in files]
            self.reply(json.dumps({"id": ID, "sha": SHA, "siblings": names}).encode())
        elif path.startswith(f"/api/datasets/{ID}/tree/{SHA}"):
            kind = {"type": "file", "oid": "0" * 40}
            tree = [{**kind, "path": name, "size": f.stat().st_size} for name, f in files.items()]
            self.reply(json.dumps(tree).encode())
        elif path.startswith(content) and path.removeprefix(content) in files:
            self.reply(files[path.removeprefix(content)].read_bytes())
        else:
            known = path.startswith(f"/api/datasets/{ID}/")
            self.reply(b"{}", 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        tags = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        for name, value in {**tags, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def endpoint(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    write_dataset(tmp_path / "remote", range(2))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "remote", asked)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


FETCH = """
import json, sys
from tailorbird.data.lerobot import LeRobotDataset, find_dataset
from tailorbird.errors import DataError
try:
    root = find_dataset(*sys.argv[1:])
    data = LeRobotDataset(root)
    frames = sum(len(list(data.frames(episode, "wrist"))) for episode in data.episodes)
    print(json.dumps({"root": str(root), "action": data.action.tolist(), "frames": frames}))
except DataError as error:
    print(json.dumps({"error": str(error)}))
"""


def fetch(home: Path, endpoint: str, *args: str) -> dict[str, object]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env = {k: v for k, v in env.items() if "proxy" not in k.lower() and k != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", FETCH, *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dataset_is_fetched_by_name_once_and_then_found_without_the_hub(
    tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    home = tmp_path / "home"
    found = fetch(home, endpoint, ID)
    expected = np.concatenate([make_demo(seed).action for seed in range(2)])
    np.testing.assert_array_equal(np.array(found["action"], np.float32), expected)
    assert found["frames"] == len(expected)
    assert str(found["root"]).startswith(str(home))
    loads = sum("/resolve/" in path for path in asked)
    assert loads >= 7
    assert fetch(home, endpoint, ID, "v3.0") == found
    assert sum("/resolve/" in path for path in asked) == loads, "nothing is fetched twice"
    assert fetch(home, "http://127.0.0.1:9", ID) == found, "without the hub, what was fetched is used"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("someone/else",), "someone/else is no folder here, and the hub did not give it"),
        ((ID, "v9"), f"{ID} is no folder here, and the hub did not give it"),
        (("no such/name!",), "no such/name! is no folder here, and the hub did not give it"),
    ],
    ids=["name", "revision", "impossible name"],
)
def test_what_the_hub_does_not_have_is_one_clear_error(
    tmp_path: Path, endpoint: str, args: tuple[str, ...], message: str
) -> None:
    assert str(fetch(tmp_path / "home", endpoint, *args)["error"]).startswith(message)


def test_no_hub_at_all_is_one_clear_error(tmp_path: Path) -> None:
    found = fetch(tmp_path / "home", "http://127.0.0.1:9", ID)
    assert str(found["error"]).startswith(f"{ID} is no folder here, and the hub did not give it")
