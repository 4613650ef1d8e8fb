"""finished trials -> what a study says about itself: a note in Markdown, and the commands that come next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from expo_search.config.options import DEFAULT_STORAGE
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.legend import legend, trial_cell
from expo_search.results.reward_models import MODEL_GAINS, model_gain_lines
from expo_search.results.study_results import StudyResult
from expo_search.results.verdict import Verdict
from expo_search.text import clean, markdown, markdown_spans, shown

YOURS = "### Your notes"  # what stands below this line in the dashboard is a person's, and kept
_HEADINGS = ("trial", "alpha", "gain", "95 % interval", "equal length", "reward", "tokens", "cut off")
_N_BEST = 5
_EXCESS = "excess, among a trial's attributes: how far it is over a guardrail's limit, or under it where below 0"


def markdown_note(study: StudyResult, *, artifacts: str | None = None, old: str = "") -> str:
    """The study's note. What a person wrote stays: all that is below `YOURS`, or a whole note that has no such line."""
    verdict = study.verdict
    title = "Keep alpha = 0" if verdict.n_tried else "Nothing to compare yet"
    if verdict.word == "better":
        title = f"Better: alpha = {verdict.alpha:.4g}"
    place = "" if study.url == DEFAULT_STORAGE else f" --storage {shlex.quote(shown(study.url))}"

    def placeless(text: str) -> str:
        """Without the database's place: the note lies in it, and it may be moved."""
        return text.replace(place, "") if place else text

    said = placeless(" ".join([verdict.sentence(), *study.remarks]))
    lines = [f"## {markdown(title)}", "", markdown_spans(said), ""]
    if study.model_gains:
        lines += ["### Each reward model alone", "", *model_gain_lines(study.model_gains), "", MODEL_GAINS, ""]
    lines += [
        f"{len(study.evaluations)} finished trials. The best of them:",
        "",
        *_best_table(study.evaluations, verdict),
        "",
    ]
    lines += [*(f"- {markdown(line)}" for line in [*legend(study.evaluations, verdict, _HEADINGS), _EXCESS]), ""]
    if study.bench.sentences():
        lines += ["### Beyond the reward model", "", *(f"- {markdown(s)}" for s in study.bench.sentences()), ""]
    lines += ["### Next", ""]
    # an indented block: nothing that stands in a command can end it
    for command, purpose in study.next_steps:
        lines += [f"    # {purpose}", "    " + clean(placeless(command)).replace("\n", "\n    ")]
    lines += ["", markdown_spans("Where this database is another one than `expo-search.db` here, add `--storage`.")]
    if artifacts is not None:
        lines += ["", markdown_spans(artifacts)]
    yours = old.partition(YOURS)[2] if YOURS in old else old and f"\n\n{old}"
    return "\n".join([*lines, "", YOURS]) + (yours or "\n\n(kept when this note is written anew)\n")


def _best_table(evaluations: Sequence[Evaluation], verdict: Verdict) -> list[str]:
    rows = [f"| {' | '.join(_HEADINGS)} | |", "|---:" * len(_HEADINGS) + "|---|"]
    others = sorted((e for e in evaluations if e.trial != CONTROL), key=lambda e: -e.gain.mean)
    control = [e for e in evaluations if e.trial == CONTROL]
    for e in [*others[:_N_BEST], *control]:
        interval = "" if e.trial == CONTROL else f"{e.gain.low:+.4f} .. {e.gain.high:+.4f}"
        gain = "0" if e.trial == CONTROL else f"{e.gain.mean:+.4f}"
        equal = "" if e.trial == CONTROL else f"{e.length_controlled.mean:+.4f}"
        cells = [trial_cell(e, verdict), f"{e.alpha:.4g}", gain, interval, equal, f"{e.reward.mean:.4f}"]
        cells += [f"{e.mean_length:.1f}", f"{e.share_cut:.0%}", e.remark]
        rows.append("| " + " | ".join(markdown(cell) for cell in cells) + " |")
    return rows
