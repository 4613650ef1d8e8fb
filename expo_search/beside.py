"""What a checkpoint folder has beside its weights: config, generation config, tokenizer, chat template, licence.

The exported model must stop where the evaluated one stopped and speak through the same template, also where the
source's own files leave that open.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expo_search.checkpoint import INDEX

PROVENANCE = "expo.json"
CARD = "README.md"
RECIPE = "mergekit.yaml"
_NOT_COPIED = {INDEX, "pytorch_model.bin.index.json", PROVENANCE, CARD, RECIPE}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip


def copy_small_files(source: Path, folder: Path, *, code: bool) -> None:
    """Copy the files of a checkpoint folder but weights, its card, hidden files, and, unless `code`, Python."""
    for file in sorted(source.iterdir()):
        left = file.name.endswith(_WEIGHTS) or file.name.startswith(".") or (file.suffix == ".py" and not code)
        if file.is_file() and not left and file.name not in _NOT_COPIED:
            shutil.copyfile(file, folder / file.name)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer of a folder over that of another, if it has one."""
    if (source / "tokenizer_config.json").is_file():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def set_dtype(folder: Path, dtype: str) -> None:
    """Name the weights' dtype in config.json, under the key that it has there."""
    config = _read(folder / "config.json")
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    _write(folder / "config.json", config)


def set_stops(folder: Path, stop_token_ids: Iterable[int]) -> None:
    """See to it that generation_config.json names every token that ends an answer, those given and its own.

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
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
