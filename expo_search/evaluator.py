"""prompts -> completions, at the present alpha of one vLLM engine that is started once and never reloads.

`VllmModel` is the real model behind `objective.Model`. Everything that depends on the hardware is in
`engine_settings`. vllm is imported when an engine is made, not before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.chat import encode_chat, load_tokenizer
from expo_search.errors import EngineError, MaterializeError, PromptsError
from expo_search.prompts import Prompt
from expo_search.study import EngineSpec, SamplingSpec

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput, SamplingParams

INSTALL = 'install it with: pip install "expo-search[gpu]" (CUDA) or pip install "expo-search[cpu]"'
_CANARY_ALPHA = 1.0
_CANARY_TEXT = (
    "Write one sentence about each of the following: the sea in winter, the price of bread, an old bicycle, "
    "the first day of school, a letter that never arrived, how to boil an egg, and why the sky is blue. "
    "Then say which of these sentences you like best and explain the choice in a few words."
)


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is "stop", or "length" when it was cut off at max_tokens."""

    prompt: Prompt
    text: str
    n_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Switch:
    """One change of alpha: what it cost and what is live now (see `fingerprint.py`)."""

    alpha: float
    seconds: float
    fingerprint: str


@dataclass(frozen=True)
class SourcesReport:
    """The two sources as the engine loaded them: fingerprints, ||aligned - sft|| / ||aligned||, share of entries that
    differ (0..1), bytes kept."""

    aligned: str
    sft: str
    relative_delta: float
    changed_share: float
    n_bytes: int

    @classmethod
    def of_ranks(cls, ranks: Sequence[dict[str, Any]]) -> SourcesReport:
        """Join the reports of the tensor-parallel ranks."""
        n_bytes = [r["n_bytes"] for r in ranks]

        def mean(key: str) -> float:
            return float(sum(r[key] * n for r, n in zip(ranks, n_bytes, strict=True)) / sum(n_bytes))

        return cls(
            "-".join(r["aligned"] for r in ranks),
            "-".join(r["sft"] for r in ranks),
            mean("relative_delta"),
            mean("changed_share"),
            sum(n_bytes),
        )


@dataclass(frozen=True)
class ModelSpec:
    """Everything an engine is made from: two local folders, how to talk to the model, and engine options."""

    aligned: Path
    sft: Path
    sampling: SamplingSpec
    engine: EngineSpec
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_remote_code: bool = False
    gpu_memory_utilization: float = 0.85


def engine_settings(
    engine: EngineSpec, *, cuda: bool, gpu_memory_utilization: float
) -> tuple[dict[str, str], dict[str, Any]]:
    """Environment variables and `vllm.LLM` arguments for this hardware. The only place that knows CPU from GPU."""
    settings: dict[str, Any] = {"max_num_seqs": engine.max_num_seqs}
    if cuda:
        return {}, settings | {"gpu_memory_utilization": gpu_memory_utilization}
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    if engine.tensor_parallel == 1:
        # In this process: starts in seconds, and both the engine and the scorer use every core.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment, settings | {
        "enforce_eager": True,
        # vLLM 0.32 on a CPU: a per-request seed with a chunked prefill crashes
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, engine.max_model_len),
    }


