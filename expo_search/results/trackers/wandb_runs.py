"""A study in Weights & Biases: one run, a step a trial, with verdict and curve in its summary."""

from __future__ import annotations

import os

import wandb

from expo_search.errors import StudyError
from expo_search.results.curve.static import curve_svg
from expo_search.results.study_results import StudyResult
from expo_search.results.trackers.tracking import identity, metrics, verdict_text


class WandbRun:
    """Writes into the project WANDB_PROJECT or "expo-search", offline where WANDB_MODE says so."""

    def __init__(self) -> None:
        self._run: wandb.Run | None = None

    def update(self, study: StudyResult) -> None:
        """As `Tracker`. A run of an earlier process goes on where it stands."""
        if self._run is None:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "expo-search"),
                id=identity(study),
                name=study.name,
                resume="allow",
                config={"study": study.name, "objective": study.verdict.objective},
                # the terminal is the search's; so is the process, whose output it does not keep
                settings=wandb.Settings(silent=True, console="off"),
            )
        run = self._run
        for e in study.evaluations:
            if e.trial >= run.step:
                run.log({"trial": e.trial, "alpha": e.alpha, **metrics(e)}, step=e.trial, commit=True)
        recommended = study.verdict.recommended
        run.summary["recommended_alpha"] = 0.0 if recommended is None else recommended.alpha
        run.summary["verdict"] = verdict_text(study)
        if len(study.evaluations) > 1:
            run.summary["curve"] = wandb.Html(curve_svg(study.evaluations, study.verdict, band=study.band))

    def close(self) -> None:
        """As `Tracker`."""
        if self._run is not None:
            self._run.finish()


def open_tracker() -> WandbRun:
    """Weights & Biases, as its environment variables and `wandb login` configure it.

    Raises:
        StudyError: it would ask for a key.
    """
    online = os.environ.get("WANDB_MODE", "online") in ("online", "run")
    if online and not wandb.api.api_key:
        raise StudyError(
            where="--track wandb",
            found="no key of Weights & Biases",
            expected="one, or a run that is kept on this machine",
            do="`wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline",
        )
    return WandbRun()
