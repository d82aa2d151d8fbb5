"""A stand-in for the Hugging Face Hub on the loopback, for processes that are started without HF_HUB_OFFLINE."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that several files of tests share

LARGE = (".safetensors", ".bin", ".gguf", ".onnx")
"""Files that the Hub keeps elsewhere: asked for one, it answers with an address that is signed."""
SIGNATURE = "Signature=a-secret-of-the-address"


class Seen(NamedTuple):
    """A request that was answered."""

    method: str
    path: str
    """``<id>/<file>`` for a file's bytes, wherever they lie; else the path of the address."""
    status: int
    range: str | None
    token: str | None


class Hub:
    """Repositories with commits and revisions, what was asked for, and what goes wrong.

    Attributes:
        files: of each commit: its files' bytes by name.
        revisions: of each repository: commits by branch, tag or themselves.
        gated: repositories whose files need ``token``.
        seen: the requests so far.
        faults: what happens to the next requests for ``<id>/<file>``, one each: "cut" closes the connection after half of the bytes that
            are asked for, "reset" does so as a crash would, "slow" takes a second, a number answers with that status.
        afterwards: of each repository: called when it has next been asked which commit a revision is.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.token = "hf_right"
        self.seen: list[Seen] = []
        self.faults: dict[str, list[Any]] = {}
        self.afterwards: dict[str, Callable[[], object]] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def push(self, repository: str, folder: Path, *, revision: str = "main", more: dict[str, bytes] | None = None) -> str:
        """A commit with a folder's files and ``more``, which ``revision`` now means; returns its name."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        files |= more or {}
        digest = hashlib.sha1(repository.encode())
        for name, data in sorted(files.items()):
            digest.update(name.encode() + b"\0" + data)
        commit = digest.hexdigest()
        self.files[commit] = files
        self.revisions.setdefault(repository, {}).update({revision: commit, commit: commit})
        return commit

    def fetched(self, repository: str) -> list[str]:
        """Names of the repository's files whose bytes were asked for, as often as they were."""
        return [
            seen.path.removeprefix(f"{repository}/")
            for seen in self.seen
            if seen.method == "GET" and seen.path.startswith(f"{repository}/")
        ]

    def asked(self, name: str) -> list[Seen]:
        """Requests of any kind whose path has ``name`` in it."""
        return [seen for seen in self.seen if name in seen.path]

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """The variables of a process that takes this for the Hub and ``home`` for its cache."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost",
                "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        return {**plain, **ours, **variables}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        words = [unquote(word) for word in address.path.strip("/").split("/")]
        if words[:2] == ["api", "models"]:
            self._describe("/".join(words[2:4]), words[4:])
        elif words[0] == "elsewhere":
            allowed = SIGNATURE in address.query
            self._bytes("/".join(words[1:3]), words[3], "/".join(words[4:])) if allowed else self._say(403)
        elif words[2:3] == ["resolve"]:
            self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        else:
            self._say(404)

    def _commit(self, repository: str, revision: str) -> str | None:
        """The commit; None when the answer was given already."""
        revisions = self.hub.revisions.get(repository)
        if revisions is None:  # as the Hub does, which does not tell strangers what is missing and what is private
            self._say(401, "RepoNotFound", "Invalid username or password.")
        elif revision not in revisions:
            self._say(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return revisions[revision]
        return None

    def _describe(self, repository: str, words: list[str]) -> None:
        kind, revision, *folders = words or ["revision", "main"]
        if (commit := self._commit(repository, revision)) is None:
            return
        files = self.hub.files[commit]
        if kind == "revision":
            names = [{"rfilename": name} for name in files]
            self._json({"_id": "0", "id": repository, "modelId": repository, "sha": commit, "siblings": names, "tags": []})
            self.hub.afterwards.pop(repository, lambda: None)()
        else:
            start = "".join(f"{folder}/" for folder in folders)
            found = {name: data for name, data in files.items() if name.startswith(start)}
            if not found:
                self._say(404, "EntryNotFound", "Entry not found")
                return
            self._json([{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in found.items()])

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if (commit := self._commit(repository, revision)) is None:
            return
        headers = {"X-Repo-Commit": commit}
        if repository in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._say(403 if self.headers.get("Authorization") else 401, "GatedRepo", "Access to this model is restricted.")
        elif (data := self.hub.files[commit].get(name)) is None:
            self._say(404, "EntryNotFound", "Entry not found", headers)
        elif name.endswith(LARGE):
            where = f"http://localhost:{self.hub.port}/elsewhere/{repository}/{commit}/{name}?{SIGNATURE}"
            headers |= {"Location": where, "X-Linked-Etag": f'"{_etag(data)}"', "X-Linked-Size": str(len(data))}
            self._say(302, more=headers)
        else:
            self._bytes(repository, commit, name, headers)

    def _bytes(self, repository: str, commit: str, name: str, more: dict[str, str] | None = None) -> None:
        data = self.hub.files[commit][name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        path = f"{repository}/{name}"
        fault = None
        if self.command == "GET":
            with self.hub.lock:
                fault = (self.hub.faults.get(path) or [None]).pop(0)
        if isinstance(fault, int):
            self._say(fault, path=path)
            return
        status = 206 if "Range" in self.headers else 200
        self._record(path, status)
        self.send_response(status)
        for key, value in {"ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes", **(more or {})}.items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "slow":
            time.sleep(1)
        if fault in (None, "slow"):
            self.wfile.write(data[start:])
            return
        self.wfile.write(data[start : start + (len(data) - start) // 2])
        self.wfile.flush()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _json(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self._say(200, body=text, more={"Content-Type": "application/json"})

    def _say(
        self,
        status: int,
        code: str | None = None,
        message: str | None = None,
        more: dict[str, str] | None = None,
        *,
        body: bytes = b"",
        path: str | None = None,
    ) -> None:
        self._record(path or urlsplit(self.path).path, status)
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": message, **(more or {})}.items():
            if value is not None:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _record(self, path: str, status: int) -> None:
        with self.hub.lock:
            self.hub.seen.append(Seen(self.command, path, status, self.headers.get("Range"), self.headers.get("Authorization")))


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A stand-in without repositories."""
    stand_in = Hub()
    yield stand_in
    stand_in.close()
