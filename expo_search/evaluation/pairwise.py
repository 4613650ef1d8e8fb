"""A judge of pairs -> the `Scorer` of one trial, by which its answers are compared with those at alpha = 0.

Rewards are 1 for the better answer, 0 for the worse, 1/2 for a tie; at alpha = 0 each is 1/2, and the mean gain is the
win rate less 1/2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from expo_search.contracts import Completion, PairwiseScorer, Prompt

EVEN = 0.5


class AgainstControl:
    """Rates answers against those at alpha = 0, also in the background; a judge is asked about one batch at a time.

    Args:
        control: the answers at alpha = 0 by their prompt; None: it is those that are rated.
    """

    def __init__(self, judge: PairwiseScorer, control: Mapping[Prompt, Completion] | None) -> None:
        self._judge, self._control = judge, control
        self._one_batch = threading.Lock()

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """As `Scorer.score`. Nobody is asked about equal answers."""
        rewards = [EVEN] * len(completions)
        control = self._control
        other = [] if control is None else [i for i, c in enumerate(completions) if c.text != control[c.prompt].text]
        on_scored(len(completions) - len(other))
        if control is not None and other:
            asked = [completions[i] for i in other]
            judged = self._judge.judge(asked, [control[c.prompt] for c in asked], on_scored)
            for i, reward in zip(other, judged, strict=True):
                rewards[i] = reward
        return rewards, 0

    def begin(self, completions: Sequence[Completion]) -> Future[tuple[list[float], int]]:
        """As `BackgroundScorer.begin`."""
        future: Future[tuple[list[float], int]] = Future()
        # a daemon: at the end of the process nobody waits for a server
        threading.Thread(target=self._work, args=(completions, future), name="expo-search judge", daemon=True).start()
        return future

    def _work(self, completions: Sequence[Completion], future: Future[tuple[list[float], int]]) -> None:
        with self._one_batch:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self.score(completions, lambda _: None))
            except BaseException as fault:  # into the thread that waits for it
                future.set_exception(fault)
