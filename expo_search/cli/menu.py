"""What a search ends with on a terminal: what to do with its result, on the engine that still runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from expo_search.cli.console import print_prose
from expo_search.cli.export import export_to
from expo_search.cli.inspect import print_bench, write_page
from expo_search.cli.signals import stop_on_signals
from expo_search.cli.talk import converse, print_answers, shown_prompts
from expo_search.errors import ExpoError
from expo_search.folders import user_path
from expo_search.text import clean, one_line

if TYPE_CHECKING:
    from expo_search.api import Session
    from expo_search.results.study_results import StudyResult

_N_COMPARED = 3
_QUIT = ("q", "quit", "exit")


def is_wanted(out: Console, *, no_menu: bool, quiet: bool, as_json: bool) -> bool:
    """Whether somebody sits there who can choose: never in a pipe, a job or a script."""
    return not (no_menu or quiet or as_json) and out.is_terminal and sys.stdin.isatty()


@dataclass(frozen=True)
class _Choice:
    name: str
    act: Callable[[], None]


class Menu:
    """Asks what to do until the user leaves; `session` has a study with a result, and keeps its engine meanwhile."""

    def __init__(self, session: Session, out: Console, err: Console) -> None:
        self._session, self._out, self._err = session, out, err

    def run(self) -> None:
        """Return when the user leaves: by `quit`, by the end of input (Ctrl-D), or by Ctrl-C where nothing runs."""
        while True:
            choices = list(self._choices(self._session.result()))
            numbered = "   ".join(f"{i} {c.name}" for i, c in enumerate(choices, 1))
            line = self._ask(f"\n{numbered}   q quit\n> ")
            if line is None or line.lower() in _QUIT:
                return
            chosen = [
                c for i, c in enumerate(choices, 1) if line == str(i) or (line and c.name.startswith(line.lower()))
            ]
            if len(chosen) != 1:
                if line:
                    said = f"{' and '.join(c.name for c in chosen)} begin" if chosen else "no choice begins"
                    print_prose(self._err, f"{said} with {line!r}: type a number or a name")
                continue
            try:
                chosen[0].act()
            except ExpoError as fault:  # the next choice may do better
                print_prose(self._err, one_line(str(fault)))

    def _choices(self, result: StudyResult) -> Iterator[_Choice]:
        """What this result and these engines allow."""
        session, best = self._session, result.best
        if best is not None and result.verdict.confirmed is None and session.n_fresh():
            yield _Choice("confirm", self._confirm)
        yield _Choice("compare", lambda: self._compare(0.0 if best is None else best.alpha))
        if session.running.has_own_model:
            yield _Choice("chat", lambda: converse(session, self._out, 0.0 if best is None else best.alpha))
        if best is not None:
            yield _Choice("bench", self._bench)
        yield _Choice("export", lambda: self._export(result))
        yield _Choice("report", lambda: self._report(result))

    def _confirm(self) -> None:
        from expo_search.results.second_judge import check_sentence
        from expo_search.results.verdict import confirmation_sentence

        with stop_on_signals(self._session.say) as stop:
            confirmation = self._session.confirm(stop=stop)
            check = None if confirmation is None else self._session.check(stop=stop)
        if confirmation is not None:
            print_prose(self._out, confirmation_sentence(confirmation), style="bold")
        if check is not None:
            print_prose(self._out, check_sentence(check))

    def _compare(self, alpha: float) -> None:
        checked = self._session.checked
        prompts = shown_prompts(checked.storage, self._session.name, None, _N_COMPARED)
        print_answers(self._out, self._session.compare([0.0, alpha], prompts))

    def _bench(self) -> None:
        with stop_on_signals(self._session.say) as stop:
            result = self._session.bench(["basics"], stop=stop)
        if result is not None:
            print_bench(self._out, result)

    def _export(self, result: StudyResult) -> None:
        folder = self._ask_for("a new folder", f"{result.name}-expo")
        if folder is not None:
            trust = self._session.spec.trust_remote_code  # as it was given for the search
            export_to(folder, result, self._out, self._err, trust_remote_code=trust)

    def _report(self, result: StudyResult) -> None:
        page = self._ask_for("a new file", f"{result.name}.html")
        if page is not None:
            write_page(result.url, result.name, page, self._err)

    def _ask_for(self, what: str, usual: str) -> Path | None:
        line = self._ask(f"{what} [{clean(usual)}]: ")
        return None if line is None else user_path(line or usual)

    def _ask(self, text: str) -> str | None:
        """A line that was typed; None: no more, by Ctrl-D or Ctrl-C."""
        try:
            self._out.file.write(text)  # Rich's own prompt reads and writes where the libraries' output goes
            self._out.file.flush()
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            line = ""
        if not line:
            self._out.file.write("\n")
            return None
        return line.strip()
