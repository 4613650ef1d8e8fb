"""`--track mlflow` to a real MLflow server: what it holds after a search, and a server that goes away in the middle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeScorer
from mlflow_server import MISSING, MlflowServer
from twins import write_prompts

import expo_search as es
from expo_search.results.study_results import StudyResult
from expo_search.results.trackers.tracking import Tracking, metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`mlflow server` wants {', '.join(MISSING)}"),
]
N_TRIALS = 5


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "served").mkdir()
    server = MlflowServer(tmp_path / "served")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def search(said: list[str], after_trial: Callable[[int], None] = lambda _: None) -> StudyResult:
    """A search with fakes that is tracked as the command does it; a study of the same folder goes on."""
    write_prompts(Path("prompts.jsonl"), 32)
    settings: dict[str, dict[str, Any]] = {
        "pair": {"aligned": "my/aligned", "sft": "my/sft", "reward_model": "my/reward"},
        "prompts": {"n": 32, "source": "prompts.jsonl"},
    }
    spec = es.load_study(name="mine", overrides=settings)
    fakes: dict[str, Any] = {"model": FakeModel(), "scorer": FakeScorer(noise=0.1)}
    n_done = 0

    def on_trial(_: object) -> None:
        nonlocal n_done
        tracking.update(session.result)
        n_done += 1
        after_trial(n_done)

    with es.open_session(spec, quiet=True, **fakes) as session, Tracking(["mlflow"], said.append) as tracking:
        session.search(N_TRIALS, on_trial=on_trial)
        tracking.update(session.result)
        return session.result()


def runs_of(server: MlflowServer) -> dict[str, Any]:
    """By trial, "" the study's, as a client of the server reads them."""
    from mlflow import MlflowClient

    client = MlflowClient(server.address)
    experiment = client.get_experiment_by_name("expo-search")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    by_trial = {run.data.tags.get("expo_search.trial", ""): run for run in runs}
    assert len(by_trial) == len(runs), "none twice"
    return by_trial


def check(server: MlflowServer, study: StudyResult) -> None:
    """The server holds the whole study, as the database does."""
    from mlflow import MlflowClient

    runs = runs_of(server)
    assert set(runs) == {"", *(str(e.trial) for e in study.evaluations)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for e in study.evaluations:
        run = runs[str(e.trial)]
        assert run.data.params == {"alpha": repr(e.alpha)}
        assert run.data.metrics == pytest.approx(metrics(e))
        assert run.data.tags["outcome"] == e.outcome
        assert run.data.tags["mlflow.parentRunId"] == runs[""].info.run_id
    whole = runs[""]
    recommended = study.verdict.recommended
    assert whole.data.metrics["recommended_alpha"] == (0.0 if recommended is None else recommended.alpha)
    assert whole.data.tags["verdict"] == study.verdict.word
    client = MlflowClient(server.address)
    assert [file.path for file in client.list_artifacts(whole.info.run_id)] == ["curve.svg"]
    assert Path(client.download_artifacts(whole.info.run_id, "curve.svg")).read_text().rstrip().endswith("</svg>")


def test_a_search_is_read_back_from_the_server_and_written_once(server: MlflowServer) -> None:
    said: list[str] = []
    study = search(said)
    check(server, study)
    search(said)
    check(server, study)
    assert said == []


@pytest.mark.parametrize("ends", ["kill", "halt"])
def test_a_server_that_goes_away_is_one_line_and_the_same_command_writes_the_rest(
    server: MlflowServer, ends: str
) -> None:
    said: list[str] = []
    went_at = 0.0

    def after_trial(n: int) -> None:
        nonlocal went_at
        if n == 2:
            getattr(server, ends)()
            went_at = time.monotonic()

    study = search(said, after_trial)
    assert time.monotonic() - went_at < 120, "a search is not held up for long"
    assert len(study.evaluations) >= 3
    (line,) = said
    assert line.startswith("--track mlflow: ")
    assert "the search goes on without it, and the same command writes it later" in line
    assert "\n" not in line
    server.kill()
    server.start()
    assert len(runs_of(server)) < 1 + len(study.evaluations)
    again: list[str] = []
    check(server, search(again))
    assert again == []
