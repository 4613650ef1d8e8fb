"""As much of the Hugging Face Hub as expo-search uses, on this machine: the real client library talks to it.

Repositories are folders, `models/OWNER/NAME` and `datasets/OWNER/NAME`, with one commit each. Those of owner `gated`
are closed, and those of `cut` lose the connection in the middle of their weights. An upload goes where the repository
is created, weights by Git LFS, the other files inside the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_not_a_real_one"
COMMIT = hashlib.sha1(b"the only commit").hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: ClassVar[Path]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Into no log: `asked` has it."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self._api(parts[1:], body)
        elif parts[0] == "lfs":
            (self.root / "lfs").mkdir(exist_ok=True)
            (self.root / "lfs" / parts[1]).write_bytes(body)
            self._send({})
        elif path.endswith(".git/info/lfs/objects/batch"):
            href = f"http://{self.headers['Host']}/lfs/"
            objects = [o | {"actions": {"upload": {"href": href + o["oid"]}}} for o in json.loads(body)["objects"]]
            self._send({"transfer": "basic", "objects": objects})
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            owner, name, _, _, *file = parts[kind == "datasets" :]
            self._file(self.root / kind / owner / name, "/".join(file))

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts == ["whoami-v2"]:
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            self._send({"type": "user", "name": "me"} if allowed else {"error": "who?"}, 200 if allowed else 401)
        elif parts == ["validate-yaml"]:
            self._send({"errors": [], "warnings": []})
        elif parts == ["repos", "create"]:
            wanted = json.loads(body)
            (self.root / "models" / "me" / wanted["name"]).mkdir(parents=True)
            self._send({"url": f"http://{self.headers['Host']}/me/{wanted['name']}", "name": f"me/{wanted['name']}"})
        elif parts[0] not in ("models", "datasets"):
            self._send({"error": "not here"}, 404)
        else:
            kind, owner, name, *rest = parts
            self._repository(self.root / kind / owner / name, f"{owner}/{name}", rest, body)

    def _repository(self, folder: Path, id: str, rest: list[str], body: bytes) -> None:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if not folder.is_dir():
            self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif not rest or rest[0] == "revision":
            siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
            self._send({"id": id, "sha": COMMIT, "private": True, "tags": [], "siblings": siblings})
        elif rest[0] == "tree":
            under = folder / "/".join(rest[2:])
            self._send(
                [
                    _entry(folder, p)
                    for p in sorted(under.rglob("*") if "recursive=True" in self.path else under.iterdir())
                ]
            )
        elif rest[0] == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            self._send([_entry(folder, folder / path) for path in asked if (folder / path).exists()])
        elif rest[0] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith(".safetensors") else "regular" for path in paths]
            self._send(
                {
                    "files": [
                        {"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes, strict=True)
                    ]
                }
            )
        elif rest[0] == "commit":
            for line in body.decode().splitlines():
                entry = json.loads(line)
                to = folder / entry["value"].get("path", "")
                if entry["key"] == "file":
                    to.write_bytes(base64.b64decode(entry["value"]["content"]))
                elif entry["key"] == "lfsFile":
                    (self.root / "lfs" / entry["value"]["oid"]).rename(to)
            self._send({"commitUrl": f"http://{self.headers['Host']}/{id}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._send({"error": f"this server does not know {rest}"}, 501)

    def _file(self, folder: Path, name: str) -> None:
        if folder.parent.name == "gated":
            self._send({"error": "closed"}, 403, {"X-Error-Code": "GatedRepo"})
        elif not folder.is_dir():
            self._send({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif not (folder / name).is_file():
            self._send({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            content = (folder / name).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if part is None:
                self._send(content, headers=headers)
            else:
                first, last = int(part[1]), min(int(part[2]), len(content) - 1)
                self.asked[-1] += f" bytes {first}-{last}"
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                self._send(content[first : last + 1], 206, headers)

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if data is content else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.path.startswith("/cut/") and self.path.endswith(".safetensors")
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut


def _entry(folder: Path, file: Path) -> dict[str, Any]:
    name = {"path": str(file.relative_to(folder))}
    if file.is_dir():
        return name | {"type": "directory", "oid": COMMIT}
    return name | {"type": "file", "size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest()}


def hub_environment(address: str, home: Path, *, offline: bool = False) -> dict[str, str]:
    """The environment of a process that has this Hub and no other; it is read when huggingface_hub is imported."""
    others = {k: v for k, v in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy", k, re.IGNORECASE)}
    given = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    return others | given | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "1" if offline else "0"}


def ask_this_hub(patch: pytest.MonkeyPatch, address: str, home: Path, *, offline: bool = False) -> None:
    """The same for this process, which has imported huggingface_hub: its constants are read when they are used.

    `datasets` copies them when it is imported, which must not be while they are others.
    """
    import datasets.config

    for name, value in hub_environment(address, home, offline=offline).items():
        patch.setenv(name, value)
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    patch.setattr(datasets.config, "HF_ENDPOINT", address)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")


@contextmanager
def hub_server(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The Hub whose repositories lie in `root`: its address, and what it was asked, as it comes."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
