"""A folder of safetensors -> its tensors by name, read one at a time; what differs between two folders; writing.

Files are matched by tensor name, never by file: the shards of an aligned model need not line up with those of its
SFT model. Headers alone are read for checking, so that bad input is found before an engine starts.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.errors import CheckpointError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_FLOATS = ("F64", "F32", "F16", "BF16")
# fmt: off
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}
# fmt: on
# Rotary tables of old Llama checkpoints: constants, which every engine computes anew.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header: dtype as the format names it ("BF16"), shape, and size on disk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    file: Path


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder: config.json plus every tensor of its safetensors files."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def architecture(self) -> str:
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else "?"

    @property
    def tied_embeddings(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))

    @cached_property
    def n_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors.values())

    @cached_property
    def header_hash(self) -> str:
        """16 hex digits over names, dtypes, shapes and file sizes: cheap, and enough to notice another checkpoint.

        The weights themselves are covered by the engine's fingerprints.
        """
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            t = self.tensors[name]
            digest.update(f"{name} {t.dtype} {t.shape} {t.n_bytes}\n".encode())
        for file in sorted({t.file for t in self.tensors.values()}):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, memory-mapped until it is used."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def open_checkpoint(path: Path, *, role: str) -> Checkpoint:
    """Read and check a folder's config and headers. `role` ("aligned", "sft") goes into the messages.

    Raises:
        CheckpointError: no folder, no or broken config.json, no safetensors, a file that is cut off, quantised.
    """
    where = f"{role} checkpoint {path}"
    if not path.is_dir():
        raise CheckpointError(
            where=where, found="no such folder", expected="a checkpoint folder", do="check the path, or give a Hub id"
        )
    config = _read_config(path, where)
    files = _weight_files(path, where)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for info in _read_header(file, where):
            if info.name in tensors:
                raise CheckpointError(
                    where=where,
                    found=f"tensor {info.name} in two files",
                    expected="each tensor once",
                    do="remove the stale files",
                )
            if not info.name.endswith(_IGNORED_SUFFIXES):
                tensors[info.name] = info
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method", "?") if isinstance(quantisation, dict) else quantisation
        raise CheckpointError(
            where=where,
            found=f"a quantised checkpoint ({method})",
            expected="bfloat16, float16 or float32 weights: scales are not linear in alpha",
            do="give the unquantised checkpoint",
        )
    return Checkpoint(path, config, tensors)


def _read_config(path: Path, where: str) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            where=where, found="no config.json", expected="a Hugging Face checkpoint folder", do="check the path"
        ) from None
    except (OSError, ValueError, RecursionError) as fault:
        raise CheckpointError(
            where=str(file), found=str(fault), expected="a JSON object", do="download the file again"
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(
            where=str(file), found=type(config).__name__, expected="a JSON object", do="download the file again"
        )
    return config


def _weight_files(path: Path, where: str) -> list[Path]:
    """The safetensors files that belong to the checkpoint: those its index names, else the single file, else all."""
    index = path / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [n for n in names if not (path / n).is_file()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise CheckpointError(
                where=str(index), found=f"not readable ({fault})", expected="a weight_map", do="download the file again"
            ) from None
        escaping = [n for n in names if Path(n).name != n]
        if escaping or missing:
            raise CheckpointError(
                where=str(index),
                found=f"files not in the folder: {', '.join(escaping or missing)}",
                expected="every shard beside the index",
                do="download the missing shards",
            )
        return [path / n for n in names]
    files = [path / SINGLE] if (path / SINGLE).is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
        raise CheckpointError(
            where=where,
            found=f"no safetensors ({', '.join(pickles[:3]) or 'no weights at all'})",
            expected="*.safetensors: pickled weights can run code and are never loaded",
            do="convert it on a machine you trust: model.save_pretrained(DIR, safe_serialization=True)",
        )
    return files


def _read_header(file: Path, where: str) -> Iterator[TensorInfo]:
    def broken(found: str) -> CheckpointError:
        return CheckpointError(
            where=f"{where}, file {file.name}",
            found=found,
            expected="a whole safetensors file",
            do="download the file again",
        )

    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        n = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if n < 0 or n > _MAX_HEADER_BYTES or 8 + n > size:
            raise broken(f"a header of {n} bytes in a file of {size} bytes")
        try:
            header = json.loads(stream.read(n).decode(), object_pairs_hook=_unique)
            metadata = header.pop("__metadata__", None)
            if metadata is not None and not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("metadata that is not text")
            entries = [_entry(name, e) for name, e in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise broken(f"a header that is not readable ({type(fault).__name__}: {fault})") from None
    end = 0
    for name, dtype, shape, start, stop in sorted(entries, key=lambda e: e[3:]):
        if start != end or stop > size - 8 - n:  # the format knows no gaps and no overlaps
            raise broken(f"tensor {name} at bytes {start}..{stop}, after one that ends at {end}, of {size - 8 - n}")
        end = stop
        yield TensorInfo(name, dtype, shape, stop - start, file)
    if end != size - 8 - n:
        raise broken(f"tensors that end at byte {end} of {size - 8 - n}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} twice")
    return found


def _entry(name: str, entry: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, dtype, shape, first byte, byte after the last) of one tensor; a ValueError if they disagree."""
    name.encode()  # JSON can spell half of a surrogate pair
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"tensor {name} of shape {list(shape)} at bytes {start}..{stop}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (stop - start):
        raise ValueError(f"tensor {name} of {dtype} {list(shape)} in {stop - start} bytes, not {bits // 8}")
    return name, dtype, shape, start, stop


