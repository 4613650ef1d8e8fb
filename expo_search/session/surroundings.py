"""What lies around an installation and can be in a search's way -> facts: driver, disks, the database, the Hub.

The Hub is asked for one page's header, which takes three seconds at most; nothing is downloaded, and nothing written.
Libraries are imported where they are used: this must also run in an installation that lacks them.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from expo_search.errors import StoreError
from expo_search.folders import existing
from expo_search.session.fact import Fact, gib, short
from expo_search.text import shown

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_HUB_TIMEOUT_S = 3.0
_USER = re.compile(r"^(\w+://)?.*@")  # of an address, with the password, which may have an @ or a slash
_LITTLE_DISK_BYTES = 5 << 30  # less than most checkpoints have


def surroundings(storage: str) -> Iterator[Fact]:
    """The facts. `storage`: URL of the database."""
    yield disk()
    yield database(storage)
    yield hub()


def driver() -> str | None:
    """Version of the NVIDIA driver; None where there is none, "" where it does not say."""
    try:
        text = _NVIDIA_DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}(?:\.\d+)+\b", text)
    return found[0] if found else ""


def disk() -> Fact:
    """Where exports and databases go, and where downloads do."""
    folders = {"the working folder": Path.cwd()}
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["the Hub's cache"] = existing(Path(HF_HUB_CACHE))
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items()}
    text = ", ".join(f"{gib(n_bytes)} free in {name}" for name, n_bytes in free.items())
    if min(free.values()) < _LITTLE_DISK_BYTES:
        return Fact("disk", f"{text}: less than most checkpoints take", "remark", "free some, or set HF_HOME")
    return Fact("disk", text)


def database(storage: str) -> Fact:
    """Whether the studies of a database can be read."""
    try:
        from expo_search.store.address import is_made, sqlite_path
        from expo_search.store.database import check_readable, study_names

        path = sqlite_path(storage)
        if path is not None and not is_made(storage, path):
            return Fact("database", f"none yet at {shown(storage)}")
        check_readable(storage)
        n = len(study_names(storage))
    except ImportError as fault:
        return Fact("database", f"not looked at ({short(fault)})", "remark", "install what is missing")
    except StoreError as fault:
        return Fact("database", f"{shown(storage)} cannot be read: {fault.found}", "missing", fault.do)
    return Fact("database", f"{shown(storage)}, {n} {'study' if n == 1 else 'studies'}")


def hub() -> Fact:
    """Whether the Hub answers; it is not asked where the environment forbids it."""
    try:
        from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    except ImportError as missing:
        return Fact("Hub", f"not asked ({short(missing)})", "remark", "install what is missing")
    if HF_HUB_OFFLINE:
        return Fact("Hub", "not asked, since HF_HUB_OFFLINE is set: what is in its cache can be used")
    asked = _USER.sub(r"\1", ENDPOINT)  # a mirror's may have a password, which urllib would take for a port
    fault, address = _hub_fault(asked), shown(asked)
    if fault is None:
        return Fact("Hub", f"{address} answers")
    text = f"{address} does not answer ({fault}): only local folders and what is in its cache can be used"
    return Fact("Hub", text, "remark", "see to the network or a proxy (HTTPS_PROXY), or name a mirror in HF_ENDPOINT")


def _hub_fault(address: str) -> str | None:
    """Why an address cannot be reached, asked in a thread: no timeout covers the search for its name."""
    answers: list[str | None] = []

    def ask() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=_HUB_TIMEOUT_S):
                answers.append(None)
        except HTTPError as answer:  # also an answer: the Hub was reached
            answers.append(None if answer.code < 500 else short(answer))
        except (OSError, ValueError, HTTPException) as fault:
            answers.append(shown(short(fault)))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_TIMEOUT_S)
    return answers[0] if answers else f"nothing within {_HUB_TIMEOUT_S:g} s"
