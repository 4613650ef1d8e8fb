"""Engines for the pool's tests: answers follow from alpha and the prompt alone, faults from files in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakes import FakeScorer, unit

from expo_search.contracts import Completion, Prompt, Switch
from expo_search.errors import EngineDied, EngineError, PromptsError, RewardError
from expo_search.pool.actor import Share, Started

REFUSED = "refused"  # id of a prompt that no engine takes
POISON = "poison"  # id of a prompt that ends every engine


class FakeEngine:
    """Answers as `FakeModel` does, a token of each prompt a step."""

    def __init__(self, folder: Path, n_at_once: int, step_s: float, weights: str) -> None:
        self._folder, self._step_s, self._weights = folder, step_s, weights
        self.n_at_once = n_at_once
        self._alpha = 0.0
        self._left: list[tuple[int, Prompt]] = []  # tokens to come, in the order of their arrival

    def materialize(self, alpha: float) -> Switch:
        if alpha > 100 or (alpha and self._takes("no switch")):
            raise EngineError(where="alpha", found=f"{alpha:g}", expected="at most 100", do="take less")
        self._alpha = alpha
        assert not self._left, "a switch while prompts are under way"
        weights = "others" if self._takes("other switch") else self._weights
        return Switch(alpha, 0.0, hashlib.sha256(f"{weights} {alpha!r}".encode()).hexdigest()[:32])

    def add(self, prompts: Sequence[Prompt], seed: int) -> None:  # noqa: ARG002
        if any(p.id == REFUSED for p in prompts):
            raise PromptsError(where="prompt", found="too long", expected="a short one", do="drop it")
        self._left += [(1 + int(9 * unit("length", p.id)), p) for p in prompts]

    def step(self) -> list[Completion | int]:
        time.sleep(self._step_s)
        if self._takes("die") or any(p.id == POISON for _, p in self._left):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._takes("fail"):
            raise EngineDied(where="fake", found="a fault", expected="none", do="nothing")
        if self._takes("time out"):
            raise TimeoutError("Connection timed out")
        if self._takes("hang"):
            time.sleep(3600)
        running, waiting = self._left[: self.n_at_once], self._left[self.n_at_once :]
        running = [(n - 1, p) for n, p in running]
        self._left = [(n, p) for n, p in running if n] + waiting
        ended = [p for n, p in running if not n]
        for p in ended:
            self._note("asked", f"{self._alpha!r} {p.id} {os.getpid()}")
        return [len(running), *map(self._answer, ended)]

    def abort(self) -> None:
        self._left = []

    def restart(self) -> None:
        raise AssertionError("a pool starts another process")

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        raise AssertionError("a pool adds prompts")

    def close(self) -> None:
        self._note("closed", str(os.getpid()))

    def _answer(self, prompt: Prompt) -> Completion:
        usual = 1 + int(9 * unit("length", prompt.id))
        text = json.dumps([self._alpha, prompt.id])
        return Completion(prompt, text, usual, "length" if usual > 8 else "stop")

    def _takes(self, fault: str) -> bool:
        """Whether this engine is the one to have a fault: the first that sees its file."""
        return takes(self._folder / fault)

    def _note(self, name: str, line: str) -> None:
        note(self._folder / name, line)


class FaultyScorer(FakeScorer):
    """Rates as `FakeScorer`; its faults come from files as well."""

    folder: Path

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        note(self.folder / "rated", f"{len(completions)} {os.getpid()}")
        if takes(self.folder / "die rating"):
            os.kill(os.getpid(), signal.SIGKILL)
        if takes(self.folder / "no memory") or (self.folder / "never memory").exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nSee the manual.")
        if (self.folder / "slow rating").exists():
            time.sleep(1)
        if takes(self.folder / "no reward"):
            raise RewardError(where="reward", found="nan", expected="a number", do="nothing")
        return super().score(completions, on_scored)


@dataclass(frozen=True)
class FakeRecipe:
    """Starts fake engines, and notes it in a folder that all share. `several`: each with two scorers."""

    folder: Path
    n_at_once: int = 4
    step_s: float = 0.01
    weights: str = "w"
    several: bool = False

    def survey(self, n_engines: int) -> tuple[int, int]:
        if takes(self.folder / "no checkpoint"):
            raise EngineError(where="aligned", found="no folder", expected="one", do="copy it")
        return n_engines, os.getpid()

    def start(self, share: Share) -> Started:
        note(self.folder / "starts", f"{os.getpid()} {share.index} {share.of} {time.monotonic()}")
        time.sleep(0.1)
        if takes(self.folder / "stale"):
            raise OSError(116, "Stale file handle")
        if (self.folder / "no start").exists():
            raise EngineError(where="fake", found="no room", expected="room", do="free some")
        facts = "others" if takes(self.folder / "other weights") else self.weights
        scorer = FaultyScorer()
        scorer.folder = self.folder
        engine = FakeEngine(self.folder, self.n_at_once, self.step_s, self.weights)
        note(self.folder / "started", f"{os.getpid()} {share.index} {share.of} {time.monotonic()}")
        if not self.several:
            return Started(engine, scorer, facts)
        from expo_search.evaluation.ensemble import RewardModels  # with SQLAlchemy, a second for each engine's process

        return Started(engine, RewardModels([scorer, FakeScorer(best=1.0)]), facts)


def takes(file: Path) -> bool:
    """Whether a file was there, which is no more: of all that ask, one gets true."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def note(file: Path, line: str) -> None:
    """Append a line, whole, whoever else writes."""
    with file.open("a") as out:
        out.write(f"{line}\n")


def noted(file: Path) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []
