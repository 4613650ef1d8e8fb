"""a trial -> its artifacts, before it is told; a study -> its note and its figure, after each trial.

What optuna-dashboard shows: `samples.jsonl`, a table of answers beside those of alpha = 0, and `curve.png`, the curve
so far, with each trial; a Markdown note and a Plotly figure with the study. The artifacts are files beside the
database. Nothing here is needed to go on: a fault is said once, and the search goes on without artifacts.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.evaluation.result import Evaluation
from expo_search.results.answers import json_lines, samples
from expo_search.results.artifacts import default_place, open_artifacts, staging
from expo_search.results.curve.interactive import plotly_curve
from expo_search.results.curve.layout import GAIN
from expo_search.results.curve.static import curve_png
from expo_search.results.note import markdown_note
from expo_search.results.study_results import StudyResult, read_result
from expo_search.store.address import sqlite_path
from expo_search.store.study_store import Store

if TYPE_CHECKING:
    from optuna import Study, Trial

FIGURE = "expo-gain"  # the id under which the figure is overwritten
_ROWS_MAX = 200
_BYTES_MAX = 1_000_000


class DashboardUpdates:
    """Keeps what the dashboard shows up to date while a search runs. Without optuna-dashboard: the artifacts alone."""

    def __init__(self, store: Store, place: str, say: Callable[[str], None]) -> None:
        """`place`: see `artifacts.py`."""
        self._store, self._place, self._say = store, place, say
        self._said = False

    def before_tell(self, trial: Trial, evaluation: Evaluation) -> None:
        """Upload the trial's artifacts; those that a killed process left are written again, not twice."""
        self._guarded(lambda: self._upload(trial, evaluation))

    def on_trial(self, _: Evaluation) -> None:
        """Called after each finished trial: `refresh`."""
        self.refresh()

    def refresh(self, *, stopped: bool = False) -> None:
        """Write the study's note and figure anew, after a trial or a confirmation, or where a search was stopped."""
        if find_spec("optuna_dashboard") is not None:
            self._guarded(lambda: self._update_study(stopped))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Pictures must not cost a trial, whatever goes wrong with them: a full disk, a fault in a library."""
        try:
            work()
        except Exception as fault:
            if not self._said:
                cause = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
                self._say(f"the dashboard is not kept up to date ({cause}); the search goes on")
            self._said = True

    def _upload(self, trial: Trial, evaluation: Evaluation) -> None:
        rows = samples(self._store, evaluation.trial)
        table, n = json_lines(rows, n_max=_ROWS_MAX, bytes_max=_BYTES_MAX)
        name = "samples.jsonl" if n == len(rows) else f"samples-first-{n}-of-{len(rows)}.jsonl"
        self._put(trial, name, table, "application/jsonl")
        so_far = read_result(self._store, untold=evaluation)
        picture = curve_png(so_far.evaluations, so_far.verdict, band=so_far.band, title=self._store.name)
        self._put(trial, "curve.png", picture, "image/png")

    def _put(self, trial: Trial, name: str, content: bytes, mimetype: str) -> None:
        """Optuna notes an artifact first and copies it then: a full disk is found by a file of ours before both."""
        from optuna.artifacts import get_all_artifact_meta, upload_artifact

        store = open_artifacts([self._place])
        with staging(self._place, self._store.name) as folder:
            file = folder / name
            try:
                file.write_bytes(content)
                noted = [meta for meta in get_all_artifact_meta(trial) if meta.filename == name]
                if noted:
                    with file.open("rb") as body:
                        store.write(noted[0].artifact_id, body)
                else:
                    upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=trial, mimetype=mimetype)
            finally:
                file.unlink(missing_ok=True)

    def _update_study(self, stopped: bool) -> None:
        study, so_far = self._store.study, read_result(self._store, stopped=stopped)
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental, says Optuna
                study.set_metric_names([GAIN[so_far.verdict.objective]])
        figure = plotly_curve(so_far.evaluations, so_far.verdict, band=so_far.band)
        self._store.later(lambda study: self._guarded(lambda: self._write(study, so_far, figure)))

    def _write(self, study: Study, so_far: StudyResult, figure: Any) -> None:
        """What a person has written into the note meanwhile is only in the database."""
        from optuna_dashboard import get_note, save_note, save_plotly_graph_object

        save_note(study, markdown_note(so_far, artifacts=self._counted(), old=get_note(study)))
        save_plotly_graph_object(study, figure, graph_object_id=FIGURE)

    def _counted(self) -> str | None:
        if self._place.startswith("s3://"):
            return f"Artifacts of this study: {self._place}."
        if not Path(self._place).is_dir():
            return None
        with os.scandir(self._place) as entries:
            sizes = [entry.stat().st_size for entry in entries if entry.is_file()]
        size = f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
        if self._place != default_place(self._store.url) or sqlite_path(self._store.url) is None:
            return f"Artifacts of this database: {size} in `{self._place}`."
        # it may be moved, and renamed
        return f"Artifacts of this database: {size}, in the folder beside it whose name is its own and `.artifacts`."