class VllmModel:
    """A running vLLM engine whose weights are theta(alpha); starts with a canary and stands at alpha = 0.

    Raises (on construction):
        EngineError: vllm is not installed, or the engine does not start.
        MaterializeError: the weights cannot be switched, or a switch does not take effect.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.tokenizer = load_tokenizer(
            str(spec.aligned), trust_remote_code=spec.trust_remote_code, chat_template=spec.chat_template
        )
        self._llm = _start(spec)
        self._n_requests = 0
        self.sources = SourcesReport.of_ranks(self._llm.collective_rpc("expo_sources"))
        self.canary_s = self._check_switching()

    def materialize(self, alpha: float) -> Switch:
        """Write theta(alpha) into the engine, in place, and forget every cached prefix of another alpha."""
        started = time.perf_counter()
        ranks = self._llm.collective_rpc("expo_switch", args=(float(alpha),))
        self._forget_prefixes()
        fingerprint = "-".join(rank["fingerprint"] for rank in ranks)
        return Switch(alpha, time.perf_counter() - started, fingerprint)

    def n_prompt_tokens(self, prompt: Prompt) -> int:
        return len(self._encode(prompt))

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion | int]:
        """Answer each prompt once. Yields the number of new tokens after each engine step, and completions as they end.

        Completions come in the order in which they finish. The seed of each is its prompt's, the same at every alpha.

        Raises:
            PromptsError: a prompt that leaves no room for an answer in the context.
        """
        pending: dict[str, _Answer] = {}
        engine = self._llm.llm_engine
        for prompt in prompts:
            ids = self._encode(prompt)
            if len(ids) >= self._spec.engine.max_model_len:
                raise PromptsError(
                    where=f"prompt {prompt.id}",
                    found=f"{len(ids)} tokens",
                    expected=f"fewer than the context of {self._spec.engine.max_model_len}",
                    do="remove it, or raise max_model_len",
                )
            self._n_requests += 1
            pending[str(self._n_requests)] = _Answer(prompt)
            engine.add_request(str(self._n_requests), {"prompt_token_ids": ids}, self._params(prompt))
        try:
            while pending:
                outputs = engine.step()
                yield sum(pending[o.request_id].add(o.outputs[0]) for o in outputs)
                yield from (pending.pop(o.request_id).completion() for o in outputs if o.finished)
        finally:
            if pending:  # the caller stopped early: leave the engine idle
                engine.abort_request(list(pending))

    def log_probabilities(self, text: str, n_tokens: int, *, salt: str | None = None) -> list[tuple[int, float]]:
        """Greedy continuation of a text: (token id, its natural log-probability) for each of n_tokens tokens.

        A `salt` keeps the request from using any cached prefix.
        """
        from vllm import SamplingParams

        ids = encode_chat(self.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        prompt: Any = {"prompt_token_ids": ids[: self._spec.engine.max_model_len - n_tokens]}
        if salt is not None:
            prompt["cache_salt"] = salt
        params = SamplingParams(temperature=0.0, max_tokens=n_tokens, logprobs=0, ignore_eos=True)
        output = self._llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        assert output.logprobs is not None
        return [(token, step[token].logprob) for token, step in zip(output.token_ids, output.logprobs, strict=True)]

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._llm.llm_engine.engine_core.shutdown()

    def _encode(self, prompt: Prompt) -> list[int]:
        return encode_chat(self.tokenizer, [{"role": "user", "content": prompt.text}], add_generation_prompt=True)

    def _params(self, prompt: Prompt) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        s = self._spec.sampling
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            max_tokens=s.max_tokens,
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            seed=prompt.seed(self._spec.seed),
            stop=list(self._spec.stop_strings),
            stop_token_ids=list(self._spec.stop_token_ids),
            output_kind=RequestOutputKind.DELTA,
        )

    def _forget_prefixes(self) -> None:
        """Drop every cached prefix: those were computed at another alpha."""
        if not self._llm.reset_prefix_cache():
            raise MaterializeError(
                where="prefix cache",
                found="blocks still in use",
                expected="an idle engine at a switch",
                do="report this: a request was left running",
            )

    def _check_switching(self) -> float:
        """The canary: prove on this engine that a switch takes effect everywhere and that alpha = 0 comes back exactly.

        Greedy answers and their log-probabilities, as vLLM's own load left them, must come back to the bit after every
        weight and everything derived from weights was poisoned with NaN and then switched to alpha = 0; must change
        at another alpha; must not come from a prefix cached at the alpha before; and must come back again.

        Returns:
            Seconds it took.
        """
        started = time.perf_counter()
        truth = self._probe()
        self._llm.collective_rpc("expo_poison")
        aligned = self.materialize(0.0)
        self._expect(self._probe() == truth, "another answer at alpha = 0 than after loading: a stale derived weight")
        # Not forgetting the prefixes by hand here: `materialize` has to.
        other = self.materialize(_CANARY_ALPHA)
        changed, uncached = self._probe(), self._probe(salt="canary")
        expected = "-".join(self._llm.collective_rpc("expo_expected", args=(_CANARY_ALPHA,)))
        self._expect(other.fingerprint == expected, f"other weights than the formula's at alpha = {_CANARY_ALPHA:g}")
        self._expect(changed == uncached, "an answer from a prefix that was cached at another alpha")
        if self.sources.aligned == self.sources.sft:
            raise MaterializeError(
                where="pair",
                found="aligned and sft hold the same weights",
                expected="two different checkpoints",
                do="check --sft and --aligned",
            )
        self._expect(other.fingerprint != aligned.fingerprint, f"the same weights at alpha = 0 and {_CANARY_ALPHA:g}")
        self._expect(changed != truth, f"the same answer, to the last bit, at alpha = 0 and {_CANARY_ALPHA:g}")
        self._expect(self.materialize(0.0).fingerprint == aligned.fingerprint, "other weights when alpha = 0 came back")
        self._expect(self._probe() == truth, "another answer when alpha = 0 came back")
        return time.perf_counter() - started

    def _probe(self, salt: str | None = None) -> list[tuple[int, float]]:
        return self.log_probabilities(_CANARY_TEXT, 8, salt=salt)

    def _expect(self, holds: bool, found: str) -> None:
        if not holds:
            raise MaterializeError(
                where=f"canary, {self._spec.aligned}",
                found=found,
                expected="weights that depend on alpha alone",
                do="report this architecture; no trial was run",
            )


@dataclass
class _Answer:
    """A completion under way: the parts that engine steps brought."""

    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    n_tokens: int = 0
    finish_reason: str = "stop"

    def add(self, part: CompletionOutput) -> int:
        self.texts.append(part.text)
        self.n_tokens += len(part.token_ids)
        self.finish_reason = part.finish_reason or "stop"
        return len(part.token_ids)

    def completion(self) -> Completion:
        return Completion(self.prompt, "".join(self.texts), self.n_tokens, self.finish_reason)


def _start(spec: ModelSpec) -> LLM:
    try:
        import torch

        cuda = torch.cuda.is_available()
        environment, settings = engine_settings(
            spec.engine, cuda=cuda, gpu_memory_utilization=spec.gpu_memory_utilization
        )
        os.environ.update(environment)  # vLLM reads these when it is imported, and its workers inherit them
        from vllm import LLM

        import expo_search.loader  # registers the load format here; workers do it as they import the extension
    except ImportError as fault:
        raise EngineError(
            where="vllm", found=f"not installed ({fault})", expected="vllm beside expo-search", do=INSTALL
        ) from None
    try:
        return LLM(
            model=str(spec.aligned),
            tokenizer=str(spec.aligned),
            trust_remote_code=spec.trust_remote_code,
            dtype=spec.engine.dtype,
            max_model_len=spec.engine.max_model_len,
            tensor_parallel_size=spec.engine.tensor_parallel,
            seed=spec.seed,
            load_format=expo_search.loader.LOAD_FORMAT,
            model_loader_extra_config={expo_search.loader.SFT_OPTION: str(spec.sft)},
            worker_extension_cls="expo_search.materializer.ExpoWorker",
            disable_log_stats=True,
            **settings,
        )
    except (ValueError, RuntimeError, NotImplementedError, MemoryError, OSError) as fault:
        raise EngineError(
            where=f"vLLM engine for {spec.aligned}",
            found=" ".join(str(fault).split())[:300],
            expected="an engine that starts",
            do="see the log file for vLLM's own words",
        ) from fault
