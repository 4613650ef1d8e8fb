"""A table of the demo pair's real answers (`record.py`) as a world behind the seams `Model` and `Scorer`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from expo_search.contracts import Completion, Prompt, Switch


class Recorded:
    """A table of real answers (`record.py`): every asked alpha is answered by the nearest recorded one.

    A search sees n of the recorded prompts, drawn by the seed; the truth is the mean over the others (over all, where
    it sees all). That mean is noisy too: what can be compared is what two strategies' choices gain there.
    """

    def __init__(self, table: Path, seed: int, n_prompts: int) -> None:
        self.kind, self.seed, self.tokens = table.stem, seed, 0
        rows: dict[float, dict[str, dict[str, str]]] = {}
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(float(row["alpha"]), {})[row["prompt_id"]] = row
        self._rows = rows
        ids = sorted(rows[0.0])
        order = np.random.default_rng((seed, 1)).permutation(len(ids))[:n_prompts]
        self.prompts = [Prompt(ids[i], ids[i]) for i in order]
        seen = {p.id for p in self.prompts}
        judges = [i for i in ids if i not in seen] or ids
        mean = {a: float(np.mean([float(of[i]["reward"]) for i in judges])) for a, of in rows.items()}
        self._truth = {a: m - mean[0.0] for a, m in mean.items()}
        self.place = max(self._truth, key=lambda a: self._truth[a])
        self.gain = max(0.0, self._truth[self.place])

    def nearest(self, alpha: float) -> float:
        """The recorded alpha that stands for an asked one; alpha = 0 for itself alone."""
        if alpha == 0:
            return 0.0
        side = [a for a in self._rows if a * alpha > 0]
        return min(side, key=lambda a: abs(np.log(a / alpha)))

    def truth(self, alpha: float) -> float:
        return self._truth[self.nearest(alpha)]

    def materialize(self, alpha: float) -> Switch:
        self.alpha = self.nearest(alpha)
        return Switch(alpha, 0.0, repr(alpha))

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        for prompt in prompts:
            row = self._rows[self.alpha][prompt.id]
            self.tokens += int(row["n_tokens"])
            yield int(row["n_tokens"])
            text = "the same again, " * 8 if float(row["repetition"]) >= 0.5 else prompt.id
            yield Completion(prompt, text, int(row["n_tokens"]), row["finish_reason"])

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        on_scored(len(completions))
        return [float(self._rows[self.alpha][c.prompt.id]["reward"]) for c in completions], 0

    def restart(self) -> None:
        """Nothing to do: it never dies."""
