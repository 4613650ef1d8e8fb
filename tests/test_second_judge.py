"""A second judge: the rule of its word, its ratings of stored answers, and where what it says is shown."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from databases import PostgresServer
from fakes import BEST, FakeModel, FakeScorer, Killed, make_evaluation
from optuna_dashboard import get_note
from test_model_card import make_origin
from twins import drop, edit, write_prompts
from typer.testing import CliRunner

import expo_search as es
from expo_search.cli.main import app
from expo_search.config.presets import studies_folder
from expo_search.contracts import Part
from expo_search.engine.machine import Machine
from expo_search.errors import ExpoError, PairError, RewardError, SettingsChanged
from expo_search.evaluation.answering import BLOCK
from expo_search.evaluation.second_judge import Check, Word, agreement
from expo_search.exporting.model_card import card
from expo_search.exporting.provenance import provenance
from expo_search.inputs.prompts import load_prompts
from expo_search.inputs.trained_on import ids_among, read_trained_on
from expo_search.results.html_report import write_report
from expo_search.results.next_commands import go_on
from expo_search.results.second_judge import check_sentence
from expo_search.session import planning
from expo_search.session.preflight import check
from expo_search.session.running import Running
from expo_search.session.second_judge import SecondJudge, find_judge
from expo_search.stats.paired import Estimate, estimate
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store

N, N_FRESH = 96, 40
SETTINGS: dict[str, dict[str, Any]] = {
    "pair": {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/reward"},
    "prompts": {"n": N},
    "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
}


def rising() -> FakeScorer:
    """A judge by which the fakes' best alpha gains as by the search's own, about 0.5, with a spread of 0.8."""
    return FakeScorer(truth=lambda a: 0.5 - 4.0 * (a - BEST) ** 2, noise=0.8)


def flat() -> FakeScorer:
    """One by which no alpha gains anything."""
    return FakeScorer(truth=lambda _: 0.0, noise=0.3)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mine.db'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searched")


@pytest.fixture(scope="module")
def spec(folder: Path) -> es.StudySpec:
    write_prompts(folder / "prompts.jsonl", N + N_FRESH)
    source = {"source": str(folder / "prompts.jsonl")}
    return es.load_study(name="mine", overrides=SETTINGS | {"prompts": SETTINGS["prompts"] | source})


def opened(spec: es.StudySpec | str, url: str, **options: Any) -> es.Session:
    usual: dict[str, Any] = {"model": FakeModel(), "scorer": FakeScorer(noise=0.5), "quiet": True, "start": False}
    return es.open_session(spec, url, **(usual | options))


@pytest.fixture(scope="module")
def winner(spec: es.StudySpec, folder: Path) -> es.Evaluation:
    """The winner of a search, in once.db."""
    with opened(spec, f"sqlite:///{folder / 'once.db'}") as session:
        best = session.search(n_trials=4).verdict.recommended
    assert best is not None
    return best


@pytest.fixture
def searched(winner: es.Evaluation, folder: Path, tmp_path: Path) -> es.Evaluation:
    """The same, with its database at `url`."""
    shutil.copy(folder / "once.db", tmp_path / "mine.db")
    return winner


def paired(judge: FakeScorer, store: Store, trial: int, part: Any, n: int) -> Estimate:
    """A judge's gain by the test's own arithmetic, from the answers that the database has."""
    prompts = store.prompts(part)[:n]
    winner, control = (judge.score([s.completion for s in store.completions(t, part, prompts)], lambda _: None)[0]
                       for t in (trial, 0))  # fmt: skip
    assert len(winner) == n
    return estimate([w - c for w, c in zip(winner, control, strict=True)])


class TestAgreement:
    OWN = Estimate(0.28, 0.05, 256)  # a standard deviation of 0.8: 0.35 of them

    @pytest.mark.parametrize(
        ("own", "judged", "word"),
        [
            # a standard deviation of 0.64; half of the own gain is 0.175 of them, 0.112
            (OWN, Estimate(0.20, 0.04, 256), "agrees"),
            (OWN, Estimate(0.081, 0.04, 256), "agrees"),  # 1.97 standard errors are 0.079
            (OWN, Estimate(0.02, 0.04, 256), "likely over-optimised"),  # up to 0.099
            (OWN, Estimate(0.04, 0.04, 256), "cannot tell"),  # up to 0.119
            (OWN, Estimate(-0.20, 0.04, 256), "likely over-optimised"),
            (OWN, Estimate(20.0, 40.0, 256), "likely over-optimised"),  # in another unit
            (Estimate(0.28, 0.1, 64), Estimate(0.02, 0.08, 64), "cannot tell"),  # too few prompts
            (Estimate(0.05, 0.05, 256), Estimate(0.0, 0.001, 256), "cannot tell"),  # nothing to agree with
            (Estimate(0.05, 0.05, 256), Estimate(-0.2, 0.05, 256), "likely over-optimised"),
            (OWN, Estimate(0.0, 0.0, 256), "cannot tell"),  # the same to all
            (Estimate(0.5, math.inf, 1), Estimate(0.5, math.inf, 1), "cannot tell"),
        ],
    )
    def test_it_is_by_the_interval_and_by_the_own_rewards_gain(
        self, own: Estimate, judged: Estimate, word: Word
    ) -> None:
        assert agreement(own, judged) == word

    def test_where_it_cannot_tell_it_says_how_many_prompts_would(self) -> None:
        few = Check("rm", 1, 0.3, "search", Estimate(0.28, 0.1, 64), Estimate(0.02, 0.08, 64))
        assert few.n_needed == 260  # (2.8 / (0.35 / 2))^2 = 256
        assert check_sentence(few).endswith(": cannot tell (about 260 prompts would).")
        many = replace(few, own=self.OWN, gain=Estimate(0.06, 0.05, 300))
        assert (many.word, many.n_needed) == ("cannot tell", None)

    def test_the_sentence_has_both_gains_with_their_intervals(self) -> None:
        said = check_sentence(Check("owner/rm", 1, 0.3, "confirm", self.OWN, Estimate(0.02, 0.04, 256)))
        assert said == (
            "Checked by a reward model that the search never used, on the answers to 256 fresh prompts: its own reward "
            "+0.2800 [+0.1815, +0.3785]; owner/rm +0.0200 [-0.0588, +0.0988]: likely over-optimised (at most 0.15 "
            "standard deviations of a prompt's gain, by its own reward 0.35)."
        )


class TestCheck:
    @pytest.mark.parametrize(("judge", "word"), [(rising(), "agrees"), (flat(), "likely over-optimised")])
    def test_it_is_paired_on_the_answers_that_the_search_stored(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation, judge: FakeScorer, word: str
    ) -> None:
        model = FakeModel()
        with opened(spec, url, model=model) as session:
            assert session.find_judge("my/judge", scorer=judge) == "my/judge"
            found = session.check()
        assert model.alphas == [], "no answer is new"
        assert found is not None
        store = Store(url, "mine", read_only=True)
        assert found.gain == paired(judge, store, searched.trial, "search", N)
        assert (found.own, found.part, found.word) == (searched.gain, "search", word)
        result = es.open_study(url, "mine")
        assert list(result.checks) == [found]
        assert check_sentence(found) in result.remarks
        assert f"my/judge {found.gain.mean:+.4f}" in check_sentence(found)
        assert f"prompts, by which it was picked: its own reward {searched.gain.mean:+.4f}" in check_sentence(found)

    def test_a_confirmations_answers_are_judged_where_there_is_one(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        judge = rising()
        with opened(spec, url) as session:
            confirmed = session.confirm(searched, 32)
            session.find_judge("my/judge", scorer=judge)
            found = session.check()
        assert found is not None
        assert confirmed is not None
        assert (found.part, found.own) == ("confirm", confirmed.estimate)
        assert found.gain == paired(rising(), Store(url, "mine", read_only=True), searched.trial, "confirm", 32)
        assert len(judge.scored) == 64

    def test_a_confirmation_on_more_prompts_has_only_the_new_answers_judged(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        judge = rising()
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=judge)
            for n in (16, 32):
                session.confirm(searched, n)
                found = session.check(searched)
                assert found is not None
                assert found.gain.n == n
        assert len(judge.scored) == len(set(judge.scored)) == 64

    @pytest.mark.parametrize("confirmed", [False, True])
    def test_prompts_that_the_judge_was_trained_on_are_left_out_and_counted(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation, confirmed: bool
    ) -> None:
        judge, again = rising(), rising()
        with opened(spec, url) as session:
            part: Part = "confirm" if confirmed else "search"
            n = 32 if confirmed else N
            if confirmed:
                session.confirm(searched, n)
            prompts = Store(url, "mine", read_only=True).prompts(part)
            seen, new = prompts[: n // 2], prompts[n // 2 : n]
            elsewhere = frozenset({"0" * 64})
            knows = frozenset(hashlib.sha256(p.text.encode()).hexdigest() for p in seen) | elsewhere
            session._judge = SecondJudge("key", "my/judge", judge, knows)
            found = session.check(searched)
            session._judge = SecondJudge("key", "my/judge", again, knows)
            assert session.check(searched) == found
        assert found is not None
        store = Store(url, "mine", read_only=True)
        stored = {t: store.completions(t, part, prompts[:n])[n // 2 :] for t in (searched.trial, 0)}
        answers = {t: [s.completion for s in of] for t, of in stored.items()}
        gains = [w - c for w, c in zip(*(rising().score(a, lambda _: None)[0] for a in answers.values()), strict=True)]
        assert found.gain == estimate(gains)
        assert (found.own.n, found.left_out, found.as_json()["left_out"]) == (len(new), len(seen), len(seen))
        assert (len(judge.scored), again.scored) == (2 * len(new), [])
        assert f"({len(seen)} prompts left out that it was trained on): its own reward" in check_sentence(found)
        assert list(es.open_study(url, "mine").checks) == [found]

    def test_a_judge_that_was_trained_on_all_of_the_prompts_checks_nothing_and_says_so(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        judge, said = rising(), list[str]()
        with opened(spec, url) as session:
            session.say = said.append
            texts = [p.text for p in Store(url, "mine", read_only=True).prompts("search")]
            knows = frozenset(hashlib.sha256(text.encode()).hexdigest() for text in texts[1:])
            session._judge = SecondJudge("key", "my/judge", judge, knows)
            assert session.check(searched) is None
        assert judge.scored == []
        assert said[-1] == f"study mine: my/judge was trained on these {N} prompts, so it checks nothing"
        assert list(es.open_study(url, "mine").checks) == []

    def test_what_is_judged_is_printed_and_not_judged_again(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        first, idle = rising(), rising()
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=first)
            found = session.check(searched)
        with opened("mine", url) as session:
            session.find_judge("my/judge", scorer=idle)
            assert session.check() == found
            assert "store" not in vars(session.running)
        assert (len(first.scored), idle.scored) == (2 * N, [])

    def test_a_kill_costs_one_block_of_answers(self, spec: es.StudySpec, url: str, searched: es.Evaluation) -> None:
        dying, after = rising(), rising()
        dying.dies_after = N + BLOCK + 5
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=dying)
            with pytest.raises(Killed):
                session.check()
        assert list(es.open_study(url, "mine").checks) == [], "half of it says nothing"
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=after)
            found = session.check()
        assert len(after.scored) == N - BLOCK
        assert found is not None
        assert found.gain == paired(rising(), Store(url, "mine", read_only=True), searched.trial, "search", N)

    def test_it_stops_between_blocks_when_asked_to(self, spec: es.StudySpec, url: str, searched: es.Evaluation) -> None:
        judge, asked = rising(), list[int]()

        def stop() -> bool:
            asked.append(1)
            return len(asked) > 1

        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=judge)
            assert session.check(searched, stop=stop) is None
            assert len(judge.scored) == BLOCK
            assert session.check(searched) is not None
        assert len(judge.scored) == 2 * N

    def test_judges_stand_beside_each_other(self, spec: es.StudySpec, url: str, searched: es.Evaluation) -> None:
        with opened(spec, url) as session:
            for name, judge in (("one", rising()), ("two", flat())):
                session.find_judge(name, scorer=judge)
                session.check(searched)
        result = es.open_study(url, "mine")
        assert [(c.judge, c.word) for c in result.checks] == [("one", "agrees"), ("two", "likely over-optimised")]
        assert len(result.remarks) == 2

    def test_without_a_winner_there_is_nothing_to_check(self, spec: es.StudySpec, url: str) -> None:
        judge = rising()
        with opened(spec, url, scorer=flat()) as session:
            session.find_judge("my/judge", scorer=judge)
            assert session.search(n_trials=2).verdict.recommended is None
            assert session.check() is None
        assert judge.scored == []

    def test_without_a_judge_nothing_is_checked(self, spec: es.StudySpec, url: str, searched: es.Evaluation) -> None:
        with opened(spec, url) as session:
            assert session.find_judge() is None
            assert session.check(searched) is None

    @pytest.mark.parametrize("kind", ["win-rate", "length-controlled"])
    def test_the_gain_is_by_the_studys_objective(self, spec: es.StudySpec, url: str, kind: str) -> None:
        asked = spec.model_copy(update={"search": spec.search.model_copy(update={"objective": kind})})
        with opened(asked, url, model=FakeModel(stretch=lambda a: 1 + a)) as session:
            e = session.search(n_trials=2).evaluations[1]
            session.find_judge("my/judge", scorer=rising())
            found = session.check(e)
        assert found is not None
        assert found.own == e.gain
        raw = paired(rising(), Store(url, "mine", read_only=True), e.trial, "search", N)
        assert found.gain != raw
        assert abs(found.gain.mean) <= 0.5 or kind != "win-rate"

    def test_answers_to_other_prompts_are_forgotten_with_their_ratings(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        with opened(spec, url) as session:
            session.confirm(searched, 8)
            session.find_judge("my/judge", scorer=rising())
            session.check(searched)
        store = Store(url, "mine")
        [judge] = CheckStore(store).judges
        assert len(CheckStore(store).rewards(judge, searched.trial, "confirm")) == 8
        store.drop("confirm")
        assert CheckStore(store).rewards(judge, searched.trial, "confirm") == {}
        assert list(es.open_study(url, "mine").checks) == []

    def test_on_a_server_it_is_written_and_read_as_in_a_file(
        self, spec: es.StudySpec, postgres: PostgresServer, url: str
    ) -> None:
        there, found = postgres.database(), []
        for place in (url, there):
            with opened(spec, place) as session:
                e = session.search(n_trials=2).evaluations[1]
                session.find_judge("my/judge", scorer=rising())
                with session.owned():  # on a server answers are then kept in memory, and written behind
                    found.append(session.check(e))
                    assert session.check(e) == found[-1]
            assert list(es.open_study(place, "mine").checks) == [found[-1]]
        assert found[0] == found[1]

    def test_many_engines_are_let_go_before_it_is_loaded_and_start_again_where_next_asked_for(self) -> None:
        closed: list[str] = []

        class Part:
            def __init__(self, name: str) -> None:
                self.close = lambda: closed.append(name)

        running = Running(SimpleNamespace(scorer=None), lambda _: None)  # type: ignore[arg-type]
        vars(running).update(pool=Part("pool"), scorer=Part("scorer"), store=Part("store"))
        running.let_scorer_go()
        assert closed == ["pool"], "which rates, too"
        assert vars(running).keys() & {"pool", "scorer", "store"} == {"store"}


class TestShown:
    @pytest.fixture
    def checked(self, spec: es.StudySpec, url: str, searched: es.Evaluation) -> Check:
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=flat())
            found = session.check(searched)
        assert found is not None
        return found

    def test_by_show_its_json_the_report_and_the_note(self, url: str, checked: Check, tmp_path: Path) -> None:
        told = f"my/judge {checked.gain.mean:+.4f}"
        shown = CliRunner().invoke(app, ["show", "mine", "--storage", url])
        assert told in " ".join(shown.output.split())
        numbers = json.loads(CliRunner().invoke(app, ["show", "mine", "--storage", url, "--json"]).output)
        assert numbers["checks"] == [checked.as_json()]
        assert numbers["checks"][0]["word"] == "likely over-optimised"
        assert any(told in remark for remark in numbers["remarks"])
        store = Store(url, "mine", read_only=True)
        write_report(store, tmp_path / "page.html")
        assert told in (tmp_path / "page.html").read_text()
        assert "likely over-optimised" in get_note(store.study)

    def test_by_the_model_card_and_expo_json(self, checked: Check, tmp_path: Path) -> None:
        origin = make_origin(tmp_path, checks=[checked])
        text = card(origin)
        assert "likely over-optimised" in text
        assert "search's own reward model's alone" in text
        assert provenance(origin)["checks"] == [checked.as_json()]
        agreed = replace(checked, gain=checked.own)
        assert "reward model's alone" not in card(make_origin(tmp_path, checks=[agreed]))

    def test_another_trials_check_is_named_with_its_alpha(self, spec: es.StudySpec, url: str, checked: Check) -> None:
        other = next(e for e in es.open_study(url, "mine").evaluations if e.trial not in (0, checked.trial))
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=flat())
            assert session.check(other) is not None
        result = es.open_study(url, "mine")
        assert [said.partition(":")[0] for said in result.other_checks] == [f"alpha = {other.alpha:.4g}"]
        assert len(result.remarks) == 1

    def test_a_database_that_is_older_is_read_as_ever(self, url: str, checked: Check, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "mine.db") as database:
            database.execute("DROP TABLE expo_check_rewards")
        result = es.open_study(url, "mine")
        assert (list(result.checks), result.best is not None) == ([], checked is not None)


class TestSetting:
    def test_a_study_that_is_resumed_may_add_it_drop_it_and_take_another(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        assert searched.alpha
        for model in ("my/judge", "my/other", None):
            pair = spec.pair.model_copy(update={"check_reward_model": model})
            with opened(spec.model_copy(update={"pair": pair}), url) as session:
                session.search(n_trials=4)
            stored = Store(url, "mine", read_only=True).attributes.spec
            assert stored is not None
            assert stored["pair"]["check_reward_model"] == model
        with pytest.raises(SettingsChanged):
            opened(spec.model_copy(update={"pair": pair.model_copy(update={"reward_model": "my/other"})}), url)

    def test_a_study_that_is_named_goes_on_with_its_judge(
        self, spec: es.StudySpec, url: str, searched: es.Evaluation
    ) -> None:
        with opened(spec, url) as session:
            session.find_judge("my/judge", scorer=rising())
            found = session.check(searched)
        with opened("mine", url) as session:
            assert session.find_judge(scorer=rising()) == "my/judge"
            assert session.check(searched) == found

    def test_the_command_that_goes_on_has_it(self) -> None:
        pair = SETTINGS["pair"] | {"check_reward_model": "my/judge", "check_reward_revision": "a" * 40}
        spec = es.load_study(name="mine", overrides={"pair": pair})
        command = go_on(spec.model_dump(mode="json"), "mine", "sqlite:///expo-search.db", None)
        assert "--check-reward-model my/judge" in command
        assert "FILE" not in command

    def test_a_study_files_path_is_seen_from_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "judge").mkdir()
        file = tmp_path / "mine.toml"
        file.write_text('[pair]\naligned="a/b"\nsft="c/d"\nreward_model="e/f"\ncheck_reward_model="judge"\n')
        assert es.load_study(file=file).pair.check_reward_model == str(tmp_path / "judge")

    def test_it_is_no_part_of_where_an_exported_model_comes_from(self, tmp_path: Path) -> None:
        origin = make_origin(tmp_path)
        pair = origin.spec.pair.model_copy(update={"check_reward_model": "/home/me/judge"})
        origin = replace(origin, spec=origin.spec.model_copy(update={"pair": pair}))
        assert provenance(origin)["spec"]["pair"]["check_reward_model"] is None


class TestFind:
    @pytest.fixture
    def home(self, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
        shutil.copytree(tmp_path / "reward", tmp_path / "judge")
        edit(tmp_path / "judge", lambda name, t: -t if "score" in name else t)
        write_prompts(tmp_path / "prompts.jsonl", 20)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def spec(self, **engine: Any) -> es.StudySpec:
        return es.load_study(overrides={
            "pair": {"aligned": "aligned", "sft": "sft", "reward_model": "reward"},
            "prompts": {"source": "prompts.jsonl"},
            "sampling": {"max_tokens": 8}, "engine": {"max_model_len": 128} | engine,
        })  # fmt: skip

    def test_it_is_a_checkpoint_of_its_own_whose_weights_tell_it_from_others(self, home: Path) -> None:
        checked = check(self.spec(), "sqlite:///a.db", lambda _: None)

        def found(model: str) -> Any:
            judge, _ = find_judge(checked, model, None, lambda _: None)
            return judge

        first = found("judge")
        assert (first.name, first.source.path) == ("judge", home / "judge")
        (home / "judge").rename(home / "moved")
        assert found("moved").key == first.key
        assert found("moved").trained_on == frozenset()
        (home / "moved" / "trained_on.txt").write_text(f"{'ab' * 32}\n\n{'cd' * 32}\n")
        assert found("moved").trained_on == {"ab" * 32, "cd" * 32}
        assert found("moved").key != first.key, "it rates other answers"
        (home / "moved" / "trained_on.txt").unlink()
        edit(home / "moved", lambda _, t: t * 1.5)
        assert found("moved").key != first.key

    @pytest.mark.parametrize(
        ("model", "found"),
        [("reward", "the reward model that the search uses"), ("copy", "the reward model that the search uses"),
         ("headless", "no weights for score.weight"), ("aligned", "a language model")],
    )  # fmt: skip
    def test_what_is_no_second_judge_is_refused_before_anything_starts(
        self, home: Path, model: str, found: str
    ) -> None:
        shutil.copytree(home / "reward", home / "copy")
        shutil.copytree(home / "judge", home / "headless")
        drop(home / "headless", "score.weight")
        checked = check(self.spec(), "sqlite:///a.db", lambda _: None)
        with pytest.raises(RewardError, match=found):
            find_judge(checked, model, None, lambda _: None)

    @pytest.mark.usefixtures("home")
    def test_the_studys_own_is_known_by_the_name_that_cards_give_it_without_asking_the_hub(self) -> None:
        """As of a pair that ships as parts, whose spec has no name for it."""
        checked = check(self.spec(), "sqlite:///a.db", lambda _: None)
        own = replace(checked.pair.reward_source, id="demo/reward", revision="0" * 16)
        shipped = replace(checked, pair=replace(checked.pair, reward_model=own))
        with pytest.raises(RewardError, match="demo/reward: the reward model that the search uses"):
            find_judge(shipped, "demo/reward", None, lambda _: None)
        with pytest.raises(PairError, match="check reward model someone/else"):
            find_judge(shipped, "someone/else", None, lambda _: None)

    @pytest.mark.usefixtures("home")
    def test_the_memory_is_planned_for_the_larger_of_the_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gib = 1 << 30
        monkeypatch.setattr(planning, "measure_machine", lambda *_: Machine(64 * gib, 79 * gib, 80 * gib))
        checked = check(self.spec(), "sqlite:///a.db", lambda _: None)
        _, same = find_judge(checked, "judge", None, lambda _: None)
        assert same.memory == checked.memory
        larger("larger")
        _, more = find_judge(checked, "larger", None, lambda _: None)
        assert checked.memory is not None
        assert more.memory is not None
        assert more.memory.device["reward model"] > checked.memory.device["reward model"]

    @pytest.mark.usefixtures("home")
    def test_what_the_larger_one_has_no_room_for_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checked = check(self.spec(), "sqlite:///a.db", lambda _: None)
        larger("larger")
        monkeypatch.setattr(planning, "measure_machine", lambda *_: Machine(1 << 20))
        with pytest.raises(ExpoError, match="memory"):
            find_judge(checked, "larger", None, lambda _: None)

    @pytest.mark.usefixtures("home")
    def test_a_real_reward_model_rates_and_lets_the_other_one_go(self, url: str) -> None:
        """The answers are a fake model's; the second reward model says the opposite of the first."""
        with opened(self.spec(), url, scorer=None) as session:
            session.search(n_trials=2)
            trial = session.result().evaluations[1]
            session.find_judge("judge")
            before = session.running.scorer
            found = session.check(trial)
            assert session.running.scorer is not before, "loaded again where it is next needed"
        assert found is not None
        assert found.judge == "judge"
        assert found.gain.mean == pytest.approx(-trial.gain.mean, abs=1e-6)
        assert found.gain.se == pytest.approx(trial.gain.se, abs=1e-6)


def larger(folder: str) -> None:
    """A reward model with a longer vocabulary than the study's."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained("reward")
    config.vocab_size *= 8
    shutil.copytree("reward", folder)
    LlamaForSequenceClassification(config).save_pretrained(folder)


def test_the_demos_second_judge_lists_the_prompts_that_it_was_trained_on() -> None:
    knows = read_trained_on(studies_folder() / "demo" / "second")
    ordered = load_prompts(str(studies_folder() / "demo" / "prompts.jsonl"), "train_prefs", 42)
    assert ids_among(knows, ordered) == [p.id for p in ordered[128:280]]
    assert len(knows) == 152


def test_a_check_of_an_evaluation_has_its_numbers_in_json() -> None:
    e = make_evaluation(1, 0.3, 0.28, 0.05, 256)
    numbers = Check("rm", e.trial, e.alpha, "search", e.gain, Estimate(0.02, 0.04, 256)).as_json()
    assert (numbers["own_gain"], numbers["gain"], numbers["n"]) == (0.28, 0.02, 256)
    assert numbers["own_gain_deviations"] == pytest.approx(0.35)
    assert numbers["gain_deviations"] == pytest.approx(0.03125)
    assert json.dumps(numbers)
