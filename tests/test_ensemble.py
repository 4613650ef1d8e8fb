"""Several reward models at once: how their rewards become one, what a kill costs, where each one's gain is shown."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, make_prompts, normal
from optuna_dashboard import get_note
from test_model_card import make_origin
from test_objective import numbers
from twins import edit, make_pair, make_reward_model, write_prompts
from typer.testing import CliRunner

import expo_search as es
from expo_search.cli.main import app
from expo_search.config.keys import schema
from expo_search.config.options import overrides
from expo_search.config.spec import Combine
from expo_search.contracts import Completion, Part, Prompt
from expo_search.engine.machine import Machine
from expo_search.errors import RewardError, SettingsChanged, StudyError
from expo_search.evaluation.answering import BLOCK
from expo_search.evaluation.ensemble import (
    Calibration,
    CombinedScorer,
    Ensemble,
    Member,
    Members,
    RewardModels,
    Standard,
)
from expo_search.evaluation.objective import Objective
from expo_search.exporting.model_card import card
from expo_search.exporting.provenance import provenance, public, read_provenance
from expo_search.exporting.reproduce import reproduce
from expo_search.inputs.source import Pair, Source
from expo_search.results.html_report import write_report
from expo_search.results.next_commands import go_on
from expo_search.results.reward_models import ModelGain, ensemble_sentence
from expo_search.session import planning
from expo_search.session.preflight import check
from expo_search.stats.paired import Estimate, estimate
from expo_search.store.attributes import StudyAttributes
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store
from expo_search.text import markdown

N = 2 * BLOCK + 20
PROMPTS = make_prompts(N)
MODELS = (Member("key-a", "A"), Member("key-b", "B"))
PAIR = {"aligned": "my/aligned", "sft": "my/sft"}


@dataclass
class Judge(FakeScorer):
    """A fake reward model with a unit and noise of its own."""

    tag: str = "a"
    unit: float = 1.0

    def reward(self, alpha: float, prompt: Prompt, *more: float) -> float:
        own = 0.3 * normal("own", self.tag, alpha, prompt.id)
        return self.unit * (super().reward(alpha, prompt, *more) + own)


def judges() -> tuple[Judge, Judge]:
    return Judge(tag="a"), Judge(truth=lambda a: 0.5 * a, tag="b", unit=10.0)


class DyingStore(Store):
    """Stands for a kill just before the calibration is kept, or just before combined rewards are."""

    dies_at: str = ""

    def keep(self, attributes: StudyAttributes) -> None:
        if self.dies_at == "calibration" and attributes.calibration is not None:
            raise Killed
        super().keep(attributes)

    def add_rewards(self, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        if self.dies_at == "combined":
            raise Killed
        super().add_rewards(trial, part, rewards)


class Beside(RewardModels):
    """A `BackgroundEnsembleScorer`, with a thread."""

    def begin(self, completions: Sequence[Completion]) -> Future[tuple[list[tuple[float, ...]], int]]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.score_each, completions, lambda _: None)


def objective(
    store: Store,
    scorers: Sequence[Judge],
    combine: Combine = "mean",
    model: FakeModel | None = None,
    part: Part = "search",
) -> Objective:
    ensemble = Ensemble(store, Members(MODELS, combine))
    rating = RewardModels(scorers)
    return Objective(model or FakeModel(), rating, store, PROMPTS, FakeWatcher(), part=part, ensemble=ensemble)


def raw(scorer: Judge, alpha: float) -> list[float]:
    return [scorer.reward(alpha, p) for p in PROMPTS]


def by_hand(scorers: Sequence[Judge], alpha: float, combine: Combine = "mean") -> list[float]:
    """The combined rewards by the test's own arithmetic."""
    standardised = []
    for scorer in scorers:
        there = raw(scorer, 0.0)
        mean, sd = statistics.fmean(there), statistics.stdev(there)
        standardised.append([(r - mean) / sd for r in raw(scorer, alpha)])
    each = zip(*standardised, strict=True)
    return [statistics.fmean(values) if combine == "mean" else min(values) for values in each]


def rewards(store: Store, trial: int, part: Part = "search") -> list[float]:
    return [r.reward for r in store.rated(trial, part).values()]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mine.db'}"


