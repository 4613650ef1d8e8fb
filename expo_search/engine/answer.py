"""vLLM's outputs of one prompt -> its completion; how a benchmark's request is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from expo_search.config.spec import SamplingSpec
from expo_search.contracts import Completion, Likelihood, Prompt, Request

if TYPE_CHECKING:
    from vllm import RequestOutput


def sampling_of(request: Request, room: int) -> SamplingSpec:
    """How a request is drawn, in a context that has room for so many more tokens."""
    return SamplingSpec(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        max_tokens=min(request.max_tokens, room),
    )


@dataclass
class Answer:
    """A completion under way: the parts that engine steps brought."""

    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    n_tokens: int = 0
    finish_reason: str = "stop"
    rated: tuple[float, bool] | None = None  # log-probability, and whether it is the greedy choice

    def add(self, output: RequestOutput) -> int:
        """Take what a step brought; how many tokens were generated."""
        part = output.outputs[0]
        if isinstance(self.prompt, Request) and self.prompt.n_rated:
            if output.prompt_logprobs is not None:
                self.rated = _likelihood(self.prompt, output.prompt_logprobs)
            return 0  # the one token that vLLM must generate is nobody's
        self.texts.append(part.text)
        self.n_tokens += len(part.token_ids)
        self.finish_reason = part.finish_reason or "stop"
        return len(part.token_ids)

    def completion(self) -> Completion:
        """The whole of it, once it has ended."""
        if self.rated is not None:
            return Likelihood(self.prompt, "", 0, "stop", *self.rated)
        return Completion(self.prompt, "".join(self.texts), self.n_tokens, self.finish_reason)


def _likelihood(request: Request, by_position: Sequence[Mapping[int, Any] | None]) -> tuple[float, bool]:
    """The log-probability of a request's last `n_rated` tokens, and whether each of them is the likeliest there.

    `by_position`: by token, vLLM's `Logprob`, of the token that stands there and of the likeliest one.
    """
    rated = list(zip(request.ids, by_position, strict=True))[-request.n_rated :]
    at = [(token, seen) for token, seen in rated if seen is not None]
    assert len(at) == request.n_rated, "a prompt's first token comes after nothing"
    total = sum(seen[token].logprob for token, seen in at)
    return total, all(max(seen, key=lambda t: seen[t].logprob) == token for token, seen in at)
