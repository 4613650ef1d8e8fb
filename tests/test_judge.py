"""A model of a server as a judge of pairs, against a real HTTP server: verdicts, positions, faults, a whole search."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import run
from fakes import BEST, FakeModel, FakeWatcher, make_prompts, opened
from judge_server import MODEL, JudgeServer, judge_server, longer
from twins import make_pair, write_prompts

import expo_search as es
from expo_search.config.presets import load_study
from expo_search.config.spec import RewardSpec, SearchSpec
from expo_search.contracts import Completion, PairwiseScorer, Prompt
from expo_search.errors import EngineDied, RewardError, SettingsChanged, StudyError
from expo_search.evaluation import chat_server
from expo_search.evaluation.chat_server import KEY, ChatServer
from expo_search.evaluation.judge import Judge, verdict
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.pairwise import AgainstControl
from expo_search.exporting.provenance import _public_reward
from expo_search.search.loop import search
from expo_search.store.study_store import Store

FAST = 0.001  # seconds before the second try


def judge(server: JudgeServer, **settings: Any) -> Judge:
    spec = RewardSpec(judge_url=server.url, judge_model=MODEL, **settings)
    return Judge(spec, server=ChatServer(server.url, MODEL, spec.timeout_s, first_pause_s=FAST))


def pairs(*texts: tuple[str, str]) -> tuple[list[Completion], list[Completion]]:
    """(answers, the control's) to as many prompts."""
    prompts = [Prompt(f"p{i}", f"Question {i}?") for i in range(len(texts))]
    first, second = (
        [Completion(p, text[side], len(text[side]), "stop") for p, text in zip(prompts, texts, strict=True)]
        for side in (0, 1)
    )
    return first, second


def judged(by: Judge, *texts: tuple[str, str]) -> list[float]:
    seen: list[int] = []
    rewards = by.judge(*pairs(*texts), seen.append)
    assert sum(seen) == len(texts)
    return rewards


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("[[A]]", "A"),
        ("Answer A is shorter, but [[A]] or [[B]]? So: [[B]]", "B"),
        ("Both say the same.\n\n[[C]]\n", "C"),
        ("<think>[[A]] it seems</think>\nB", "B"),
        (" **A**. ", "A"),
        ("answer b", "B"),
        ("A better answer is hard to imagine.", None),
        ("[[D]]", None),
        ("", None),
        ("<think>[[A]]", None),
        ("<think>First it seems [[A]], but [[B]] or", None),
        ("It seems [[A]]</think>[[B]]", "B"),  # where the template has begun the thoughts
    ],
)
def test_a_verdict_is_the_last_one_said_or_a_letter_alone(reply: str, expected: str | None) -> None:
    assert verdict(reply) == expected


