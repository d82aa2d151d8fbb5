"""A web server on this machine for tests of recordings that lie elsewhere: it serves a folder, counts, and fails as it is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Web:
    """What a server serves and has seen.

    Attributes:
        url: its address, without a slash at the end.
        asked: how often each path was asked for with GET.
        failing: for a path, the answers to the next GETs: a status, or ``cut`` for a body that breaks off.
        moved: for a path, where it leads on to.
        unsized: whether answers leave their length out.
        pause: seconds before each GET is answered.
        wanted: the query that every request must have; None takes any.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.asked: Counter[str] = Counter()
        self.failing: dict[str, list[int | str]] = {}
        self.moved: dict[str, str] = {}
        self.unsized, self.pause = False, 0.0
        self.wanted: str | None = None


@contextmanager
def served(folder: Path) -> Iterator[Web]:
    """A server of the files of a folder, for as long as the block lasts."""
    web = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            address = urlsplit(self.path)
            path, fault = address.path, None
            if body:
                web.asked[path] += 1
                time.sleep(web.pause)
                if web.failing.get(path):
                    fault = web.failing[path].pop(0)
            file = web.folder / path.lstrip("/")
            if web.wanted is not None and address.query != web.wanted:
                self._plain(403)
            elif isinstance(fault, int):
                self._plain(fault)
            elif path in web.moved:
                self._plain(302, web.moved[path])
            elif not file.is_file():
                self._plain(404)
            else:
                self._file(file.read_bytes(), body=body, cut=fault == "cut")

        def _plain(self, status: int, location: str | None = None) -> None:
            self.send_response(status)
            if location is not None:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, content: bytes, *, body: bool, cut: bool) -> None:
            self.send_response(200)
            if web.unsized:
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed is none."""

    server = Server(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
