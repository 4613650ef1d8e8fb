"""What a checkpoint folder has beside its weights: config, generation config, tokenizer, chat template, licence.

The exported model must stop where the evaluated one stopped and speak through the same template, also where the
source's own files leave that open.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expo_search.checkpoint.folder import INDEX
from expo_search.checkpoint.remote_code import CONFIGS

PROVENANCE = "expo.json"
CARD = "README.md"
RECIPE = "mergekit.yaml"
TRAINED_ON = "trained_on.txt"  # of a reward model: see inputs/trained_on.py
_NOT_COPIED = {INDEX, "pytorch_model.bin.index.json", PROVENANCE, CARD, RECIPE}
_NOT_COPIED |= {"adapter_config.json"}  # left over beside merged weights: libraries would look for the adapter's
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")
_TOKENIZER, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
TOKENIZER_FILES = (  # in this order they are part of an adapter's hash, which studies keep
    "tokenizer.json", _TOKENIZER, "special_tokens_map.json", "added_tokens.json", _TEMPLATE,
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip


def copy_small_files(source: Path, folder: Path, *, code: bool) -> None:
    """Copy the files of a checkpoint folder but weights, its card, hidden files, and, unless `code`, Python.

    Without the Python files the copied configs do not name them either, since loading would look for them.
    """
    for file in _small_files(source, code=code):
        shutil.copyfile(file, folder / file.name)
    for name in CONFIGS if not code else ():
        config = _read_if_it_can(folder / name)
        # with "--" it names code of another repository, which is where it was
        if "auto_map" in config and "--" not in str(config["auto_map"]):
            _write(folder / name, {key: value for key, value in config.items() if key != "auto_map"})


def small_files_hash(source: Path, *, code: bool) -> str:
    """16 hex digits over what `copy_small_files` copies."""
    digest = hashlib.sha256()
    for file in _small_files(source, code=code):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _small_files(source: Path, *, code: bool) -> list[Path]:
    def is_small(file: Path) -> bool:
        left = file.name.endswith(_WEIGHTS) or file.name.startswith(".") or (file.suffix == ".py" and not code)
        return file.is_file() and not left and file.name not in _NOT_COPIED

    return [file for file in sorted(source.iterdir()) if is_small(file)]


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer of a folder, if it has one, in the place of another's.

    Files of the other that stay: its chat template, if the new one has none; its vocabulary, if the new one has none.
    The rest is removed: a template in a file of its own, for example, would override the new one's in the config.
    """
    if not (source / _TOKENIZER).is_file():
        return
    template = _chat_template(source) or _chat_template(folder)
    is_whole = any((source / name).is_file() for name in _VOCABULARIES)
    for name in TOKENIZER_FILES:
        if is_whole or name == _TEMPLATE:
            (folder / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if template is not None and _chat_template(folder) is None:
        set_chat_template(folder, template)


def _chat_template(folder: Path) -> str | None:
    """The default chat template, from its own file or the tokenizer's config, which may name several; else None."""
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text(encoding="utf-8")
    template = _read_if_it_can(folder / _TOKENIZER).get("chat_template")
    if isinstance(template, list):
        named = (t for t in template if isinstance(t, dict))
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def set_dtype(folder: Path, dtype: str) -> None:
    """Name the weights' dtype in config.json, under the key that it has there."""
    config = _read(folder / "config.json")
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    _write(folder / "config.json", config)


def set_stops(folder: Path, stop_token_ids: Iterable[int]) -> None:
    """Make generation_config.json name every token that ends an answer: those given and its own.

    Where there is no such file, what config.json says about special tokens is taken over into a new one.
    """
    file, config = folder / "generation_config.json", _read(folder / "config.json")
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = _read(file) if file.is_file() else {k: config[k] for k in special if config.get(k) is not None}
    own = generation.get("eos_token_id")
    ids = list(dict.fromkeys([*([own] if isinstance(own, int) else own or []), *stop_token_ids]))
    if ids and ids != ([own] if isinstance(own, int) else own):
        _write(file, generation | {"eos_token_id": ids[0] if len(ids) == 1 else ids})


def set_chat_template(folder: Path, template: str) -> None:
    """Make this the template that transformers and vLLM read, whatever the tokenizer's config says."""
    (folder / _TEMPLATE).write_text(template, encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _read_if_it_can(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing or holds something else, which callers that need it report."""
    try:
        content = _read(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