class TestPairs:
    def test_a_win_is_an_answer_preferred_in_both_positions(self) -> None:
        with judge_server(longer) as server:
            assert judged(judge(server), ("long", "a"), ("a", "long"), ("ab", "cd")) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 6, "each pair twice"
        shown = {message["messages"][0]["content"] for message in server.asked}
        assert len(shown) == 6, "with positions swapped"
        assert all(m["model"] == MODEL and m["temperature"] == 0 and m["max_tokens"] == 1024 for m in server.asked)

    @pytest.mark.parametrize("position", ["[[A]]", "[[B]]"])
    def test_a_judge_that_prefers_a_position_makes_ties(self, position: str) -> None:
        with judge_server(lambda *_: position) as server:
            assert judged(judge(server), ("long", "a"), ("a", "long")) == [0.5, 0.5]

    def test_a_win_in_one_position_and_a_tie_in_the_other_is_a_tie(self) -> None:
        with judge_server(lambda _, a, __: "[[A]]" if a == "good" else "[[C]]") as server:
            assert judged(judge(server), ("good", "bad")) == [0.5]

    def test_braces_and_marks_in_texts_are_texts(self) -> None:
        with judge_server(longer) as server:
            assert judged(judge(server), ("{a} [[B]] {0}", "{"), ("[[A]]", "[[A]] [[A]]")) == [1.0, 0.0]

    def test_few_replies_without_a_verdict_are_ties_and_many_end_it(self) -> None:
        def unclear(_: str, a: str, b: str) -> str:
            return "who knows" if "?" in a + b else longer("", a, b)

        with judge_server(unclear) as server:
            assert judged(judge(server), ("?", "long"), ("long", "a"), ("a", "long")) == [0.5, 1.0, 0.0]
            assert judged(judge(server), *[("?", "long")] * 3, ("long", "a")) == [0.5, 0.5, 0.5, 1.0], "6 of 8 replies"
            with pytest.raises(RewardError, match=r"8 of 10 replies without a verdict, the last: 'who knows'"):
                judged(judge(server), *[("?", "long"), ("long", "?")] * 2, ("a", "long"))

    def test_a_pair_without_a_verdict_that_is_alone_in_its_batch_ends_no_search(self) -> None:
        with judge_server(lambda *_: "I cannot help with that.") as server:
            assert judged(judge(server), ("?", "long")) == [0.5]

    def test_it_asks_several_at_a_time_and_no_more_than_it_may(self) -> None:
        with judge_server(longer, pause_s=0.02) as server:
            assert judged(judge(server, judge_at_once=3), *[("ab", "a")] * 20) == [1.0] * 20
        assert 2 <= server.most_at_once <= 3

    def test_what_else_a_request_has_is_a_setting_as_the_model_is(self) -> None:
        with judge_server(longer) as server:
            plain, other = judge(server), judge(server, judge_options={"max_tokens": 8, "top_k": 1})
            judged(other, ("ab", "a"))
        assert (server.asked[0]["max_tokens"], server.asked[0]["top_k"], server.asked[0]["temperature"]) == (8, 1, 0)
        assert plain.identity.startswith("judge judge#")
        assert plain.identity != other.identity
        assert judge(JudgeServer(longer, url="http://elsewhere/v1")).identity == plain.identity, "wherever it runs"


