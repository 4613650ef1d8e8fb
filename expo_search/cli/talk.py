"""The commands that let one hear a study's alphas: `compare`, `chat`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expo_search.cli.console import (
    DEFAULT_LOG,
    Json,
    Log,
    Quiet,
    Storage,
    TrustRemoteCode,
    known_study,
    say_on,
    terminal,
)
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.errors import PromptsError, StudyError

if TYPE_CHECKING:
    from expo_search.contracts import Prompt
    from expo_search.evaluation.compare import Rewarded
    from expo_search.session.preflight import Checked
    from expo_search.store.study_store import Store

_COLUMN_LEAST = 28  # characters; with less room for each, answers stand below each other
_N_PROMPTS = 5


def compare(
    study: Annotated[str | None, typer.Argument(help="Name in the database.")] = None,
    alphas: Annotated[str | None, typer.Option(metavar="A,B,..", help="By default 0 and the best one.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given again.")] = None,
    n: Annotated[int | None, typer.Option("-n", help=f"Or so many of the study's; {_N_PROMPTS} by default.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Print answers at several alphas side by side, with rewards. Nothing is added to the study."""
    from expo_search.cli.chat_session import parse_alphas
    from expo_search.evaluation.compare import compare as run_compare
    from expo_search.session.preflight import check_stored
    from expo_search.session.running import start_models
    from expo_search.store.study_store import Store

    given = None if alphas is None else parse_alphas(alphas)
    name = known_study(study, storage)
    with terminal(log) as (out, err):
        say = say_on(err, quiet)
        store = Store(storage, name, read_only=True)
        wanted = [0.0, _best_alpha(store)] if given is None else given
        checked = check_stored(storage, name, say, trust_remote_code=trust_remote_code, adds=False)
        prompts = _prompts(store, prompt, n, checked)
        rows = run_compare(
            *start_models(checked, say), list(dict.fromkeys(wanted)), prompts, checked.spec.search.seed, say
        )
        if as_json:
            pairs = zip(prompts, rows, strict=True)
            found = [{"prompt": p.text, "answers": [answer.as_json() for answer in row]} for p, row in pairs]
            out.print(Text(json.dumps({"study": name, "prompts": found}, indent=2)), soft_wrap=True)
        else:
            print_answers(out, prompts, rows)


def chat(
    study: Annotated[str | None, typer.Argument(help="Name in the database.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Where to begin; the best one by default.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; the study's by default.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
) -> None:
    """Talk to the model at an alpha, which `/alpha X` changes in the middle of the conversation."""
    from expo_search.cli.chat_session import HELP, Chat
    from expo_search.session.preflight import check_stored
    from expo_search.session.running import start_model
    from expo_search.store.study_store import Store
    from expo_search.weights.formula import is_alpha

    if alpha is not None and not is_alpha(alpha):
        raise StudyError(
            where="--alpha", found=str(alpha), expected="a number that is finite in float32", do="give another alpha"
        )
    name = known_study(study, storage)
    with terminal(log) as (out, err):
        say = say_on(err, quiet)
        begin = _best_alpha(Store(storage, name, read_only=True)) if alpha is None else alpha
        checked = check_stored(storage, name, say, trust_remote_code=trust_remote_code, adds=False)
        model = start_model(checked, say)

        def write(text: str) -> None:
            out.file.write(text)  # as it comes: Rich would wrap each piece by itself
            out.file.flush()

        interrupt = _Interrupt()
        conversation = Chat(model, begin, write, interrupt, max_tokens)
        say(HELP)
        conversation.open()
        for line in _lines(write):
            with interrupt:
                go_on = conversation.hear(line)
            if not go_on:
                break


def print_answers(console: Console, prompts: Sequence[Prompt], rows: Sequence[Sequence[Rewarded]]) -> None:
    """One table a prompt: a column an alpha where there is room, else one below the other."""
    from expo_search.text import clean

    for prompt, row in zip(prompts, rows, strict=True):
        console.print(Text(f"\n{clean(prompt.text)}", style="bold"), soft_wrap=True)
        heads = [f"alpha = {a.alpha:g}   reward {a.reward:+.3f}" for a in row]
        answers = [Text(clean(a.completion.text) + _ending(a)) for a in row]
        if console.width // len(row) >= _COLUMN_LEAST:
            table = Table(*heads, box=SIMPLE_HEAD, pad_edge=False, header_style="bold green")
            table.add_row(*answers)
            console.print(table)
        else:
            for head, answer in zip(heads, answers, strict=True):
                console.print(Text(f"\n{head}", style="bold green"))
                console.print(answer)


def _ending(answer: Rewarded) -> str:
    return " [cut off]" if answer.completion.finish_reason == "length" else ""


def _best_alpha(store: Store) -> float:
    """The best alpha but 0, whatever the verdict on it: it is the one to look at."""
    from expo_search.results.study_results import judge

    best = judge(store).verdict.best
    return 0.0 if best is None else best.alpha


def _prompts(store: Store, texts: Sequence[str] | None, n: int | None, checked: Checked) -> list[Prompt]:
    """The prompts given, or the first n of the study's. All faults are found before an engine starts."""
    from expo_search.contracts import Prompt
    from expo_search.text import storable

    if texts and n is not None:
        raise StudyError(where="-n", found="-n beside --prompt", expected="one of the two", do="drop one of them")
    if texts:
        given = [Prompt(f"given-{i}", text) for i, text in enumerate(dict.fromkeys(texts))]
        for p in given:
            if not p.text.strip():
                found = "an empty text"
            elif storable(p.text) != p.text:  # how Python hands on bytes that are no text; no tokenizer takes them
                found = "bytes that are not UTF-8"
            elif not checked.fits(p):
                found = f"{len(p.text)} characters"
            else:
                continue
            raise PromptsError(
                where="--prompt",
                found=found,
                expected="a text that leaves room for an answer in the context",
                do="give another text",
            )
        return given
    stored = store.prompts("search")
    wanted = min(_N_PROMPTS, len(stored)) if n is None else n
    if not 1 <= wanted <= len(stored):
        raise PromptsError(
            where=f"-n {wanted}",
            found=f"{len(stored)} prompts in study {store.name}",
            expected=f"1 to {len(stored)}" if stored else "a study that was searched",
            do="give another number, or --prompt TEXT",
        )
    return stored[:wanted]


class _Interrupt:
    """While it is entered, a first Ctrl-C sets a flag, so that no step of the engine is torn; a second ends all."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self) -> bool:
        return self._seen

    def __enter__(self) -> None:
        self._seen, self._before = False, signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = True


def _lines(write: Callable[[str], None]) -> Iterator[str]:
    """Lines of standard input, until it ends; with a mark to type at where a person types."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are not UTF-8 are no reason to end a conversation
    while True:
        if sys.stdin.isatty():
            write("\n> ")
        line = sys.stdin.readline()
        if not line:
            return
        yield line
