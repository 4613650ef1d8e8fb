"""a study -> one self-contained HTML page: verdict, curve, trials, settings, answers. No network, everything escaped.

What the page says is put together here, as plain text; its markup is `report.html.j2`, with `report.css` and
`report.js`. The curve is an inline SVG: 50 kB and sharp in print, where Plotly's script would be 4 MB. The page's
policy lets nothing run but that one script, known by its hash, which sorts tables: an answer's markup stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.bench.result import BenchResult
from expo_search.errors import StudyError
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.answers import Sample, samples
from expo_search.results.atomic_file import written_whole
from expo_search.results.bench_table import bench_rows
from expo_search.results.curve.static import curve_svg
from expo_search.results.curve.tax import tax_svg
from expo_search.results.legend import IN_ORDER, legend, trial_cell
from expo_search.results.reward_models import MODEL_GAINS, ModelGain, model_gain_rows
from expo_search.results.shapes import HEADS as SHAPE_HEADS
from expo_search.results.shapes import shape_remark, shape_rows
from expo_search.results.study_results import read_result
from expo_search.results.terminal import stage_seconds
from expo_search.results.verdict import Verdict, confirmation_sentence
from expo_search.search.shapes import Shapes
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store
from expo_search.text import clean, cut, spans
from expo_search.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_IN_ORDER, _EXTREMES = 20, 5  # answers of the best trial: the first ones, and those that gained or lost most
_IN_ORDER_OTHERS = 5
_HEAD_BYTES = 2048  # of a page, that hold its title
_CELL_MAX = 4000  # characters of one text on the page


@dataclass(frozen=True)
class Row:
    """A table's row: a text for each heading, and the row's class in the style sheet."""

    cells: Sequence[str]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its class in the style sheet, headings, rows."""

    kind: str
    heads: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class TrialAnswers:
    """Some answers of a trial, folded away unless `is_open`."""

    title: str
    table: Table
    is_open: bool


def write_report(store: Store, out: Path, *, force: bool = False) -> None:
    """Write the page, whole or not at all; in memory is one trial's answers at a time.

    Raises:
        StudyError: the file exists and `force` is not given, it is no regular file, or cannot be written.
    """
    try:
        _check_target(out, force=force)
        with written_whole(out) as fresh, fresh.open("w", encoding="utf-8") as file:
            file.writelines(_page(store))
    except OSError as fault:
        raise StudyError(
            where=f"--out {out}",
            found=fault.strerror or str(fault),
            expected="a file that can be written",
            do="check the folder, its permissions and the room on the disk",
        ) from None


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    regular = out.is_file()
    page = regular and _is_page(out)
    # a pipe, a device, another's text: to replace it, be it with --force, would take it from under them
    if not page or not force:
        kind = (
            "a page that exists"
            if page
            else "a file that is no page of ours"
            if regular
            else "something that is no file"
        )
        raise StudyError(
            where=f"--out {out}",
            found="a folder" if out.is_dir() else kind,
            expected="a new file",
            do="give another name, or --force to replace it" if page else "give another name",
        )


def _is_page(file: Path) -> bool:
    """Whether a file is one that this module wrote, or an empty one."""
    with file.open("rb") as stream:
        start = stream.read(_HEAD_BYTES)
    return not start or (start.startswith(b"<!doctype html>") and b"expo-search" in start)


def _page(store: Store) -> Iterator[str]:
    """The page in pieces; a trial's answers are read when their turn comes."""
    study = read_result(store)
    known, verdict = study.evaluations, study.verdict
    script, trials = _asset("report.js"), trial_table(known, verdict)
    return _template().generate(
        name=store.name,
        policy=_policy(script),
        style=_asset("report.css"),
        script=script,
        verdict=" ".join([verdict.sentence(), *study.remarks]),
        confirmations=[*(confirmation_sentence(c) for c in study.confirmations.values()), *study.other_checks],
        curve=curve_svg(known, verdict, band=study.band) if len(known) > 1 else "",
        reward_models=_reward_models(study.model_gains),
        reward_model_legend=MODEL_GAINS,
        trials=trials,
        legend=legend(known, verdict, trials.heads),
        in_order=IN_ORDER,
        seconds=stage_seconds(known),
        bench=_bench(study.bench),
        tax=tax_svg(study.bench),
        bench_sentences=study.bench.sentences(),
        shapes=[(shape_remark(s), _shapes(s)) for s in study.shapes],
        answers=(_answers(e, samples(store, e.trial), is_best=e is verdict.best) for e in _best_first(known, verdict)),
        settings=_settings((store.attributes.settings or Settings()).flat()),
        commands=[command for command, _ in study.next_steps],
        version=__version__,
    )


