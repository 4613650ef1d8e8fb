"""An alpha for each weight: a shape spreads one alpha over a model's layers and their parts, by the weights' names.

    theta_w = aligned_w + alpha_w * (aligned_w - sft_w),    alpha_w = alpha * factor(w)

| kind | numbers | factor |
| --- | --- | --- |
| depth | scale a, slope s | a (1 + s (2 l / (L - 1) - 1)) in layer l = 0 .. L - 1 (after LiNeS, ICLR 2025) |
| attn-mlp | attn a, mlp m | a in attention, m in feed-forward modules |
| blocks:K | b_1 .. b_K | b_k in the k-th of K runs of layers, as equal as can be |

Whatever belongs to no layer (embeddings, the head, the last norm), and for attn-mlp a layer's own norms, keeps alpha.
The rule reads a name's layer and module, which vLLM keeps when it fuses q, k and v or gate and up: so a weight in a
live engine and its parts in a checkpoint have one factor. Products are float64, rounded once to float32 as any alpha.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from expo_search.errors import StudyError

MOST_BLOCKS = 4  # as many numbers as a search over shapes has dimensions at most
KINDS = f"depth, attn-mlp, or blocks:K with K from 2 to {MOST_BLOCKS}"
_LAYER = re.compile(r"(?P<stack>(?:.*?\.)??(?:layers|layer|h|blocks|block))\.(?P<layer>\d+)\.(?P<rest>.+)")
_NORM = re.compile(r"norm|(^|_)ln")
_ATTENTION, _FEED_FORWARD = re.compile("att"), re.compile(r"mlp|ffn|ff_|feed_forward|moe|experts|^fc\d?$")


class Dimension(NamedTuple):
    """A number of a shape: its name, the ends of what is searched, and the value at which it changes nothing."""

    name: str
    low: float
    high: float
    neutral: float


def dimensions(kind: str) -> tuple[Dimension, ...]:
    """The numbers of a kind of shape, in their order.

    Raises:
        StudyError: no such kind.
    """
    if kind == "depth":
        return Dimension("scale", 0.0, 2.0, 1.0), Dimension("slope", -1.0, 1.0, 0.0)
    if kind == "attn-mlp":
        return Dimension("attn", 0.0, 2.0, 1.0), Dimension("mlp", 0.0, 2.0, 1.0)
    word, _, n = kind.partition(":")
    if word == "blocks" and n.isdecimal() and 2 <= int(n) <= MOST_BLOCKS:
        return tuple(Dimension(f"block_{k + 1}", 0.0, 2.0, 1.0) for k in range(int(n)))
    raise StudyError(where="--shape", found=repr(kind), expected=KINDS, do="give one of these")


@dataclass(frozen=True)
class Shape:
    """A kind of shape with its numbers, for a model of n_layers layers (L)."""

    kind: str
    numbers: tuple[float, ...]
    n_layers: int

    @property
    def is_uniform(self) -> bool:
        """Whether every factor is 1."""
        return self.numbers == tuple(d.neutral for d in dimensions(self.kind))

    def factor(self, name: str) -> float:
        """What a weight's alpha is of the whole alpha, by its name in a checkpoint or in vLLM."""
        place = _LAYER.fullmatch(name)
        if place is None:
            return 1.0
        if self.kind == "attn-mlp":
            part = _part(place["rest"].partition(".")[0])
            return 1.0 if part is None else self.numbers[part]
        return self._of_layer(int(place["layer"]))

    def _of_layer(self, layer: int) -> float:
        if self.kind == "depth":
            scale, slope = self.numbers
            return scale * (1 + slope * (2 * layer / (self.n_layers - 1) - 1))
        return self.numbers[min(layer * len(self.numbers) // self.n_layers, len(self.numbers) - 1)]

    def filters(self, names: Iterable[str]) -> list[tuple[str, float]]:
        """Parts of names, each with the factor of all weights whose name has it in it; any other weight's is 1."""
        factors: dict[str, float] = {}
        for name in names:
            place = _LAYER.fullmatch(name)
            if place is None:
                continue
            module = place["rest"].partition(".")[0]
            if self.kind != "attn-mlp":
                factors[f"{place['stack']}.{int(place['layer'])}."] = self.factor(name)
            elif _part(module) is not None:
                factors[f".{module}."] = self.factor(name)
        return list(factors.items())

    def __str__(self) -> str:
        """For people: the kind, and each number by its name."""
        told = ", ".join(f"{d.name} {x:.4g}" for d, x in zip(dimensions(self.kind), self.numbers, strict=True))
        return f"{self.kind} ({told})"

    def as_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {"kind": self.kind, "numbers": list(self.numbers), "n_layers": self.n_layers}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Shape:
        """Inverse of `as_json`."""
        return cls(str(stored["kind"]), tuple(map(float, stored["numbers"])), int(stored["n_layers"]))


class ShapedAlpha(float):
    """An alpha with a shape: the number that the shape's factors multiply.

    What compares, prints or stores alphas takes it as that number; what writes weights asks `alpha_of`. It is equal to
    no plain number, since it makes other weights.
    """

    shape: Shape

    def __new__(cls, alpha: float, shape: Shape) -> ShapedAlpha:
        """From the alpha of what belongs to no layer, and a shape; see `shaped`."""
        made = super().__new__(cls, alpha)
        made.shape = shape
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """For copies, also in other processes."""
        return float(self), self.shape

    def __eq__(self, other: object) -> bool:
        """Whether both make the same weights."""
        return isinstance(other, ShapedAlpha) and float(self) == float(other) and self.shape == other.shape

    def __ne__(self, other: object) -> bool:
        """Whether they make other weights; float's own would compare the numbers."""
        return not self == other

    def __hash__(self) -> int:
        """Of number and shape."""
        return hash((float(self), self.shape))

    def __repr__(self) -> str:
        """The number in all its digits, and the shape."""
        return f"{float(self)!r} by {self.shape.kind} {list(self.shape.numbers)!r}"


def shaped(alpha: float, shape: Shape | None) -> float:
    """An alpha with a shape; a plain number where there is none, or it changes nothing."""
    return float(alpha) if shape is None or shape.is_uniform else ShapedAlpha(alpha, shape)


def shape_of(alpha: float) -> Shape | None:
    """An alpha's shape; None where every weight has that alpha."""
    return alpha.shape if isinstance(alpha, ShapedAlpha) else None


def alpha_of(alpha: float, name: str) -> float:
    """The alpha of one weight."""
    return float(alpha) * alpha.shape.factor(name) if isinstance(alpha, ShapedAlpha) else alpha


def to_message(alpha: float) -> float | list[Any]:
    """An alpha as vLLM's messages between processes can carry it: numbers, texts and lists of them."""
    shape = shape_of(alpha)
    return float(alpha) if shape is None else [float(alpha), shape.kind, list(shape.numbers), shape.n_layers]


def from_message(message: float | Sequence[Any]) -> float:
    """Inverse of `to_message`."""
    if isinstance(message, int | float):
        return float(message)
    alpha, kind, numbers, n_layers = message
    return shaped(alpha, Shape(kind, tuple(numbers), n_layers))


def count_layers(names: Iterable[str], kind: str) -> int:
    """L of a checkpoint's weights, by their names, for a shape of that kind.

    Raises:
        StudyError: no such kind, no layers or several stacks of them, or too few.
    """
    least = len(dimensions(kind))  # a number each for blocks; a first and a last layer for depth
    places = [place for name in names if (place := _LAYER.fullmatch(name)) is not None]
    stacks = sorted({place["stack"] for place in places})
    n_layers = 1 + max((int(place["layer"]) for place in places), default=-1)
    if len(stacks) != 1 or n_layers < least:
        raise StudyError(
            where=f"--shape {kind}",
            found=f"{n_layers} layers" if len(stacks) == 1 else f"{len(stacks)} stacks of layers {stacks[:3]}",
            expected=f"a checkpoint with one stack of at least {least} layers",
            do="search this pair's one alpha alone",
        )
    return n_layers


def _part(module: str) -> int | None:
    """Which number of attn-mlp a layer's module has: 0 in attention, 1 in the feed-forward part, None in neither."""
    if _NORM.search(module):
        return None
    return 0 if _ATTENTION.search(module) else 1 if _FEED_FORWARD.search(module) else None
