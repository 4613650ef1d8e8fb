"""completions -> rewards, by what a study names in the place of a reward model: a Python function or a command.

A function gets the prompts and the answers of a batch, two lists of texts, and returns as many numbers; it is imported
once, and keeps what it loads. A command is started for each batch: it reads a JSON object a line from its standard
input, to the end, and prints a number a line. In both the order is that of the batch.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from expo_search.config.own_scorer import FORMS, function_of, shortened, words_of
from expo_search.config.spec import RewardSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import RewardError, StudyError
from expo_search.evaluation.judge import Judge
from expo_search.inputs.own_function import content_hash, file_hash, load_function

_TRIED = (("What is 2 + 2?", "4"), ("Say nothing.", ""))  # models answer nothing at times
_SHOWN = 160  # characters of what somebody's code says


class OwnScorer(ABC):
    """Rates with what a study names.

    Attributes:
        name: as it is spelled. identity: what a study keeps of it: the name without folders, and hashes of its files.
    """

    def __init__(self, name: str, identity: str) -> None:
        self.name, self.identity = name, identity

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """Rewards in the order given; no conversation is cut. `on_scored` gets the size of the batch.

        Raises:
            RewardError: it fails, or gives other than one finite number an answer.
        """
        try:
            numbers = [_number(value) for value in self._values(completions)]
        except _Failed as fault:
            raise self._fault(fault.found, fault.expected) from None
        if len(numbers) != len(completions):
            given = f"{len(numbers)} number{'s' * (len(numbers) != 1)}"
            raise self._fault(f"{given} for {len(completions)} answers", "a number for each")
        for completion, number in zip(completions, numbers, strict=True):
            if not math.isfinite(number):
                where = f"the answer to prompt {completion.prompt.id}"
                raise self._fault(f"{number} for {where}", "a finite number for any answer, an empty one too")
        on_scored(len(numbers))
        return numbers, 0

    def try_out(self) -> None:
        """Rate two answers of our own, one of them empty, before anything is answered. Raises as `score`."""
        tried = [
            Completion(Prompt(f"tried-{i}", prompt), answer, len(answer), "stop")
            for i, (prompt, answer) in enumerate(_TRIED)
        ]
        try:
            self.score(tried, lambda _: None)
        except RewardError as fault:
            do = "see to it: it was tried before the search"
            raise RewardError(where=fault.where, found=fault.found, expected=fault.expected, do=do) from None

    @abstractmethod
    def _values(self, completions: Sequence[Completion]) -> Iterable[object]:
        """What it gives for a batch, in its order. Raises `_Failed`."""

    def _fault(self, found: str, expected: str) -> RewardError:
        do = "see to it; what was answered is stored, the same command goes on"
        return RewardError(where=f"scorer {self.name}", found=found, expected=expected, do=do)


class _Failed(Exception):
    """What went wrong in somebody's code."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.found, self.expected = found, expected


class FunctionScorer(OwnScorer):
    """A function of (prompts, answers), both lists of texts, that returns a number for each answer; higher is better.

    Raises (on construction):
        StudyError: no such function, or one that takes other arguments.
    """

    def __init__(self, name: str) -> None:
        self._function = load_function(name)
        self._check_arguments(name)
        super().__init__(name, f"{shortened(name).removeprefix('./')}#{file_hash(name)}")

    def _check_arguments(self, name: str) -> None:
        try:
            inspect.signature(self._function).bind([], [])
        except TypeError as fault:
            raise StudyError(
                where=f"scorer {name}",
                found=f"a function that cannot be called with two lists ({fault})",
                expected="one of (prompts, answers) that returns a number for each answer",
                do="see to its arguments",
            ) from None
        except ValueError:
            return  # one that does not tell its arguments, which the first call finds out

    def _values(self, completions: Sequence[Completion]) -> Iterable[object]:
        expected = "a function of (prompts, answers) that returns a number for each answer, an empty one too"
        try:
            result: Any = self._function([c.prompt.text for c in completions], [c.text for c in completions])
            values = list(result)
        except (Exception, SystemExit) as fault:  # somebody's own code
            raise _Failed(f"{type(fault).__name__}: {' '.join(str(fault).split())[:_SHOWN]}", expected) from None
        if isinstance(result, str | bytes | Mapping):
            raise _Failed(f"a {type(result).__name__}", expected)
        return values


class CommandScorer(OwnScorer):
    """A program that reads {prompt, answer, prompt_id, n_tokens, finish_reason} a line and prints a number a line.

    It inherits environment and working folder, and gets no Ctrl-C: a search that is asked to stop waits for its batch.
    What it has started and left behind ends with it.

    Raises (on construction):
        StudyError: no such program.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        self._words, self._timeout_s = words_of(name), timeout_s
        if not self._words or shutil.which(self._words[0]) is None:
            program = self._words[0] if self._words else name
            raise StudyError(
                where=f"scorer {name}",
                found=f"no program {program!r} here or on PATH",
                expected=FORMS,
                do="check its name, and that it may be executed",
            )
        super().__init__(name, shlex.join(map(_identified, self._words)))

    def _values(self, completions: Sequence[Completion]) -> Iterable[object]:
        rows = [
            {
                "prompt": c.prompt.text,
                "answer": c.text,
                "prompt_id": c.prompt.id,
                "n_tokens": c.n_tokens,
                "finish_reason": c.finish_reason,
            }
            for c in completions
        ]
        printed = self._run("".join(json.dumps(row) + "\n" for row in rows).encode())
        return [line.strip() for line in printed.decode("utf-8", "replace").splitlines() if line.strip()]

    def _run(self, given: bytes) -> bytes:
        # files, since a pipe ends with the last process that holds it, which may be one that outlives the program
        with TemporaryFile() as asked, TemporaryFile() as printed, TemporaryFile() as complaints:
            asked.write(given)
            asked.seek(0)
            code = self._exit_code(asked, printed, complaints)
            printed.seek(0)
            complaints.seek(0)
            if code:
                last = (complaints.read().decode("utf-8", "replace").strip().splitlines() or [""])[-1]
                raise _Failed(_ending(code) + (f": {last[:_SHOWN]}" if last else ""), "exit code 0")
            return printed.read()

    def _exit_code(self, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> int:
        try:
            # a session of its own: a Ctrl-C is for the search, and all that it starts ends with it
            process = subprocess.Popen(self._words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
        except OSError as fault:
            raise _Failed(fault.strerror or str(fault), "a program that starts") from None
        try:
            return process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            raise _Failed(
                f"no end within {self._timeout_s:g} s", "its numbers by then (`[reward] timeout_s`)"
            ) from None
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def load_scorer(spec: RewardSpec) -> OwnScorer | Judge | None:
    """The scorer that a study names, imported or found, or its judge; None where a reward model rates.

    Raises:
        StudyError: there is none of that name.
    """
    if spec.judge_url is not None:
        return Judge(spec)
    if spec.scorer is None:
        return None
    is_function = function_of(spec.scorer) is not None
    return FunctionScorer(spec.scorer) if is_function else CommandScorer(spec.scorer, spec.timeout_s)


def _number(value: object) -> float:
    """A value as a number: Python's own, numpy's, a tensor's single one, or a text that is one."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise _Failed(f"{str(value)[:80]!r} in the place of a number", "a number for each answer") from None


def _identified(word: str) -> str:
    """A word of a command; a file by its name and content, wherever it lies."""
    try:
        is_file = Path(word).is_file()
    except (OSError, ValueError):
        is_file = False
    return f"{Path(word).name}#{content_hash(Path(word))}" if is_file else word


def _ending(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"ended by signal {-code}"