def _template() -> Template:
    """The page's template, in which whatever is printed is cleaned and escaped, unless the template marks it safe."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("expo_search.results", "."),
        autoescape=True,
        finalize=_cleaned,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    return environment.get_template("report.html.j2")


def _with_code(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    pieces = ((escape(clean(piece)), is_code) for piece, is_code in spans(text))
    return Markup("").join(Markup("<code>{}</code>").format(piece) if is_code else piece for piece, is_code in pieces)


def _cleaned(value: object) -> object:
    """A value as it may be printed. What is markup by now was cleaned when it was made, or is marked safe."""
    return value if hasattr(value, "__html__") else clean(str(value))


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def trial_table(known: Sequence[Evaluation], verdict: Verdict) -> Table:
    """A row a trial, in the order in which they ran; that at the recommended alpha is marked."""
    heads = (
        "trial",
        "alpha",
        "gain",
        "95 % interval",
        "equal length",
        "mean reward",
        "± SE",
        "prompts",
        "tokens",
        "cut off",
        "seconds",
        "",
    )
    rows = []
    for e in known:
        control = e.trial == CONTROL
        cells = (
            trial_cell(e, verdict),
            f"{e.alpha:.4g}",
            "0" if control else f"{e.gain.mean:+.4f}",
            "" if control else f"{e.gain.low:+.3f} .. {e.gain.high:+.3f}",
            "" if control else f"{e.length_controlled.mean:+.4f}",
            f"{e.reward.mean:.4f}",
            f"{e.reward.se:.4f}",
            str(e.reward.n),
            f"{e.mean_length:.1f}",
            f"{e.share_cut:.0%}",
            f"{e.switch_s + e.generate_s + e.score_s + e.other_s:.1f}",
            e.remark,
        )
        rows.append(Row(cells, "best" if verdict.recommends(e) else ""))
    return Table("numbers", heads, rows)


def _best_first(known: Sequence[Evaluation], verdict: Verdict) -> list[Evaluation]:
    best = verdict.best
    others = [e for e in known if e.trial != CONTROL and (best is None or e.trial != best.trial)]
    return ([] if best is None else [best]) + sorted(others, key=lambda e: -e.gain.mean)


def _answers(e: Evaluation, rows: Sequence[Sample], *, is_best: bool) -> TrialAnswers:
    shown = _chosen(rows, _IN_ORDER if is_best else _IN_ORDER_OTHERS, _EXTREMES if is_best else 0)
    title = f"alpha = {e.alpha:.4g} (trial {e.trial}), gain {e.gain.mean:+.4f}: {len(shown)} of {len(rows)} answers"
    heads = ("prompt", f"answer at alpha = {e.alpha:.4g}", "answer at alpha = 0", "reward", "difference", "tokens", "")
    body = []
    for why, s in shown:
        ended = "cut off" if s.finish_reason == "length" else s.finish_reason
        texts = [cut(text, _CELL_MAX) for text in (s.prompt, s.answer, s.control or "")]
        numbers = ["" if x is None else f"{x:+.3f}" for x in (s.reward, s.difference)]
        body.append(Row((*texts, *numbers, str(s.n_tokens), f"{why}; {ended}")))
    return TrialAnswers(title, Table("texts", heads, body), is_best)


def _chosen(rows: Sequence[Sample], n_first: int, n_extreme: int) -> list[tuple[str, Sample]]:
    """The first answers of the order, which is random, then the largest gains and losses among the others."""
    chosen = [("in order", s) for s in rows[:n_first]]
    ranked = sorted(((s.difference, s) for s in rows[n_first:] if s.difference is not None), key=lambda pair: pair[0])
    if n_extreme:
        gains = [s for difference, s in reversed(ranked[-n_extreme:]) if difference > 0]
        losses = [s for difference, s in ranked[:n_extreme] if difference < 0]
        chosen += [("largest gain", s) for s in gains] + [("largest loss", s) for s in losses]
    return chosen


def _bench(bench: BenchResult) -> Table | None:
    """A row a metric and alpha; None where nothing was answered."""
    rows = bench_rows(bench)
    return Table("numbers", list(rows[0]), [Row(list(row.values())) for row in rows]) if rows else None


def _reward_models(gains: Sequence[ModelGain]) -> Table | None:
    """A row a reward model, where several rate."""
    rows = model_gain_rows(gains)
    return Table("numbers", list(rows[0]), [Row(list(row.values())) for row in rows]) if rows else None


def _shapes(shapes: Shapes) -> Table:
    """A row a trial of a search for a shape; the best shape is marked."""
    rows = zip(shapes.trials, shape_rows(shapes), strict=True)
    marked = [Row(list(row.values()), "best" if e is shapes.best else "") for e, row in rows]
    return Table("numbers", SHAPE_HEADS, marked)


def _settings(settings: Mapping[str, Any]) -> Table:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return Table("settings", ("setting", "value"), [Row(pair) for pair in texts.items()])


def _asset(name: str) -> str:
    return files("expo_search.results").joinpath(name).read_text(encoding="utf-8")