class TestCombined:
    STANDARDS = (Standard("a", "A", 1.0, 2.0), Standard("b", "B", 10.0, 5.0))

    @pytest.mark.parametrize(("combine", "expected"), [("mean", 0.75), ("worst-case", -0.5)])
    def test_it_is_the_mean_or_the_least_of_what_each_is_in_its_own_deviations(
        self, combine: Combine, expected: float
    ) -> None:
        # (5 - 1) / 2 = 2 and (7.5 - 10) / 5 = -0.5
        assert Calibration(self.STANDARDS, combine).combined((5.0, 7.5)) == expected

    def test_a_standard_has_the_sample_deviation(self) -> None:
        made = Standard.of(MODELS[0], [1.0, 2.0, 6.0])
        assert (made.key, made.name, made.mean) == ("key-a", "A", 3.0)
        assert made.sd == pytest.approx(7.0**0.5)

    @pytest.mark.parametrize("same", [[0.25, 0.25, 0.25], [0.0, 0.0], [1.0, 1.0 + 1e-8, 1.0 - 1e-8]])
    def test_a_model_to_which_all_answers_are_the_same_is_named(self, same: list[float]) -> None:
        with pytest.raises(RewardError, match=r"reward model A: the same reward, .* for all \d answers at alpha = 0"):
            Standard.of(MODELS[0], same)

    def test_a_scorer_of_several_gives_each_ones_reward_and_tells_an_answer_once(self) -> None:
        scorers, told = judges(), list[int]()
        answers = [Completion(p, json.dumps([0.3, p.id]), 3, "stop") for p in PROMPTS[:5]]
        each, n_cut = RewardModels(scorers).score_each(answers, told.append)
        assert each == [(scorers[0].reward(0.3, p), scorers[1].reward(0.3, p)) for p in PROMPTS[:5]]
        assert (sum(told), n_cut) == (5, 0)
        calibration = Calibration(self.STANDARDS, "mean")
        combined, _ = CombinedScorer(RewardModels(scorers), calibration).score(answers, lambda _: None)
        assert combined == [calibration.combined(rewards) for rewards in each]