@dataclass(frozen=True)
class PairCheck:
    """What `check_pair` found out: names that the SFT side must be given specially.

    Attributes:
        longer_vocabulary: name -> (rows of aligned, rows of sft) of embeddings whose first dimension differs.
        tied_in_sft: output layers that only aligned stores; sft's is its input embedding.
        skipped_in_sft: output layers that only sft stores, though aligned ties them.
    """

    longer_vocabulary: Mapping[str, tuple[int, int]]
    tied_in_sft: Mapping[str, str]
    skipped_in_sft: tuple[str, ...]


def check_pair(aligned: Checkpoint, sft: Checkpoint) -> PairCheck:
    """Compare names, shapes and architecture of the two; every fault in one error.

    Raises:
        CheckpointError: other architecture; tensors that one side lacks; other shapes.
    """
    if aligned.architecture != sft.architecture:
        raise CheckpointError(
            where=f"sft checkpoint {sft.path}",
            found=f"architecture {sft.architecture}",
            expected=f"{aligned.architecture}, that of {aligned.path}",
            do="give the SFT checkpoint that the aligned model was trained from",
        )
    faults: list[str] = []
    tied: dict[str, str] = {}
    skipped: list[str] = []
    vocabulary: dict[str, tuple[int, int]] = {}
    vocab_sizes = {c.config.get("vocab_size") for c in (aligned, sft)}
    for name in sorted(set(aligned.tensors) | set(sft.tensors)):
        a, s = aligned.tensors.get(name), sft.tensors.get(name)
        if a and s:
            if a.shape == s.shape:
                continue
            if a.shape[1:] == s.shape[1:] and len(vocab_sizes) == 2 and _is_vocabulary(name):
                vocabulary[name] = (a.shape[0], s.shape[0])
            else:
                faults.append(f"{name}: aligned {list(a.shape)}, sft {list(s.shape)}")
        elif s is None and _is_output(name) and sft.tied_embeddings and (e := _input_embedding(sft)):
            tied[name] = e
        elif a is None and _is_output(name) and aligned.tied_embeddings:
            skipped.append(name)
        else:
            faults.append(f"{name}: only in {'aligned' if a else 'sft'}")
    if faults:
        raise CheckpointError(
            where=f"pair {aligned.path} / {sft.path}",
            found=f"{len(faults)} tensors that do not match ({'; '.join(faults)})",
            expected="the same names and shapes on both sides",
            do="give the SFT checkpoint that the aligned model was trained from",
        )
    return PairCheck(vocabulary, tied, tuple(skipped))


def _is_output(name: str) -> bool:
    return name.split(".")[-2:-1] in (["lm_head"], ["output"])


def _is_vocabulary(name: str) -> bool:
    return _is_output(name) or name.split(".")[-2:-1] in (["embed_tokens"], ["tok_embeddings"], ["wte"], ["embed_in"])


def _input_embedding(checkpoint: Checkpoint) -> str | None:
    return next((n for n in checkpoint.tensors if _is_vocabulary(n) and not _is_output(n)), None)


def changed_share(aligned: Checkpoint, sft: Checkpoint) -> float:
    """Share of the common floating-point entries, 0..1, whose bits differ after sft is rounded to aligned's dtype.

    A tiny share means that most of the training was lost in rounding. Reads both checkpoints once.
    """
    changed = total = 0
    for name in sorted(set(aligned.tensors) & set(sft.tensors)):
        if aligned.tensors[name].dtype in _FLOATS and aligned.tensors[name].shape == sft.tensors[name].shape:
            a = aligned.read(name)
            changed += int((a != sft.read(name).to(a.dtype)).sum())
            total += a.numel()
    return changed / max(1, total)


def write_sharded(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, max_shard_bytes: int = 5 << 30) -> None:
    """Write tensors, one at a time, as model-XXXXX-of-YYYYY.safetensors with an index (or one model.safetensors).

    At most one shard is held in memory. `folder` must exist and be empty of weights.
    """
    from safetensors.torch import save_file

    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, torch.Tensor] = {}
    held_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal held, held_bytes
        part = folder / f"part-{len(shards):05d}.safetensors"
        save_file(held, part, metadata={"format": "pt"})
        shards.append((part, list(held)))
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_shard_bytes:
            flush()
        held[name] = tensor.contiguous()
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, (part, names) in enumerate(shards, 1):
        final = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        part.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
