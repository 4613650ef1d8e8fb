"""A whole exported folder -> a repository on the Hugging Face Hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expo_search.errors import StudyError
from expo_search.exporting.target import is_of_model
from expo_search.text import clock, size

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


def check_push(repo: str, api: HfApi | None = None) -> None:
    """Check, before any work, that there is a token and the Hub accepts it.

    Raises:
        StudyError: no token, one that the Hub refuses, or a repository name that it does not allow.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    where = f"--push-to-hub {repo}"
    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise StudyError(
            where=where, found=" ".join(str(fault).split())[:200], expected="a name such as owner/model", do="fix it"
        ) from None
    if get_token() is None:
        raise StudyError(
            where=where, found="no Hub token", expected="one that may write", do="run `hf auth login`, or set HF_TOKEN"
        )
    try:
        (api or HfApi()).whoami()
    except Exception as fault:  # the Hub's errors, and the network's of the library that its client uses
        raise _refused(where, fault, "check the token with `hf auth whoami`, and the network") from None


def push(
    folder: Path,
    repo: str,
    *,
    private: bool,
    instead: Mapping[str, str],
    doing: Callable[[str], None] = lambda _: None,
    api: HfApi | None = None,
) -> str:
    """Upload a folder's files in one commit, into a new or an existing repository; its URL.

    Weights, index, adapter and recipe that an earlier upload left there, and this one does not replace, go in the same
    commit: a library that finds two models in one repository may take the old one.

    Args:
        instead: file name -> the text to upload in the file's place.
        doing: gets a line on how far it is, at each file of weights.

    Raises:
        StudyError: the Hub refuses, or `private` is asked for and the repository that is there is public.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    added = [
        CommitOperationAdd(file.name, instead[file.name].encode() if file.name in instead else file)
        for file in sorted(folder.iterdir())
    ]
    api, where = api or HfApi(), f"--push-to-hub {repo}"
    again = f"the model is whole in {folder}; the same command with --force writes and uploads it again"
    try:
        created = api.create_repo(repo, private=private or None, exist_ok=True)
        there = api.model_info(created.repo_id)
        if private and not there.private:
            raise StudyError(
                where=where,
                found="a public repository",
                expected="a private one, for --private",
                do=f"name another repository; the model is whole in {folder}",
            )
        names = {file.path_in_repo for file in added}
        left = [file.rfilename for file in there.siblings or () if is_of_model(file.rfilename)]
        removed = [CommitOperationDelete(name) for name in left if name not in names]
        _send_weights(api, created.repo_id, added, doing)
        api.create_commit(created.repo_id, [*added, *removed], commit_message="Exported by expo-search")
    except StudyError:
        raise
    except Exception as fault:  # as above; whatever it is, the model is whole
        raise _refused(where, fault, again) from None
    return str(created)


def _send_weights(api: HfApi, repo: str, added: Sequence[CommitOperationAdd], doing: Callable[[str], None]) -> None:
    """Send the files of weights ahead of their commit, one by one: the library's own bars are for its own terminal."""
    weights = [file for file in added if file.path_in_repo.endswith(".safetensors")]
    sent, total, began = 0, sum(file.upload_info.size for file in weights), time.monotonic()
    for at, file in enumerate(weights, start=1):
        rate = sent / (time.monotonic() - began) if sent else None
        speed = "" if rate is None else f", {size(rate)}/s, left {clock((total - sent) / rate)}"
        doing(f"uploading file {at} of {len(weights)}: {size(sent)} of {size(total)} sent{speed}")
        n_bytes = file.upload_info.size
        api.preupload_lfs_files(repo, [file])
        sent += n_bytes
    doing("")


def _refused(where: str, fault: Exception, do: str) -> StudyError:
    cause = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    return StudyError(where=where, found=cause, expected="a Hub that takes the upload", do=do)
