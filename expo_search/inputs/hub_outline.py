"""A commit on the Hub -> its outline: small files, and weights of which the headers alone were fetched.

Some megabytes a model, and enough for all that is checked before an engine starts: names, dtypes, shapes, sizes. The
tensors' bytes are holes in the files, and take no room on the disk.
"""

from __future__ import annotations

import hashlib
import shutil
from fnmatch import fnmatch
from pathlib import Path

from expo_search.checkpoint.atomic_folder import published
from expo_search.checkpoint.header import MAX_HEADER_BYTES, read_header
from expo_search.errors import PairError
from expo_search.folders import cache_folder, is_built
from expo_search.inputs.hub_download import NOT_WANTED, WEIGHTS, HubCommit, reached
from expo_search.inputs.source import Source

_BLOCK_BYTES = 1 << 18  # of one request; most headers are shorter


def outline(commit: HubCommit) -> Source:
    """The outline of a commit that lacks weights, in the cache folder, made where it is not there.

    Raises:
        PairError: the Hub does not give it, or it cannot be written.
        CheckpointError: a header that is none.
    """
    names = sorted(commit.files or ())
    wanted = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]  # with code, once it is trusted
    folder = cache_folder() / "outlines" / f"{commit.id.replace('/', '--')}-{commit.revision}-{wanted}"
    if not is_built(folder):
        small, heads = _fetched(commit, [name for name in names if fnmatch(name, WEIGHTS)])
        try:
            with published(folder) as partial:
                _write(commit, small, heads, partial)
        except FileExistsError:  # made by another process meanwhile
            pass
        except OSError as fault:
            raise PairError(
                where=str(folder),
                found=str(fault),
                expected="a folder that can be written to",
                do="free room, or set EXPO_SEARCH_CACHE to another folder",
            ) from None
    return Source(folder, commit.id, commit.revision, on_hub=True, is_outline=True, to_fetch=commit.n_bytes)


def _fetched(commit: HubCommit, weights: list[str]) -> tuple[Path, dict[str, tuple[bytes, str]]]:
    """The Hub's folder of the small files; of each file of weights its header, and what the Hub calls its content."""
    from huggingface_hub import HfApi, HfFileSystem, snapshot_download

    with reached(f"{commit.where}, file {WEIGHTS}"):
        small = snapshot_download(
            commit.id,
            revision=commit.revision,
            allow_patterns=list(commit.wanted),
            ignore_patterns=[*NOT_WANTED, WEIGHTS],
        )
        remote, infos = HfFileSystem(), HfApi().get_paths_info(commit.id, weights, revision=commit.revision)
        contents = {info.path: getattr(info, "blob_id", "") for info in infos}
        heads = {}
        for name in weights:
            with remote.open(f"{commit.id}@{commit.revision}/{name}", block_size=_BLOCK_BYTES) as file:
                prefix = file.read(8)
                n_bytes = int.from_bytes(prefix, "little")
                header = file.read(n_bytes) if n_bytes <= MAX_HEADER_BYTES else b""
            heads[name] = prefix + header, contents.get(name, "")
    return Path(small), heads


def _write(commit: HubCommit, small: Path, heads: dict[str, tuple[bytes, str]], folder: Path) -> None:
    files = commit.files or {}
    for name in files:
        if "/" not in name and name not in heads:  # of the folder itself, and nowhere outside of it
            shutil.copyfile(small / name, folder / name)
    for name, (head, content) in heads.items():
        with (folder / name).open("wb") as file:
            file.write(head)
            file.truncate(files[name])
        _mark(folder / name, content.encode(), commit.where)


def _mark(file: Path, content: bytes, where: str) -> None:
    """Write what the Hub calls a file's content where its tensors' bytes would be: other weights shall look other.

    It is where `Checkpoint.sample_hash` looks.
    """
    tensors = list(read_header(file, where))
    with file.open("r+b") as stream:
        for tensor in tensors:
            if tensor.n_bytes >= 2 * len(content):
                stream.seek(tensor.offset + tensor.n_bytes // 2)
                stream.write(content)