class TestTrials:
    @pytest.mark.parametrize("combine", ["mean", "worst-case"])
    def test_rewards_are_standardised_by_those_at_alpha_0_and_every_raw_one_is_kept(
        self, url: str, combine: Combine
    ) -> None:
        store, scorers = Store(url, "s"), judges()
        evaluate = objective(store, scorers, combine).evaluate
        control, e = evaluate(0, 0.0), evaluate(1, 0.3)
        expected = [by_hand(scorers, alpha, combine) for alpha in (0.0, 0.3)]
        assert rewards(store, 0) == pytest.approx(expected[0], abs=1e-12)
        assert rewards(store, 1) == pytest.approx(expected[1], abs=1e-12)
        assert e.gain.mean == pytest.approx(statistics.fmean(a - b for a, b in zip(*expected[::-1], strict=True)))
        if combine == "mean":
            assert control.reward.mean == pytest.approx(0.0, abs=1e-12)
        kept = CheckStore(store)
        for trial, alpha in ((0, 0.0), (1, 0.3)):
            for member, scorer in zip(MODELS, scorers, strict=True):
                assert list(kept.rewards(member.key, trial, "search").values()) == raw(scorer, alpha)
        assert [len(s.scored) for s in scorers] == [2 * N, 2 * N]

    def test_a_confirmation_is_combined_by_the_searchs_calibration(self, url: str) -> None:
        store, scorers = Store(url, "s"), judges()
        objective(store, scorers).evaluate(0, 0.0)
        before = store.attributes.calibration
        objective(store, scorers, part="confirm").evaluate(0, 0.25)  # an alpha that stands for other answers
        assert store.attributes.calibration == before
        assert rewards(store, 0, "confirm") == pytest.approx(by_hand(scorers, 0.25), abs=1e-12)

    def test_before_the_calibration_no_answer_has_a_reward(self, url: str) -> None:
        store, scorers = Store(url, "s"), judges()
        scorers[1].dies_after = N - 1
        with pytest.raises(Killed):
            objective(store, scorers).evaluate(0, 0.0)
        assert rewards(store, 0) == []
        assert store.attributes.calibration is None
        assert len(CheckStore(store).rewards("key-a", 0, "search")) >= BLOCK

    @pytest.mark.parametrize(("trial", "dies_after"), [(0, 5), (0, BLOCK + 5), (1, BLOCK + 5)])
    def test_a_kill_while_the_second_rates_costs_one_block(self, url: str, trial: int, dies_after: int) -> None:
        whole = Store(url, "whole")
        undisturbed = [objective(whole, judges()).evaluate(*at) for at in ((0, 0.0), (1, 0.3))]
        store, scorers, after = Store(url, "s"), judges(), judges()
        if trial:
            objective(store, judges()).evaluate(0, 0.0)
        scorers[1].dies_after = dies_after
        with pytest.raises(Killed):
            objective(store, scorers).evaluate(trial, undisturbed[trial].alpha)
        kept = len(CheckStore(store).rewards("key-b", trial, "search"))
        assert dies_after - BLOCK < kept <= dies_after
        model = FakeModel()
        e = objective(store, after, model=model).evaluate(trial, undisturbed[trial].alpha)
        assert numbers(e) == numbers(undisturbed[trial])
        assert [len(s.scored) for s in after] == [N - kept, N - kept]
        assert rewards(store, trial) == rewards(whole, trial)

    @pytest.mark.parametrize("dies_at", ["calibration", "combined"])
    def test_a_kill_between_rating_and_combining_alpha_0_rates_nothing_twice(self, url: str, dies_at: str) -> None:
        whole = Store(url, "whole")
        undisturbed = objective(whole, judges()).evaluate(0, 0.0)
        dying = DyingStore(url, "s")
        dying.dies_at = dies_at
        with pytest.raises(Killed):
            objective(dying, judges()).evaluate(0, 0.0)
        store, idle, model = Store(url, "s"), judges(), FakeModel()
        assert (store.attributes.calibration is None) == (dies_at == "calibration")
        e = objective(store, idle, model=model).evaluate(0, 0.0)
        assert (model.asked, [s.scored for s in idle]) == ([], [[], []])
        assert numbers(e) == numbers(undisturbed)
        assert store.attributes.calibration == whole.attributes.calibration
        assert rewards(store, 0) == rewards(whole, 0)

    def test_a_kill_between_rating_and_combining_a_later_trial_rates_nothing_twice(self, url: str) -> None:
        dying = DyingStore(url, "s")
        control = objective(dying, judges()).evaluate(0, 0.0)
        dying.dies_at = "combined"
        with pytest.raises(Killed):
            objective(dying, judges()).evaluate(1, 0.3)
        store, after = Store(url, "s"), judges()
        n_rated = len(CheckStore(store).rewards("key-b", 1, "search"))
        assert n_rated > 0
        assert rewards(store, 1) == []
        e = objective(store, after).evaluate(1, 0.3)
        assert [len(s.scored) for s in after] == [N - n_rated, N - n_rated]
        assert e.gain.mean == pytest.approx(statistics.fmean(by_hand(judges(), 0.3)) - control.reward.mean)

    def test_they_may_rate_beside_a_model_that_goes_on_answering(self, url: str) -> None:
        whole, store = Store(url, "whole"), Store(url, "s")
        for kept, rating in ((whole, RewardModels(judges())), (store, Beside(judges()))):
            ensemble = Ensemble(kept, Members(MODELS, "mean"))
            run = Objective(FakeModel(), rating, kept, PROMPTS, FakeWatcher(), ensemble=ensemble)
            assert [run.evaluate(trial, alpha).alpha for trial, alpha in ((0, 0.0), (1, 0.3))] == [0.0, 0.3]
        for trial in (0, 1):
            assert rewards(store, trial) == rewards(whole, trial)

    def test_a_model_that_cannot_tell_answers_apart_ends_the_search_with_all_kept(self, url: str) -> None:
        class Flat(Judge):
            def reward(self, alpha: float, prompt: Prompt, *more: float) -> float:  # noqa: ARG002
                return 0.5

        store = Store(url, "s")
        with pytest.raises(RewardError, match=r"reward model B: the same reward, 0\.5, for all 148 answers"):
            objective(store, (judges()[0], Flat())).evaluate(0, 0.0)
        idle = judges()[0], Flat()
        with pytest.raises(RewardError, match="reward model B"):
            objective(store, idle).evaluate(0, 0.0)
        assert [s.scored for s in idle] == [[], []]

    def test_on_a_server_it_is_as_in_a_file(self, postgres: Any, url: str) -> None:
        found = []
        for place in (url, postgres.database()):
            store = Store(place, "s")
            with store.owned():  # on a server answers are then kept in memory, and written behind
                evaluate = objective(store, judges()).evaluate
                found.append([numbers(evaluate(0, 0.0)), numbers(evaluate(1, 0.3))])
            found[-1].append(rewards(store, 1))  # type: ignore[arg-type]
        assert found[0] == found[1]


