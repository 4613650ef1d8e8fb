"""A study in MLflow: a run for it, with the verdict and the curve, and below that a run a trial."""

from __future__ import annotations

import os

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.static import curve_svg
from expo_search.results.study_results import StudyResult
from expo_search.results.trackers.tracking import identity, metrics, verdict_text

_STUDY, _TRIAL = "expo_search.study", "expo_search.trial"


class MlflowRuns:
    """Writes to where MLFLOW_TRACKING_URI says, into the experiment MLFLOW_EXPERIMENT_NAME or "expo-search"."""

    def __init__(self) -> None:
        # MLflow's own, eight tries of 120 s each, hold a search up for minutes where its server is gone or hangs
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "expo-search")
        found = self._client.get_experiment_by_name(name)
        self._experiment: str = self._client.create_experiment(name) if found is None else found.experiment_id
        self._written: dict[str, str] = {}  # runs by what they are of: "" is the study, else a trial's number

    def update(self, study: StudyResult) -> None:
        """As `Tracker`. A run that is there is known by its tags, whichever process wrote it."""
        of = identity(study)
        if not self._written:
            self._written = {run.data.tags.get(_TRIAL, ""): run.info.run_id for run in self._runs(of)}
        if "" not in self._written:
            self._written[""] = self._start({_STUDY: of, MLFLOW_RUN_NAME: study.name})
        whole = self._written[""]
        for e in study.evaluations:
            if str(e.trial) not in self._written:
                self._written[str(e.trial)] = self._trial(e, of, whole)
        recommended = study.verdict.recommended
        alpha = 0.0 if recommended is None else recommended.alpha
        self._client.log_metric(whole, "recommended_alpha", alpha, step=len(study.evaluations))
        self._client.set_tag(whole, "verdict", study.verdict.word)
        self._client.set_tag(whole, MLFLOW_RUN_NOTE, verdict_text(study))
        if len(study.evaluations) > 1:
            self._client.log_text(whole, curve_svg(study.evaluations, study.verdict, band=study.band), "curve.svg")

    def close(self) -> None:
        """The study's run is finished, until it goes on."""
        if "" in self._written:
            self._client.set_terminated(self._written[""])

    def _runs(self, of: str) -> list[Run]:
        found, token = [], None
        while True:
            page = self._client.search_runs([self._experiment], f"tags.`{_STUDY}` = '{of}'", page_token=token)
            found += list(page)
            token = page.token
            if not token:
                return found

    def _start(self, tags: dict[str, str]) -> str:
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        return run_id

    def _trial(self, e: Evaluation, of: str, whole: str) -> str:
        """A run with all of one trial, written at once."""
        name = f"trial {e.trial}, alpha {e.alpha:.4g}"
        run = self._start({_STUDY: of, MLFLOW_PARENT_RUN_ID: whole, MLFLOW_RUN_NAME: name})
        now = self._client.get_run(run).info.start_time
        numbers = [Metric(key, value, now, 0) for key, value in metrics(e).items()]
        words = [RunTag("outcome", e.outcome), RunTag("broken", ", ".join(e.broken)), RunTag(_TRIAL, str(e.trial))]
        # the tag by which it is known as written comes with the numbers, not before
        self._client.log_batch(run, metrics=numbers, params=[Param("alpha", repr(e.alpha))], tags=words)
        self._client.set_terminated(run)
        return run


def open_tracker() -> MlflowRuns:
    """MLflow, as its environment variables configure it."""
    return MlflowRuns()
