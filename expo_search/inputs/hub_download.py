"""A repository of the Hub -> one commit of it in the Hub's cache, safetensors only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from expo_search.checkpoint.remote_code import CONFIGS, check_code, is_commit
from expo_search.errors import ExpoError, PairError
from expo_search.inputs.source import CODE_REVISIONS, Source
from expo_search.text import shortened

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
_NOT_WANTED = ("*/*.safetensors", "consolidated*")  # of training; the same weights again, as Mistral names them


def from_hub(
    id: str, revision: str | None, role: str, trust_remote_code: bool, say: Callable[[str], None], first: str
) -> Source:
    """Download a repository into the Hub's cache, all files from one commit; the commit is the source's revision.

    Args:
        id: owner/name.
        role: what it is in the pair ("aligned", "sft", ...), for messages; some roles may have code.
        first: a small file that the repository must have; it is fetched first and tells the commit.

    Raises:
        PairError: gated, not there or not reached; code that is not allowed or at a revision that can change.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    trusted, pinned = trust_remote_code and role in CODE_REVISIONS, is_commit(revision)
    wanted = [*_WANTED, *(["*.py"] if trusted and pinned else [])]
    file = first
    try:
        # small, and fails fast; everything else is taken from the same commit
        commit = Path(hf_hub_download(id, file, revision=revision)).parent.name
        if trusted:
            configs = Path(snapshot_download(id, revision=commit, allow_patterns=list(CONFIGS)))
            check_code(configs, f"{role} {id}", pin=None if pinned else f'{CODE_REVISIONS[role]} = "{commit}"')
        say(f"fetching {role} {id} (kept in the Hub's cache)")
        file = "*.safetensors"
        folder = Path(snapshot_download(id, revision=commit, allow_patterns=wanted, ignore_patterns=list(_NOT_WANTED)))
    except GatedRepoError:
        raise PairError(
            where=f"{role} {id}",
            found="a gated repository",
            expected="access to it",
            do="ask for access on its page, then run `hf auth login`; a local path works too",
        ) from None
    except ExpoError:
        raise
    except Exception as fault:  # the Hub's errors, and the network's of the library that its client uses
        raise PairError(
            where=f"{role} {id}, file {file}",
            found=f"{type(fault).__name__}: {shortened(str(fault))}",
            expected="a repository on the Hub that can be reached",
            do="check the id and the network, then run it again: what was fetched is kept; a local folder works too",
        ) from None
    return Source(folder, id, folder.name, on_hub=True)
