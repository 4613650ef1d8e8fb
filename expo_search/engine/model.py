"""prompts -> completions, at the present alpha of one vLLM engine that is started once and never reloads.

`VllmModel` is the real model behind `contracts.Model`. Nothing here depends on the hardware; see `start.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.pair_check import same_weights
from expo_search.contracts import Completion, Prompt, Request, Switch
from expo_search.engine.answer import Answer, sampling_of
from expo_search.engine.canary import check_switching
from expo_search.engine.machine import has_gpu
from expo_search.engine.memory_plan import n_at_once
from expo_search.engine.start import ModelSpec, SourcesReport
from expo_search.engine.watched import WatchedEngine
from expo_search.errors import EngineDied, MaterializeError, PromptsError
from expo_search.inputs.chat_template import encode_chat, encode_prompt, load_tokenizer
from expo_search.weights.shape import shape_of, shaped, to_message

if TYPE_CHECKING:
    from vllm import SamplingParams


_WARM_UP_TOKENS = 4  # the first comes of the prompt, the second of the first decoding step, with penalties


def warm_up_sizes(most: int) -> list[int]:
    """Sizes of batches between which kernels differ, up to the largest.

    Triton compiles a kernel apart for arguments that are 1, that 16 divides, and others; vLLM splits the filters of
    top-k and top-p over more programs the fewer sequences there are, by powers of two.
    """
    return sorted({3, most, *(2**i for i in range(most.bit_length()))} & set(range(1, most + 1)))


class VllmModel:
    """A running vLLM engine whose weights are theta(alpha); starts with a canary and stands at alpha = 0.

    Raises (on construction):
        EngineError: vllm is not installed, or the engine does not start.
        MaterializeError: the weights cannot be switched, or a switch does not take effect.
    """

    def __init__(self, spec: ModelSpec, give_up: Callable[[EngineDied], None] | None = None) -> None:
        """`give_up` is called, from another thread, when the engine hangs where nothing can interrupt it."""
        self._spec = spec
        self.tokenizer = load_tokenizer(
            str(spec.aligned), trust_remote_code=spec.trust_remote_code, chat_template=spec.chat_template
        )
        self._n_requests = 0
        self._pending: dict[str, Answer] = {}  # under way, by request
        self._engine = WatchedEngine(spec, give_up)
        try:
            self.sources = SourcesReport.of_ranks(self._engine.call("expo_sources"))
            if self.sources.aligned == self.sources.sft:
                raise same_weights(spec.aligned, spec.sft)
            self._check()
        except BaseException:  # nobody else has the engine yet
            self._engine.end()
            raise

    def restart(self) -> None:
        """Start the engine anew after an `EngineDied`; it stands at alpha = 0, with the canary passed.

        Raises:
            EngineError: it does not start.
            MaterializeError: a switch does not take effect, or the checkpoints are no longer those of before.
        """
        self._pending.clear()
        self._engine.restart()
        sources = SourcesReport.of_ranks(self._engine.call("expo_sources"))
        if (sources.aligned, sources.sft) != (self.sources.aligned, self.sources.sft):
            raise MaterializeError(
                where=f"pair {self._spec.aligned} / {self._spec.sft}",
                found="other weights than before the engine was started anew",
                expected="checkpoints that stay as they are",
                do="see who writes to the two folders",
            )
        self._check()

    def _check(self) -> None:
        started = time.perf_counter()
        self.noise = check_switching(self, str(self._spec.aligned))
        self.canary_s = time.perf_counter() - started
        self._warm_up()

    def _warm_up(self) -> None:
        """Draw a few tokens as a trial will, so that no trial pays for kernels that are compiled at their first use.

        vLLM's own warm-up samples with one set of parameters and one size of batch. A CPU engine compiles nothing.
        """
        if not has_gpu():
            return
        sizes = warm_up_sizes(n_at_once(self._spec.engine))
        prompt = encode_chat(self.tokenizer, [{"role": "user", "content": "Hello."}], add_generation_prompt=True)
        self._engine.warm_up(
            prompt[: self._spec.engine.max_model_len - _WARM_UP_TOKENS],
            [[self._warm_up_params(i) for i in range(size)] for size in sizes],
        )
        self._forget_prefixes()

    def _warm_up_params(self, i: int) -> SamplingParams:
        params = self._params(Prompt(f"warm-up {i}", ""), self._spec.seed)
        params.max_tokens = min(params.max_tokens or _WARM_UP_TOKENS, _WARM_UP_TOKENS)
        params.ignore_eos = True
        return params

    def materialize(self, alpha: float) -> Switch:
        """Write theta(alpha) into the engine, in place, and forget every cached prefix of another alpha."""
        started = time.perf_counter()
        fingerprint = self.switch(alpha)
        return Switch(alpha, time.perf_counter() - started, fingerprint)

    def switch(self, alpha: float, *, reread: bool = False) -> str:
        """As `materialize`, but return the fingerprint alone; those of tensor-parallel ranks are joined by "-".

        `reread` takes it from the memory after the writing, not while writing.

        Raises:
            MaterializeError: a weight would not be finite at alpha; nothing was written.
        """
        infinite = [name for name in self._engine.call("expo_overflow", to_message(alpha)) if name]
        if infinite or not math.isfinite(alpha):
            raise MaterializeError(
                where=f"alpha {alpha:g}",
                found=f"weight {infinite[0]} overflows" if infinite else "not a number",
                expected="weights that stay finite",
                do="take a smaller alpha; in a search, lower --alpha-max",
            )
        ranks = self._engine.call("expo_switch", to_message(alpha), reread)
        self._engine.name_weights(shaped(alpha, shape_of(alpha)))
        self._forget_prefixes()
        return "-".join(rank["fingerprint"] for rank in ranks)

    def poison(self) -> None:
        """Make every weight and everything derived from one NaN (see `canary.py`)."""
        self._engine.call("expo_poison")

    def expected_fingerprint(self, alpha: float) -> str:
        """What `switch` must return: the formula, computed apart from it."""
        return "-".join(self._engine.call("expo_expected", to_message(alpha)))

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        """Answer each prompt once. Yields the number of tokens handed over at each step, and completions as they end.

        Completions come in the order in which they end, each drawn with `prompt.seed(seed)`, the same at every alpha. A
        `Request` is answered as it says itself; where its tokens are to be rated, a `Likelihood` comes.

        Raises:
            PromptsError: a prompt that leaves no room for an answer in the context.
        """
        self.add(prompts, seed)
        try:
            while self._pending:
                yield from self.step()
        finally:
            self.abort()  # the caller stopped early: leave the engine idle

    @property
    def n_at_once(self) -> int:
        """How many prompts are answered at once, at most."""
        return n_at_once(self._spec.engine)

    def add(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Begin to answer these prompts, beside those that are under way. Raises as `generate`, before any begins."""
        for prompt, ids in [(prompt, self._fitting(prompt)) for prompt in prompts]:
            self._n_requests += 1
            self._engine.add(str(self._n_requests), ids, self._params(prompt, seed, len(ids)))
            self._pending[str(self._n_requests)] = Answer(prompt)

    def step(self) -> list[Completion | int]:
        """One step: the number of tokens handed over, then the completions that have ended."""
        try:
            outputs = self._engine.step()
        except EngineDied:
            self._pending.clear()
            raise
        n_tokens = sum(self._pending[o.request_id].add(o) for o in outputs)
        return [n_tokens, *(self._pending.pop(o.request_id).completion() for o in outputs if o.finished)]

    def abort(self) -> None:
        """Drop all prompts that are under way."""
        if self._pending:
            requests = list(self._pending)
            self._pending.clear()
            self._engine.abort(requests)

    def stream(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int | None = None
    ) -> Generator[str, None, None]:
        """Answer the last turn of a conversation, in pieces as they come; closing the generator stops the answer.

        The same conversation draws with the same seed at every alpha.

        Raises:
            PromptsError: the conversation leaves no room for an answer in the context, or does not fit the template.
        """
        from jinja2 import TemplateError

        try:
            ids = encode_chat(self.tokenizer, [dict(m) for m in messages], add_generation_prompt=True)
        except TemplateError as fault:
            raise PromptsError(
                where="the conversation",
                found=f"{type(fault).__name__}: {fault}",
                expected="turns that the chat template takes",
                do="begin a new one",
            ) from None
        room = self._spec.engine.max_model_len - len(ids)
        if room < 1:
            raise PromptsError(
                where="the conversation",
                found=f"{len(ids)} tokens",
                expected=f"fewer than the context of {self._spec.engine.max_model_len}",
                do="begin a new one",
            )
        params = self._params(Prompt(json.dumps([dict(m) for m in messages]), messages[-1]["content"]), self._spec.seed)
        params.max_tokens = min(room, max_tokens or self._spec.sampling.max_tokens)
        params.stream_interval = None  # a reader sees each token
        self._n_requests += 1
        request, finished = str(self._n_requests), False
        self._engine.add(request, ids, params)
        try:
            while not finished:
                for output in self._engine.step():
                    finished = output.finished
                    yield output.outputs[0].text
        finally:
            if not finished:  # the caller stopped early: leave the engine idle
                self._engine.abort([request])

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
        output = self._engine.answer(prompt, params)
        assert output.logprobs is not None
        return [(token, step[token].logprob) for token, step in zip(output.token_ids, output.logprobs, strict=True)]

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._engine.close()

    def _fitting(self, prompt: Prompt) -> list[int]:
        ids = encode_prompt(self.tokenizer, prompt)
        if len(ids) >= self._spec.engine.max_model_len:
            raise PromptsError(
                where=f"prompt {prompt.id}",
                found=f"{len(ids)} tokens",
                expected=f"fewer than the context of {self._spec.engine.max_model_len}",
                do="remove it, or raise max_model_len",
            )
        return ids

    def _params(self, prompt: Prompt, seed: int, n_ids: int = 0) -> SamplingParams:
        """A prompt's parameters: the study's, or those that a request of n_ids tokens brings."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        s, stop = self._spec.sampling, self._spec.stop_strings
        if isinstance(prompt, Request):
            if prompt.n_rated:
                return SamplingParams(
                    temperature=0.0, max_tokens=1, prompt_logprobs=1, output_kind=RequestOutputKind.FINAL_ONLY
                )
            room = self._spec.engine.max_model_len - n_ids
            s, stop = sampling_of(prompt, room), (*stop, *prompt.stop)
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            max_tokens=s.max_tokens,
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            seed=prompt.seed(seed),
            stop=list(stop),
            stop_token_ids=list(self._spec.stop_token_ids),
            output_kind=RequestOutputKind.DELTA,
            stream_interval=self._spec.output_tokens,
        )

    def _forget_prefixes(self) -> None:
        """Drop every cached prefix: those were computed at another alpha."""
        if not self._engine.forget_prefixes():
            raise MaterializeError(
                where="prefix cache",
                found="blocks still in use",
                expected="an idle engine at a switch",
                do="report this: a request was left running",
            )
