"""A search for a shape -> its verdict, its table, its JSON: what every view of it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expo_search.results.fitted_table import fitted_table
from expo_search.results.summary_json import as_json
from expo_search.search.shapes import UNIFORM, Against, Shapes, shape_text
from expo_search.stats.paired import Estimate

if TYPE_CHECKING:
    from rich.table import Table

HEADS = ("trial", "shape", "reward", "over alpha = 0", "over uniform", "95 % interval", "prompts", "")


def shape_sentence(shapes: Shapes) -> str:
    """The verdict, for people: whether an alpha for each weight beats the one alpha for all."""
    alpha = f"alpha = {shapes.beginning.alpha:.4g}"
    if not shapes.n_shapes:
        return f"No shape of {alpha} was evaluated: nothing to compare."
    several = f"{shapes.n_shapes} shape{'s' if shapes.n_shapes > 1 else ''} of {alpha}"
    if shapes.best is None:
        return f"Uniform {alpha} is as good: of {several} none that holds looks better than it."
    searched = next(a.gain for a in shapes.against if a.trial == shapes.best.trial)
    best = f"{shape_text(shapes.best)}, the best of {several}"
    looked = (
        f"gain {searched.mean:+.4f} over uniform {alpha} on the search's {searched.n} prompts, by which it was picked"
    )
    if shapes.confirmed is None:
        return f"Not confirmed: {best}: {looked}. Only fresh prompts can tell (--confirm N)."
    gain = shapes.confirmed.gain
    opening = {"better": "Better than one alpha for all", "uniform is better": f"Uniform {alpha} is better"}.get(
        shapes.word, f"Uniform {alpha} is as good"
    )
    broke = (
        f", but it broke a guardrail there ({', '.join(shapes.confirmed.broken)})" if shapes.confirmed.broken else ""
    )
    return (
        f"{opening}: {best}: gain {_interval(gain)} over uniform {alpha} on {gain.n} prompts and seeds the search "
        f"never used{broke} (in the search {searched.mean:+.4f})."
    )


def shape_remark(shapes: Shapes) -> str:
    """The verdict as it stands beside that of the study that it starts from."""
    return f"An alpha for each weight ({shapes.beginning.kind}): {shape_sentence(shapes)}"


def shape_rows(shapes: Shapes) -> list[dict[str, str]]:
    """A row a trial, by heading: alpha = 0, the uniform alpha, then the shapes."""
    against, rows = {a.trial: a for a in shapes.against}, []
    for e in shapes.trials:
        over = against.get(e.trial)
        own = ["", ""] if over is None else [f"{over.gain.mean:+.4f}", f"[{over.gain.low:+.4f}, {over.gain.high:+.4f}]"]
        cells = [str(e.trial), shape_text(e), f"{e.reward.mean:.4f}", f"{e.gain.mean:+.4f}" if e.trial else ""]
        rows.append(dict(zip(HEADS, [*cells, *own, str(e.reward.n), e.remark], strict=True)))
    return rows


def shape_table(shapes: Shapes, width: int = 200) -> Table:
    """`shape_rows` for a terminal, without the columns that `width` has no room for; the best shape is bold."""
    styles = ["bold" if e is shapes.best else "" for e in shapes.trials]
    return fitted_table(
        shape_rows(shapes),
        width,
        texts=("shape", ""),
        leave_out=("reward", "prompts", "over alpha = 0"),
        at_last=("trial",),
        styles=styles,
    )


def shapes_json(shapes: Shapes) -> dict[str, Any]:
    """All numbers, for `--json`."""
    begun, against = shapes.beginning, {a.trial: a for a in shapes.against}
    return {
        "study": begun.study,
        "kind": begun.kind,
        "uniform": {"alpha": begun.alpha, "trial": begun.trial},
        "n_layers": begun.n_layers,
        "verdict": {"word": shapes.word, "sentence": shape_sentence(shapes)},
        "best": None if shapes.best is None else shapes.best.trial,
        "confirmed": shapes.confirmed and _against_json(shapes.confirmed),
        "fresh_gain": shapes.fresh and _estimate_json(shapes.fresh),
        "n_tokens": shapes.n_tokens,
        "trials": [
            as_json(e)
            | {"shape": shape_text(e)}
            | ({"over_uniform": _against_json(against[e.trial])} if e.trial > UNIFORM else {})
            for e in shapes.trials
        ],
    }


def _against_json(against: Against) -> dict[str, Any]:
    return {"trial": against.trial, **_estimate_json(against.gain), "broken": list(against.broken)}


def _estimate_json(e: Estimate) -> dict[str, Any]:
    return {"gain": e.mean, "se": e.se, "gain_95": [e.low, e.high], "n_prompts": e.n}


def _interval(e: Estimate) -> str:
    return f"{e.mean:+.4f}, 95 % interval [{e.low:+.4f}, {e.high:+.4f}],"
