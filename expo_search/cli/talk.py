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

from expo_search.api import open_session, open_study
from expo_search.cli.console import (
    DEFAULT_LOG,
    Json,
    Log,
    Quiet,
    Storage,
    StudyName,
    TrustRemoteCode,
    give_up_on,
    known_study,
    print_prose,
    terminal,
)
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.errors import PromptsError, StudyError
from expo_search.text import clean

if TYPE_CHECKING:
    from expo_search.api import Session
    from expo_search.contracts import Prompt
    from expo_search.evaluation.compare import Comparison, Rewarded

_COLUMN_LEAST = 28  # characters; with less room for each, answers stand below each other
_N_PROMPTS = 5


def compare(
    study: StudyName = None,
    alphas: Annotated[str | None, typer.Option(metavar="A,B,..", help="By default 0 and the best one.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given again.")] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help=f"Or so many of the study's; {_N_PROMPTS} by default.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Print answers at several alphas side by side, with rewards. Nothing is added to the study."""
    from expo_search.cli.chat_session import parse_alphas

    given = None if alphas is None else parse_alphas(alphas)
    _check_choice(prompt, n)
    name = known_study(study, storage)
    prompts = shown_prompts(storage, name, prompt, n)  # before the study is checked, which takes far longer
    with terminal(log) as (out, err):
        wanted = [0.0, _best_alpha(storage, name)] if given is None else given
        with _opened(name, storage, err, trust_remote_code=trust_remote_code, quiet=quiet) as session:
            comparison = session.compare(wanted, prompts)
        if as_json:
            pairs = zip(comparison.prompts, comparison.rows, strict=True)
            answers = [{"prompt": p.text, "answers": [answer.as_json() for answer in row]} for p, row in pairs]
            out.print(Text(json.dumps({"study": name, "prompts": answers}, indent=2)), soft_wrap=True)
        else:
            print_answers(out, comparison)


def chat(
    study: StudyName = None,
    alpha: Annotated[float | None, typer.Option(help="Where to begin; the best one by default.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; the study's by default.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
) -> None:
    """Talk to the model at an alpha, which `/alpha X` changes in the middle of the conversation."""
    from expo_search.weights.formula import is_alpha

    if alpha is not None and not is_alpha(alpha):
        raise StudyError(
            where="--alpha", found=str(alpha), expected="a number that is finite in float32", do="give another alpha"
        )
    name = known_study(study, storage)
    with terminal(log) as (out, err):
        begin = _best_alpha(storage, name) if alpha is None else alpha
        with _opened(name, storage, err, trust_remote_code=trust_remote_code, quiet=quiet) as session:
            converse(session, out, begin, max_tokens)


def _opened(name: str, storage: str, err: Console, *, trust_remote_code: bool, quiet: bool) -> Session:
    """A study to talk to, to which nothing is added."""
    return open_session(
        name,
        storage,
        start=False,
        adds=False,
        trust_remote_code=trust_remote_code,
        quiet=quiet,
        console=err,
        give_up=give_up_on(err),
    )


def converse(session: Session, console: Console, alpha: float, max_tokens: int | None = None) -> None:
    """A conversation with the session's engine, started where it is not running, until the user ends it."""
    from expo_search.cli.chat_session import HELP, Chat

    def write(text: str) -> None:
        console.file.write(text)  # as it comes: Rich would wrap each piece by itself
        console.file.flush()

    interrupt = _Interrupt()
    with session.working("starting vLLM and its canary"):
        model = session.running.own_model
    assert model is not None, "no other model was given"
    conversation = Chat(model, alpha, write, interrupt, max_tokens)
    session.say(HELP)
    conversation.open()
    for line in _lines(write):
        with interrupt:
            go_on = conversation.hear(line)
        if not go_on:
            break


def print_answers(console: Console, comparison: Comparison) -> None:
    """One table a prompt: a column an alpha where there is room, else one below the other."""
    for prompt, row in zip(comparison.prompts, comparison.rows, strict=True):
        print_prose(console, f"\n{prompt.text}", style="bold")
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


def _best_alpha(storage: str, name: str) -> float:
    """The best alpha but 0, whatever the verdict on it: it is the one to look at."""
    best = open_study(storage, name).best
    return 0.0 if best is None else best.alpha


def _check_choice(texts: Sequence[str] | None, n: int | None) -> None:
    """That prompts are given, or a number of the study's, or neither; no prompt is empty."""
    if texts and n is not None:
        raise StudyError(where="-n", found="-n beside --prompt", expected="one of the two", do="drop one of them")
    if not all(text.strip() for text in texts or ()):
        raise PromptsError(where="--prompt", found="an empty text", expected="a prompt", do="give another text")


def shown_prompts(storage: str, name: str, texts: Sequence[str] | None, n: int | None) -> Sequence[str | Prompt]:
    """The prompts given, or the first n of the study's."""
    from expo_search.store.study_store import Store

    if texts:
        return texts
    store = Store(storage, name, read_only=True)
    stored = store.prompts("search")
    store.close()
    wanted = min(_N_PROMPTS, len(stored)) if n is None else n
    if not 1 <= wanted <= len(stored):  # none are stored, or more are wanted
        raise PromptsError(
            where=f"-n {wanted}",
            found=f"{len(stored)} prompts in study {name}",
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
