"""A benchmark's run: paired, turn by turn, resumed at the item, and what a session makes of it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import Recording, TurnsTask, YesModel
from fakes import FakeScorer
from rich.console import Console
from twins import write_prompts

import expo_search as es
from expo_search.bench import registry
from expo_search.bench.basics import Basics, is_right, own_items
from expo_search.bench.result import read_bench
from expo_search.bench.run import Chosen, is_done, run
from expo_search.errors import EngineDied, PromptsError, SettingsChanged, StudyError
from expo_search.evaluation.objective import Stopped
from expo_search.session import benchmarks
from expo_search.store.attributes import StudyAttributes
from expo_search.store.bench_store import BenchStore, Score
from expo_search.store.study_store import Store


def chosen(task: TurnsTask | None = None, n: int | None = None, **options: Any) -> Chosen:
    task = task or TurnsTask()
    return Chosen(task, task.items[:n], **options)


def run_on(store: BenchStore, *tasks: Chosen, model: YesModel | None = None, **options: Any) -> YesModel:
    model = model or YesModel()
    run(model, store, tasks, [0.0, 0.4], seed=1, **({"watcher": Recording()} | options))
    return model


@pytest.fixture
def store(tmp_path: Path) -> BenchStore:
    return BenchStore(Store(f"sqlite:///{tmp_path / 'bench.db'}", "s"))


class TestRun:
    def test_every_item_is_asked_turn_by_turn_once_an_alpha_and_scored(self, store: BenchStore) -> None:
        watcher = Recording()
        model = run_on(store, chosen(), watcher=watcher)
        one_alpha = [f"turns/i{k}/{t}" for k in range(12) for t in range(1 + k % 2)]
        for alpha in (0.0, 0.4):
            assert sorted(p for a, p in model.asked if a == alpha) == sorted(one_alpha)
            expected = {
                f"i{k}": "yes" if model.says(alpha, TurnsTask().request(TurnsTask().items[k], ["x"] * (k % 2))) == "yes"  # type: ignore[arg-type]
                else "no"
                for k in range(12)
            }  # fmt: skip
            scores = store.scores("turns", alpha)
            assert {i: "yes" if s["right"].value else "no" for i, s in scores.items()} == expected
            assert list(scores) == [f"i{k}" for k in range(12)]
        assert model.alphas == [0.0, 0.4], "one switch an alpha"
        assert watcher.plans == [{("turns", 0.0): 12, ("turns", 0.4): 12}]
        assert watcher.starts == [("turns", "Turns", 0.0, 18, 0), ("turns", "Turns", 0.4, 18, 0)], "a turn is a request"
        assert watcher.n_answers == 2 * 18

    def test_two_tasks_of_one_title_are_planned_apart(self, store: BenchStore) -> None:
        watcher = Recording()
        run_on(store, chosen(TurnsTask("plain", n=2)), chosen(TurnsTask("chat", n=3)), watcher=watcher)
        assert watcher.plans == [{(name, a): n for a in (0.0, 0.4) for name, n in (("plain", 2), ("chat", 3))}]
        assert [start[:2] for start in watcher.starts] == [("plain", "Turns"), ("chat", "Turns")] * 2

    def test_what_is_done_switches_nothing(self, store: BenchStore) -> None:
        run_on(store, chosen())
        watcher = Recording()
        assert run_on(store, chosen(), watcher=watcher).alphas == []
        assert sorted(run_on(store, chosen(TurnsTask(n=14)), watcher=watcher).asked) == [
            (a, p) for a in (0.0, 0.4) for p in ("turns/i12/0", "turns/i13/0", "turns/i13/1")
        ]
        assert watcher.plans == [{}, {("turns", 0.0): 2, ("turns", 0.4): 2}]
        assert watcher.starts == [("turns", "Turns", 0.0, 21, 18), ("turns", "Turns", 0.4, 21, 18)]

    def test_a_run_that_is_stopped_anywhere_goes_on_at_the_item_and_ends_the_same(self, tmp_path: Path) -> None:
        whole = BenchStore(Store(f"sqlite:///{tmp_path / 'whole.db'}", "s"))
        run_on(whole, chosen())
        for after in range(1, 36, 6):
            store = BenchStore(Store(f"sqlite:///{tmp_path / f'{after}.db'}", "s"))
            answers: list[int] = []

            def stop(after: int = after, answers: list[int] = answers) -> bool:
                answers.append(1)
                return len(answers) >= after

            with pytest.raises(Stopped):
                run_on(store, chosen(), stop=stop)
            again = run_on(store, chosen())
            assert len(again.asked) == 36 - after, "no stored answer is asked for again"
            for alpha in (0.0, 0.4):
                assert store.scores("turns", alpha) == whole.scores("turns", alpha)
                assert store.answers("turns", alpha) == whole.answers("turns", alpha)

    def test_an_interrupt_after_answers_were_written_is_no_fault(
        self, store: BenchStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = BenchStore.add

        def interrupted(*batch: Any, **options: Any) -> None:
            write(*batch, **options)
            if not options["tried"]:
                raise KeyboardInterrupt

        monkeypatch.setattr(BenchStore, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_on(store, chosen())
        monkeypatch.undo()
        assert store.scores("turns", 0.0)
        run_on(store, chosen())
        assert len(store.scores("turns", 0.4)) == 12

    def test_an_engine_that_dies_once_is_started_anew_and_a_second_time_ends_the_run(self, store: BenchStore) -> None:
        def die() -> None:
            raise EngineDied(where="engine", found="gone", expected="one that answers", do="see the log")

        failures: list[EngineDied] = []
        model = run_on(store, chosen(), model=YesModel(dies_after=5, die=die), on_failure=failures.append)
        assert (model.restarts, len(failures)) == (1, 1)
        assert [a for a in model.alphas if a == a] == [0.0, 0.0, 0.4]
        assert is_done(store, chosen(), 0.4)
        store.forget("turns")
        with pytest.raises(EngineDied):
            run_on(store, chosen(), model=YesModel(dies_after=5, die=die, dies_again=9))

    def test_a_later_turn_that_does_not_fit_is_answered_by_nothing(self, store: BenchStore) -> None:
        model = run_on(store, chosen(n=4, fits=lambda request: not request.before))
        assert not [p for _, p in model.asked if p.endswith("/1")]
        assert [a.text for a in store.answers("turns", 0.0)["i1"]][1:] == [""]
        assert set(store.scores("turns", 0.0)) == {"i0", "i1", "i2", "i3"}

    def test_other_settings_of_the_task_are_refused_before_a_switch(self, store: BenchStore) -> None:
        run_on(store, chosen())
        model = YesModel()
        with pytest.raises(SettingsChanged, match="data: 'abc' there, 'xyz' now"):
            run_on(store, chosen(TurnsTask(settings={"data": "xyz"})), model=model)
        assert model.alphas == []

    def test_the_result_is_read_without_the_task(self, store: BenchStore) -> None:
        run_on(store, chosen(TurnsTask(n=60)))
        result = read_bench(store)
        (task,) = result.tasks
        assert (task.title, task.n_items) == ("Turns", {0.0: 60, 0.4: 60})
        assert task.settings == {"data": "abc"}
        right, length = result.compared
        assert (right.metric, right.decides, length.metric, length.decides) == ("right", True, "length", False)
        scores = {alpha: store.scores("turns", alpha) for alpha in (0.0, 0.4)}
        for alpha, mean in ((0.0, right.control), (0.4, right.mean)):
            assert mean == pytest.approx(sum(s["right"].value for s in scores[alpha].values()) / 60)
        assert result.sentences() == [f"alpha = 0.4: {right.sentence()}"]
        assert [c.n for c in read_bench(store, {"turns": {"i0", "i1"}}).compared] == [2, 2]
        assert list(read_bench(store, {}).compared) == []


class TestBasics:
    def test_there_are_at_least_a_hundred_of_several_kinds_each_asked_once(self) -> None:
        rows = own_items().rows
        assert len(rows) >= 100
        assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
        kinds = [row["kind"] for row in rows]
        assert min(kinds.count(kind) for kind in set(kinds)) >= 10
        assert len(set(kinds)) >= 5

    def test_every_rule_of_the_items_is_known_and_no_item_is_right_by_silence(self) -> None:
        task = Basics()
        for item in task.items:
            assert not is_right(item.row["check"], ""), item.id
            is_right(item.row["check"], "Some words, and 12 of them.\n- So.")

    @pytest.mark.parametrize(
        ("check", "right", "wrong"),
        [
            ({"number": 42}, ["42", "It is 42.", "17 + 25 = 42", "so it is 42.0"], ["43", "42 or 43", "none"]),
            ({"number": 1200}, ["1,200", "1200 g"], ["200", "1.2"]),
            ({"number": -3}, ["-3"], ["3"]),
            ({"says": "yes"}, ["Yes.", "yes, no doubt", "Well, YES"], ["no", "No. Yes", "yesterday", "maybe"]),
            ({"has": ["four", "4"]}, ["platform 4", "Four!"], ["44", "fourteen"]),
            ({"all_of": ["letter", "window"]}, ["A letter at the window"], ["letters at a window", "window"]),
            ({"has_exactly": ["HELLO"]}, ["HELLO!"], ["hello"]),
            ({"without": [","]}, ["no comma"], ["a, b"]),
            ({"count": ["tick", 3]}, ["tick Tick tick"], ["tick tick", "ticks tick tick"]),
            ({"words": [1, 2]}, ["one", "one two"], ["one two three"]),
            ({"lines": [2, 2]}, ["a\n\nb"], ["a b", "a\nb\nc"]),
            ({"case": "lower"}, ["rain falls."], ["Rain falls."]),
            ({"starts": "Indeed", "ends": "!"}, ["Indeed so!"], ["Indeed so", "So indeed!"]),
            ({"matches": "[^,]+, ?[^,]+"}, ["Peru, Chad"], ["Peru", "a, b, c"]),
            ({"json": ["name"]}, ['{"name": "Ada"}'], ['{"name": "Ada", "x": 1}', "name", '["name"]']),
        ],
    )  # fmt: skip
    def test_a_rule_tells_right_from_wrong(self, check: dict[str, Any], right: list[str], wrong: list[str]) -> None:
        assert [answer for answer in right if not is_right(check, answer)] == []
        assert [answer for answer in wrong if is_right(check, answer)] == []


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study that was searched, with a winner at 0.25 or 0.5."""
    folder = tmp_path_factory.mktemp("searched")
    write_prompts(folder / "prompts.jsonl", 48)
    settings: dict[str, dict[str, Any]] = {
        "pair": {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/judge"},
        "prompts": {"n": 32, "source": str(folder / "prompts.jsonl")},
        "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
    }
    spec = es.load_study(name="mine", overrides=settings)
    file = folder / "mine.db"
    with es.open_session(spec, f"sqlite:///{file}", model=YesModel(), scorer=FakeScorer(), quiet=True) as session:
        session.search(n_trials=5)
    return file


class TestSession:
    @pytest.fixture
    def url(self, searched: Path, tmp_path: Path) -> str:
        shutil.copy(searched, tmp_path / "mine.db")
        url = f"sqlite:///{tmp_path / 'mine.db'}"
        self.best = es.open_study(url, "mine").best
        return url

    def opened(self, spec: es.StudySpec | str, url: str, model: YesModel, **options: Any) -> es.Session:
        return es.open_session(spec, url, model=model, scorer=FakeScorer(), quiet=True, **options)

    def test_the_winner_is_compared_with_alpha_0_and_nothing_is_answered_twice(self, url: str) -> None:
        best = self.best_alpha()
        model = YesModel()
        with self.opened("mine", url, model) as session:
            result = session.bench(["basics"], limit=20)
        assert result is not None
        (c,) = result.compared
        assert (c.alpha, c.n, c.task) == (best, 20, "basics")
        assert model.alphas == [0.0, best]
        again = YesModel()
        with self.opened("mine", url, again, start=False) as session:
            assert session.bench(["basics"], limit=20) == result
            assert "store" not in vars(session.running), "nothing is started for what is there"
            more = session.bench(["basics"], [0.0, best * 1.0004, 0.9], limit=20)  # as a table may show it
        assert more is not None
        assert [c.alpha for c in more.compared] == [best, 0.9]
        assert again.alphas == [0.9]

    def test_it_can_be_stopped_and_made_anew(self, url: str) -> None:
        best = self.best_alpha()
        with self.opened("mine", url, YesModel()) as session:
            assert session.bench(["basics"], stop=lambda: True) is None
        model = YesModel()
        with self.opened("mine", url, model) as session:
            assert session.bench(["basics"]) is not None
            assert len(model.asked) == 2 * len(own_items().rows) - 1
            assert session.bench(["basics"], again=True) is not None
        assert model.alphas == [0.0, best, 0.0, best]

    def test_one_that_was_stopped_says_how_far_it_is_and_what_goes_on_comes_first(
        self, url: str, tmp_path: Path
    ) -> None:
        file, answers = tmp_path / "my gsm8k.jsonl", iter(range(9))
        file.write_text('{"question": "What is 2 + 3?", "answer": "#### 5"}\n')
        with self.opened("mine", url, YesModel()) as session:
            data = {"gsm8k": str(file)}
            assert session.bench(["basics", "gsm8k"], data=data, limit=4, stop=lambda: next(answers) == 2) is None
        found, best = es.open_study(url, "mine"), f"{self.best_alpha():.4g}"
        assert found.bench.sentences() == [
            f"basics is not finished: 3 of 4 items answered at alpha = 0, 0 of 4 at {best}.",
            f"GSM8K is not finished: 0 of 1 items answered at alpha = 0, 0 of 1 at {best}.",
        ]
        command = f"expo-search bench mine --tasks basics,gsm8k --data 'gsm8k={file}' --limit 4 --storage {url}"
        assert found.next_steps[0][0] == command
        assert sum("bench" in step[0] for step in found.next_steps) == 1
        assert "asked" not in json.dumps(found.bench.as_json()), "a path is nobody's business"
        assert [task["unfinished"] for task in found.bench.as_json()["tasks"]] == [
            f"3 of 4 items answered at alpha = 0, 0 of 4 at {best}",
            f"0 of 1 items answered at alpha = 0, 0 of 1 at {best}",
        ]
        with Store(url, "mine").owned():
            assert "bench" not in " ".join(c for c, _ in es.open_study(url, "mine").next_steps), "it is at work"
        with self.opened("mine", url, YesModel()) as session:
            assert session.bench(["basics", "gsm8k"], data=data, limit=4) is not None
            done = es.open_study(url, "mine")
            assert "not finished" not in " ".join(done.bench.sentences())
            assert "bench" not in " ".join(command for command, _ in done.next_steps)
            assert session.bench(["basics"], limit=2) is not None
            assert es.open_study(url, "mine").bench == done.bench, "fewer items are a part of what is there"
            assert session.bench(["basics"], [0.0, 0.9], limit=4, stop=lambda: True) is None
        [(command, _)] = [step for step in es.open_study(url, "mine").next_steps if "bench" in step[0]]
        assert command == f"expo-search bench mine --tasks basics --limit 4 --alphas 0,0.9 --storage {url}"

    def test_one_that_an_earlier_version_was_stopped_in_goes_on_by_its_task_alone(self, url: str) -> None:
        bench = BenchStore(Store(url, "mine"))
        bench.pin("basics", {"title": "basics", "metrics": [["right", "right answers"]]})
        bench.add("basics", 0.0, {}, {("a", 0): {"right": Score(1.0)}})
        found = es.open_study(url, "mine")
        assert found.bench.sentences() == ["basics is not finished: 1 item answered at alpha = 0, none at another."]
        assert found.next_steps[0][0] == f"expo-search bench mine --tasks basics --storage {url}"
        bench.add("basics", 0.4, {}, {("a", 0): {"right": Score(0.0)}})
        assert "not finished" not in " ".join(es.open_study(url, "mine").bench.sentences())

    def test_a_judge_leaves_the_study_to_the_process_that_holds_it(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judged: list[object] = []
        monkeypatch.setattr(benchmarks, "checked_judge", lambda config, _: f"/home/{config}")
        monkeypatch.setattr(benchmarks, "judge", lambda *given: judged.extend([given[0], *given[4]]))
        with self.opened("mine", url, YesModel()) as session, session.owned():
            session.bench(["basics"], limit=3, judge="any")
            assert session.running.store.is_owned()
            assert session.bench(["basics"], limit=3, again=True) is not None, "which writes"
        assert judged == ["/home/any", 0.0, self.best_alpha()]

    def test_a_session_that_rates_nothing_benchmarks_and_refuses_the_rest_before_a_start(self, url: str) -> None:
        model = YesModel()
        with self.opened("mine", url, model, start=False, rates=False) as session:
            for rating in (
                lambda: session.search(n_trials=99),
                lambda: session.confirm(n_prompts=4),
                lambda: session.compare([0.5], ["Hello"]),
            ):
                with pytest.raises(StudyError, match=r"a session that rates no answers; .*open it without rates"):
                    rating()
            assert model.alphas == []
            assert session.bench(["basics"], limit=3) is not None
        with self.opened("mine", url, YesModel(), rates=False) as session, session.owned():
            assert "scorer" not in vars(session.running)

    def test_what_cannot_be_is_refused_before_a_start(self, url: str) -> None:
        model = YesModel()
        with self.opened("mine", url, model, start=False) as session:
            with pytest.raises(StudyError, match="--alphas: inf"):
                session.bench(["basics"], [float("inf")])
            with pytest.raises(StudyError, match=r"unknown task 'basic'; expected one of basics"):
                session.bench(["basic"], [0.1])
            with pytest.raises(PromptsError, match=r"--data gsm8k=no.jsonl: no such file"):
                session.bench(["gsm8k"], [0.1], data={"gsm8k": "no.jsonl"})
            for harness in ("lm_eval:hellaswag", "lm_eval_chat:hellaswag"):
                with pytest.raises(StudyError, match=f"--tasks: {harness}, with a model of your own; expected a task"):
                    session.bench(["basics", harness], [0.1])
        assert model.alphas == []

    def test_answers_under_other_settings_are_refused_before_a_search_that_would_end_with_them(self, url: str) -> None:
        with self.opened("mine", url, YesModel()) as session:
            session.bench(["basics"], limit=2)
        bench = BenchStore(Store(url, "mine"))
        kept = bench.settings("basics")
        bench.forget("basics")
        bench.pin("basics", {**kept, "data": "xyz"})
        with (
            self.opened("mine", url, YesModel(), start=False) as session,
            pytest.raises(SettingsChanged, match=r"task basics: .*data: 'xyz' there.*bench --again"),
        ):
            session.check_bench(["basics"])

    def best_alpha(self) -> float:
        assert self.best is not None
        return self.best.alpha

    def limited(self, url: str, limit: float) -> None:
        """The study, with a guardrail for the task `turns`."""
        spec = es.open_study(url, "mine")
        assert not spec.limits
        store = Store(url, "mine")
        kept = store.attributes
        assert kept.spec is not None
        guardrails = kept.spec["guardrails"] | {"bench": {"turns": limit}}
        store.keep(StudyAttributes(spec={**kept.spec, "guardrails": guardrails}))
        store.close()

    @pytest.fixture
    def turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "TASKS", {**registry.TASKS, "turns": lambda _: TurnsTask(n=60)})

    @pytest.mark.usefixtures("turns")
    def test_a_winner_that_loses_too_much_gives_way_to_the_next_best(self, url: str) -> None:
        first = self.best_alpha()
        self.limited(url, 0.1)
        model = YesModel(share=lambda alpha: 0.1 if alpha == first else 0.9)
        with self.opened("mine", url, model) as session:
            measured = session.bench_winner(["turns"])
            result = session.result()
        assert measured is not None
        assert result.best is not None
        assert result.best.alpha != first
        assert result.trial_at(None) == result.best, "which `confirm` measures"
        assert [a for a in model.alphas if a] == [first, result.best.alpha]
        (remark,) = result.remarks
        assert remark.startswith(
            f"alpha = {first:.4g} is not recommended: it loses more than its guardrail allows, Turns -"
        )
        assert remark.endswith("where 10.0 may go.")
        assert result.verdict.word == "better"
        with self.opened("mine", url, YesModel(), start=False) as session:
            assert session.bench_winner(["turns"]) == measured, "nothing is measured twice"

    @pytest.mark.usefixtures("turns")
    def test_where_every_alpha_loses_too_much_alpha_0_is_kept(self, url: str) -> None:
        self.limited(url, 0.1)
        with self.opened("mine", url, YesModel(share=lambda alpha: 0.1 if alpha else 0.9)) as session:
            session.bench_winner(["turns"])
            result = session.result()
        assert result.verdict.word != "better"
        assert len(result.remarks) >= 2
        assert result.verdict.n_tried == sum(e.alpha != 0 for e in result.evaluations)
        with pytest.raises(es.ExpoError, match="no trial that may win"):
            result.trial_at(None)

    def test_where_the_verdict_is_to_keep_alpha_0_it_says_that_the_best_other_one_is_measured(
        self, tmp_path: Path
    ) -> None:
        write_prompts(tmp_path / "prompts.jsonl", 48)
        settings: dict[str, dict[str, Any]] = {
            "pair": {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/judge"},
            "prompts": {"n": 32, "source": str(tmp_path / "prompts.jsonl")},
            "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
        }
        scorer = FakeScorer(truth=lambda _: 0.0, noise=1.0)
        spec = es.load_study(name="mine", overrides=settings)
        url, out = f"sqlite:///{tmp_path / 'mine.db'}", io.StringIO()
        console = Console(file=out, width=400)
        with es.open_session(spec, url, model=YesModel(), scorer=scorer, console=console) as session:
            verdict = session.search(n_trials=3).verdict
            assert verdict.recommended is None
            assert verdict.best is not None
            best = verdict.best.alpha
            measured = session.bench(["basics"], limit=3)
            told = f"the verdict is to keep alpha = 0; what the best other alpha, {best:.4g}, does is measured"
            assert out.getvalue().count(told) == 1
            assert "(--alphas takes others)" in out.getvalue()
            session.bench(["basics"], [best], limit=3)
            assert out.getvalue().count(told) == 1, "who names an alpha knows which"
        assert measured is not None
        assert {c.alpha for c in measured.compared} == {best}

    @pytest.mark.usefixtures("turns")
    def test_a_search_whose_benchmark_was_left_out_says_that_its_guardrail_was_not_measured(self, url: str) -> None:
        self.limited(url, 0.1)
        told = f"The guardrail turns was not measured at alpha = {self.best_alpha():.4g}: "
        command = f"`expo-search bench mine --tasks turns --storage {url}`."
        assert es.open_study(url, "mine").remarks == [told + command]
        with self.opened("mine", url, YesModel(share=lambda _: 0.9)) as session:
            session.bench(["turns"])
        assert es.open_study(url, "mine").remarks == []

    @pytest.mark.usefixtures("turns")
    def test_a_loss_within_the_limit_rules_nothing_out(self, url: str) -> None:
        self.limited(url, 0.7)
        with self.opened("mine", url, YesModel(share=lambda alpha: 0.3 if alpha else 0.9)) as session:
            measured = session.bench_winner(["turns"])
            result = session.result()
        assert measured is not None
        assert measured.compared[0].word == "a loss"
        assert result.remarks == []
        assert result.best == self.best
