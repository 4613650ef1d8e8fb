"""A repository of the Hub -> one commit of it in the Hub's cache, safetensors only.

What has to be fetched is known before anything large is: all repositories of a pair are found, and their room on the
disk is there, before the first one's weights come.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from expo_search.checkpoint.remote_code import CONFIGS, check_code, is_commit
from expo_search.errors import ExpoError, PairError
from expo_search.inputs.source import CODE_REVISIONS, Source
from expo_search.text import clock, shortened, size

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "LICENSE*",
    "README.md",
)
NOT_WANTED = ("*/*.safetensors", "consolidated*")  # of training; the same weights again, as Mistral names them
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class HubCommit:
    """One commit of a repository, found on the Hub or in its cache.

    Attributes:
        role: what it is in the pair ("aligned", "sft", ...), for messages.
        wanted: patterns of the files that a search needs.
        cache: the folder of this repository in the Hub's cache.
        files: bytes of all files that are wanted, by name; None where the Hub is not reached, and the cache has to do.
        missing: names of those that are not in the cache.
    """

    id: str
    revision: str
    role: str
    wanted: Sequence[str]
    cache: Path
    files: Mapping[str, int] | None
    missing: frozenset[str]

    @property
    def n_bytes(self) -> int:
        """Still to come."""
        return sum(n for name, n in (self.files or {}).items() if name in self.missing)

    @property
    def lacks_weights(self) -> bool:
        """Whether weights are still to come, and not small files alone, which other programs do not fetch."""
        return any(fnmatch(name, WEIGHTS) for name in self.missing)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.role} {self.id}"

    def fetch(self, say: Callable[[str], None], doing: Callable[[str], None], *, from_cache: bool = False) -> Source:
        """Download what is not in the cache. `doing` gets a line each second on how far it is, and "" at the end.

        Args:
            from_cache: fetch nothing; what is there has to do.

        Raises:
            PairError: it cannot be had.
        """
        from huggingface_hub import snapshot_download

        if self.missing:
            say(f"fetching {self.where}: {size(self.n_bytes)}, kept in the Hub's cache")
        with reached(f"{self.where}, file {WEIGHTS}"), self._told(doing):
            folder = Path(
                snapshot_download(
                    self.id,
                    revision=self.revision,
                    allow_patterns=list(self.wanted),
                    ignore_patterns=list(NOT_WANTED),
                    local_files_only=from_cache,
                )
            )
        return Source(folder, self.id, folder.name, on_hub=True)

    @contextmanager
    def _told(self, doing: Callable[[str], None]) -> Iterator[None]:
        """Within it, what arrives on the disk is told, which is the same whatever way the Hub sends it."""
        if not self.missing:
            yield
            return
        blobs, n_bytes, began, ended = self.cache / "blobs", self.n_bytes, time.monotonic(), Event()
        before = _on_disk(blobs)

        def tell() -> None:
            while not ended.wait(1.0):
                arrived = min(max(0, _on_disk(blobs) - before), n_bytes)  # another process may fetch as well
                rate = arrived / (time.monotonic() - began)
                left = clock((n_bytes - arrived) / rate if rate else None)
                doing(f"fetching {self.where}: {size(arrived)} of {size(n_bytes)}, {size(rate)}/s, left {left}")

        watching = Thread(target=tell, name="what is fetched", daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()
            doing("")


def find_on_hub(id: str, revision: str | None, role: str, trust_remote_code: bool, first: str) -> HubCommit:
    """Find a repository's commit and what of it is to be fetched; only small files are fetched here.

    Args:
        id: owner/name.
        role: as in `HubCommit`; some roles may have code.
        first: a small file that the repository must have; it is fetched first and tells the commit.

    Raises:
        PairError: gated, not there or not reached; code that is not allowed or at a revision that can change.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    trusted, pinned = trust_remote_code and role in CODE_REVISIONS, is_commit(revision)
    wanted = (*_WANTED, *(["*.py"] if trusted and pinned else []))
    with reached(f"{role} {id}, file {first}", gated=f"{role} {id}"):
        # small, and fails fast; everything else is taken from the same commit
        snapshot = Path(hf_hub_download(id, first, revision=revision)).parent
        commit = snapshot.name
        if trusted:
            configs = Path(snapshot_download(id, revision=commit, allow_patterns=list(CONFIGS)))
            check_code(configs, f"{role} {id}", pin=None if pinned else f'{CODE_REVISIONS[role]} = "{commit}"')
        files = _files(id, commit, wanted)
    sizes = None if files is None else {file.filename: file.file_size or 0 for file in files}
    missing = frozenset(file.filename for file in files or () if file.will_download)
    return HubCommit(id, commit, role, wanted, snapshot.parent.parent, sizes, missing)


def check_room(commits: Sequence[HubCommit]) -> None:
    """Check that the disk of the Hub's cache has room for all that is to be fetched.

    Raises:
        PairError: it has not.
    """
    to_come = [commit for commit in commits if commit.missing]
    if not to_come:
        return
    cache = to_come[0].cache.parent
    free, needed = shutil.disk_usage(cache).free, sum(commit.n_bytes for commit in to_come)
    if needed > free:
        each = ", ".join(f"{commit.where} {size(commit.n_bytes)}" for commit in to_come)
        raise PairError(
            where=f"the Hub's cache {cache}",
            found=f"{size(free)} free",
            expected=f"room for {size(needed)} ({each})",
            do="free some, or name a folder on a larger disk in HF_HOME",
        )


def _files(id: str, commit: str, wanted: Sequence[str]) -> list[DryRunFileInfo] | None:
    """The files of a commit that are wanted; None where the Hub does not list them, as where one is offline."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        return snapshot_download(
            id, revision=commit, allow_patterns=list(wanted), ignore_patterns=list(NOT_WANTED), dry_run=True
        )
    except DryRunError:
        return None


def _on_disk(folder: Path) -> int:
    """Bytes of a folder's files that are on the disk, whatever length they will have."""
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_blocks * 512
        except OSError:  # renamed since: it is whole now
            continue
    return total


@contextmanager
def reached(where: str, gated: str | None = None) -> Iterator[None]:
    """Within it, whatever the Hub and the network say becomes one line."""
    from huggingface_hub.errors import GatedRepoError

    try:
        yield
    except GatedRepoError:
        raise PairError(
            where=gated or where,
            found="a gated repository",
            expected="access to it",
            do="ask for access on its page, then run `hf auth login`; a local path works too",
        ) from None
    except ExpoError:
        raise
    except Exception as fault:  # the Hub's errors, and the network's of the library that its client uses
        raise PairError(
            where=where,
            found=f"{type(fault).__name__}: {shortened(str(fault))}",
            expected="a repository on the Hub that can be reached",
            do="check the id and the network, then run it again: what was fetched is kept; a local folder works too",
        ) from None