class TestStatistics:
    """Worlds of normal rewards: what the two ways of combining are for."""

    def world(self, rng: np.random.Generator, n: int, gains: Sequence[float]) -> list[tuple[list[float], list[float]]]:
        """By model, rewards at alpha = 0 and at alpha, in a unit of its own; `gains`: in deviations of its own."""
        level = rng.normal(size=n)
        found = []
        for i, gain in enumerate(gains):
            unit, zero = 10.0**i, 5.0 * i
            control, there = (level + rng.normal(size=n) + shift for shift in (0.0, gain * 2**0.5))
            found.append(((zero + unit * control).tolist(), (zero + unit * there).tolist()))
        return found

    def gain(self, world: Sequence[tuple[list[float], list[float]]], combine: Combine) -> Estimate:
        standards = [Standard.of(MODELS[i], control) for i, (control, _) in enumerate(world)]
        calibration = Calibration(tuple(standards), combine)
        control, there = ([calibration.combined(each) for each in zip(*(of_one[k] for of_one in world), strict=True)]
                          for k in (0, 1))  # fmt: skip
        return estimate([a - b for a, b in zip(there, control, strict=True)])

    def test_the_means_interval_holds_its_gain_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(5)
        found = [self.gain(self.world(rng, 100, (0.2, 0.4)), "mean") for _ in range(600)]
        held = sum(e.low <= 0.3 <= e.high for e in found) / len(found)
        assert (
            0.92 <= held <= 0.98
        )  # 95 % but for 2.6 standard errors of so many worlds, and the calibration's own error

    def test_the_mean_is_surer_than_either_and_the_least_wants_both(self) -> None:
        rng = np.random.default_rng(6)
        agreeing = [self.world(rng, 100, (0.3, 0.3)) for _ in range(100)]
        one_sided = [self.world(rng, 100, (1.5, -0.6)) for _ in range(100)]
        alone = [[self.gain([w[i]], "mean").se for w in agreeing] for i in (0, 1)]
        assert statistics.fmean(self.gain(w, "mean").se for w in agreeing) < 0.85 * statistics.fmean(
            alone[0] + alone[1]
        )
        # a gain that one reward model alone sees, and the other a loss: the mean takes it, the least does not
        assert all(self.gain(w, "mean").low > 0 for w in one_sided)
        assert not any(self.gain(w, "worst-case").low > 0 for w in one_sided)
        assert sum(self.gain(w, "worst-case").low > 0 for w in agreeing) > 50


