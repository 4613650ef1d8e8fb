"""The two sources of one rank's weights -> their fingerprints, how far apart they are, what theta(alpha) must be.

Reads only, in pieces, so that it needs little memory beside an engine that has taken the rest. Runs in a vLLM worker.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from expo_search.engine.worker.loader import Weight
from expo_search.engine.worker.source_pieces import PieceReader
from expo_search.weights.fingerprint import MASK, WORDS_PER_BLOCK, Fingerprinter, digest, line
from expo_search.weights.formula import plain_theta, single
from expo_search.weights.shape import alpha_of

_NEARLY_MAX = 0.99  # of a dtype's largest number: a bound above this is looked at element by element


@dataclass(frozen=True)
class Spread:
    """How far two sources are apart: largest magnitudes, sums of squares, elements that differ, elements."""

    max_aligned: float = 0.0
    max_delta: float = 0.0
    square_aligned: float = 0.0
    square_delta: float = 0.0
    n_changed: int = 0
    n: int = 0

    @classmethod
    def of(cls, aligned: torch.Tensor, sft: torch.Tensor) -> Spread:
        """Measure two tensors of one shape, with at least one element; differences in float32, sums in float64."""
        wide = aligned.float()
        delta = wide - sft.float()
        return cls(
            float(wide.abs().max()),
            float(delta.abs().max()),
            float((wide**2).sum(dtype=torch.float64)),
            float((delta**2).sum(dtype=torch.float64)),
            int(torch.count_nonzero(delta)),
            delta.numel(),
        )

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            max(self.max_aligned, other.max_aligned),
            max(self.max_delta, other.max_delta),
            self.square_aligned + other.square_aligned,
            self.square_delta + other.square_delta,
            self.n_changed + other.n_changed,
            self.n + other.n,
        )

    def bound(self, alpha: float) -> float:
        """An upper bound of the magnitudes of theta(alpha)."""
        return self.max_aligned + abs(alpha) * self.max_delta


class Sources:
    """The sources of one rank, measured once."""

    def __init__(self, weights: list[Weight], reader: PieceReader) -> None:
        self._weights, self._reader, self._fingerprinter = weights, reader, Fingerprinter()
        self._spreads: dict[str, Spread] = {}

    def describe(self) -> dict[str, Any]:
        """Fingerprints and size of the two sources, and the norm of the delta against the weights'."""
        sums: dict[str, dict[str, int]] = {"aligned": defaultdict(int), "sft": defaultdict(int)}
        spreads = {w.name: Spread() for w in self._weights if w.is_loaded_float}
        for weight, start, *sources in self._reader.read(self._weights):
            for source, piece in zip(sums, sources, strict=True):
                sums[source][weight.name] += self._sum(piece, start)
            if weight.is_loaded_float:
                spreads[weight.name] += Spread.of(*sources)
        self._spreads = spreads
        whole = sum(spreads.values(), Spread())
        return {
            source: digest(line(w.name, getattr(w, source), of[w.name] & MASK) for w in self._weights)
            for source, of in sums.items()
        } | {
            "n_bytes": sum(w.aligned.nbytes + w.sft.nbytes for w in self._weights),
            "relative_delta": (whole.square_delta / whole.square_aligned) ** 0.5 if whole.square_aligned else 0.0,
            "changed_share": whole.n_changed / max(1, whole.n),
        }

    def expected(self, alpha: float) -> str:
        """The fingerprint that theta(alpha) has by the formula, computed apart from any switch."""
        sums: dict[str, int] = defaultdict(int)
        for weight, start, aligned, sft in self._reader.read(self._weights):
            sums[weight.name] += self._sum(
                plain_theta(aligned, sft, alpha_of(alpha, weight.name)).to(weight.dtype), start
            )
        return digest(
            line(w.name, torch.empty(w.shape, dtype=w.dtype, device="meta"), sums[w.name] & MASK) for w in self._weights
        )

    def overflow(self, alpha: float) -> str | None:
        """The first weight that theta(alpha) would make infinite, if there is one.

        Costs one comparison a weight, on bounds that were measured once, unless a bound is exceeded.
        """
        if not self._spreads:
            self.describe()
        alphas = {w.name: single(alpha_of(alpha, w.name)) for w in self._weights if w.is_loaded_float}
        doubtful = [
            w
            for w in self._weights
            # not a number, where alpha is infinite in float32 and a weight does not move, is no bound either
            if w.is_loaded_float
            and not self._spreads[w.name].bound(alphas[w.name]) < torch.finfo(w.dtype).max * _NEARLY_MAX
        ]
        for weight, _, aligned, sft in self._reader.read(doubtful):
            if not torch.isfinite(plain_theta(aligned, sft, alphas[weight.name]).to(weight.dtype)).all():
                return str(weight.name)
        return None

    def _sum(self, piece: torch.Tensor, start: int) -> int:
        return self._fingerprinter.tensor_sum(piece, start * piece.itemsize // (4 * WORDS_PER_BLOCK))
