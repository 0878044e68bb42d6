"""A hub on this machine: it answers as huggingface.co does to those who list and fetch a model repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


@dataclass
class Hub:
    """repositories: name -> folder. gated: names of those that want a login. fetched: paths of files that were sent."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub; stopped at the end."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            name, kind, rest = (
                "/".join(parts[2:4] if api else parts[:2]),
                parts[4 if api else 2],
                parts[5 if api else 3 :],
            )
            if name in hub.gated:
                return self.answer(403, {"X-Error-Code": "GatedRepo"})
            if name not in hub.repositories:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            if rest[0] not in ("main", COMMIT):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            folder = hub.repositories[name]
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if kind == "revision":
                return self.answer(200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            if kind == "tree":
                tree = [
                    {
                        "type": "file",
                        "path": str(path.relative_to(folder)),
                        "size": path.stat().st_size,
                        "oid": etag(path),
                    }
                    for path in files
                ]
                return self.answer(200, {}, json.dumps(tree).encode())
            path = folder.joinpath(*rest[1:])
            if self.command == "GET":
                hub.fetched.append(str(path.relative_to(folder)))
            return self.answer(200, {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT}, path.read_bytes())

        def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def about(path: Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "oid": etag(path)}


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