class TestSpelled:
    def test_an_array_of_tables_is_several_reward_models(self, tmp_path: Path) -> None:
        (tmp_path / "judge").mkdir()
        file = tmp_path / "mine.toml"
        file.write_text(
            '[pair]\naligned="a/b"\nsft="c/d"\n[search]\ncombine_rewards="worst-case"\n'
            '[[reward]]\nmodel="judge"\nmax_tokens=99\n[[reward]]\nmodel="o/r"\nrevision="v1"\n'
        )
        spec = es.load_study(file=file)
        assert [(e.model, e.revision, e.max_tokens) for e in spec.rewards] == [
            (str(tmp_path / "judge"), None, 99), ("o/r", "v1", 4096),
        ]  # fmt: skip
        assert (spec.search.combine_rewards, spec.pair.reward_model) == ("worst-case", None)
        again = es.StudySpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"))))
        assert again == spec
        first, second = spec.each_reward
        assert (first.pair.reward_model, first.reward.max_tokens, first.rewards) == (str(tmp_path / "judge"), 99, ())
        assert (second.pair.reward_model, second.pair.reward_revision) == ("o/r", "v1")

    def test_options_that_are_repeated_are_the_same(self) -> None:
        given = overrides({"reward_model": ["a/r", "b/r"], "arithmetic": "float32", **PAIR})
        spec = es.load_study(overrides=given)
        assert [(e.model, e.arithmetic) for e in spec.rewards] == [("a/r", "float32"), ("b/r", "float32")]
        assert spec.reward.arithmetic == "float32"
        assert overrides({"reward_model": ["a/r"]}) == {"pair": {"reward_model": "a/r"}}
        assert overrides({"reward_model": []}) == {}

    def test_they_replace_a_presets_and_one_replaces_them(self, tmp_path: Path) -> None:
        several = {"pair": {"reward_model": ["a/r", "b/r"]}}
        demo = es.load_study(preset="demo", overrides=several)
        assert [(e.model, e.max_tokens) for e in demo.rewards] == [("a/r", 512), ("b/r", 512)]
        assert es.load_study(preset="zephyr", overrides=several).pair.reward_model is None
        file = tmp_path / "mine.toml"
        file.write_text('preset="zephyr"\n[[reward]]\nmodel="a/r"\n[[reward]]\nmodel="b/r"\nmax_tokens=99\n')
        one = es.load_study(file=file, overrides={"pair": {"reward_model": "c/r"}})
        assert (one.rewards, one.pair.reward_model) == ((), "c/r")
        run = es.load_study(file=file, overrides={"reward": {"backend": "vllm", "max_tokens": 7777}})
        assert [(e.backend, e.max_tokens) for e in run.rewards] == [("vllm", 7777), ("vllm", 7777)]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"reward": [{"model": "a/r"}]}, "reward: one reward model in an array; expected two or more"),
            ({"reward": []}, "reward: no reward model in an array"),
            ({"reward": [{"model": "a/r"}, {"model": "a/r"}]}, "reward: a/r twice; expected reward models that differ"),
            ({"reward": [{"model": "a/r"}, {}]}, r"reward\.1\.model: nothing"),
            ({"reward": [{"model": "a/r"}, {"model": "b/r", "scorer": "x:f"}]}, r"reward\.1\.scorer: no such setting"),
            ({"reward": [{"model": "a/r"}, {"model": "b/r", "backend": "vllm"}]}, "more than one backend"),
            ({"reward": [{"model": "a/r"}, 3]}, r"reward\.1"),
            ({"rewards": {"model": "a/r"}}, "reward"),
            ({"rewards": 5}, "reward"),
            ({"pair": PAIR | {"reward_model": ["a/r", "b/r"]}, "reward": {"scorer": "x.py:f"}},
             "a scorer beside several reward models; expected one of the two"),
            ({"pair": PAIR | {"reward_model": "a/r"}, "reward": [{"model": "b/r"}, {"model": "c/r"}]},
             r"several reward models beside reward_model in \[pair\]"),
            ({"pair": PAIR | {"reward_model": "a/r"}, "search": {"combine_rewards": "worst-case"}},
             "combine_rewards 'worst-case' with one reward model"),
            ({"search": {"combine_rewards": "least"}, "reward": [{"model": "a/r"}, {"model": "b/r"}]},
             r"search\.combine_rewards: '\w+'; expected mean or worst-case"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_one_line(self, changes: dict[str, Any], said: str) -> None:
        told: dict[str, Any] = {"pair": PAIR} | changes
        with pytest.raises(StudyError, match=said):
            es.load_study(overrides=told)

    def test_with_one_reward_model_a_study_keeps_what_it_kept(self) -> None:
        spec = es.load_study(overrides={"pair": PAIR | {"reward_model": "a/r"}})
        kept = spec.model_dump(mode="json")
        assert "rewards" not in kept
        assert "combine_rewards" not in kept["search"]
        assert "combine_rewards" not in spec.search.model_dump(exclude={"tolerance"})

    def test_the_schema_takes_a_table_or_an_array(self) -> None:
        told = schema()
        table, array = told["properties"]["reward"]["anyOf"]
        assert table == {"$ref": "#/$defs/RewardSpec"}
        assert (array["type"], array["items"]) == ("array", {"$ref": "#/$defs/RewardModelSpec"})
        assert "rewards" not in told["properties"]
        assert told["$defs"]["RewardModelSpec"]["properties"]["model"]["description"]

    def test_the_command_that_goes_on_has_them(self) -> None:
        search = {"combine_rewards": "worst-case"}
        spec = es.load_study(name="mine", overrides={"pair": PAIR | {"reward_model": ["a/r", "b/r"]}, "search": search})
        command = go_on(spec.model_dump(mode="json"), "mine", "sqlite:///expo-search.db", None)
        assert "--reward-model a/r --reward-model b/r" in command
        assert "--combine-rewards worst-case" in command
        assert "FILE" not in command
        demo = es.load_study(preset="demo", overrides={"pair": {"reward_model": ["a/r", "b/r"]}})
        command = go_on(demo.model_dump(mode="json"), "demo", "sqlite:///expo-search.db", None)
        assert command == "expo-search --pair demo --reward-model a/r --reward-model b/r"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair, two reward models that differ in direction and unit, prompts."""
    folder = tmp_path_factory.mktemp("several")
    make_pair(folder, "llama-tied")
    make_reward_model(folder / "one")
    edit(folder / "one", lambda name, t: -t if "score" in name else t)  # which likes the fake model's answers more
    shutil.copytree(folder / "one", folder / "two")
    edit(folder / "two", lambda name, t: 3 * t.flip(-1) if "score" in name else t)
    write_prompts(folder / "prompts.jsonl", 60)
    return folder


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def several(*models: str, **tables: Any) -> es.StudySpec:
    told: dict[str, Any] = {
        "pair": {"aligned": "aligned", "sft": "sft", "reward_model": list(models or ("one", "two"))},
        "prompts": {"source": "prompts.jsonl", "n": 40},
        "sampling": {"max_tokens": 8},
        "engine": {"max_model_len": 128},
        "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
    }
    return es.load_study(name="mine", overrides=told | tables)


def opened(spec: es.StudySpec | str, url: str, **options: Any) -> es.Session:
    usual: dict[str, Any] = {"model": FakeModel(), "quiet": True, "start": False}
    return es.open_session(spec, url, **(usual | options))


@pytest.mark.usefixtures("home")
class TestSession:
    """Real tiny reward models rate a fake model's answers."""

    def test_a_search_its_confirmation_and_what_is_shown(self, url: str, tmp_path: Path) -> None:
        with opened(several(), url) as session:
            result = session.search(n_trials=3)
            trial = result.evaluations[2]
            session.confirm(trial, 16)
            comparison = session.compare([0.0, 0.5], ["What is new?", "What is old?"])
            result = session.result()
        assert result.calibration is not None
        assert [s.name for s in result.calibration.standards] == ["one", "two"]
        kept, store = CheckStore(Store(url, "mine", read_only=True)), Store(url, "mine", read_only=True)
        for e in result.evaluations:
            each = [kept.rewards(s.key, e.trial, "search") for s in result.calibration.standards]
            expected = [result.calibration.combined(r) for r in zip(*(x.values() for x in each), strict=True)]
            assert rewards(store, e.trial) == expected
            assert e.reward == estimate(expected)
        assert result.evaluations[0].reward.mean == pytest.approx(0.0, abs=1e-9)
        assert len(comparison.rows) == 2
        # the rewards that compare shows are in the search's unit
        assert abs(comparison.rows[0][0].reward) < 10

        best = result.best
        assert best is not None
        assert [g.model for g in result.model_gains] == ["one", "two"]
        part: Part = "confirm" if result.verdict.confirmed is not None else "search"
        for gain, standard in zip(result.model_gains, result.calibration.standards, strict=True):
            there, control = (kept.rewards(standard.key, t, part) for t in (best.trial, 0))
            assert gain.gain == estimate([there[p] - control[p] for p in sorted(there)])
        shown = " ".join(CliRunner().invoke(app, ["show", "mine", "--storage", url]).output.split())
        assert "Rated by the mean of 2 reward models' rewards (one, two)" in shown
        told = f"{result.model_gains[0].gain.mean:+.4f}"
        assert told in shown
        found = json.loads(CliRunner().invoke(app, ["show", "mine", "--storage", url, "--json"]).output)
        assert found["reward_models"] == [g.as_json() for g in result.model_gains]
        write_report(store, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "Each reward model alone" in page
        assert told in page
        assert markdown(told) in get_note(store.study)

    def test_it_goes_on_in_another_session_to_the_same_numbers(self, url: str) -> None:
        with opened(several(), url) as session:
            whole = session.search(n_trials=3).evaluations
        with opened(several(), url.replace("mine", "two")) as session:
            session.search(n_trials=1)
        with opened("mine", url.replace("mine", "two")) as session:
            again = session.search(n_trials=3).evaluations
        assert [numbers(e) for e in again] == [numbers(e) for e in whole]

    @pytest.mark.parametrize(
        ("models", "search"),
        [(("two", "one"), {}), (("one", "two"), {"combine_rewards": "worst-case"}), (("one", "three"), {})],
    )
    def test_other_models_another_order_or_combination_are_other_settings(
        self, url: str, home: Path, models: tuple[str, ...], search: dict[str, Any]
    ) -> None:
        if not (home / "three").exists():
            shutil.copytree(home / "one", home / "three")
            edit(home / "three", lambda name, t: t * 0.5 if "score" in name else t)
        with opened(several(), url) as session:
            session.search(n_trials=1)
        kept = several().search.model_dump(exclude_unset=True)
        with pytest.raises(SettingsChanged, match="reward"):
            opened(several(*models, search=kept | search), url)

    def test_one_of_them_alone_is_another_study(self, url: str) -> None:
        with opened(several(), url) as session:
            session.search(n_trials=1)
        with pytest.raises(SettingsChanged, match=r"pair\.reward_model"):
            opened(several("one"), url)

    def test_nothing_is_compared_before_alpha_0_is_rated(self, url: str) -> None:
        model = FakeModel()
        said = "study mine: no finished trial at alpha = 0"
        with opened(several(), url, model=model) as session, pytest.raises(StudyError, match=said):
            session.compare([0.0, 0.5], ["What is new?"])
        assert model.alphas == []

    def test_the_same_weights_twice_and_a_scorer_beside_them_are_refused(self, url: str, home: Path) -> None:
        shutil.copytree(home / "one", home / "copy", dirs_exist_ok=True)
        with pytest.raises(RewardError, match="reward model copy: the same weights as one"):
            opened(several("one", "copy"), url)
        with pytest.raises(StudyError, match="scorer: one beside 2 reward models"):
            opened(several(), url, scorer=FakeScorer())

    @pytest.mark.parametrize("model", ["one", "./two/"])
    def test_a_second_judge_is_none_of_them(self, url: str, model: str) -> None:
        said = "one of the reward models that the search uses"
        with opened(several(), url) as session, pytest.raises(RewardError, match=said):
            session.find_judge(model)

    def test_a_second_judge_checks_the_combined_reward(self, url: str, home: Path) -> None:
        shutil.copytree(home / "one", home / "judge", dirs_exist_ok=True)
        edit(home / "judge", lambda name, t: -t if "score" in name else t)
        with opened(several(), url) as session:
            session.search(n_trials=2)
            session.find_judge("judge")
            e = session.result().evaluations[1]
            found = session.check(e)
        assert found is not None
        assert (found.judge, found.own) == ("judge", e.gain)
        assert [s.key for s in es.open_study(url, "mine").calibration.standards] != list(  # type: ignore[union-attr]
            CheckStore(Store(url, "mine", read_only=True)).judges
        )

    def test_the_memory_plan_has_room_for_all_of_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gib = 1 << 30
        monkeypatch.setattr(planning, "measure_machine", lambda *_: Machine(64 * gib, 79 * gib, 80 * gib))
        said: list[str] = []
        both, alone = (
            check(several(*names), "sqlite:///a.db", said.append).memory for names in (("one", "two"), ("one",))
        )
        assert both is not None
        assert alone is not None
        one = check(several("one"), "sqlite:///a.db", lambda _: None)
        weights = both.device["reward model"] - alone.device["reward model"]
        assert 0 < weights < alone.device["reward model"], "one more's weights, and no more activations"
        assert any("2 reward models " in line for line in said)
        assert one.members is None
        assert not {"reward.combine", "search.combine_rewards"} & one.settings.flat().keys()

    def test_folders_that_end_alike_are_named_by_more_of_their_path_and_no_more(self, folder: Path, url: str) -> None:
        for name in ("one", "two"):
            shutil.copytree(folder / name, folder / "models" / name / "final", dirs_exist_ok=True)
        checked = check(several("models/one/final", "models/two/final"), url, lambda _: None, own_model=False)
        assert checked.members is not None
        assert [member.name for member in checked.members.models] == ["one/final", "two/final"]

    def test_a_dry_run_checks_all_of_them(self, url: str) -> None:
        words = ["--aligned", "aligned", "--sft", "sft", "--reward-model", "one", "--reward-model", "aligned"]
        words += ["--prompts", "prompts.jsonl", "--dry-run", "--max-tokens", "8", "--storage", url]
        run = CliRunner().invoke(app, words)
        assert run.exit_code != 0
        assert "a language model" in str(run.exception)


@pytest.mark.usefixtures("home")
def test_the_real_engine_searches_exports_and_reproduces_to_the_same_rewards(url: str, tmp_path: Path) -> None:
    spec = several("one", "two", prompts={"source": "prompts.jsonl", "n": 18})
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"combine_rewards": "worst-case"})})
    spec = spec.model_copy(update={"engine": spec.engine.model_copy(update={"kv_cache_gib": 1, "max_num_seqs": 16})})
    with opened(spec, url, model=None) as session:
        result = session.search(n_trials=2)
    e = result.evaluations[1]
    assert result.evaluations[0].reward.mean < 0 < len(result.model_gains)
    es.export(result, tmp_path / "out", alpha=e.alpha)
    content = read_provenance(tmp_path / "out")
    assert [s["name"] for s in content["calibration"]] == ["one", "two"]
    assert content["settings"]["reward.combine"] == "worst-case"
    # of a part of the prompts, whose rewards at alpha = 0 have another spread than those of the study
    again = reproduce(content, FakeWatcher(), lambda _: None, trust_remote_code=False, n_prompts=8)
    assert again.grade == "identical"
    assert "worst-case of their standardised rewards" in (tmp_path / "out" / "README.md").read_text()


