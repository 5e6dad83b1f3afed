"""A small server that speaks like the hub: one repository at one commit."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

SHA = "a" * 40
Kind = Literal["models", "datasets"]


class Hub(BaseHTTPRequestHandler):
    """`root` as huggingface.co serves it to snapshot_download under `name`, at main, v3.0 and SHA."""

    def __init__(self, root: Path, kind: Kind, name: str, asked: list[str], *args: object) -> None:
        self.root, self.name, self.asked = root, name, asked
        self.api = f"/api/{kind}/{name}/"
        self.content = ("" if kind == "models" else f"/{kind}") + f"/{name}/resolve/{SHA}/"
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        files = {str(f.relative_to(self.root)): f for f in self.root.rglob("*") if f.is_file()}
        if path in (f"{self.api}revision/{revision}" for revision in ("main", "v3.0", SHA)):
            names = [{"rfilename": name} for name in files]
            self.reply(json.dumps({"id": self.name, "sha": SHA, "siblings": names}).encode())
        elif path.startswith(f"{self.api}tree/{SHA}"):
            self.reply(json.dumps([entry(name, file.read_bytes()) for name, file in files.items()]).encode())
        elif path.startswith(self.content) and path.removeprefix(self.content) in files:
            self.reply(files[path.removeprefix(self.content)].read_bytes())
        elif "/gated" in path:
            self.reply(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        else:
            known = path.startswith(self.api)
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


def entry(name: str, data: bytes) -> dict[str, object]:
    """A file in the listing of a repository; data files are large ones."""
    size, blob = len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    large = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
    more = {"lfs": large} if name.endswith((".parquet", ".zip", ".tar")) else {}
    return {"type": "file", "path": name, "size": size, "oid": blob, **more}


@contextmanager
def serving(root: Path, kind: Kind, name: str, asked: list[str], handler: type[Hub] = Hub) -> Iterator[str]:
    """Yield the address of a server; `asked` collects the paths that it is asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, root, kind, name, asked)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    """For a process whose hub is there and whose cache is `home`."""
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "HF_HUB_OFFLINE"}
    return {**env, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}
