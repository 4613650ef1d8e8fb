"""Tiny random pairs of many architectures, and the offline formula in NumPy: an independent reference.

A twin whose answers do not change with alpha proves nothing, so weights are scaled up until they do, and the tests
assert that they do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 320
RAGGED = 322  # not a multiple of 64, to which vLLM pads: it has rows that no checkpoint writes
CHAT = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def families() -> dict[str, Callable[[], Any]]:
    """Family -> config. Between them: tied, untied, padded vocabulary, biased, fused on disk, experts, absorbed MLA."""
    import transformers as t

    untied, wide = {"tie_word_embeddings": False}, {"head_dim": 32}
    ragged = {"vocab_size": RAGGED}
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
    mla = {
        "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 4, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    }  # fmt: skip
    gates = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    return {
        "llama-tied": lambda: t.LlamaConfig(**SMALL, tie_word_embeddings=True),
        "llama-untied": lambda: t.LlamaConfig(**SMALL, **untied),
        "llama-biased": lambda: t.LlamaConfig(**SMALL, **untied, attention_bias=True, mlp_bias=True),
        "mistral": lambda: t.MistralConfig(**SMALL | untied | ragged, sliding_window=None),
        "qwen2": lambda: t.Qwen2Config(**SMALL | ragged, tie_word_embeddings=True),
        "qwen3": lambda: t.Qwen3Config(**SMALL, **untied, **wide),
        "gemma2": lambda: t.Gemma2Config(**SMALL, **wide, sliding_window=64),
        "gemma3": lambda: t.Gemma3TextConfig(**SMALL, **wide, sliding_window=64),
        "phi3": lambda: t.Phi3Config(**SMALL, **untied, original_max_position_embeddings=512),
        "olmo2": lambda: t.Olmo2Config(**SMALL, **untied),
        "granite": lambda: t.GraniteConfig(**SMALL, tie_word_embeddings=True),
        "starcoder2": lambda: t.Starcoder2Config(**SMALL, use_bias=True, tie_word_embeddings=True),
        "mixtral": lambda: t.MixtralConfig(**SMALL, **untied, num_local_experts=4, num_experts_per_tok=2),
        "qwen3-moe": lambda: t.Qwen3MoeConfig(**SMALL, **untied, **wide, **moe, num_experts=8, decoder_sparse_step=1),
        "deepseek-v2": lambda: t.DeepseekV2Config(**SMALL | untied | moe | mla),
        "glm4-moe": lambda: t.Glm4MoeConfig(**SMALL | untied | wide | moe | gates),
    }


def _mamba2() -> Any:
    from transformers import Mamba2Config

    common = {
        k: v for k, v in SMALL.items() if "attention" not in k and k not in ("intermediate_size", "num_key_value_heads")
    }
    return Mamba2Config(**common, num_heads=8, head_dim=32, state_size=16, n_groups=2, chunk_size=64, use_cache=False)


def make_pair(
    folder: Path, family: str, *, shard: str = "1GB", sft_dtype: torch.dtype = torch.bfloat16, delta: float = 0.05
) -> tuple[Path, Path]:
    """Write aligned (bfloat16) and sft folders of a tiny random model; (aligned, sft)."""
    torch.manual_seed(0)
    aligned, sft = folder / "aligned", folder / "sft"
    if family == "internlm2":
        _write_internlm2(aligned, sft, delta)
        return aligned, sft
    config = _mamba2() if family == "mamba2" else families()[family]()
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_((torch.randn(weight.shape, generator=noise) * 0.1).to(weight.dtype))
            else:
                weight.mul_(10 if "embed" in name else 4)
        model.save_pretrained(aligned, max_shard_size=shard)
        model.to(sft_dtype)  # before it moves, or a wider dtype would hold numbers of bfloat16
        for weight in model.parameters():
            weight.copy_(_moved(weight, noise, delta))
        model.save_pretrained(sft, max_shard_size=shard)
    for out in (aligned, sft):
        make_tokenizer().save_pretrained(out)
    return aligned, sft


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, ChatML-like turns."""
    specials = ["<pad>", "<bos>", "<|end|>", "<|start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|end|>", pad_token="<pad>",
        additional_special_tokens=["<|start|>"],
    )  # fmt: skip
    fast.chat_template = CHAT
    return fast


