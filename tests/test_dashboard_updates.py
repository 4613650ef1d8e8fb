"""What the dashboard shows of a study: written while the search runs, once, and never at the cost of a trial."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeWatcher, Killed, expected_reward, make_prompts
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import Evaluation
from expo_search.results import dashboard_updates as artifacts
from expo_search.results.artifacts import default_place, open_artifacts
from expo_search.results.dashboard_updates import FIGURE, DashboardUpdates
from expo_search.results.note import YOURS
from expo_search.search.loop import evaluations, search
from expo_search.store.study_store import Store

SPEC = SearchSpec(alpha_min=0.0, alpha_max=1.0, sampler="random", racing=False)
HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) `\x1b[31m`"


class PlainScorer:
    """`expected_reward` at the model's present alpha, whatever the text says."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        on_scored(len(completions))
        return [expected_reward(self._model.alphas[-1], c.prompt) for c in completions], 0


@dataclass
class Run:
    """A search of fakes in one folder, with or without the updates."""

    folder: Path
    said: list[str] = field(default_factory=list)
    place: str | None = None
    study: str = "s"
    url: str | None = None

    def store(self) -> Store:
        return Store(self.url or f"sqlite:///{self.folder / 's.db'}", self.study)

    def go(self, n_trials: int, *, n_prompts: int = 6, **hooks: Any) -> Store:
        store, model = self.store(), FakeModel()
        prompts = [*make_prompts(n_prompts - 1), Prompt("hostile", HOSTILE)]
        store.put_prompts("search", prompts)
        updates = DashboardUpdates(store, self.place or default_place(store.url), self.said.append)
        objective = Objective(model, PlainScorer(model), store, prompts, FakeWatcher())
        chosen = {"before_tell": updates.before_tell, "on_trial": updates.on_trial} | hooks
        search(store, objective, SPEC, n_trials, **chosen)
        return store


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def names(store: Store) -> list[list[str]]:
    """File names of each trial's artifacts."""
    trials = store.study.get_trials(deepcopy=False)
    return [sorted(m.filename for m in get_all_artifact_meta(t, storage=store.storage)) for t in trials]


def read(store: Store, trial: int, name: str) -> bytes:
    frozen = store.study.get_trials(deepcopy=False)[trial]
    (meta,) = [m for m in get_all_artifact_meta(frozen, storage=store.storage) if m.filename == name]
    with open_artifacts([default_place(store.url)]).open_reader(meta.artifact_id) as file:
        return file.read()


def test_every_trial_carries_its_answers_and_the_curve_so_far(run: Run) -> None:
    store = run.go(3)
    assert names(store) == [["curve.png", "samples.jsonl"]] * 3
    rows = [json.loads(line) for line in read(store, 2, "samples.jsonl").splitlines()]
    alpha = evaluations(store.study)[2].alpha
    assert [row["prompt"] for row in rows[:5]] == [f"Question {i}?" for i in range(5)]
    assert [json.loads(row["answer"]) for row in rows[:5]] == [[alpha, f"id-{i}"] for i in range(5)]
    assert [json.loads(row["answer_at_alpha_0"]) for row in rows[:5]] == [[0.0, f"id-{i}"] for i in range(5)]
    for row, prompt in zip(rows, make_prompts(5), strict=False):
        gain = expected_reward(alpha, prompt) - expected_reward(0.0, prompt)
        assert row["difference"] == pytest.approx(gain, abs=5e-5)  # shown with four decimals
    assert "\x1b" not in rows[5]["prompt"]
    assert read(store, 2, "curve.png").startswith(b"\x89PNG")
    assert run.said == []


def test_the_folder_is_beside_the_database_and_holds_nothing_else(run: Run) -> None:
    run.go(2)
    assert default_place(f"sqlite:///{run.folder / 's.db'}") == str(run.folder / "s.db.artifacts")
    assert len([*(run.folder / "s.db.artifacts").iterdir()]) == 4
    assert default_place("postgresql://host/db") == "expo-search.artifacts"


def test_more_answers_than_the_cap_are_left_out_and_the_name_says_so(run: Run) -> None:
    store = run.go(1, n_prompts=201)
    assert names(store) == [["curve.png", "samples-first-200-of-201.jsonl"]]


def test_the_study_carries_a_note_and_one_figure_that_follow_the_trials(run: Run) -> None:
    store = run.go(2)
    first = get_note(store.study)
    store = run.go(6)
    note, attributes = get_note(store.study), store.storage.get_study_system_attrs(store.study._study_id)
    assert first != note
    assert "6 finished trials" in note
    assert "12 files" in note
    figures = get_plotly_graph_objects(attributes)
    assert list(figures) == [FIGURE]
    points = sum(len(t["x"]) for t in json.loads(figures[FIGURE])["data"] if "error_y" in t)
    assert points == 5  # all but the control
    assert store.study.metric_names == ["gain over alpha = 0: mean reward"]


def test_the_note_names_no_folder_that_a_renamed_database_would_not_have_and_one_that_was_given(run: Run) -> None:
    note = get_note(run.go(2).study)
    assert re.search(r"4 files, \S+ MB, in the folder beside it whose name is its own and `\.artifacts`\.\n", note)
    assert "s.db" not in note
    run.study, run.place = "t", str(run.folder / "given")
    assert f"MB in `{run.place}`.\n" in get_note(run.go(2).study)


def test_a_note_that_a_person_wrote_stays_below_ours(run: Run) -> None:
    from optuna_dashboard import save_note

    store = run.go(1)
    save_note(store.study, get_note(store.study).partition(YOURS)[0] + YOURS + "\n\nmine\n")
    assert get_note(run.go(2).study).endswith(YOURS + "\n\nmine\n")


def test_prompts_and_answers_are_not_in_the_note_or_the_figure(run: Run) -> None:
    store = run.go(3)
    attributes = store.storage.get_study_system_attrs(store.study._study_id)
    assert "script" not in get_note(store.study) + get_plotly_graph_objects(attributes)[FIGURE]


@pytest.mark.parametrize("lost", [False, True], ids=["uploaded", "noted but not copied"])
def test_a_trial_that_is_finished_by_a_second_run_has_its_artifacts_once(run: Run, lost: bool) -> None:
    killed = run.store()
    uploads = DashboardUpdates(killed, default_place(killed.url), run.said.append)

    def upload_and_die(trial: Any, evaluation: Evaluation) -> None:
        uploads.before_tell(trial, evaluation)
        raise Killed

    with pytest.raises(Killed):
        run.go(1, before_tell=upload_and_die)
    if lost:  # Optuna notes an artifact before it copies the file
        for file in Path(default_place(killed.url)).iterdir():
            file.unlink()
    store = run.go(2)
    assert names(store) == [["curve.png", "samples.jsonl"]] * 2
    assert len(read(store, 0, "samples.jsonl").splitlines()) == 6
    assert len([*Path(default_place(store.url)).iterdir()]) == 4


def test_a_folder_that_cannot_be_written_costs_no_trial_and_is_said_once(run: Run) -> None:
    Path(default_place(run.store().url)).write_text("a file where the folder should be")
    store = run.go(3)
    assert len(evaluations(store.study)) == 3
    assert names(store) == [[], [], []]
    (said,) = run.said
    assert said.startswith("the dashboard is not kept up to date (NotADirectoryError")
    assert "3 finished trials" in get_note(store.study)


def test_without_optuna_dashboard_the_artifacts_are_there_all_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "find_spec", lambda _: None)
    store = run.go(2)
    assert names(store) == [["curve.png", "samples.jsonl"]] * 2
    assert get_note(store.study) == ""
    assert run.said == []
