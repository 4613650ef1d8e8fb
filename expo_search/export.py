"""alpha -> an ordinary checkpoint folder: tensor by tensor from the two sources, with what a user needs beside it.

The arithmetic is that of the live engine, on the files' own tensors: it is elementwise, so doing it before vLLM fuses
and shards gives the same bits as doing it after. Peak memory is about one shard. The folder appears under its name
only when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search import __version__
from expo_search.checkpoint import INDEX, Checkpoint, open_checkpoint, write_sharded
from expo_search.confirm import confirmations
from expo_search.database import stored_attribute
from expo_search.errors import StudyError
from expo_search.extrapolate import plain_theta
from expo_search.match import PairCheck, check_pair, with_rows_of
from expo_search.pairs import resolve_pair
from expo_search.report import as_json, trial_at, verdict
from expo_search.run import sources_settings
from expo_search.search import evaluations
from expo_search.store import SETTINGS, SPEC, Store, compare_settings
from expo_search.study import stored_spec

if TYPE_CHECKING:
    import torch

PROVENANCE = "expo.json"
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")


def export(
    aligned: Checkpoint,
    sft: Checkpoint,
    alpha: float,
    out: Path,
    *,
    provenance: Mapping[str, Any],
    dtype: str | None = None,
    max_shard_bytes: int = 5 << 30,
    force: bool = False,
    on_tensor: Callable[[int], None] | None = None,
) -> None:
    """Write theta(alpha) to `out`, in aligned's dtypes or in `dtype` ("bfloat16", "float16", "float32").

    Copies aligned's config, tokenizer and other small files; never its code, unless it lies in the folder that was
    loaded from. `on_tensor` gets the bytes of each tensor as it is written.

    Raises:
        StudyError: `out` exists (without `force`), there is no room for it, or it cannot be written.
        CheckpointError: the two do not make a pair.
    """
    check = check_pair(aligned, sft)
    check_target(out, aligned, force=force)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write_sharded(partial, _theta(aligned, sft, check, alpha, dtype, on_tensor), max_shard_bytes=max_shard_bytes)
        _copy_beside(aligned.path, partial, dtype)
        (partial / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2, sort_keys=True) + "\n")
        if force:
            shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as fault:
        raise StudyError(
            where=f"--out {out}",
            found=str(fault),
            expected="a folder that can be written to",
            do="free room or name another; nothing half-written was left",
        ) from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def export_study(
    storage: str,
    name: str,
    out: Path,
    *,
    alpha: float | None,
    dtype: str | None,
    force: bool,
    on_bytes: Callable[[int, int], None],
) -> float:
    """Write the checkpoint at an evaluated alpha, by default that of the verdict; the alpha. `on_bytes`: done, total.

    Raises:
        StudyError: the verdict is to keep alpha = 0 and no alpha is given; an alpha that was not evaluated; the target.
        SettingsChanged: the checkpoints are not those that were searched.
    """
    stored, settings = stored_attribute(storage, name, SPEC), stored_attribute(storage, name, SETTINGS) or {}
    spec = stored_spec(stored, name=name, trust_remote_code=bool((stored or {}).get("trust_remote_code")))
    store = Store(storage, name)
    found, judged = evaluations(store.study), verdict(evaluations(store.study), confirmations(store))
    if alpha is None and judged.word != "better":
        raise StudyError(
            where=f"study {name}",
            found=judged.sentence(),
            expected="a gain to export",
            do="give --alpha to export it all the same",
        )
    trial = trial_at(found, alpha, name)
    pair = resolve_pair(spec.pair, trust_remote_code=spec.trust_remote_code, say=lambda _: None)
    aligned, sft = open_checkpoint(pair.aligned.path, role="aligned"), open_checkpoint(pair.sft.path, role="sft")
    compare_settings(settings, sources_settings(pair, aligned, sft), name=name)
    done = 0

    def on_tensor(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        on_bytes(done, aligned.n_bytes)

    provenance = {
        "made_by": f"expo-search {__version__}", "alpha": trial.alpha, "trial": as_json(trial), "study": name,
        "verdict": judged.sentence(), "settings": settings, "formula": "aligned + alpha * (aligned - sft)",
        "command": f"expo-search export {name} --alpha {trial.alpha!r} --out DIR",
    }  # fmt: skip
    export(aligned, sft, trial.alpha, out, provenance=provenance, dtype=dtype, force=force, on_tensor=on_tensor)
    return trial.alpha


def check_target(out: Path, aligned: Checkpoint, *, force: bool) -> None:
    """
    Raises:
        StudyError: the folder exists, cannot be made, or the disk has too little room.
    """
    if out.exists() and not force:
        raise StudyError(
            where=f"--out {out}", found="exists already", expected="a new folder", do="name another, or --force"
        )
    parent = next(p for p in [out.absolute().parent, *out.absolute().parents] if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise StudyError(
            where=f"--out {out}", found=f"{parent} is read-only", expected="a writable folder", do="name another"
        )
    free, needed = shutil.disk_usage(parent).free, int(aligned.n_bytes * 1.01) + (64 << 20)
    if free < needed:
        raise StudyError(
            where=f"--out {out}",
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB",
            do="free room, or name a folder on another disk",
        )


def _theta(
    aligned: Checkpoint,
    sft: Checkpoint,
    check: PairCheck,
    alpha: float,
    dtype: str | None,
    on_tensor: Callable[[int], None] | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    wanted = getattr(torch, dtype) if dtype else None
    for name in aligned.tensors:
        a = aligned.read(name)
        s = a if alpha == 0 else with_rows_of(a, sft.read(check.tied_in_sft.get(name, name)))
        to = wanted if wanted is not None and a.is_floating_point() else a.dtype
        yield name, plain_theta(a, s, alpha).to(to)
        if on_tensor is not None:
            on_tensor(a.nbytes)


def _copy_beside(source: Path, folder: Path, dtype: str | None) -> None:
    """Small files of the aligned checkpoint: config, generation config, tokenizer, template, licence, code."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name not in (INDEX, PROVENANCE):
            shutil.copyfile(file, folder / file.name)
    if dtype is not None:
        config = json.loads((folder / "config.json").read_text())
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
