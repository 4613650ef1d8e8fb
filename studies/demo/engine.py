"""A vLLM engine on one CPU core for the training scripts: prompts in, sampled answers out.

The product's own engine is not used here: it materializes alpha, and the pair it needs does not exist yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Answer:
    """One sampled answer; `finished` is false where `max_tokens` cut it off.

    `log_probability` is the model's own, in nats, over all tokens, at temperature 1.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    log_probability: float


def start_engine(checkpoint: Path) -> LLM:
    """Load a checkpoint in process. No chunked prefill: with per-request seeds, vLLM 0.32 crashes on it."""
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    from vllm import LLM

    return LLM(
        model=str(checkpoint),
        dtype="bfloat16",
        max_model_len=512,
        enforce_eager=True,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        max_num_batched_tokens=4096,
        max_num_seqs=128,
        disable_log_stats=True,
        seed=0,
    )


def sample(
    engine: LLM, prompts: list[str], n: int, temperature: float, max_tokens: int, seed: int
) -> list[list[Answer]]:
    """`n` answers to each prompt, in order. The seed of prompt i is a function of `seed` and i alone."""
    from vllm import SamplingParams

    chats: list[list[Any]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    settings = [
        SamplingParams(n=n, temperature=temperature, max_tokens=max_tokens, logprobs=0, seed=seed * 1_000_003 + i)
        for i in range(len(prompts))
    ]
    outputs = engine.chat(chats, settings, use_tqdm=False)
    return [[_answer(part) for part in output.outputs] for output in outputs]


def _answer(part: CompletionOutput) -> Answer:
    assert part.logprobs is not None
    steps: Any = part.logprobs
    total = sum(float(step[token].logprob) for token, step in zip(part.token_ids, steps, strict=True))
    return Answer(part.text, tuple(part.token_ids), part.finish_reason != "length", total)
