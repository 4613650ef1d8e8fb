"""One live line in a terminal, a plain line a trial elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from expo_search.evaluation.result import Evaluation
from expo_search.text import clean


class Progress:
    """Watches a search; shows trial, alpha, tokens and rate, scored, time left.

    The time left is the mean of this run's trials times those to come, less what the present one has done.
    """

    def __init__(self, console: Console, n_trials: int, n_finished: int, *, quiet: bool = False) -> None:
        self._console, self._n_trials, self._n_finished, self._quiet = console, n_trials, n_finished, quiet
        self._trial_s: list[float] = []
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal and not quiet else None
        )
        self._reset(0, 0.0, 0)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(Text(clean(line)), soft_wrap=True)

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None:
        """A trial begins: count anew from its stored answers, and say so if there are any."""
        self._reset(trial, alpha, n_prompts)
        self._n_answers = n_stored
        if n_stored:
            self.say(f"trial {trial}: going on after {n_stored} stored answers of {n_prompts}")
        self._show()

    def generated(self, n_tokens: int, n_completions: int) -> None:
        """Add tokens and finished answers; the rate counts from a trial's first call."""
        if self._t_generate is None:
            self._t_generate = time.monotonic()
        self._n_tokens += n_tokens
        self._n_answers += n_completions
        self._show()

    def scored(self, n: int) -> None:
        """Add n rated answers."""
        self._n_scored += n
        self._show()

    def finished(self, e: Evaluation) -> None:
        """A trial is told."""
        self._n_finished += 1
        self._trial_s.append(time.monotonic() - self._t_start)
        rate = e.n_generated / e.generate_s if e.generate_s else 0.0
        gain = "the control" if e.trial == 0 else f"gain {e.gain.mean:+.4f} ± {e.gain.se:.4f}"
        remark = f"  {e.remark}" if e.remark else ""
        remark += f" (after {e.gain.n} prompts)" if e.stopped_early else ""
        self.say(
            f"[{self._n_finished}/{self._n_trials}] alpha {e.alpha:8.4f}  reward {e.reward.mean:8.4f}  {gain}"
            f"{remark}  {e.n_generated} tokens, {rate:.0f}/s  left {_clock(self._left(0))} at most"
        )

    def _reset(self, trial: int, alpha: float, n_prompts: int) -> None:
        self._t_start, self._t_generate = time.monotonic(), None
        self._trial, self._alpha, self._n_prompts = trial, alpha, n_prompts
        self._n_tokens = self._n_answers = self._n_scored = 0

    _t_generate: float | None

    def _left(self, spent_s: float) -> float | None:
        if not self._trial_s:
            return None
        mean = sum(self._trial_s) / len(self._trial_s)
        return max(0.0, mean * (self._n_trials - self._n_finished) - min(spent_s, mean))

    def _show(self) -> None:
        if not self._live:
            return
        now = time.monotonic()
        rate = self._n_tokens / max(1e-3, now - (self._t_generate or now))
        line = (
            f"trial {self._n_finished + 1}/{self._n_trials}  alpha {self._alpha:.4g}  "
            f"{self._n_tokens} tokens {rate:.0f}/s  answers {self._n_answers}/{self._n_prompts}  "
            f"scored {self._n_scored}/{self._n_prompts}  left {_clock(self._left(now - self._t_start))}"
        )
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
