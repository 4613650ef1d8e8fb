"""How a search goes: one live line in a terminal or a notebook, a plain line a trial elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as LiveLine
from rich.text import Text

from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.pool.state import EngineState
from expo_search.session.working import say_on
from expo_search.text import clean, clock
from expo_search.weights.shape import shape_of

_LINE = (
    "trial {task.fields[trial]}  alpha {task.fields[alpha]}",
    "answers {task.completed:.0f}/{task.total:.0f}  {task.fields[tokens]} tokens {task.fields[rate]:.0f}/s  "
    "scored {task.fields[scored]}/{task.total:.0f}  left {task.fields[left]}",
)


_MOST_LINES = 16  # of engines, below the live line; the others are summed up

Engines = Callable[[], Sequence[EngineState]]


def can_be_live(console: Console) -> bool:
    """Whether a line can change in its place: on a terminal, and in a notebook where Rich finds its widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class Progress:
    """Watches a search (it is a `Watcher`); shows trial, alpha, tokens and their rate, scored, time left.

    The time left is the mean of this run's trials times those to come, less what the present one has taken. `engines`:
    where there are many, what each is at, for a line each below the live one.
    """

    def __init__(
        self,
        console: Console,
        n_trials: int,
        n_finished: int,
        *,
        quiet: bool = False,
        engines: Engines | None = None,
    ) -> None:
        self._engines = engines or (lambda: ())
        self._n_trials, self._n_finished, self.say = n_trials, n_finished, say_on(console, quiet)
        self._trial_s: list[float] = []
        self._t_start, self._t_generate = time.monotonic(), None
        self._n_tokens = self._n_scored = 0
        is_live = can_be_live(console) and not quiet
        before, after = (TextColumn(text, markup=False) for text in _LINE)
        columns = (before, BarColumn(bar_width=16), after)
        # not redirected: Rich would show what a library writes to sys.stdout and sys.stderr, which is for the log
        shown: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False, "disable": not is_live}
        self._live = _Live(self._engines, *columns, console=console, transient=True, refresh_per_second=4, **shown)
        self._task = self._live.add_task("", total=1, visible=False, **self._fields(0, 0.0))

    _t_generate: float | None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None:
        """A trial begins, of whose n_prompts answers n_stored are there."""
        self._t_start, self._t_generate = time.monotonic(), None
        self._n_tokens = self._n_scored = 0
        if n_stored:
            self.say(f"trial {trial}: going on after {n_stored} stored answers of {n_prompts}")
        fields = self._fields(self._n_finished + 1, alpha)
        self._live.start()  # not before: while an engine starts, another line says so
        self._live.update(self._task, total=n_prompts, completed=n_stored, visible=True, **fields)

    def generated(self, n_tokens: int, n_completions: int) -> None:
        """So many more tokens, and so many more whole answers."""
        now = time.monotonic()
        if self._t_generate is None:
            self._t_generate = now
        self._n_tokens += n_tokens
        rate = self._n_tokens / max(1e-3, now - self._t_generate)
        left = clock(self._left(now - self._t_start))
        self._live.update(self._task, advance=n_completions, tokens=self._n_tokens, rate=rate, left=left)

    def scored(self, n: int) -> None:
        """So many more answers have a reward."""
        self._n_scored += n
        self._live.update(self._task, scored=self._n_scored, left=clock(self._left(time.monotonic() - self._t_start)))

    def finished(self, e: Evaluation) -> None:
        """A trial is evaluated and told."""
        self._n_finished += 1
        self._trial_s.append(time.monotonic() - self._t_start)
        rate = e.n_generated / e.generate_s if e.generate_s else 0.0
        gain = "the control" if e.trial == CONTROL else f"gain {e.gain.mean:+.4f} ± {e.gain.se:.4f}"
        remark = f"  {e.remark}" if e.remark else ""
        remark += f" (after {e.gain.n} prompts)" if e.stopped_early else ""
        engines = self._engines()
        n_lost = sum(not engine.serves for engine in engines)
        remark += f"  {n_lost} of {len(engines)} engines not there" if n_lost else ""
        shape = shape_of(e.alpha)
        at = f"alpha {e.alpha:8.4f}" if shape is None else str(shape)
        self.say(
            f"[{self._n_finished}/{self._n_trials}] {at}  reward {e.reward.mean:8.4f}  {gain}"
            f"{remark}  {e.n_generated} tokens, {rate:.0f}/s  left {clock(self._left(0))} at most"
        )

    def _fields(self, number: int, alpha: float) -> dict[str, Any]:
        """What the live line shows of a trial that has just begun."""
        left = clock(self._left(0))
        return {
            "trial": f"{number}/{self._n_trials}",
            "alpha": f"{alpha:.4g}",
            "tokens": 0,
            "rate": 0.0,
            "scored": 0,
            "left": left,
        }

    def _left(self, spent_s: float) -> float | None:
        if not self._trial_s:
            return None
        mean = sum(self._trial_s) / len(self._trial_s)
        return max(0.0, mean * (self._n_trials - self._n_finished) - min(spent_s, mean))


class _Live(LiveLine):
    """The live line, with the engines below it."""

    def __init__(self, engines: Engines, *columns: TextColumn | BarColumn, **options: Any) -> None:
        self._engines = engines
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from map(Text, engine_lines(self._engines()))


def engine_lines(engines: Sequence[EngineState]) -> list[str]:
    """A line an engine; the last line stands for all others where there are very many."""
    shown, others = engines[:_MOST_LINES], engines[_MOST_LINES:]
    lines = [
        f"  engine {e.index + 1:2}  {clean(e.node) or '-'}  {e.state:9}  {e.n_prompts:4} prompts  "
        f"{e.tokens_per_s:6.0f} tokens/s"
        for e in shown
    ]
    if others:
        rate, n_prompts = sum(e.tokens_per_s for e in others), sum(e.n_prompts for e in others)
        busy = sum(e.state == "answering" for e in others)
        lines.append(f"  {len(others)} more, {busy} answering  {n_prompts} prompts  {rate:.0f} tokens/s")
    return lines
