"""lm-evaluation-harness's model, answered by the live engine at its present alpha, with no cache of its own.

Text becomes tokens as in the harness's `TemplateLM`; what is too long for the context loses its beginning, as there. A
prompt is cut only where an answer has its least room already. Requests are stored by what they ask, under task and
alpha: a run that was stopped asks none of them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from expo_search.bench.asking import Asking, BenchWatcher, Key
from expo_search.bench.task import LEAST_ROOM
from expo_search.contracts import Prompt, Request
from expo_search.store.bench_store import Answered, BenchStore

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENS = 256  # of an answer where a task does not say, as in the harness's own models


class LiveRequests:
    """Requests of one harness task at one alpha: those that are stored, and the others from the engine.

    Attributes:
        failed: whether asking failed, or was stopped.
    """

    def __init__(self, asking: Asking, store: BenchStore, watcher: BenchWatcher, title: str) -> None:
        self._asking, self._watcher, self._title = asking, watcher, title
        self._stored = store.answers(asking.task, asking.alpha)
        self.failed = False

    def answers(self, requests: Sequence[Request], remarks: Sequence[str]) -> list[Answered]:
        """One answer a request, in their order; requests that ask the same thing are one.

        Args:
            remarks: said where something is asked.
        """
        try:
            return self._answers(requests, remarks)
        except Exception:
            self.failed = True
            raise

    def _answers(self, requests: Sequence[Request], remarks: Sequence[str]) -> list[Answered]:
        missing: dict[Key, Prompt] = {(r.id, 0): r for r in requests if r.id not in self._stored}
        n = len({r.id for r in requests})
        self._watcher.started(self._asking.task, self._title, self._asking.alpha, n, n - len(missing))
        for remark in remarks if missing else ():
            self._watcher.remark(remark)
        for (name, _), answer in self._asking.ask(missing).items():
            self._stored[name] = [answer]
        return [self._stored[r.id][0] for r in requests]


def live_model(requests: LiveRequests, tokenizer: PreTrainedTokenizerBase, context: int) -> TemplateLM:
    """An `LM` of the harness. Loads the harness.

    Args:
        context: tokens of prompt and answer together at most.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    end: Any = tokenizer.eos_token_id
    begin: Any = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    rated_context = context - 1  # vLLM generates one token, also where only the prompt is rated

    class LiveModel(TemplateLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(end)

        @property
        def prefix_token_id(self) -> int:
            return int(begin)

        @property
        def max_length(self) -> int:
            return rated_context

        @property
        def tokenizer_name(self) -> str:
            return str(tokenizer.name_or_path).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            opened = isinstance(tokenizer.bos_token, str) and string.startswith(tokenizer.bos_token)
            special = not opened if add_special_tokens is None else add_special_tokens
            return list(tokenizer(string, add_special_tokens=special)["input_ids"])

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(
                tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return rated([(before, rest) for _, before, rest in requests])

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
            windows = [
                [
                    make_disjoint_window(pair)
                    for pair in get_rolling_token_windows(
                        token_list=self.tok_encode(request.args[0]),
                        prefix_token=begin,
                        max_seq_len=rated_context - 1,
                        context_len=1,
                    )
                ]
                for request in requests
            ]
            flat = iter(rated([pair for document in windows for pair in document]))
            return [sum(next(flat)[0] for _ in document) for document in windows]

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
            asked, n_cut, n_short = [], 0, 0
            for request, copy in _numbered(requests):
                text, given = request.args
                options = normalize_gen_kwargs(dict(given), default_max_gen_toks=_MAX_TOKENS)
                whole, wanted = self.tok_encode(text), int(options["max_gen_toks"])
                least = min(wanted, LEAST_ROOM, context // 2)
                max_tokens = min(wanted, max(least, context - len(whole)))
                ids = whole[-(context - max_tokens) :]
                n_cut += len(ids) < len(whole)
                n_short += max_tokens < wanted
                asked.append(
                    _request(
                        ids=ids,
                        copy=copy,
                        max_tokens=max_tokens,
                        stop=list(options["until"]),
                        temperature=float(options.get("temperature", 0.0)),
                        top_p=float(options.get("top_p", 1.0)),
                    )
                )
            short = f"the context of {context} tokens may cut {n_short} of {len(asked)} answers short"
            remarks = [*_lost(n_cut, len(asked), context), *([short] if n_short else [])]
            return [answer.text for answer in answers(asked, remarks)]

    answers: Callable[[Sequence[Request], Sequence[str]], list[Answered]] = requests.answers

    def rated(pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-probability of the second tokens after the first ones, and whether greedy choice gives them."""
        asked, n_cut = [], 0
        for before, rest in pairs:
            ids = [*before, *rest][-rated_context:]
            n_cut += len(ids) < len(before) + len(rest)
            asked.append(_request(ids=ids, n_rated=min(len(rest), len(ids) - 1)))
        given = answers(asked, _lost(n_cut, len(asked), context))
        return [(_log_probability(answer), bool(answer.is_greedy)) for answer in given]

    return LiveModel()


def _log_probability(answer: Answered) -> float:
    assert answer.log_probability is not None, "`Asking` takes no other"
    return answer.log_probability


def _lost(n_cut: int, n: int, context: int) -> list[str]:
    """What is said where prompts were cut."""
    told = f"{n_cut} of {n} requests are longer than the context of {context} tokens and lost their beginning"
    return [told] if n_cut else []


def _request(*, ids: Sequence[int], stop: Sequence[str] = (), copy: int = 0, **options: Any) -> Request:
    """A request whose id is a digest of what it asks; `copy` tells apart those that ask the same several times."""
    told = json.dumps([list(ids), list(stop), copy, options], sort_keys=True)
    digest = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    return Request(digest, "", ids=tuple(ids), stop=tuple(stop), **options)


def _numbered(requests: Iterable[Instance]) -> Iterable[tuple[Instance, int]]:
    """Each request with how often it came before: a task that wants several answers has it several times."""
    seen: dict[int, int] = {}
    for request in requests:
        copy = seen.get(id(request), 0)
        seen[id(request)] = copy + 1
        yield request, copy
