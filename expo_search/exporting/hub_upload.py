"""A whole exported folder -> a repository on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from expo_search.errors import StudyError
from expo_search.exporting.checkpoint import is_of_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi


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


def push(folder: Path, repo: str, *, private: bool, instead: Mapping[str, str], api: HfApi | None = None) -> str:
    """Upload a folder's files in one commit, into a new or an existing repository; its URL.

    Weights, index, adapter and recipe that an earlier upload left there, and this one does not replace, go in the same
    commit: a library that finds two models in one repository may take the old one.

    Args:
        instead: file name -> the text to upload in the file's place.

    Raises:
        StudyError: the Hub refuses, or `private` is asked for and the repository that is there is public.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files: list[CommitOperationAdd | CommitOperationDelete] = [
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
        names = {file.path_in_repo for file in files}
        left = [file.rfilename for file in there.siblings or () if is_of_model(file.rfilename)]
        files += [CommitOperationDelete(name) for name in left if name not in names]
        api.create_commit(created.repo_id, files, commit_message="Exported by expo-search")
    except StudyError:
        raise
    except Exception as fault:  # as above; whatever it is, the model is whole
        raise _refused(where, fault, again) from None
    return str(created)


def _refused(where: str, fault: Exception, do: str) -> StudyError:
    cause = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    return StudyError(where=where, found=cause, expected="a Hub that takes the upload", do=do)