class TestServers:
    @pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 0])
    def test_what_may_pass_is_tried_again(self, status: int) -> None:
        with judge_server(longer, faults=[(status, "{}")] * 3) as server:
            assert judged(judge(server, judge_at_once=1), ("long", "a")) == [1.0]
        assert len(server.asked) == 2 + 3

    def test_what_does_not_pass_ends_it_in_one_line(self) -> None:
        faults = [(503, '{"error": {"message": "over\\nloaded"}}')] * 20
        with judge_server(longer, faults=faults) as server, pytest.raises(RewardError) as fault:
            judged(judge(server, judge_at_once=1), ("long", "a"))
        assert str(fault.value) == (
            f"judge {MODEL} at {server.url}: HTTP 503 Service Unavailable: over loaded; expected a reply; "
            "see to the server; what was answered is stored, the same command goes on"
        )
        assert len(server.asked) == 6

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            ((400, '{"error": "no such option"}'), "HTTP 400 Bad Request: no such option"),
            ((404, "<html>"), "HTTP 404 Not Found: <html>"),
            ((307, ""), "HTTP 307 Temporary Redirect"),
            ((200, "hello"), "a reply that is no JSON"),
            ((200, '{"choices": []}'), "a reply without choices"),
            ((200, "[]"), "a reply without choices"),
        ],
    )
    def test_what_no_other_try_would_change_is_told_at_once(self, fault: tuple[int, str], said: str) -> None:
        with judge_server(longer, faults=[fault]) as server, pytest.raises(RewardError) as told:
            judged(judge(server, judge_at_once=1), ("long", "a"))
        assert said in str(told.value)
        assert len(server.asked) == 1

    def test_a_server_that_is_silent_or_gone_ends_it_too(self) -> None:
        silent = r"TimeoutError|timed out"
        with judge_server(longer, pause_s=5) as server, pytest.raises(RewardError, match=silent):
            judged(judge(server, timeout_s=0.05), ("long", "a"))
        with pytest.raises(RewardError, match="ConnectionRefusedError"):
            judged(judge(server), ("long", "a"))

    def test_one_that_waits_for_another_try_ends_with_the_search(self) -> None:
        with judge_server(longer, faults=[(503, "")] * 99) as server:
            spec = RewardSpec(judge_url=server.url, judge_model=MODEL)
            slow = Judge(spec, server=ChatServer(server.url, MODEL, 60, first_pause_s=600))
            threading.Timer(0.2, slow.close).start()
            with pytest.raises(RewardError, match="the search ends"):
                judged(slow, ("long", "a"))

    @pytest.mark.parametrize(
        ("says", "waits"), [(0, [1, 2, 4, 8, 16]), (5, [5, 5, 5, 8, 16]), (120, [120] * 5), (86_400, [600] * 5)]
    )
    def test_it_waits_twice_as_long_each_time_or_as_long_as_the_server_says_within_ten_minutes(
        self, says: float, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, waited = ChatServer("http://127.0.0.1:9", MODEL, 60), list[float]()

        def refuse(*_: Any) -> None:
            raise chat_server._Refused("HTTP 429", 429, may_pass=True, wait_s=says)

        monkeypatch.setattr(asked, "_once", refuse)
        monkeypatch.setattr(asked._closed, "wait", lambda seconds: waited.append(seconds))
        with pytest.raises(RewardError):
            asked.reply([], {})
        assert waited == waits

    def test_the_key_is_sent_and_shown_nowhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with judge_server(longer, key="sk-a-secret") as server:
            monkeypatch.setenv(KEY, "sk-a-secret")
            assert judged(judge(server), ("long", "a")) == [1.0]
            monkeypatch.setenv(KEY, "sk-another-secret")
            with pytest.raises(RewardError, match=r"HTTP 401 Unauthorized: Incorrect API key provided: Bearer \*\*\*"):
                judged(judge(server), ("long", "a"))
            monkeypatch.delenv(KEY)
            with pytest.raises(RewardError, match="HTTP 401"):
                judged(judge(server), ("long", "a"))

    def test_a_proxy_gets_nothing_that_is_for_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with judge_server(longer) as server, judge_server(longer) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
            assert judged(judge(server), ("long", "a")) == [1.0]
            assert (len(server.asked), proxy.asked) == (2, [])
            server.url = "http://judge.example/v1"
            assert judged(judge(server), ("long", "a")) == [1.0]
            assert (len(server.asked), len(proxy.asked)) == (2, 2)

    def test_a_trial_call_finds_the_model_and_a_verdict(self) -> None:
        with judge_server(longer) as server:
            judge(server).try_out()
            other = RewardSpec(judge_url=server.url, judge_model="gpt")
            with pytest.raises(RewardError, match=r"no model 'gpt' there; expected one of judge; give another"):
                Judge(other).try_out()
        with judge_server(longer, lists_models=False) as server:
            judge(server).try_out()
        unclear = r"2 of 2 replies without a verdict, the last: 'Both are lovely.'"
        with judge_server(lambda *_: "Both are lovely.") as server, pytest.raises(RewardError, match=unclear):
            judge(server).try_out()


class TestSettings:
    @pytest.mark.parametrize(
        ("reward", "said"),
        [
            ({"judge_url": "http://a/v1"}, "half a judge; expected judge_url and judge_model"),
            ({"judge_model": "a"}, "half a judge"),
            ({"judge_url": "localhost:8000", "judge_model": "a"}, "not the address of a server"),
            ({"judge_url": "http://me:pw@a/v1", "judge_model": "a"}, "expected a key in OPENAI_API_KEY"),
            ({"judge_url": "http://a/v1?key=b", "judge_model": "a"}, "expected a key in OPENAI_API_KEY"),
            ({"judge_url": "http://a:b/v1", "judge_model": "a"}, "not the address of a server"),
            ({"judge_options": {"stream": True, "model": "a"}}, "model, stream, which a judge's requests have already"),
            ({"judge_options": {"top_p": math.inf}}, "a value that JSON does not have"),
            ({"judge_url": "http://a/v1", "judge_model": "a", "scorer": "m:f"}, "a scorer beside a judge"),
            ({"judge_url": "http://a/v1", "judge_model": "a", "backend": "vllm"}, "beside backend 'vllm'"),
        ],
    )
    def test_half_a_judge_or_two_that_rate_are_refused(self, reward: dict[str, Any], said: str) -> None:
        with pytest.raises(StudyError) as fault:
            load_study(preset="zephyr", overrides={"reward": reward})
        assert said in str(fault.value)
        assert "pw" not in str(fault.value), "what may be a key is not shown"

    def test_the_objective_is_the_win_rate_unless_another_is_asked_for(self) -> None:
        given = {"judge_url": "http://localhost/v1/", "judge_model": "a"}
        spec = load_study(preset="zephyr", overrides={"reward": given})
        assert (spec.search.objective, spec.reward.judge_url) == ("win-rate", "http://localhost/v1")
        at_length = {"objective": "length-controlled"}
        assert (
            load_study(preset="zephyr", overrides={"reward": given, "search": at_length}).search.objective != "win-rate"
        )
        with pytest.raises(StudyError, match="a judge, which gives no reward; expected objective win-rate"):
            load_study(preset="zephyr", overrides={"reward": given, "search": {"objective": "reward"}})

    @pytest.mark.parametrize(
        ("url", "asks"),
        [
            ("http://localhost:8000/v1", False),
            ("http://127.0.0.1/v1", False),
            ("http://[::1]/v1", False),
            ("https://api.openai.com/v1", True),
            ("http://localhost.evil.net/v1", True),
        ],
    )
    def test_a_file_may_name_a_judge_on_this_machine_and_another_with_consent(
        self, tmp_path: Path, url: str, asks: bool
    ) -> None:
        file = tmp_path / "mine.toml"
        file.write_text(f'preset = "zephyr"\n[reward]\njudge_url = "{url}"\njudge_model = "a"\n')
        if asks:
            with pytest.raises(StudyError, match="which gets answers and OPENAI_API_KEY; expected consent"):
                load_study(file=file)
        spec = load_study(file=file, trust_remote_code=asks)
        assert spec.reward.judge_url == url
        shown = _public_reward(spec.reward).judge_url
        assert shown == ("http://localhost:8000/v1" if asks else url)


class Favours:
    """A user's own judge: prefers the alpha that is nearer to a best one, by what a `FakeModel` says."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def judge(self, completions: Sequence[Completion], control: Sequence[Completion], on_scored: Any) -> list[float]:
        self.threads.add(threading.current_thread().name)
        on_scored(len(completions))
        return [
            float(abs(alpha_of(c) - BEST) < abs(alpha_of(other) - BEST))
            for c, other in zip(completions, control, strict=True)
        ]


def alpha_of(completion: Completion) -> float:
    return float(json.loads(completion.text)[0])


def test_answers_that_are_equal_are_ties_and_nobody_is_asked() -> None:
    answers, control = pairs(("a", "a"), ("b", "c"))
    asked: list[Completion] = []

    class Asked:
        def judge(
            self, completions: Sequence[Completion], control: Sequence[Completion], on_scored: Any
        ) -> list[float]:
            assert len(control) == len(completions)
            asked.extend(completions)
            on_scored(len(completions))
            return [1.0] * len(completions)

    seen: list[int] = []
    scorer = AgainstControl(Asked(), {c.prompt: c for c in control})
    assert scorer.score(answers, seen.append) == ([0.5, 1.0], 0)
    assert (asked, sum(seen)) == (answers[1:], 2)
    assert scorer.begin(answers).result(10) == ([0.5, 1.0], 0)
    assert AgainstControl(Asked(), None).score(answers, seen.append) == ([0.5, 0.5], 0)


class Slow:
    """A judge of ties that takes its time; `asked`: the answers of each batch, `most_at_once`: batches under way."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.most_at_once = self._at_once = 0

    def judge(self, completions: Sequence[Completion], control: Sequence[Completion], on_scored: Any) -> list[float]:
        self.asked.append([c.text for c in completions])
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(0.5)
        self._at_once -= 1
        on_scored(len(control))
        return [0.5] * len(completions)


def test_a_judge_that_is_asked_while_the_engine_dies_is_asked_nothing_twice(tmp_path: Path) -> None:
    def crash() -> None:
        while len(slow.asked) < 4:  # what the first three looks needed, and half of what the last one needs
            time.sleep(0.01)
        raise EngineDied(where="vLLM engine", found="it crashed", expected="an engine", do="look")

    n, slow, store = 256, Slow(), Store(f"sqlite:///{tmp_path / 'study.db'}", "s")
    model = FakeModel(dies_after=n + 220, die=crash)
    objective = Objective(model, slow, store, make_prompts(n), FakeWatcher(), kind="win-rate")
    spec = SearchSpec(objective="win-rate", sampler="grid", racing=False, alpha_max=1.0)
    assert len(search(store, objective, spec, 2)) == 2
    store.close()
    asked = [text for batch in slow.asked for text in batch]
    assert model.restarts == 1
    assert len(asked) == len(set(asked)) == n
    assert slow.most_at_once == 1


def gain_of(alpha: float) -> float:
    """Over alpha = 0, by whoever prefers the alpha that is nearer to the best one."""
    return 0.0 if alpha == 0 else 0.5 if abs(alpha - BEST) < BEST else -0.5


def study(server: JudgeServer | None, **tables: dict[str, Any]) -> es.StudySpec:
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"sft": "my/sft", "aligned": "my/aligned"},
        "prompts": {"source": "prompts.jsonl", "n": 32},
        "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
    }
    named = {} if server is None else {"reward": {"judge_url": server.url, "judge_model": MODEL}}
    return es.load_study(name="mine", overrides=overrides | named | tables)


