"""A search for a shape, with fakes of model and scorer: paired with the uniform alpha, kept beside its study."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from fakes import BEST, FakeLayeredModel, FakeModel, FakeScorer, Killed
from optuna_dashboard import get_note
from twins import write_prompts
from typer.testing import CliRunner

import expo_search as es
from expo_search.cli.main import app
from expo_search.contracts import Rated
from expo_search.errors import EngineDied, StoreError, StudyError
from expo_search.evaluation.result import CONTROL
from expo_search.results.html_report import write_report
from expo_search.results.shapes import shape_sentence, shapes_json
from expo_search.search.shapes import UNIFORM, Shapes, gain_against_uniform
from expo_search.stats.paired import estimate
from expo_search.store.database import study_names
from expo_search.store.study_store import Store
from expo_search.text import markdown_spans
from expo_search.weights.shape import ShapedAlpha

SETTINGS: dict[str, dict[str, Any]] = {
    "pair": {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/judge"},
    "prompts": {"n": 32},
    "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
}
Bend = Callable[[Sequence[float]], float]


def hill(numbers: Sequence[float]) -> float:
    """A gain of 0.3 at scale 1.1 and slope 0.4, of less further off."""
    return 0.3 - 0.6 * ((numbers[0] - 1.1) ** 2 + (numbers[1] - 0.4) ** 2)


def dale(numbers: Sequence[float]) -> float:
    """Any shape loses."""
    return -0.3 - sum(abs(x) for x in numbers) / 10


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mine.db'}"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> es.StudySpec:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_prompts(prompts, 56)
    return es.load_study(name="mine", overrides=SETTINGS | {"prompts": SETTINGS["prompts"] | {"source": str(prompts)}})


def opened(spec: es.StudySpec, url: str, model: FakeModel, bend: Bend = hill, noise: float = 0.1) -> es.Session:
    return es.open_session(spec, url, model=model, scorer=FakeScorer(noise=noise, bend=bend), quiet=True)


@pytest.fixture(scope="module")
def searched(spec: es.StudySpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeLayeredModel]:
    """A database with a search for the one alpha, five trials, and the model that answered; both to be copied."""
    file, model = tmp_path_factory.mktemp("searched") / "mine.db", FakeLayeredModel()
    with opened(spec, f"sqlite:///{file}", model) as session:
        best = session.search(n_trials=5).verdict.recommended
    assert best is not None
    assert abs(best.alpha - BEST) <= 0.13
    return file, model


@pytest.fixture
def model(searched: tuple[Path, FakeLayeredModel], url: str) -> FakeLayeredModel:
    """One that has searched the one alpha of the study at `url`."""
    file, model = searched
    shutil.copy(file, url.removeprefix("sqlite:///"))
    return deepcopy(model)


def asked_of_shapes(model: FakeModel) -> list[tuple[float, str]]:
    return [(alpha, prompt) for alpha, prompt in model.asked if isinstance(alpha, ShapedAlpha)]


def test_a_shape_that_gains_is_found_and_shown_on_fresh_prompts(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    before, n_before = es.open_study(url, "mine"), len(model.asked)
    trials: list[es.Evaluation] = []
    with opened(spec, url, model) as session:
        found = session.shape("depth", 9, 16, on_trial=trials.append)
    assert [e.trial for e in trials] == list(range(2, 11))
    assert found.word == "better"
    assert found.confirmed is not None
    assert found.confirmed.gain.n == 16
    assert found.best is not None
    shape = found.best.alpha.shape if isinstance(found.best.alpha, ShapedAlpha) else None
    assert shape is not None
    assert shape.n_layers == 5
    assert hill(shape.numbers) > 0.2, "of at most 0.3"
    assert abs(found.confirmed.gain.mean - hill(shape.numbers)) < 4 * found.confirmed.gain.se
    # nothing was answered twice, and the two alphas to compare with only on the fresh prompts
    new = model.asked[n_before:]
    assert len(set(new)) == len(new) == 9 * 32 + 3 * 16
    assert sum(not isinstance(alpha, ShapedAlpha) for alpha, _ in new) == 2 * 16
    # the study that it starts from is as it was but for naming this one, and the only one that is listed
    assert replace(es.open_study(url, "mine"), shapes=()) == before
    assert study_names(url) == ["mine"]
    assert shape_sentence(found).startswith("Better than one alpha for all: depth (scale ")
    assert shapes_json(found)["confirmed"]["gain"] == found.confirmed.gain.mean


def test_gains_are_paired_with_the_uniform_alphas_answers(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    with opened(spec, url, model) as session:
        found = session.shape("attn-mlp", 2)
    source, store = Store(url, "mine"), Store(url, found.beginning.name)
    uniform = source.rated(found.beginning.trial, "search")
    assert store.rated(UNIFORM, "search") == uniform
    assert store.rated(0, "search") == source.rated(0, "search")
    for against in found.against:
        rated = store.rated(against.trial, "search")
        assert against.gain == estimate([rated[p].reward - uniform[p].reward for p in range(32)])
    assert [e.gain.mean for e in found.trials[:2]] == [0.0, es.open_study(url, "mine").verdict.best.gain.mean]  # type: ignore[union-attr]


def test_where_a_judge_of_pairs_rates_the_gain_is_the_difference_of_two_win_rates() -> None:
    """It has compared each with alpha = 0 alone: a tie against a loss there is no win over the uniform alpha."""
    rewards = {CONTROL: [0.5] * 5, UNIFORM: [1.0, 1.0, 0.0, 0.0, 0.0], 2: [0.0, 0.0, 0.5, 0.5, 0.5]}

    def rated(trial: int, part: str) -> dict[int, Rated]:
        return {i: Rated(reward, 10) for i, reward in enumerate(rewards[trial])}

    store: Any = SimpleNamespace(rated=rated)
    assert gain_against_uniform(store, 2, "search", "win-rate", 5).mean == pytest.approx((1.5 - 2) / 5)
    rewards[CONTROL] = [0.1, 0.5, 0.2, 0.4, 0.3]  # a reward model's, which can be compared
    assert gain_against_uniform(store, 2, "search", "win-rate", 5).mean == pytest.approx((1.5 - 1) / 5)


def test_where_none_looks_better_uniform_alpha_is_as_good_and_no_fresh_prompt_is_spent(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    with opened(spec, url, model, dale) as session:
        found = session.shape("blocks:3", 4, 16)
    assert (found.word, found.best, found.confirmed) == ("uniform is as good", None, None)
    assert shape_sentence(found).startswith("Uniform alpha = ")
    assert len(asked_of_shapes(model)) == 4 * 32


def test_a_shape_that_only_looked_better_is_not_recommended(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    """No shape changes anything but by noise, of which the search picks the best."""
    with opened(spec, url, model, lambda _: 0.0, noise=1.0) as session:
        found = session.shape("depth", 4, 16)
    assert found.best is not None
    assert found.confirmed is not None
    assert not found.is_better
    assert "is as good: depth" in shape_sentence(found)
    # a confirmation on other prompts drops these answers first, and may end before it has its own
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("DELETE FROM expo_completions WHERE part = 'confirm' AND position > 3")
    [left] = es.open_study(url, "mine").shapes
    assert (left.word, left.best) == ("not confirmed", found.best)


def test_without_fresh_prompts_nothing_is_recommended(spec: es.StudySpec, url: str, model: FakeLayeredModel) -> None:
    with opened(spec, url, model) as session:
        found = session.shape("depth", 3)
        assert found.word == "not confirmed"
        assert not found.is_better
        n = len(model.asked)
        assert session.shape("depth", 3) == found
        assert len(model.asked) == n, "it is done: nothing starts"
        assert session.shape("depth", 3, 8).word in ("better", "uniform is as good", "uniform is better")


def test_a_killed_search_goes_on_at_the_prompt_where_it_was(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    model.dies_after = len(model.asked) + 75  # in the third shape
    with pytest.raises(Killed), opened(spec, url, model) as session:
        session.shape("depth", 6)
    model.dies_after = None
    with opened(spec, url, model) as session:
        found = session.shape("depth", 6)
    other = FakeLayeredModel()
    assert found.n_shapes == 6
    asked = asked_of_shapes(model)
    assert len(set(asked)) == 6 * 32
    assert len(asked) - len(set(asked)) <= other.in_flight + 64, "what was not stored yet"


def test_an_engine_that_dies_is_started_anew_and_the_shape_repeated(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    def die() -> None:
        raise EngineDied(where="x", found="y", expected="z", do="w")

    model.dies_after, model.die, model.dies_again = len(model.asked) + 40, die, 0
    with opened(spec, url, model) as session:
        found = session.shape("depth", 3)
    assert model.restarts == 1
    assert found.n_shapes == 3
    assert [a.trial for a in found.against] == [2, 3, 5]  # Optuna's trial 4 is the repetition of the third


def test_a_shape_that_ends_every_engine_is_left_out_after_two_runs(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    def die() -> None:
        raise EngineDied(where="x", found="y", expected="z", do="w")

    model.die = die
    for told in (
        r"^x: y; expected z; w$",
        r"^x: y, at scale = 0\.5, slope = 0 for the 4th time; .*goes on without this trial$",
    ):
        model.dies_after, model.dies_again = len(model.asked) + 5, model.restarts + 1
        with pytest.raises(EngineDied, match=told), opened(spec, url, model) as session:
            session.shape("depth", 3)
    model.dies_after = None
    with opened(spec, url, model) as session:
        assert session.shape("depth", 3).n_shapes == 3


def test_an_engine_that_dies_at_an_answer_of_alpha_0_is_started_anew(
    spec: es.StudySpec, url: str, model: FakeLayeredModel
) -> None:
    """The references are no trials that could fail; what of them was taken over is dropped here, and so asked for."""

    def die() -> None:
        raise EngineDied(where="x", found="y", expected="z", do="w")

    with opened(spec, url, model) as session:
        with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
            database.execute("DELETE FROM expo_completions WHERE trial = 0 AND position >= 8")
        model.dies_after, model.die, model.dies_again = len(model.asked) + 4, die, 0
        assert session.shape("depth", 1).n_shapes == 1
    assert model.restarts == 1


def test_nobody_else_may_begin_the_same_meanwhile(spec: es.StudySpec, url: str, model: FakeLayeredModel) -> None:
    with opened(spec, url, model) as session:
        code = (
            "import sys; from expo_search.store.study_store import Store\n"
            "with Store(sys.argv[1], 'mine').owned(): print('held', flush=True); sys.stdin.readline()\n"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", code, url], text=True, **pipes) as other:  # type: ignore[call-overload]
            assert other.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match="at work on it since"):
                session.shape("depth", 1)
            other.stdin.write("\n")
            other.stdin.flush()
        assert study_names(url) == ["mine"]
        assert [s for s in every_study(url) if s != "mine"] == []
        assert session.shape("depth", 1).n_shapes == 1


def every_study(url: str) -> list[str]:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        return [name for (name,) in database.execute("SELECT study_name FROM studies")]


def test_another_winner_begins_another_search(spec: es.StudySpec, url: str, model: FakeLayeredModel) -> None:
    with opened(spec, url, model) as session:
        first: Shapes = session.shape("depth", 1)
    assert first.beginning.name == f"mine/depth@{first.beginning.trial}"
    with opened(spec, url, model) as session:
        assert session.shape("attn-mlp", 1).beginning.name == f"mine/attn-mlp@{first.beginning.trial}"


def test_without_a_winner_or_layers_it_is_refused_in_one_line(spec: es.StudySpec, url: str) -> None:
    with opened(spec, url, FakeModel()) as session:
        with pytest.raises(StudyError, match="without n_layers"):
            session.shape("depth")
        with pytest.raises(StudyError, match="expected depth, attn-mlp, or blocks:K"):
            session.shape("width")
    with opened(spec, url, FakeLayeredModel()) as session:
        session.search(n_trials=1)
        with pytest.raises(StudyError, match="expected an alpha that is better than 0"):
            session.shape("depth")


class TestBesideItsStudy:
    """What a study says about the searches for a shape that start from it."""

    @pytest.mark.parametrize(("bend", "word"), [(hill, "better"), (dale, "uniform is as good")])
    def test_it_has_their_verdicts_in_show_json_report_and_note(
        self, spec: es.StudySpec, url: str, model: FakeLayeredModel, bend: Bend, word: str, tmp_path: Path
    ) -> None:
        with opened(spec, url, model, bend) as session:
            found = session.shape("depth", 6, 16)
        told = f"An alpha for each weight (depth): {shape_sentence(found)}"
        result = es.open_study(url, "mine")
        assert (list(result.shapes), found.word) == ([found], word)
        assert told in result.remarks
        shown = CliRunner().invoke(app, ["show", "mine", "--storage", url])
        assert " ".join(told.split()) in " ".join(shown.output.split())
        step = "expo-search export mine --shape depth --out DIR"
        assert (step in shown.output) == (word == "better")
        numbers = json.loads(CliRunner().invoke(app, ["show", "mine", "--storage", url, "--json"]).output)
        assert [s["verdict"] for s in numbers["shapes"]] == [{"word": word, "sentence": shape_sentence(found)}]
        store = Store(url, "mine", read_only=True)
        write_report(store, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "An alpha for each weight</h2>" in page
        assert page.count('<td data-head="over uniform">') == len(found.trials)
        assert markdown_spans(told) in get_note(store.study)

    def test_every_kind_is_named_once_however_often_it_goes_on(
        self, spec: es.StudySpec, url: str, model: FakeLayeredModel
    ) -> None:
        with opened(spec, url, model) as session:
            for kind, n in (("depth", 1), ("attn-mlp", 1), ("depth", 2)):
                session.shape(kind, n)
        assert [(s.beginning.kind, s.n_shapes) for s in es.open_study(url, "mine").shapes] == [
            ("depth", 2), ("attn-mlp", 1),
        ]  # fmt: skip

    def test_one_that_is_no_more_is_left_out(self, spec: es.StudySpec, url: str, model: FakeLayeredModel) -> None:
        with opened(spec, url, model) as session:
            found = session.shape("depth", 1)
        optuna.delete_study(study_name=found.beginning.name, storage=url)
        assert list(es.open_study(url, "mine").shapes) == []

    def test_one_from_an_earlier_winner_is_in_json_and_the_report_and_not_beside_the_verdict(
        self, spec: es.StudySpec, url: str, model: FakeLayeredModel
    ) -> None:
        with opened(spec, url, model) as session:
            found = session.shape("depth", 1)
        result = es.open_study(url, "mine")
        assert len(result.remarks) == 1
        other = next(e for e in result.evaluations if e.trial not in (0, found.beginning.trial))
        later = replace(result, verdict=replace(result.verdict, best=other))
        assert (later.remarks, later.better_shapes) == ([], [])
