"""How long a trial takes with the two sources in one place or the other: what `sources = "auto"` is decided by.

Sources that stay on a GPU take room from the KV cache, so fewer sequences are under way at once; sources in host memory
are streamed over the link at every switch. Decoding is bound by memory: a step reads all weights once, whatever the
number of sequences, and each sequence's keys and values. With n sequences at once, P prompts, and answers of A tokens
to prompts of p,

    step  = STEP_S + (weights + n * kv_per_token * (p + A / 2)) / bandwidth
    trial = P * A / n * step + streamed / LINK_BYTES_PER_S
    n     = min(allowed, P, kv_cache / (kv_per_token * (p + A)))

all bytes being those of one GPU. Left out, as they are the same in both places or small: the reading of the prompts,
the scoring, the last answers that run on alone, and a switch's own reading and writing on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_S = 0.005  # of one step beside reading memory: scheduling, sampling, and handing over some hundred outputs
BANDWIDTH = 2e12  # bytes/s of a GPU that does not say: an A100's
LINK_BYTES_PER_S = 20e9  # pinned host memory over PCIe 4 x 16, as measured by most; PCIe 5 has twice as much
ANSWER_SHARE = 0.25  # of max_tokens: a mean answer to UltraFeedback is about 400 tokens, where 2048 are allowed
PROMPT_TOKENS = 256  # of a prompt whose length is not known


@dataclass(frozen=True)
class Workload:
    """What one trial answers: how many prompts, their mean length, and how long an answer may be, both in tokens."""

    n_prompts: int = 1000
    prompt_tokens: float = PROMPT_TOKENS
    max_tokens: int = 2048

    @property
    def answer_tokens(self) -> float:
        """Expected mean length of an answer, in tokens."""
        return max(1.0, self.max_tokens * ANSWER_SHARE)


@dataclass(frozen=True)
class Placement:
    """What one GPU holds, in bytes, with the sources in one place.

    Attributes:
        weights: live, read at every step. kv_per_token: keys and values of one token. kv_cache: room for those.
        streamed: what a switch reads over the link; 0 where the sources are on the GPU.
        bandwidth: of the GPU's memory, in bytes/s.
    """

    weights: int
    kv_per_token: int
    kv_cache: int
    streamed: int
    bandwidth: float = BANDWIDTH

    def sequences(self, work: Workload) -> int:
        """How many whole sequences of the expected length the KV cache holds; at least 1."""
        each = self.kv_per_token * (work.prompt_tokens + work.answer_tokens)
        return max(1, int(self.kv_cache / each)) if each else work.n_prompts

    def trial_s(self, work: Workload, allowed: int) -> float:
        """Seconds of a trial with at most `allowed` sequences at once."""
        at_once = max(1, min(allowed, work.n_prompts, self.sequences(work)))
        keys_values = at_once * self.kv_per_token * (work.prompt_tokens + work.answer_tokens / 2)
        step_s = STEP_S + (self.weights + keys_values) / self.bandwidth
        return work.n_prompts * work.answer_tokens / at_once * step_s + self.streamed / LINK_BYTES_PER_S
