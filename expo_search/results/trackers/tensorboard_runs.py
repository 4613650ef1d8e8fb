"""A study in TensorBoard: trials as hyper-parameters and scalars, the verdict beside them."""

from __future__ import annotations

import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from expo_search.results.study_results import StudyResult
from expo_search.results.trackers.tracking import identity, metrics, verdict_text


class TensorboardRuns:
    """Writes below the folder TENSORBOARD_LOGDIR, or `runs`: a folder a study, in it one a trial."""

    def __init__(self) -> None:
        self._folder = Path(os.environ.get("TENSORBOARD_LOGDIR", "runs"))
        self._writer: SummaryWriter | None = None

    def update(self, study: StudyResult) -> None:
        """As `Tracker`. A trial whose folder is there was written."""
        if self._writer is None:
            place = self._folder / f"{study.name}-{identity(study)[:8]}"
            self._writer = SummaryWriter(str(place))
        writer = self._writer
        for e in study.evaluations:
            name = f"trial-{e.trial}"
            if (Path(writer.log_dir) / name).exists():
                continue
            numbers = metrics(e)
            writer.add_hparams({"alpha": e.alpha, "outcome": e.outcome}, numbers, run_name=name, global_step=e.trial)
            for key, value in ({"alpha": e.alpha} | numbers).items():
                writer.add_scalar(f"trials/{key}", value, e.trial)
        writer.add_text("verdict", verdict_text(study), len(study.evaluations))
        writer.flush()

    def close(self) -> None:
        """As `Tracker`."""
        if self._writer is not None:
            self._writer.close()


def open_tracker() -> TensorboardRuns:
    """TensorBoard's event files."""
    return TensorboardRuns()
