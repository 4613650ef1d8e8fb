"""`--track`: what MLflow, TensorBoard and Weights & Biases hold after a search, once however often it is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeScorer, make_evaluation
from twins import write_prompts

import expo_search as es
from expo_search.errors import StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.results.study_results import StudyResult
from expo_search.results.trackers.tracking import Tracking, check_installed, identity, tracker_names
from expo_search.results.verdict import verdict

TRIALS = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 0.3, 0.5, 0.05), make_evaluation(2, 0.9, -1.0, 0.05)]


def study_of(trials: list[Evaluation]) -> StudyResult:
    return StudyResult("s", "sqlite:///expo-search.db", trials, {}, verdict(trials))


def track(name: str, *studies: StudyResult, said: list[str] | None = None) -> None:
    """What one process does that has seen the study so."""
    with Tracking([name], (said if said is not None else []).append) as tracking:
        for study in studies:
            tracking.update(lambda study=study: study)  # type: ignore[misc]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_EXPERIMENT_NAME", "TENSORBOARD_LOGDIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def mlflow_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a store in this folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (here / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # quicker than a database, its default
    from mlflow import MlflowClient

    return MlflowClient((here / "mlruns").as_uri())


def runs_of(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("expo-search").experiment_id]))


class TestMlflow:
    def test_it_has_a_run_of_the_study_and_below_it_one_a_trial(self, mlflow_here: Any) -> None:
        said: list[str] = []
        track("mlflow", study_of(TRIALS[:1]), study_of(TRIALS[:2]), study_of(TRIALS), said=said)
        assert said == []
        runs = {run.data.tags.get("expo_search.trial", ""): run for run in runs_of(mlflow_here)}
        assert set(runs) == {"", "0", "1", "2"}
        whole = runs[""]
        assert whole.info.run_name == "s"
        assert whole.info.status == "FINISHED"
        assert whole.data.tags["verdict"] == "better"
        assert whole.data.tags["mlflow.note.content"].startswith(study_of(TRIALS).verdict.sentence())
        assert whole.data.metrics["recommended_alpha"] == 0.3
        assert [f.path for f in mlflow_here.list_artifacts(whole.info.run_id)] == ["curve.svg"]
        one = runs["1"]
        assert one.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert one.data.params == {"alpha": "0.3"}
        assert one.data.metrics["gain"] == 0.5
        assert one.data.metrics["gain_low"] == pytest.approx(TRIALS[1].gain.low)

    def test_another_process_adds_what_is_new(self, mlflow_here: Any) -> None:
        track("mlflow", study_of(TRIALS[:2]))
        track("mlflow", study_of(TRIALS))
        track("mlflow", study_of(TRIALS))
        assert len(runs_of(mlflow_here)) == 4

    def test_a_trial_that_was_not_written_whole_is_written_again(
        self, mlflow_here: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("the server went away")

        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", refuse)
            track("mlflow", study_of(TRIALS[:2]), study_of(TRIALS), said=said)
        assert len(said) == 1
        assert "--track mlflow: the server went away; the search goes on without it" in said[0]
        track("mlflow", study_of(TRIALS))
        assert sorted(run.data.tags.get("expo_search.trial", "-") for run in runs_of(mlflow_here)) == list("--012")

    def test_a_study_of_the_same_name_is_another(self, mlflow_here: Any) -> None:
        other = [make_evaluation(0, 0.0, 0.1, 0.0), *TRIALS[1:]]
        assert identity(study_of(other)) != identity(study_of(TRIALS))
        track("mlflow", study_of(TRIALS))
        track("mlflow", study_of(other))
        assert len(runs_of(mlflow_here)) == 8


class TestTensorboard:
    def events(self, folder: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(folder))
        read.Reload()
        return read

    def test_it_has_a_step_and_a_folder_a_trial(self, here: Path) -> None:
        said: list[str] = []
        track("tensorboard", study_of(TRIALS[:2]), said=said)
        track("tensorboard", study_of(TRIALS), said=said)
        assert said == []
        (folder,) = (here / "runs").iterdir()
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["trial-0", "trial-1", "trial-2"]
        read = self.events(folder)
        assert [(e.step, round(e.value, 6)) for e in read.Scalars("trials/gain")] == [(0, 0.0), (1, 0.5), (2, -1.0)]
        assert "verdict/text_summary" in read.Tags()["tensors"]
        hparams = self.events(folder / "trial-1")
        assert "gain" in hparams.Tags()["scalars"]

    def test_a_whole_search_writes_it(self, here: Path) -> None:
        write_prompts(here / "prompts.jsonl", 32)
        settings: dict[str, dict[str, Any]] = {
            "pair": {"aligned": "my/aligned", "sft": "my/sft", "reward_model": "my/reward"},
            "prompts": {"n": 32, "source": "prompts.jsonl"},
        }
        spec = es.load_study(name="mine", overrides=settings)
        fakes: dict[str, Any] = {"model": FakeModel(), "scorer": FakeScorer(noise=0.1)}
        with es.open_session(spec, quiet=True, **fakes) as session, Tracking(["tensorboard"], print) as tracking:
            session.search(3, on_trial=lambda _: tracking.update(session.result))
        (folder,) = (here / "runs").iterdir()
        assert folder.name.startswith("mine-")
        assert len([p for p in folder.iterdir() if p.is_dir()]) == len(session.result().evaluations)


class TestWandb:
    def test_it_has_one_run_of_the_study(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_DIR", str(here))
        said: list[str] = []
        track("wandb", study_of(TRIALS[:2]), study_of(TRIALS), said=said)
        assert said == []
        (kept,) = here.glob("wandb/offline-run-*/*.wandb")
        assert kept.name == f"run-{identity(study_of(TRIALS))}.wandb"
        assert kept.stat().st_size > 1000

    def test_without_a_key_it_is_refused_at_once(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(here / "netrc"))
        with pytest.raises(StudyError, match="wandb login"):
            Tracking(["wandb"], print)


def test_a_tracker_that_is_not_there_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracker_names("mlflow, wandb") == ["mlflow", "wandb"]
    with pytest.raises(StudyError, match="did you mean mlflow"):
        tracker_names("mlfow")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "expo_search.results.trackers.mlflow_runs", raising=False)
    for opens in (lambda: Tracking(["mlflow"], print), lambda: check_installed(["mlflow"])):
        with pytest.raises(StudyError, match=r'pip install "expo-search\[track\]"'):
            opens()


def test_a_server_that_cannot_be_reached_is_one_line_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StudyError, match=r"--track mlflow: it cannot be written to \(.*127\.0\.0\.1") as fault:
        Tracking(["mlflow"], print)
    assert "\n" not in str(fault.value)


def test_no_password_of_a_server_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hun/ter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StudyError) as fault:
        Tracking(["mlflow"], print)
    assert "ter2" not in str(fault.value)


def test_without_trackers_no_study_is_read() -> None:
    def read() -> StudyResult:
        raise AssertionError

    with Tracking([], print) as tracking:
        tracking.update(read)