def make_reward_model(folder: Path, *, labels: int = 1) -> Path:
    """A tiny random sequence classifier."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    model = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=labels))
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_prompts(file: Path, n: int) -> Path:
    """n different prompts, as JSONL."""
    topics = ("rivers", "bread", "chess", "winter", "maps")
    texts = [f"Tell me {i + 1} things about {topics[i % len(topics)]}." for i in range(n)]
    file.write_text("".join(json.dumps({"prompt": t, "prompt_id": f"p{i}"}) + "\n" for i, t in enumerate(texts)))
    return file


def offline_checkpoint(
    aligned: Path, sft: Path, alpha: float, out: Path, factor: Callable[[str], float] = lambda _: 1.0
) -> Path:
    """theta(alpha) written from the files by NumPy: shares no code with the package. `factor`: of a weight's alpha."""
    out.mkdir()
    for file in aligned.iterdir():
        if not file.name.startswith("model"):
            (out / file.name).write_bytes(file.read_bytes())
    a, s = read_all(aligned), read_all(sft)
    theta = {name: numpy_theta(a[name], s[name], alpha * factor(name)) for name in a}
    save_file(theta, out / "model.safetensors", metadata={"format": "pt"})
    return out


def edit(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Rewrite a checkpoint's tensors, in place, into one file."""
    tensors = {name: change(name, t.clone()) for name, t in read_all(folder).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop(folder: Path, name: str) -> None:
    """Rewrite a checkpoint without one tensor."""
    tensors = {k: t for k, t in read_all(folder).items() if k != name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shrink_vocabulary(source: Path, out: Path, *, by: int) -> Path:
    """A copy whose two vocabulary tensors and config have fewer rows."""
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text())
    rows = config["vocab_size"]
    edit(out, lambda _, t: t[: rows - by].clone() if t.shape[0] == rows else t)
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": rows - by}))
    return out


def pad_vocabulary_with(aligned: Path, shorter: Path, out: Path) -> Path:
    """A copy of `shorter` whose missing vocabulary rows are those of `aligned`."""
    shutil.copytree(shorter, out)
    full = read_all(aligned)
    edit(out, lambda name, t: torch.cat([t, full[name][len(t) :]]) if t.shape != full[name].shape else t)
    return out


def numpy_theta(a: torch.Tensor, s: torch.Tensor, alpha: float) -> torch.Tensor:
    """The formula for a bfloat16 aligned tensor, rounded to nearest even by hand."""
    x, y = _widen(a), _widen(s)
    if alpha == 0:
        return a
    bits = (x + np.float32(alpha) * (x - y)).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return torch.from_numpy(rounded.view(np.int16)).view(torch.bfloat16)


def _widen(t: torch.Tensor) -> np.ndarray:
    if t.dtype == torch.bfloat16:
        halves = t.contiguous().view(torch.int16).numpy().view(np.uint16)
        return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return t.numpy().astype(np.float32)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return tensors


def _moved(weight: torch.Tensor, noise: torch.Generator, delta: float) -> torch.Tensor:
    spread = max(weight.float().std().item() if weight.numel() > 1 else 0.0, 1e-3)
    return (weight.float() + torch.randn(weight.shape, generator=noise) * spread * delta).to(weight.dtype)


def _write_internlm2(aligned: Path, sft: Path, delta: float) -> None:
    """InternLM2 is not in transformers: its tensors by hand, and its config as the code in its repository."""
    h, i, heads, kv, noise = 128, 256, 4, 2, torch.Generator().manual_seed(3)
    d = h // heads

    def random(*shape: int, scale: float = 0.1) -> torch.Tensor:
        return (torch.randn(*shape, generator=noise) * scale).bfloat16()

    tensors = {"model.tok_embeddings.weight": random(VOCAB, h, scale=0.3), "output.weight": random(VOCAB, h)}
    tensors["model.norm.weight"] = 1 + random(h)
    for layer in range(2):
        p = f"model.layers.{layer}."
        tensors |= {
            p + "attention.wqkv.weight": random((heads + 2 * kv) * d, h), p + "attention.wo.weight": random(h, h),
            p + "feed_forward.w1.weight": random(i, h), p + "feed_forward.w3.weight": random(i, h),
            p + "feed_forward.w2.weight": random(h, i), p + "attention_norm.weight": 1 + random(h),
            p + "ffn_norm.weight": 1 + random(h),
        }  # fmt: skip
    config = SMALL | {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bias": False, "tie_word_embeddings": False,
        "dtype": "bfloat16", "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    }  # fmt: skip
    code = (
        "from transformers import PretrainedConfig\n\n\n"
        "class InternLM2Config(PretrainedConfig):\n"
        "    model_type = 'internlm2'\n\n"
        "    def __init__(self, rope_scaling=None, **kw):\n"
        "        self.rope_scaling = rope_scaling\n"
        "        super().__init__(**kw)\n"
    )
    moved = {name: _moved(t, noise, delta) for name, t in tensors.items()}
    for out, weights in ((aligned, tensors), (sft, moved)):
        out.mkdir(parents=True)
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        (out / "config.json").write_text(json.dumps(config))
        (out / "configuration_internlm2.py").write_text(code)
        make_tokenizer().save_pretrained(out)