def nearer(_: str, a: str, b: str) -> str:
    """Prefers the answer of the alpha that is nearer to the best one; replies to a trial call too."""
    if not a.startswith("["):
        return longer("", a, b)
    distances = [abs(json.loads(text)[0] - BEST) for text in (a, b)]
    return "[[C]]" if distances[0] == distances[1] else "[[A]]" if distances[0] < distances[1] else "[[B]]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_prompts(tmp_path / "prompts.jsonl", 48)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("home")
class TestSearches:
    def test_gains_are_win_rates_less_a_half_and_alpha_0_has_a_half(self) -> None:
        with judge_server(nearer) as server, opened(study(server)) as session:
            result = session.search(n_trials=5)
            assert result.best is not None
            measured = session.confirm(result.best, n_prompts=12)
            row = session.compare([0.25, 0.75], ["Hello"]).rows[0]
        control, *others = result.evaluations
        assert (control.reward.mean, control.reward.se, control.gain.mean) == (0.5, 0.0, 0.0)
        assert {e.alpha: e.gain.mean for e in others} == {0.25: 0.5, 0.5: 0.5, 0.75: -0.5, 1.0: -0.5}
        assert all(e.gain.se == 1 / 32 for e in others)
        assert (measured and measured.estimate.mean) == 0.5
        assert [(a.alpha, a.reward) for a in row] == [(0.25, 1.0), (0.75, 0.0)]
        assert result.verdict.word == "better"
        assert "win rate above a half +0.5000" in result.verdict.sentence()
        assert f"Rated by the {result.scorer}." in result.remarks
        assert result.scorer.startswith(f"judge {MODEL}#")

    def test_no_key_is_in_any_file(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEY, "sk-a-secret")
        with judge_server(nearer, key="sk-a-secret") as server, opened(study(server)) as session:
            session.search(n_trials=2)
        assert b"sk-a-secret" not in b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())

    def test_a_search_with_racing_drops_what_loses_and_settles(self) -> None:
        search = {"search": {"seed": 1}}
        with judge_server(nearer) as server, opened(study(server, **search)) as session:
            result = session.search(n_trials=12)
        assert "hopeless" in {e.outcome for e in result.evaluations}
        assert result.best is not None
        assert 0 < result.best.alpha < 2 * BEST

    @pytest.mark.parametrize("objective", ["win-rate", "length-controlled"])
    def test_a_judge_that_tells_nothing_apart_leaves_no_evidence(self, objective: str) -> None:
        search = {"search": {"seed": 1, "objective": objective}}
        with judge_server(lambda *_: "[[A]]") as server, opened(study(server, **search)) as session:
            result = session.search(n_trials=6)
        assert {e.gain.mean for e in result.evaluations} == {0.0}
        assert result.verdict.word == "no evidence of a gain"
        assert "would be told" not in result.verdict.sentence()

    def test_a_server_that_goes_away_ends_it_and_the_same_search_goes_on_anywhere(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("expo_search.evaluation.chat_server._FIRST_PAUSE_S", FAST)
        monkeypatch.setattr(ChatServer.__init__, "__kwdefaults__", {"first_pause_s": FAST})

        with judge_server(nearer) as server:
            before, after = FakeModel(), FakeModel()
            session = es.open_session(study(server), "sqlite:///mine.db", model=before, quiet=True)
            session.search(n_trials=2)
            first = study(server)
        with session, pytest.raises(RewardError, match="ConnectionRefusedError"):
            session.search(n_trials=4)
        with judge_server(nearer) as server:
            assert study(server).reward.judge_url != first.reward.judge_url
            with es.open_session(study(server), "sqlite:///mine.db", model=after, quiet=True) as session:
                result = session.search(n_trials=4)
            assert len(result.evaluations) == 4
            assert all(e.gain.mean == gain_of(e.alpha) for e in result.evaluations)
            assert not set(before.asked) & set(after.asked), "every answer was stored"
            other = {"reward": {"judge_url": server.url, "judge_model": MODEL, "judge_options": {"max_tokens": 9}}}
            with pytest.raises(SettingsChanged, match=r"reward.scorer: 'judge judge#.*' there, 'judge judge#.*' now"):
                opened(study(None, **other))

    def test_a_users_own_judge_takes_its_place_and_is_called_beside_the_search(self) -> None:
        spec = study(None, pair={"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/judge"})
        favours = Favours()
        assert isinstance(favours, PairwiseScorer)
        with opened(spec, scorer=favours) as session:
            result = session.search(n_trials=5)
        assert all(e.gain.mean == gain_of(e.alpha) for e in result.evaluations)
        assert favours.threads == {"expo-search judge"}

    def test_a_shape_is_compared_with_the_uniform_alpha_through_alpha_0(self) -> None:
        from fakes import FakeLayeredModel

        with judge_server(nearer) as server:
            spec = study(server)
            with es.open_session(spec, "sqlite:///mine.db", model=FakeLayeredModel(), quiet=True) as session:
                session.search(n_trials=3)
                shapes = session.shape("attn-mlp", n_trials=2)
        assert [a.gain.mean for a in shapes.against] == [0.0, 0.0], "the judge looks at alpha alone"

    def test_the_database_has_every_verdict(self) -> None:
        with judge_server(nearer) as server, opened(study(server)) as session:
            alpha = session.search(n_trials=2).evaluations[1].alpha
        store = Store("sqlite:///mine.db", "mine", read_only=True)
        assert {r.reward for r in store.rated(0, "search").values()} == {0.5}
        assert {r.reward for r in store.rated(1, "search").values()} == {0.5 + gain_of(alpha)}
        store.close()


@pytest.mark.slow  # a second engine serves
def test_vllms_own_server_judges_a_search_of_a_real_engine(tmp_path: Path) -> None:
    make_pair(tmp_path, "llama-tied", delta=0.2)
    write_prompts(tmp_path / "prompts.jsonl", 24)
    shutil.copytree(tmp_path / "aligned", tmp_path / "served")
    config = tmp_path / "served" / "config.json"  # a byte is a token of these models
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    port = free_port()
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "served")]
    words += ["--served-model-name", MODEL, "--port", str(port), "--max-model-len", "4096", "--enforce-eager"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/v1/models", tmp_path / "server.log")
        # a random model says nothing that is a verdict, unless it can say nothing else
        (tmp_path / "mine.toml").write_text(
            '[pair]\nsft = "sft"\naligned = "aligned"\n[prompts]\nsource = "prompts.jsonl"\nn = 16\n'
            "[sampling]\nmax_tokens = 8\n[engine]\nmax_model_len = 128\nkv_cache_gib = 1\n"
            f'[reward]\njudge_url = "http://127.0.0.1:{port}/v1"\njudge_model = "{MODEL}"\n'
            '[reward.judge_options]\nmax_tokens = 8\nstructured_outputs = {choice = ["[[A]]", "[[B]]", "[[C]]"]}\n'
        )
        out, _ = run(tmp_path, "--study", "mine.toml", "--trials", "3", "--json")
        trials = json.loads(out)["trials"]
        assert len(trials) == 3
        assert trials[0]["reward"] == 0.5
        store = Store(f"sqlite:///{tmp_path}/expo-search.db", "mine", read_only=True)
        rewards = [r.reward for r in store.rated(1, "search").values()]
        store.close()
        assert len(rewards) >= 16
        assert set(rewards) <= {0.0, 0.5, 1.0}
    finally:
        server.terminate()
        server.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
