"""A conversation with a model whose alpha can be changed in the middle of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from expo_search.contracts import Speaker
from expo_search.errors import MaterializeError, PromptsError, StudyError
from expo_search.text import clean, storable
from expo_search.weights.formula import is_alpha

HELP = """\
/alpha X   go on with the weights at alpha = X; the conversation so far stays
/reset     forget the conversation
/quit      end (as Ctrl-D does); Ctrl-C stops the present answer
/help      this"""


def parse_alphas(text: str) -> list[float]:
    """Numbers between commas, in the order given, each once.

    Raises:
        StudyError: none, or one that is no finite number of float32.
    """
    alphas: list[float] = []
    for part in text.split(","):
        alpha = _number(part)
        if alpha is None:
            raise StudyError(
                where="--alphas",
                found=repr(clean(part)),
                expected="numbers that are finite in float32, with commas between them",
                do="write for example --alphas 0,0.3,1",
            )
        if alpha not in alphas:
            alphas.append(alpha)
    return alphas


@dataclass
class Chat:
    """A conversation: `hear` takes a line and returns whether to go on; what it has to say goes to `write`.

    `stopped` is asked between pieces of an answer: true ends it there (Ctrl-C), and what was said so far stays in the
    conversation, as the model would otherwise answer to something that was never on the screen.
    """

    model: Speaker
    alpha: float
    write: Callable[[str], None]
    stopped: Callable[[], bool] = lambda: False
    max_tokens: int | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def open(self) -> None:
        """Switch the model to the first alpha; call it once, before `hear`."""
        self._switch(self.alpha)

    def hear(self, line: str) -> bool:
        """Answer a line, or carry out a command that begins with `/`; False once the user wants to leave."""
        line = storable(line.strip())  # no tokenizer takes what is no text
        if line.startswith("/"):
            return self._command(*line[1:].partition(" ")[::2])
        if line:
            self._answer(line)
        return True

    def _command(self, name: str, argument: str) -> bool:
        if name in ("quit", "exit"):
            return False
        if name == "reset":
            self.messages.clear()
            self.write("(forgotten)\n")
        elif name == "alpha":
            self._go_to(argument)
        else:
            near = difflib.get_close_matches(name, ("alpha", "reset", "quit", "help"), n=1)
            if name != "help" and near:
                self.write(f"(no command /{clean(name)}; did you mean /{near[0]}?)\n")
            self.write(HELP + "\n")
        return True

    def _go_to(self, argument: str) -> None:
        alpha = _number(argument)
        if alpha is None:
            self.write(f"({clean(argument) or 'nothing'} is no number that is finite in float32)\n")
            return
        try:
            self._switch(alpha)
        except MaterializeError as fault:  # an alpha at which a weight overflows: the weights stay as they were
            self.write(f"({clean(fault.found)}: still at alpha = {self.alpha:g})\n")

    def _switch(self, alpha: float) -> None:
        switch = self.model.materialize(alpha)
        self.alpha = alpha
        self.write(f"(alpha = {alpha:g}, switched in {switch.seconds:.2f} s)\n")

    def _answer(self, line: str) -> None:
        messages = [*self.messages, {"role": "user", "content": line}]
        parts: list[str] = []
        try:
            with closing(self.model.stream(messages, self.max_tokens)) as pieces:
                for piece in pieces:
                    parts.append(piece)
                    self.write(clean(piece))
                    if self.stopped():
                        self.write(" (stopped)")
                        break
        except PromptsError as fault:  # a conversation that no longer fits: it can be gone on with after /reset
            self.write(f"({clean(str(fault))}: /reset)\n")
            return
        self.write("\n")
        self.messages = [*messages, {"role": "assistant", "content": "".join(parts)}]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if is_alpha(number) else None
