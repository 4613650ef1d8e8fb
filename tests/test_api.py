"""The Python API: what `import expo_search` offers, sessions with anyone's model and scorer, and what they leave."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import BEST, FakeModel, FakeScorer
from optuna_dashboard import get_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from twins import write_prompts

import expo_search as es
from expo_search.errors import PromptsError, SettingsChanged, StudyError
from expo_search.results.dashboard_updates import FIGURE
from expo_search.store.study_store import Store

SETTINGS: dict[str, dict[str, Any]] = {
    "pair": {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/judge"},
    "prompts": {"n": 32},
    "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
}


@pytest.fixture
def spec(tmp_path: Path) -> es.StudySpec:
    write_prompts(tmp_path / "prompts.jsonl", 48)
    source = {"source": str(tmp_path / "prompts.jsonl")}
    return es.load_study(name="mine", overrides=SETTINGS | {"prompts": SETTINGS["prompts"] | source})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mine.db'}"


def opened(spec: es.StudySpec | str, url: str, **options: Any) -> es.Session:
    """A session on fakes, which are objects like anyone's."""
    usual: dict[str, Any] = {"model": FakeModel(), "scorer": FakeScorer(noise=0.1), "quiet": True}
    return es.open_session(spec, url, **(usual | options))


def test_the_public_names_are_these_and_each_is_there() -> None:
    assert set(es.__all__) == {
        "BenchResult", "Budget", "Comparison", "Completion", "Confirmation", "Estimate", "Evaluation",
        "ExpoError", "ExpoSampler", "Model", "PairwiseScorer", "Prompt", "Scorer", "Session", "StudyResult",
        "StudySpec", "Switch", "Verdict", "__version__", "export", "load_study", "open_session", "open_study",
        "record_gain",
    }  # fmt: skip
    for name in es.__all__:
        assert getattr(es, name) is not None
    assert dir(es) == es.__all__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = es.nonsense