class TestShown:
    GAINS = (
        ModelGain("A", 1, 0.3, "confirm", 1.2, 1.0, Estimate(0.2, 0.05, 100), 2.0),
        ModelGain("B", 1, 0.3, "confirm", 9.0, 10.0, Estimate(-1.0, 0.2, 100), 5.0),
        ModelGain("C", 1, 0.3, "confirm", 0.1, 0.0, Estimate(0.1, 0.2, 100), 1.0),
    )
    CALIBRATION = Calibration(tuple(Standard(g.model.lower(), g.model, g.control, g.sd) for g in GAINS), "worst-case")

    def test_the_sentence_says_the_unit_and_who_does_not_agree(self) -> None:
        assert ensemble_sentence(self.CALIBRATION, self.GAINS) == (
            "Rated by the least of 3 reward models' rewards (A, B, C), each in standard deviations of its own at "
            "alpha = 0. At alpha = 0.3 B alone sees a loss and C alone sees no gain that is sure."
        )
        agreed = [replace(g, gain=Estimate(0.2, 0.05, 100)) for g in self.GAINS]
        assert ensemble_sentence(self.CALIBRATION, agreed).endswith("Each of them alone sees a gain at alpha = 0.3.")
        assert ensemble_sentence(self.CALIBRATION, []).endswith("of its own at alpha = 0.")

    def test_the_card_and_expo_json_have_them_and_name_no_folder(self, tmp_path: Path) -> None:
        origin = make_origin(tmp_path)
        spec = es.load_study(overrides={"pair": PAIR | {"reward_model": ["/home/me/a", "o/b"]}}, name="mine")
        rating = (Source(Path("/home/me/a"), "/home/me/a", "local"), Source(tmp_path, "o/b", "abc", on_hub=True))
        pair = Pair(origin.pair.aligned, origin.pair.sft, reward_models=rating)
        origin = replace(origin, spec=spec, pair=pair, calibration=self.CALIBRATION, model_gains=self.GAINS)
        text = card(origin)
        assert "reward models: A, B, C; worst-case of their standardised rewards" in text
        assert "| B | 100 fresh | 10.0000 | 9.0000 |" in text
        assert "/home/me" not in text
        shown = provenance(public(origin))
        assert "/home/me" not in json.dumps(shown)
        assert (shown["pair"]["reward_model_1"]["id"], shown["pair"]["reward_model_2"]["id"]) == ("./a", "o/b")
        assert [entry["model"] for entry in shown["spec"]["rewards"]] == ["./a", "o/b"]
        assert shown["spec"]["rewards"][1]["revision"] == "abc"
        assert [s["name"] for s in shown["calibration"]] == ["A", "B", "C"]
        assert len(shown["reward_models"]) == 3
        assert "calibration" not in provenance(make_origin(tmp_path))
