"""A hub endpoint on loopback as `samovar models pull` meets it: redirects, digests, ranges, and mishaps."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves one file under every repository's name, and does what a test asks of it."""

    def __init__(self, content: bytes) -> None:
        """Serve `content`, whose digest and size are stated truly."""
        self.content = content
        self.headers = {
            "X-Repo-Commit": REVISION,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        self.refusal: tuple[int, str] | None = None
        """Status and `X-Error-Code` that every question is answered with."""
        self.location = ""
        """Where it sends those who ask for a file, instead of to its content; `{path}` is what they asked for."""
        self.loops = False
        """Whether the content's own address leads to itself."""
        self.cuts: list[int] = []
        """After how many bytes each of the next answers breaks off."""
        self.ranges = True
        self.starts: list[int] = []
        """Where each download began."""
        self.sent = 0
        self.stall: threading.Event | None = None
        """Waited for after the first half of an answer."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close, and let go who waits."""
        if self.stall is not None:
            self.stall.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._resolve(self)

            def do_GET(self) -> None:
                if "/resolve/" in self.path:
                    hub._resolve(self)
                else:
                    hub._send(self)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _resolve(self, request: BaseHTTPRequestHandler) -> None:
        """As huggingface.co does for large files: all that is known, and an address elsewhere."""
        if self.refusal is not None:
            status, code = self.refusal
            request.send_response(status)
            request.send_header("X-Error-Code", code)
        else:
            request.send_response(302)
            # Another name of this machine: to a client, another host.
            content = f"http://localhost:{self._server.server_port}/content"
            request.send_header("Location", self.location.format(path=request.path) or content)
            for name, value in self.headers.items():
                request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _send(self, request: BaseHTTPRequestHandler) -> None:
        if self.loops:
            request.send_response(302)
            request.send_header("Location", request.path)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "bytes=0-"))
        start = int(asked[1]) if asked and self.ranges else 0
        self.starts.append(start)
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cuts:
            body = body[: self.cuts.pop(0)]
            request.close_connection = True
        half = len(body) // 2
        for part in (body[:half], body[half:]):
            request.wfile.write(part)
            self.sent += len(part)
            if self.stall is not None:
                self.stall.wait(60)
