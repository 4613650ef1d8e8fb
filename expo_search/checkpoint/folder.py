"""A folder of safetensors -> its tensors by name, read one at a time.

Files are matched by tensor name, never by file: the shards of an aligned model need not line up with those of its
SFT model. Headers alone are read for checking, so that bad input is found before an engine starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.header import TensorInfo, read_header
from expo_search.errors import CheckpointError
from expo_search.text import first_of

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SAMPLE_BYTES = 4096
_MODELOPT = "hf_quant_config.json"
_QUANTISED = ("F8_", "F6_", "F4")  # what the format calls weights that have scales
# Rotary tables of old Llama checkpoints: constants, which every engine computes anew.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder: config.json plus every tensor of its safetensors files."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def architecture(self) -> str:
        """The first of config.json's `architectures`, such as "LlamaForCausalLM"; "?" where it names none."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else "?"

    @property
    def tied_embeddings(self) -> bool:
        """Whether config.json says that the output layer is the input embedding's tensor; false by default."""
        return bool(self.config.get("tie_word_embeddings", False))

    @cached_property
    def n_bytes(self) -> int:
        """Size of all tensors as they are stored."""
        return sum(t.n_bytes for t in self.tensors.values())

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """Those of its tensors, as safetensors spells them."""
        return frozenset(t.dtype for t in self.tensors.values())

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

    @cached_property
    def sample_hash(self) -> str:
        """16 hex digits over the middle 4 KiB of every tensor: cheap, and other weights of these shapes differ in it.

        Not a proof that two checkpoints are equal; the engine's fingerprints are.
        """
        digest = hashlib.sha256()
        with ExitStack() as stack:
            files = {f: stack.enter_context(f.open("rb")) for f in {t.file for t in self.tensors.values()}}
            for name in sorted(self.tensors):
                t = self.tensors[name]
                files[t.file].seek(t.offset + max(0, t.n_bytes - _SAMPLE_BYTES) // 2)
                digest.update(files[t.file].read(min(t.n_bytes, _SAMPLE_BYTES)))
        return digest.hexdigest()[:16]

    @property
    def stamps(self) -> dict[str, list[int]]:
        """File name -> [size in bytes, time of the last change in ns]; the same while nobody writes to the file."""
        files = sorted({t.file for t in self.tensors.values()})
        return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}

    def content_hash(self) -> str:
        """SHA-256 over all files of weights. Reads them whole, a few at a time."""

        def digest(file: Path) -> str:
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()

        with ThreadPoolExecutor() as pool:
            of_files = pool.map(digest, sorted({t.file for t in self.tensors.values()}))
            return hashlib.sha256("".join(of_files).encode()).hexdigest()

    def is_same_as(self, other: Checkpoint) -> bool:
        """Whether the files hold the same bytes; they are read whole only if the cheap hashes are equal."""
        cheap = (self.header_hash, self.sample_hash) == (other.header_hash, other.sample_hash)
        return cheap and self.content_hash() == other.content_hash()

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
        for info in read_header(file, where):
            if info.name in tensors:
                raise CheckpointError(
                    where=where,
                    found=f"tensor {info.name} in two files",
                    expected="each tensor once",
                    do="remove the stale files",
                )
            if not info.name.endswith(_IGNORED_SUFFIXES):
                tensors[info.name] = info
    if method := _quantisation(path, config, tensors):
        raise CheckpointError(
            where=where,
            found=f"a quantised checkpoint ({method})",
            expected="bfloat16, float16 or float32 weights: scales are not linear in alpha",
            do="give the unquantised checkpoint",
        )
    return Checkpoint(path, config, tensors)


def _quantisation(path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str | None:
    """The quantisation method, from any place where vLLM looks for one, or a quantised dtype; None if there is none."""
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if method := table.get(key):
                return str(method.get("quant_method", key)) if isinstance(method, dict) else str(method)
    if (path / _MODELOPT).is_file():
        return _MODELOPT
    return next((f"{t.name} is {t.dtype}" for t in tensors.values() if t.dtype.startswith(_QUANTISED)), None)


def _read_config(path: Path, where: str) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
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
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [n for n in names if not (path / n).is_file()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise CheckpointError(
                where=str(index), found=f"not readable ({fault})", expected="a weight_map", do="download the file again"
            ) from None
        escaping = [n for n in names if Path(n).name != n]
        if escaping or missing:
            raise CheckpointError(
                where=str(index),
                found=f"files not in the folder: {first_of(escaping or missing, between=', ')}",
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
