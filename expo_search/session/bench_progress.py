"""How a benchmark goes: one live line in a terminal or a notebook, else a plain line a task and alpha."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as LiveLine

from expo_search.session.progress import can_be_live
from expo_search.session.working import say_on
from expo_search.text import clock

_LINE = (
    "{task.fields[name]}  alpha {task.fields[alpha]}",
    "answers {task.completed:.0f}/{task.total:.0f}  {task.fields[tokens]} tokens {task.fields[rate]:.0f}/s  "
    "left {task.fields[left]}",
)


class BenchProgress:
    """Watches a benchmark (it is a `BenchWatcher`): task, alpha, answers, tokens and their rate, time left.

    The time left goes by the answers of this run: those to come, at the rate of those that came. How many a task wants
    is known once it begins, and is taken for its other alphas then; before, an item is one.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.say = say_on(console, quiet)
        self._to_begin: dict[tuple[str, float], int] = {}  # answers to come, by task and alpha
        self._to_come = 0  # beside those: of the task that has begun
        self._began: float | None = None  # answering, after the engine has started
        self._n_answers = self._n_tokens = 0
        is_live = can_be_live(console) and not quiet
        before, after = (TextColumn(text, markup=False) for text in _LINE)
        columns = (before, BarColumn(bar_width=16), after)
        # not redirected: Rich would show what a library writes to sys.stdout and sys.stderr, which is for the log
        shown: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False, "disable": not is_live}
        self._live = LiveLine(*columns, console=console, transient=True, refresh_per_second=4, **shown)
        fields: dict[str, Any] = {"name": "", "alpha": "", "tokens": 0, "rate": 0.0, "left": "?"}
        self._task = self._live.add_task("", total=1, visible=False, **fields)
        self._name = ""
        self._t_start, self._of_task = time.monotonic(), 0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended()
        self._live.stop()

    def planned(self, n_items: Mapping[tuple[str, float], int]) -> None:
        """What is to be answered, by task's name and alpha."""
        self._to_begin, self._to_come = dict(n_items), 0

    def started(self, task: str, title: str, alpha: float, n_requests: int, n_stored: int) -> None:
        """A task, or its next kind of requests, begins at an alpha; of n_requests answers n_stored are there."""
        self.ended()
        self._name = f"{title} at alpha {alpha:.4g}"
        begins = self._to_begin.pop((task, alpha), None) is not None
        for key, n in self._to_begin.items():
            if key[0] == task:
                self._to_begin[key] = n_requests if begins else n + n_requests
        self._to_come = n_requests - n_stored
        self._t_start, self._of_task, self._n_tokens = time.monotonic(), 0, 0
        self._began = self._began or self._t_start
        if n_stored:
            self.say(f"{self._name}: going on after {n_stored} stored answers of {n_requests}")
        fields: dict[str, Any] = {"name": title, "alpha": f"{alpha:.4g}"}
        self._live.update(self._task, total=n_requests, completed=n_stored, visible=True, **fields)

    def generated(self, n_tokens: int, n_answers: int) -> None:
        """So many more tokens, and so many more whole answers."""
        self._n_tokens += n_tokens
        self._n_answers += n_answers
        self._of_task += n_answers
        self._to_come -= n_answers
        rate = self._n_tokens / max(1e-3, time.monotonic() - self._t_start)
        fields: dict[str, Any] = {"tokens": self._n_tokens, "rate": rate, "left": clock(self._left())}
        self._live.update(self._task, advance=n_answers, **fields)

    def remark(self, text: str) -> None:
        """Say it, with the task's name and alpha."""
        self.say(f"{self._name}: {text}")

    def ended(self) -> None:
        """Say what the task that was under way came to."""
        if self._name and self._of_task:
            seconds = time.monotonic() - self._t_start
            rate = self._n_tokens / max(1e-3, seconds)
            self.say(
                f"{self._name}: {self._of_task} answers in {seconds:.1f} s, {self._n_tokens} tokens, {rate:.0f}/s  "
                f"left {clock(self._left())}"
            )
        self._name = ""

    def _left(self) -> float | None:
        if not self._n_answers or self._began is None:
            return None
        n_left = max(0, self._to_come) + sum(self._to_begin.values())
        return n_left * (time.monotonic() - self._began) / self._n_answers
