"""Where a study's artifacts are, a folder or a bucket of an object store -> Optuna's artifact store over it.

Credentials, region and, for a store that is not Amazon's, the address are boto3's own: its environment variables
(`AWS_ENDPOINT_URL_S3`) and files. They are never part of the place, which is kept with the study and shown.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from expo_search.errors import StudyError
from expo_search.folders import user_path
from expo_search.store.address import sqlite_path
from expo_search.text import one_line

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_LONGEST_CAUSE = 300  # characters of another library's words


def default_place(url: str) -> str:
    """Where a database's artifacts are when nobody said: beside an SQLite file, else in the working directory."""
    path = sqlite_path(url)
    return "expo-search.artifacts" if path is None else str(path.with_name(path.name + ".artifacts"))


def given_place(place: str) -> str:
    """A place as it is kept: a folder by its whole path.

    Raises:
        StudyError: not a folder's path and not `s3://bucket/prefix`; boto3 is not installed.
    """
    if "://" not in place:
        return str(user_path(place).absolute())
    if _BUCKET.fullmatch(place) is None:
        raise StudyError(
            where=f"--artifacts {place}",
            found="neither a folder nor a bucket",
            expected="a path, or s3://bucket/prefix",
            do="give one of the two",
        )
    if find_spec("boto3") is None:
        raise StudyError(
            where=f"--artifacts {place}",
            found="boto3 is not installed",
            expected="the extra `s3`",
            do='pip install "expo-search[s3]"',
        )
    return place.rstrip("/")


def check_place(place: str) -> None:
    """Find out whether a place can be written to, by writing and removing a small object.

    Raises:
        StudyError: it cannot.
    """
    name = f"new-{uuid.uuid4()}"
    try:
        if not place.startswith("s3://"):
            Path(place).mkdir(parents=True, exist_ok=True)
        store = open_artifacts([place])
        store.write(name, io.BytesIO(b"expo-search"))
        store.remove(name)
    except Exception as fault:  # of a file system, of boto3, of the network
        raise StudyError(
            where=f"--artifacts {place}",
            found=one_line(f"{type(fault).__name__}: {fault}")[:_LONGEST_CAUSE],
            expected="a place that can be written to",
            do="make the folder or the bucket, check credentials and AWS_ENDPOINT_URL_S3, or give another place",
        ) from None


def check_given(given: str) -> None:
    """Check a place as far as nothing need be written for it: its form, and that a folder could be made there.

    Raises:
        StudyError: it cannot be one.
    """
    place = given_place(given)
    if place.startswith("s3://"):
        return
    try:
        there = next(folder for folder in (Path(place), *Path(place).parents) if folder.exists())
        fault = "" if there.is_dir() and os.access(there, os.W_OK) else f"{there} is no folder that can be written to"
    except OSError as refused:  # a name that no file can have
        fault = refused.strerror or str(refused)
    if fault:
        raise StudyError(
            where=f"--artifacts {given}",
            found=fault,
            expected="a place that can be written to",
            do="make the folder, or give another place",
        )


def open_artifacts(places: Sequence[str]) -> ArtifactStore:
    """Optuna's artifact store over a place; over several, an artifact is read where it is."""
    stores = [_Bucket.of(place) if place.startswith("s3://") else _folder(place) for place in places]
    return stores[0] if len(stores) == 1 else _AnyOf(stores)


@contextmanager
def staging(place: str, name: str) -> Iterator[Path]:
    """A folder for a file that is about to be uploaded: on the disk where it will lie, which may be full."""
    if place.startswith("s3://"):
        with tempfile.TemporaryDirectory(prefix="expo-search-") as folder:
            yield Path(folder)
        return
    fresh = Path(place) / f"new-{name}"  # one name, so that a killed process leaves one at most
    fresh.mkdir(parents=True, exist_ok=True)
    try:
        yield fresh
    finally:
        with suppress(OSError):  # not empty: another search of a study of this name
            fresh.rmdir()


def _folder(place: str) -> ArtifactStore:
    from optuna.artifacts import FileSystemArtifactStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, says Optuna
        return FileSystemArtifactStore(Path(place))


class _Bucket:
    """Optuna's store over a bucket, with a prefix before each key, which it has not."""

    def __init__(self, store: ArtifactStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    @classmethod
    def of(cls, place: str) -> ArtifactStore:
        from optuna.artifacts import Boto3ArtifactStore

        parts = _BUCKET.fullmatch(place)
        assert parts is not None, "checked when it was given"
        prefix = (parts["prefix"] or "").strip("/")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental, says Optuna
            store = Boto3ArtifactStore(parts["bucket"])
        return cls(store, f"{prefix}/") if prefix else store

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self._store.open_reader(self._prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._store.write(self._prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self._store.remove(self._prefix + artifact_id)


class _AnyOf:
    """Studies of one database whose artifacts are at several places."""

    def __init__(self, stores: Sequence[ArtifactStore]) -> None:
        self._stores = stores

    def open_reader(self, artifact_id: str) -> BinaryIO:
        from optuna.artifacts.exceptions import ArtifactNotFound

        for store in self._stores[:-1]:
            with suppress(ArtifactNotFound):
                return store.open_reader(artifact_id)
        return self._stores[-1].open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._stores[0].write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        for store in self._stores:
            with suppress(ArtifactNotFound):
                store.remove(artifact_id)
