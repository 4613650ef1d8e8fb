"""a study -> one self-contained HTML page: verdict, curve, trials, settings, answers. No network, everything escaped.

The curve is an inline SVG: 50 kB and sharp in print, where Plotly's script would be 4 MB. The page's policy lets
nothing run but the one script below, known by its hash, which sorts tables: an answer that holds markup stays text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from expo_search import __version__
from expo_search.errors import StudyError
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.answers import Sample, samples
from expo_search.results.curve.static import curve_svg
from expo_search.results.next_commands import next_steps
from expo_search.results.study_results import read_result
from expo_search.results.terminal import stage_seconds
from expo_search.results.verdict import Verdict, confirmation_sentence
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store
from expo_search.text import clean, cut

_IN_ORDER, _EXTREMES = 20, 5  # answers of the best trial: the first ones, and those that gained or lost most
_IN_ORDER_OTHERS = 5
_CELL_MAX = 4000  # characters of one text on the page


def write_report(store: Store, out: Path, *, force: bool = False) -> None:
    """Write the page, whole or not at all; in memory is one trial's answers at a time.

    Raises:
        StudyError: the file exists and `force` is not given, it is no regular file, or cannot be written.
    """
    fresh = out.parent / f".{out.name}.{os.getpid()}"
    try:
        _check_target(out, force=force)
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(_page(store))
        fresh.replace(out)
    except OSError as fault:
        raise StudyError(
            where=f"--out {out}",
            found=fault.strerror or str(fault),
            expected="a file that can be written",
            do="check the folder, its permissions and the room on the disk",
        ) from None
    finally:
        with suppress(OSError):  # not there, or in a place where nothing can be
            fresh.unlink()


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    regular = out.is_file()
    if not regular or not force:  # a pipe or a device is somebody's: to replace it would take it from under them
        raise StudyError(
            where=f"--out {out}",
            found="a folder" if out.is_dir() else "a file that exists" if regular else "something that is no file",
            expected="a new file",
            do="give another name, or --force to replace it" if regular else "give another name",
        )


def _page(store: Store) -> Iterator[str]:
    study = read_result(store)
    known, found = study.evaluations, study.verdict
    script, style = _asset("report.js"), _asset("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(store.name)} - expo-search</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
    )
    yield f"<h1>{_text(store.name)}</h1>\n<p class='verdict'>{_text(found.sentence())}</p>\n"
    yield from (f"<p>{_text(confirmation_sentence(c))}</p>\n" for c in study.confirmations.values())
    if len(known) > 1:
        svg = curve_svg(known, found, band=study.band)
        yield f"<figure role='img' aria-label='gain over alpha = 0 against alpha'>{svg}</figure>\n"
    yield f"<h2>Trials</h2>\n{_trial_table(known, found)}\n<p>{_text(stage_seconds(known))}</p>\n"
    yield "<h2>Answers</h2>\n<p>Each beside the answer at alpha = 0 to the same prompt, drawn with the same seed.</p>\n"
    for e in _best_first(known, found):
        yield from _answers(e, samples(store, e.trial), best=found.best is not None and e.trial == found.best.trial)
    yield f"<h2>Settings</h2>\n{_settings((store.attributes.settings or Settings()).flat())}\n<h2>Next</h2>\n<pre>"
    yield "\n".join(_text(command) for command, _ in next_steps(store.name, store.url, found))
    yield f"</pre>\n<footer>expo-search {_text(__version__)}</footer>\n<script>{script}</script>\n</body>\n</html>\n"


def _trial_table(known: Sequence[Evaluation], found: Verdict) -> str:
    heads = (
        "trial",
        "alpha",
        "gain",
        "95 % interval",
        "mean reward",
        "± SE",
        "prompts",
        "tokens",
        "cut off",
        "seconds",
    )
    rows = []
    for e in known:
        control = e.trial == CONTROL
        remarks: list[str] = [] if e.outcome == "complete" else [e.outcome]
        remarks += [f"broke {guardrail}" for guardrail in e.broken]
        cells = (
            str(e.trial),
            f"{e.alpha:.4g}",
            "0" if control else f"{e.gain.mean:+.4f}",
            "" if control else f"{e.gain.low:+.3f} .. {e.gain.high:+.3f}",
            f"{e.reward.mean:.4f}",
            f"{e.reward.se:.4f}",
            str(e.reward.n),
            f"{e.mean_length:.1f}",
            f"{e.share_cut:.0%}",
            f"{e.switch_s + e.generate_s + e.score_s + e.other_s:.1f}",
            "; ".join(remarks),
        )
        rows.append((cells, "best" if e is found.best else ""))
    return _table((*heads, ""), rows, "numbers")


def _best_first(known: Sequence[Evaluation], found: Verdict) -> list[Evaluation]:
    best = found.best
    others = [e for e in known if e.trial != CONTROL and (best is None or e.trial != best.trial)]
    return ([] if best is None else [best]) + sorted(others, key=lambda e: -e.gain.mean)


def _answers(e: Evaluation, rows: Sequence[Sample], *, best: bool) -> Iterator[str]:
    shown = _chosen(rows, _IN_ORDER if best else _IN_ORDER_OTHERS, _EXTREMES if best else 0)
    title = f"alpha = {e.alpha:.4g} (trial {e.trial}), gain {e.gain.mean:+.4f}: {len(shown)} of {len(rows)} answers"
    yield f"<details{' open' if best else ''}><summary>{_text(title)}</summary>\n"
    heads = ("prompt", f"answer at alpha = {e.alpha:.4g}", "answer at alpha = 0", "reward", "difference", "tokens", "")
    body = []
    for why, s in shown:
        ended = "cut off" if s.finish_reason == "length" else s.finish_reason
        texts = [cut(clean(t), _CELL_MAX) for t in (s.prompt, s.answer, s.control or "")]
        numbers = ["" if x is None else f"{x:+.3f}" for x in (s.reward, s.difference)]
        body.append(((*texts, *numbers, str(s.n_tokens), f"{why}; {ended}"), ""))
    yield f"{_table(heads, body, 'texts')}</details>\n"


def _chosen(rows: Sequence[Sample], n_first: int, n_extreme: int) -> list[tuple[str, Sample]]:
    """The first answers of the order, which is random, then the largest gains and losses among the others."""
    chosen = [("in order", s) for s in rows[:n_first]]
    ranked = sorted(((s.difference, s) for s in rows[n_first:] if s.difference is not None), key=lambda pair: pair[0])
    if n_extreme:
        gains = [s for difference, s in reversed(ranked[-n_extreme:]) if difference > 0]
        losses = [s for difference, s in ranked[:n_extreme] if difference < 0]
        chosen += [("largest gain", s) for s in gains] + [("largest loss", s) for s in losses]
    return chosen


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [((key, value if isinstance(value, str) else json.dumps(value)), "") for key, value in settings.items()]
    return _table(("setting", "value"), rows, "settings")


def _table(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], kind: str) -> str:
    """Cells carry their column's name, which a narrow screen shows instead of the head."""
    head = "".join(f"<th>{_text(h)}</th>" for h in heads)
    body = "".join(
        f"<tr class='{style}'>"
        + "".join(f"<td data-head='{_text(h)}'>{_text(cell)}</td>" for h, cell in zip(heads, cells, strict=True))
        + "</tr>\n"
        for cells, style in rows
    )
    return (
        f"<div class='wide'><table class='{kind}'><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _asset(name: str) -> str:
    return files("expo_search.results").joinpath(name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return html.escape(clean(text))
