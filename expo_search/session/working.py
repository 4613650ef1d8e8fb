"""Lines of a console: what is being done while nothing else is shown, with a spinner in a terminal; what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from expo_search.text import clean

# what a function that takes long is given to show it: `working` on a console, or `unseen`
Working = Callable[[str], AbstractContextManager[Callable[[str], None]]]


def unseen(_step: str) -> AbstractContextManager[Callable[[str], None]]:
    """As `working`, without a console: nothing is shown."""
    return nullcontext(lambda _: None)


@contextmanager
def working(console: Console, quiet: bool, first: str = "") -> Iterator[Callable[[str], None]]:
    """Within it, what is yielded names the step that begins, or with "" the first one again.

    The line goes when all are done; other lines stay.

    Not to be entered within itself or beside another live display of the same console.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # not redirected: Rich would show what a library writes to sys.stdout and sys.stderr, which is for the log
    line = Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=quiet or not console.is_terminal,
    )
    task = line.add_task(first, total=None)
    with line:
        yield lambda step: line.update(task, description=step or first)


def say_on(console: Console, quiet: bool) -> Callable[[str], None]:
    """What shows lines that stay on a console, cleaned; nothing when quiet.

    On a terminal lines end between words; one that begins with blanks is a command, to be copied as it is.
    """

    def say(lines: str) -> None:
        for line in clean(lines).split("\n") if not quiet else ():
            console.print(Text(line), soft_wrap=not console.is_terminal or line.startswith("  "))

    return say
