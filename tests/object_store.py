"""As much of an S3 object store as artifacts need, on this machine: boto3's real client talks to it.

Objects are in memory, by "/bucket/key". Signatures are not looked at; a request without one is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

BUCKET = "expo-test"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]

    def log_message(self, *_: Any) -> None:
        """Into no log."""

    def do_PUT(self) -> None:
        body = self._body()
        if self._is_allowed():
            self.objects[self._key()] = body
            self._send(200)

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        found = self.objects.get(self._key())
        self._send(404, _fault("NoSuchKey")) if found is None else self._send(200, found)

    def do_DELETE(self) -> None:
        if self._is_allowed():
            self.objects.pop(self._key(), None)
            self._send(204)

    def _is_allowed(self) -> bool:
        if "Authorization" not in self.headers:
            self._send(403, _fault("AccessDenied"))
        elif not self._key().startswith(f"/{BUCKET}/"):
            self._send(404, _fault("NoSuchBucket"))
        else:
            return True
        return False

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        """What is sent; of "aws-chunked" from pieces: `size;signature`, so many bytes, at the end 0 and trailers."""
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return whole

    def _send(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _fault(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


@contextmanager
def object_store() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its address, and its objects."""
    handler = type("_Store", (_Handler,), {"objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.objects  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
