"""A commit on the Hub -> its outline: small files, and weights of which the headers alone were fetched.

A few hundred kilobytes a model, and enough for all that is checked before an engine starts: names, dtypes, shapes,
sizes. The tensors' bytes are holes in the files, and take no room on the disk.
"""

from __future__ import annotations

import shutil
import struct
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from expo_search.checkpoint.atomic_folder import published
from expo_search.checkpoint.header import MAX_HEADER_BYTES, read_header
from expo_search.folders import cache_folder
from expo_search.inputs.hub_download import NOT_WANTED, WEIGHTS, HubCommit, reached
from expo_search.inputs.source import Source

_BLOCK_BYTES = 1 << 18  # of one request; most headers are shorter


def outline(commit: HubCommit) -> Source:
    """The outline of a commit, in the cache folder, made where it is not there.

    Raises:
        PairError: the Hub does not give it.
        CheckpointError: a header that is none.
    """
    folder = cache_folder() / "outlines" / f"{commit.id.replace('/', '--')}-{commit.revision}"
    if not folder.is_dir():
        with suppress(FileExistsError), published(folder) as partial:  # made by another process meanwhile
            _make(commit, partial)
    return Source(folder, commit.id, commit.revision, on_hub=True, to_fetch=commit.n_bytes)


def _make(commit: HubCommit, folder: Path) -> None:
    from huggingface_hub import HfApi, HfFileSystem, snapshot_download

    names = [name for name in commit.files if "/" not in name]  # of the folder itself, and nowhere outside of it
    weights = [name for name in names if fnmatch(name, WEIGHTS)]
    with reached(f"{commit.where}, file {WEIGHTS}"):
        snapshot = Path(
            snapshot_download(
                commit.id,
                revision=commit.revision,
                allow_patterns=list(commit.wanted),
                ignore_patterns=[*NOT_WANTED, WEIGHTS],
            )
        )
        for name in set(names) - set(weights):
            shutil.copyfile(snapshot / name, folder / name)
        remote, infos = HfFileSystem(), HfApi().get_paths_info(commit.id, weights, revision=commit.revision)
        contents = {info.path: getattr(info, "blob_id", "") for info in infos}
        for name in weights:
            with remote.open(f"{commit.id}@{commit.revision}/{name}", block_size=_BLOCK_BYTES) as file:
                prefix = file.read(8)
                header = file.read(min(struct.unpack("<Q", prefix)[0], MAX_HEADER_BYTES))
            with (folder / name).open("wb") as file:
                file.write(prefix + header)
                file.truncate(commit.files[name])
    for name in weights:
        _mark(folder / name, contents[name], commit.where)


def _mark(file: Path, content: str, where: str) -> None:
    """Write what the Hub calls a file's content where its tensors' bytes would be: other weights shall look other.

    It is where `Checkpoint.sample_hash` looks.
    """
    mark = content.encode()
    for tensor in list(read_header(file, where)):
        if tensor.n_bytes >= 2 * len(mark):
            with file.open("r+b") as stream:
                stream.seek(tensor.offset + tensor.n_bytes // 2)
                stream.write(mark)
            return