class TestSession:
    def test_it_searches_confirms_compares_and_can_be_read_afterwards(self, spec: es.StudySpec, url: str) -> None:
        trials: list[es.Evaluation] = []
        with opened(spec, url) as session:
            result = session.search(n_trials=5, on_trial=trials.append)
            assert result.best is not None
            measured = session.confirm(result.best, n_prompts=12)
            comparison = session.compare([0, result.best.alpha, 0], ["Hello", "And you?"])
        assert [e.trial for e in trials] == [0, 1, 2, 3, 4]
        assert [e.alpha for e in result.evaluations] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert abs(result.best.alpha - BEST) <= 0.13
        assert measured is not None
        assert (measured.n, measured.alpha) == (12, result.best.alpha)
        assert [[a.alpha for a in row] for row in comparison.rows] == [[0, result.best.alpha]] * 2
        read = es.open_study(url, "mine")
        assert read.evaluations == result.evaluations
        assert read.verdict.confirmed == measured
        assert "alpha = " in result.verdict.sentence()

    def test_a_budget_ends_it_and_leaves_enough_for_the_confirmation(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            control = session.search(n_trials=1).evaluations[0]
            budget = es.Budget(tokens=3 * control.n_tokens, n_confirm=8)
            result = session.search(n_trials=9, budget=budget)
            assert len(result.evaluations) == 2, "a third would leave nothing"
            assert "budget: " in (session.why_done(9, budget) or "")
            n = session.n_confirmable(budget)
            assert 8 <= n <= 16
            assert session.confirm(result.evaluations[1], n) is not None
            assert session.n_confirmable(budget) <= 2, "what the confirmation took is counted"

    def test_it_goes_on_where_it_stopped_and_by_name_alone(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            session.search(n_trials=2)
        model = FakeModel()
        with opened("mine", url, model=model) as session:
            result = session.search(n_trials=4)
        assert len(result.evaluations) == 4
        assert 0.0 not in model.alphas, "nothing is evaluated twice"

    def test_a_study_that_is_not_there_is_one_line(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            session.search(n_trials=1)
        with pytest.raises(es.ExpoError, match="study typo: no study of that name in sqlite"):
            es.open_study(url, "typo")

    def test_what_is_done_starts_nothing(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            done = session.search(n_trials=2)
        with opened(spec, url, start=False) as session:
            assert session.why_done(2) == "2 finished trials"
            assert session.search(n_trials=2).evaluations == done.evaluations
            assert "store" not in vars(session.running)

    def test_a_search_can_be_asked_to_stop_and_a_confirmation_too(self, spec: es.StudySpec, url: str) -> None:
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            return len(asked) > 3

        with opened(spec, url) as session:
            assert len(session.search(n_trials=9, stop=stop).evaluations) < 9
            result = session.search(n_trials=5)
            assert get_note(session.running.store.study) != ""
            assert session.confirm(result.best, 12, stop=lambda: True) is None
            before = get_note(session.running.store.study)
            assert "12 fresh prompts" not in before
            measured = session.confirm(result.best, 12)
            assert measured is not None
            said: list[str] = []
            session.say = said.append
            assert session.confirm(result.best, 12) == measured
            assert said[-1].endswith("was measured on these 12 fresh prompts"), "which may show no gain"
            study = session.running.store.study
            assert "12 fresh prompts" in get_note(study)
            assert FIGURE in get_plotly_graph_objects(
                session.running.store.storage.get_study_system_attrs(study._study_id)
            )

    def test_another_scorer_is_another_study(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            session.search(n_trials=2)
        pair = spec.pair.model_copy(update={"reward_model": "my/other-judge"})
        with pytest.raises(SettingsChanged, match="my/other-judge"):
            opened(spec.model_copy(update={"pair": pair}), url)

    @pytest.mark.parametrize(
        ("text", "found"), [(" ", "an empty text"), ("caf\udce9", "bytes that are not UTF-8"), ("", "an empty text")]
    )
    def test_a_prompt_that_no_model_can_answer_is_refused(
        self, spec: es.StudySpec, url: str, text: str, found: str
    ) -> None:
        with opened(spec, url) as session, pytest.raises(PromptsError, match=found):
            session.compare([0.0], ["?", text])

    def test_an_alpha_that_makes_no_weights_is_refused(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session, pytest.raises(StudyError, match="not finite in float32"):
            session.compare([float("nan")], ["?"])

    def test_too_few_fresh_prompts_are_a_fault_that_says_how_many_there_are(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            session.search(n_trials=3)
            with pytest.raises(PromptsError, match="--n-prompts 16"):
                session.confirm(None, 17)

    def test_nothing_to_confirm_is_a_fault(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            session.search(n_trials=1)
            with pytest.raises(StudyError, match="no finished trial but alpha = 0"):
                session.confirm()


class TestNotebook:
    def test_the_process_is_left_as_it_was(self, spec: es.StudySpec, url: str) -> None:
        def state() -> tuple[Any, ...]:
            return (
                dict(os.environ), list(warnings.filters), gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(),
                [signal.getsignal(n) for n in sorted(signal.valid_signals())], optuna.logging.get_verbosity(),
            )  # fmt: skip

        gc.unfreeze()  # what engines of earlier tests froze: objects cannot be frozen and thawed apart
        before = state()
        for n_trials in (2, 3):  # two sessions, one after the other
            with opened(spec, url) as session:
                os.environ["VLLM_SOMETHING"] = "1"
                warnings.simplefilter("ignore")
                gc.freeze()
                assert len(session.search(n_trials=n_trials).evaluations) == n_trials
        assert state() == before

    def test_it_works_in_a_running_event_loop(self, spec: es.StudySpec, url: str) -> None:
        async def cell() -> es.StudyResult:
            with opened(spec, url) as session:
                return session.search(n_trials=2)

        assert len(asyncio.run(cell()).evaluations) == 2

    def test_a_result_is_shown_as_a_curve_and_a_table_and_is_a_data_frame(self, spec: es.StudySpec, url: str) -> None:
        with opened(spec, url) as session:
            result = session.search(n_trials=4)
            comparison = session.compare([0.0, 0.5], ["<script>alert(1)</script>"])
        shown = result._repr_html_()
        assert "<svg" in shown
        assert "<table" in shown
        assert result.verdict.sentence().split(":")[0] in shown
        frame = result.to_dataframe()
        assert list(frame["alpha"]) == [e.alpha for e in result.evaluations]
        assert {"gain", "gain_se", "gain_low", "gain_high", "n_prompts", "outcome"} <= set(frame.columns)
        assert "<script>" not in comparison._repr_html_()
        assert list(comparison.to_dataframe()["alpha"]) == [0.0, 0.5]

    def test_progress_is_shown_where_it_is_asked_for(
        self, spec: es.StudySpec, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with opened(spec, url, quiet=False) as session:
            session.search(n_trials=2)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "[2/2] alpha" in shown.err


class LengthScorer:
    """A scorer of one's own: an answer is worth its length, up to a hundred characters."""

    def score(self, completions: Sequence[es.Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        on_scored(len(completions))
        return [float(min(len(c.text), 100)) for c in completions], 0


class RemoteModel:
    """A model of one's own, such as a service whose weights somebody else switches: it talks more at higher alphas."""

    def __init__(self) -> None:
        self.alpha = 0.0

    def materialize(self, alpha: float) -> es.Switch:
        self.alpha = alpha
        return es.Switch(alpha, seconds=0.0, fingerprint=f"{alpha!r:>032}")

    def generate(self, prompts: Sequence[es.Prompt], seed: int) -> Iterator[es.Completion | int]:
        for prompt in prompts:
            n = 1 + round(10 * self.alpha) + prompt.seed(seed) % 3
            yield n
            yield es.Completion(prompt, " ".join(f"{prompt.id[:6]}{i}" for i in range(n)), n, "stop")

    def restart(self) -> None:
        """A service that is never started anew."""


def test_a_model_and_a_scorer_of_ones_own_are_searched_as_ours_are(spec: es.StudySpec, url: str) -> None:
    with es.open_session(spec, url, model=RemoteModel(), scorer=LengthScorer(), quiet=True) as session:
        result = session.search(n_trials=4)
    assert result.verdict.word == "better"
    assert result.best is not None
    settings = Store(url, "mine", read_only=True).attributes.settings
    assert settings is not None
    assert (settings.pair.reward_model, settings.pair.aligned) == ("my/judge@plug-in", "my/aligned@plug-in")


class TestSampler:
    def test_anyones_study_finds_the_optimum_with_gains_that_are_told(self) -> None:
        study = optuna.create_study(direction="maximize", sampler=es.ExpoSampler(start=0.3))

        def objective(trial: optuna.Trial) -> float:
            alpha = trial.suggest_float("alpha", -1, 64)
            gain = es.Estimate(1 - (alpha - 1.2) ** 2 - (1 - 1.2**2), 0.02 if alpha else 0.0, 200)
            es.record_gain(trial, gain)
            return gain.mean

        study.optimize(objective, n_trials=12)
        assert study.best_trial.params["alpha"] == pytest.approx(1.2, abs=0.15)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"gain": "much", "gain_se": None, "n_prompts": []},
            {"gain": 1.0, "gain_se": -1.0, "n_prompts": 3},
            {"gain": 1.0, "gain_se": 0.1},
            {"gain": 0.1, "gain_se": 0.1, "n_prompts": 9, "outcome": 3, "broken": "x", "covariances": [1]},
            {"repeats": "twice", "covariances": {"1": "a"}, "gain": 0.1, "gain_se": 0.1, "n_prompts": 9},
        ],
    )
    def test_attributes_of_another_form_are_somebody_elses(self, attributes: dict[str, Any]) -> None:
        study = optuna.create_study(direction="maximize", sampler=es.ExpoSampler())

        def objective(trial: optuna.Trial) -> float:
            alpha = trial.suggest_float("alpha", -1, 4)
            trial.suggest_categorical("other", ["a", "b"])
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
            return -((alpha - 0.5) ** 2)

        study.optimize(objective, n_trials=6)
        assert len({t.params["alpha"] for t in study.trials}) == 6

    def test_an_infinite_value_and_a_trial_without_alpha_are_left_out(self) -> None:
        study = optuna.create_study(direction="maximize", sampler=es.ExpoSampler())
        study.add_trial(optuna.trial.create_trial(value=float("inf")))
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            "alpha": optuna.distributions.FloatDistribution(-1, 4)
        }
        study.add_trial(
            optuna.trial.create_trial(value=float("-inf"), params={"alpha": 0.7}, distributions=distributions)
        )
        assert study.ask(distributions).params["alpha"] == 0.0
