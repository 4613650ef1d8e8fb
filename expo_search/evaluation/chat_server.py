"""A server with OpenAI's chat completions (vLLM's, llama.cpp's, Ollama's, a paid one), asked one question at a time.

By the standard library alone: one kind of request, whose retries and limits are ours in any case, is no reason for a
dependency. The key is read from OPENAI_API_KEY, sent in the request's header, and appears nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from expo_search.config.spec import is_here
from expo_search.errors import RewardError

KEY = "OPENAI_API_KEY"
_TRIES = 6
_FIRST_PAUSE_S = 1.0  # between two tries, twice as long each time
_LONGEST_WAIT_S = 600.0  # of what a server says itself
_LATER = (408, 409, 425, 429)  # answers that another try may change, beside the server's own faults
_SHOWN = 160  # characters of what a server says


class ChatServer:
    """One model of one server.

    Args:
        url: up to and with its version, `http://localhost:8000/v1`.
        timeout_s: for one reply.
        first_pause_s: before the second try.
    """

    def __init__(self, url: str, model: str, timeout_s: float, *, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        self._url, self._model, self._timeout_s, self._pause_s = url.rstrip("/"), model, timeout_s, first_pause_s
        self._key = os.environ.get(KEY, "")
        no_proxy = [ProxyHandler({})] if is_here(url) else []  # what is for this machine stays on it
        self._opener = build_opener(_NoRedirects, *no_proxy)
        self._closed = threading.Event()

    def close(self) -> None:
        """Ask nothing any more: who waits for another try gets an error."""
        self._closed.set()

    def check_model(self) -> None:
        """Check that the server answers and, where it lists its models, that this is one of them.

        Raises:
            RewardError: it does not, or it is not.
        """
        try:
            listed = self._sent("/models", None, n_tries=1)["data"]
            names = [str(model["id"]) for model in listed]
        except _Refused as refused:
            if refused.code == 404:  # a server without a list
                return
            raise self._fault(refused.found, "a server that answers", "check the address and the key") from None
        except (KeyError, TypeError, ValueError):
            return
        if names and self._model not in names:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise self._fault(f"no model {self._model!r} there", f"one of {some}", "give another --judge-model")

    def reply(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> str:
        """What the model says; `options` are further keys of the request.

        Raises:
            RewardError: no reply after several tries, or one that is no chat completion.
        """
        try:
            answer = self._sent("/chat/completions", {"model": self._model, "messages": list(messages), **options})
        except _Refused as refused:
            do = "see to the server; what was answered is stored, the same command goes on"
            raise self._fault(refused.found, "a reply", do) from None
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, TypeError, IndexError):
            found = f"a reply without choices ({json.dumps(answer)[:_SHOWN]})"
            raise self._fault(found, "a chat completion", "check the address") from None

    def _sent(self, path: str, body: Mapping[str, Any] | None, n_tries: int = _TRIES) -> Any:
        """A server's JSON, after several tries. Raises `_Refused`."""
        pause = self._pause_s
        for attempt in range(1, n_tries + 1):
            try:
                return self._once(path, body)
            except _Refused as refused:
                if not refused.may_pass or attempt == n_tries:
                    raise
                wait = max(pause, min(_LONGEST_WAIT_S, refused.wait_s))
            pause *= 2
            if self._closed.wait(wait):
                raise _Refused("the search ends", 0)
        raise AssertionError

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data=data, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return json.loads(answer.read())
        except HTTPError as fault:
            raise self._http_fault(fault) from None
        except (URLError, OSError, http.client.HTTPException) as fault:
            reason = getattr(fault, "reason", None) or fault
            raise _Refused(f"{type(reason).__name__}: {self._hidden(reason)}", 0, may_pass=True) from None
        except ValueError:
            raise _Refused("a reply that is no JSON", 0) from None

    def _http_fault(self, fault: HTTPError) -> _Refused:
        with fault:
            said = b""
            with suppress(OSError, http.client.HTTPException):
                said = fault.read(4096)
        try:
            error = json.loads(said)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = said.decode("utf-8", "replace")
        wait_s = 0.0
        with suppress(TypeError, ValueError):  # a date, or nothing
            wait_s = float(fault.headers.get("Retry-After", 0))
        found = f"HTTP {fault.code} {fault.reason}: {self._hidden(text)}".rstrip(": ")
        return _Refused(found, fault.code, may_pass=fault.code in _LATER or fault.code >= 500, wait_s=wait_s)

    def _hidden(self, said: object) -> str:
        """On one line, without the key: servers say it back."""
        text = " ".join(str(said).split())
        return (text.replace(self._key, "***") if self._key else text)[:_SHOWN]

    def _fault(self, found: str, expected: str, do: str) -> RewardError:
        return RewardError(where=f"judge {self._model} at {self._url}", found=found, expected=expected, do=do)


class _Refused(Exception):
    """A request that came to nothing; `may_pass`: another try may come to something, after `wait_s` at the earliest."""

    def __init__(self, found: str, code: int, *, may_pass: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(found)
        self.found, self.code, self.may_pass, self.wait_s = found, code, may_pass, wait_s


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is an error: the key would go with it to another server."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> None:
        """None: it is not followed."""
