"""A server with OpenAI's chat completions on this machine, whose model judges as a function says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge"


@dataclass
class JudgeServer:
    """What it does, and what it was asked.

    Attributes:
        prefers: (prompt, answer A, answer B) -> the reply.
        key: without which nobody gets an answer; empty: anyone does.
        faults: (status, body) of the next replies, before any verdict; status 0 drops the connection.
        most_at_once: requests that were under way together.
    """

    prefers: Callable[[str, str, str], str]
    key: str = ""
    faults: list[tuple[int, str]] = field(default_factory=list)
    lists_models: bool = True
    pause_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any]) -> str:
        """The verdict on what a judge is shown."""
        (message,) = body["messages"]
        prompt, a, b = (between(message["content"], *marks) for marks in MARKS)
        return self.prefers(prompt, a, b)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1


MARKS = (
    ("[Request]\n", "\n[End of the request]"),
    ("[Answer A]\n", "\n[End of answer A]"),
    ("[Answer B]\n", "\n[End of answer B]"),
)


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    def log_message(self, *_: Any) -> None:
        """Into no log."""

    def do_GET(self) -> None:
        is_list = self.path == "/v1/models" and self.server.judge.lists_models
        self._send(200 if is_list else 404, {"data": [{"id": MODEL}]} if is_list else {"error": "not here"})

    def do_POST(self) -> None:
        judge = self.server.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.counted():  # not the sending, after which a client may be faster than this thread
            judge.asked.append(body)
            threading.Event().wait(judge.pause_s)
        given = self.headers.get("Authorization", "")
        if judge.key and given != f"Bearer {judge.key}":
            self._send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        elif judge.faults:
            self._fail(*judge.faults.pop(0))
        else:
            choice = {"message": {"role": "assistant", "content": judge.reply(body)}}
            self._send(200, {"choices": [choice]})

    def _fail(self, status: int, text: str) -> None:
        if status:
            self._send(status, text)
        else:
            self.close_connection = True
            self.connection.close()

    def _send(self, status: int, content: object) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        if status in (301, 302, 307):
            self.send_header("Location", "http://127.0.0.1:1/v1/chat/completions")
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Http(ThreadingHTTPServer):
    judge: JudgeServer
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that has gone away is no fault of a test."""


@contextmanager
def judge_server(prefers: Callable[[str, str, str], str], **options: Any) -> Iterator[JudgeServer]:
    """Such a server, on a free port of this machine."""
    http = _Http(("127.0.0.1", 0), _Handler)
    http.judge = JudgeServer(prefers, **options)
    http.judge.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield http.judge
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def longer(_prompt: str, a: str, b: str) -> str:
    """Prefers the longer answer; neither of two that are as long."""
    return "I compared them. " + ("[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]")
