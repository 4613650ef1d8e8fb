"""Two answers to a prompt -> which is better, by a model that a server with OpenAI's interface runs.

Each pair is shown twice, with the positions swapped: judges prefer a position. A win is an answer preferred in both, a
loss one whose rival is; whatever else is a tie.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from expo_search.config.spec import RewardSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import RewardError
from expo_search.evaluation.chat_server import ChatServer

# one message, since some models' templates have no system role; the verdicts' form is MT-Bench's (Zheng et al. 2023)
QUESTION = """Two assistants answered the same request. Say which answer is better: more helpful, more correct, to the \
point, and better written. Neither the order in which they are shown nor their length is a reason to prefer one.

[Request]
{prompt}
[End of the request]

[Answer A]
{a}
[End of answer A]

[Answer B]
{b}
[End of answer B]

End your reply with the verdict: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if neither is."""
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_BARE = re.compile(r"\W*(?:answer\s+)?([ABC])\W*", re.IGNORECASE)
_REQUEST: Mapping[str, Any] = {"temperature": 0, "max_tokens": 1024}
_TRIED = ("What is the capital of France?", "The capital of France is Paris.", "banana banana banana")
JUDGE = "judge "  # before the model's name, in what a study keeps
_MOST_UNCLEAR = 0.5  # share of a batch's replies without a verdict; ties are made of fewer
_LEAST_UNCLEAR = 8  # replies: a pair that no judge rates, alone in its batch, is no reason to end a search


class Judge:
    """A model of a server as a judge of pairs.

    Attributes:
        name: for people. identity: what a study keeps of it: the model's name, with a hash of what it is asked.
    """

    def __init__(self, spec: RewardSpec, *, server: ChatServer | None = None) -> None:
        """`server`: asked in the place of the one that the spec names."""
        assert spec.judge_url is not None, "RewardSpec"
        assert spec.judge_model is not None, "RewardSpec"
        self.name = f"{JUDGE}{spec.judge_model}"
        self._options = {**_REQUEST, **spec.judge_options}
        asked = json.dumps([QUESTION, self._options], sort_keys=True)
        self.identity = f"{self.name}#{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
        self._server = server or ChatServer(spec.judge_url, spec.judge_model, spec.timeout_s)
        self._n_threads = spec.judge_at_once

    def judge(
        self,
        completions: Sequence[Completion],
        control: Sequence[Completion],
        on_scored: Callable[[int], None],
        *,
        least_unclear: int = _LEAST_UNCLEAR,
    ) -> list[float]:
        """As `contracts.PairwiseScorer.judge`; two questions a pair, several at a time.

        Raises:
            RewardError: the server does not answer; or most of its replies, and `least_unclear`, have no verdict.
        """
        questions = deque(
            (i, is_first, c.prompt.text, *((c.text, other.text) if is_first else (other.text, c.text)))
            for i, (c, other) in enumerate(zip(completions, control, strict=True))
            for is_first in (True, False)
        )
        verdicts: dict[tuple[int, bool], str | None] = {}
        faults: list[BaseException] = []
        unclear: list[str] = []  # replies without a verdict

        def work() -> None:
            while not faults:
                try:
                    i, is_first, prompt, a, b = questions.popleft()
                except IndexError:  # no more of them
                    return
                try:
                    reply = self._asked(prompt, a, b)
                except BaseException as fault:  # into the thread that waits
                    faults.append(fault)
                    return
                verdicts[i, is_first] = verdict(reply)
                if verdicts[i, is_first] is None:
                    unclear.append(reply)

        threads = [
            threading.Thread(target=work, name=f"expo-search judge {n}", daemon=True)
            for n in range(min(self._n_threads, len(questions)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        self._see_to(unclear, len(verdicts), least_unclear)
        on_scored(len(completions))
        return [_reward(verdicts[i, True], verdicts[i, False]) for i in range(len(completions))]

    def try_out(self) -> None:
        """Find out whether the server has the model, and whether that gives a verdict on a pair of our own.

        Raises:
            RewardError: it does not.
        """
        self._server.check_model()
        prompt, good, bad = _TRIED
        tried = [Completion(Prompt("tried", prompt), text, 1, "stop") for text in (good, bad)]
        self.judge(tried[:1], tried[1:], lambda _: None, least_unclear=1)

    def close(self) -> None:
        """Let whatever still waits for the server end."""
        self._server.close()

    def _asked(self, prompt: str, a: str, b: str) -> str:
        return self._server.reply(
            [{"role": "user", "content": QUESTION.format(prompt=prompt, a=a, b=b)}], self._options
        )

    def _see_to(self, replies: Sequence[str], n: int, least: int) -> None:
        """Replies without a verdict among n: few are said in the log, too many, and `least`, end the search."""
        if len(replies) > _MOST_UNCLEAR * n and len(replies) >= least:
            last = " ".join(replies[-1].split())[-120:]
            raise RewardError(
                where=self.name,
                found=f"{len(replies)} of {n} replies without a verdict, the last: {last!r}",
                expected="[[A]], [[B]] or [[C]] at the end",
                do="take a model that follows instructions, or give it more tokens ([reward.judge_options] max_tokens)",
            )
        if replies:
            logging.getLogger(__name__).warning(
                "%s: %d of %d replies without a verdict: ties", self.name, len(replies), n
            )


def verdict(reply: str) -> str | None:
    """A, B or C; the last one said after any thoughts, or a letter alone. None: there is none.

    Thoughts that do not end, since the reply was cut off, weigh one answer and the other: nothing in them counts.
    """
    said = reply.rpartition("</think>")[2]
    if "<think>" in said:
        return None
    found = _VERDICT.findall(said)
    if found:
        return str(found[-1])
    bare = _BARE.fullmatch(said)
    return bare[1].upper() if bare else None


def _reward(first: str | None, second: str | None) -> float:
    """Of the answer that was A first, and B then."""
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((first or "", second or ""), 0.5)
