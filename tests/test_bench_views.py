"""Benchmarks in every view of a study: terminal, JSON, note, report, model card; and the seeds' own files."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from fakes import make_evaluation
from optuna.distributions import FloatDistribution
from rich.console import Console
from test_model_card import make_origin, metadata

from expo_search.bench.comparison import compare, corrected
from expo_search.bench.result import Asked, BenchResult, TaskResult, read_bench
from expo_search.bench.task import Metric, generator_name
from expo_search.cli.inspect import print_bench, print_result
from expo_search.contracts import Completion, Prompt
from expo_search.errors import StudyError
from expo_search.exporting.model_card import card
from expo_search.exporting.provenance import provenance
from expo_search.results.answer_files import outputs_file, rewards_file, trial_files, write_files
from expo_search.results.bench_guardrails import losses
from expo_search.results.curve.tax import tax_panels, tax_svg, terminal_tax
from expo_search.results.html_report import write_report
from expo_search.results.note import markdown_note
from expo_search.results.study_results import StudyResult, read_result
from expo_search.results.summary_json import summary
from expo_search.results.verdict import verdict
from expo_search.search.loop import keep
from expo_search.store.answer_rows import Stored
from expo_search.store.attributes import StudyAttributes
from expo_search.store.bench_store import Answered, BenchStore, Score, Scores
from expo_search.store.study_store import Store

METRICS = (Metric("flexible", "the last number"), Metric("strict", "the number after ####"))
EVIL = "GSM8K <b>|*x*"


def scores(n_right: int, n: int = 200) -> dict[str, Scores]:
    return {f"i{k}": {"flexible": Score(float(k < n_right)), "strict": Score(0.0)} for k in range(n)}


def bench(alpha: float = 0.5, n_right: int = 60, title: str = "GSM8K") -> BenchResult:
    at, zero = scores(n_right), scores(100)
    compared = corrected(compare("gsm8k", title, METRICS, alpha, at, zero))
    means = {a: {"flexible": n / 200, "strict": 0.0} for a, n in ((0.0, 100), (alpha, n_right))}
    return BenchResult([TaskResult("gsm8k", title, METRICS, {0.0: 200, alpha: 200}, means, {"data": "d"})], compared)


LOSS = bench()
SENTENCE = LOSS.sentences()[0]


def study(of: BenchResult = LOSS) -> StudyResult:
    known = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 0.5, 0.5, 0.05)]
    return StudyResult("s", "sqlite:///expo-search.db", known, {}, verdict(known), of, {"gsm8k": 0.02})


def test_the_terminal_has_a_row_a_metric_and_the_sentence_of_what_decides() -> None:
    console = Console(width=160)
    with console.capture() as captured:
        print_bench(console, LOSS)
    lines = captured.get().splitlines()
    (first,) = [line for line in lines if "the last number" in line]
    assert first.split()[:2] == ["GSM8K", "the"]
    assert [part in first for part in ("0.5", "200", "50.0", "30.0", "-20.0", "a loss")] == [True] * 6
    (second,) = [line for line in lines if "####" in line]
    assert "GSM8K" not in second
    assert lines[-1] == SENTENCE == f"alpha = 0.5: {LOSS.compared[0].sentence()}"


def test_a_study_without_benchmarks_shows_none() -> None:
    console = Console(width=160)
    with console.capture() as captured:
        print_bench(console, BenchResult())
    assert captured.get() == ""
    assert "Beyond" not in markdown_note(study(BenchResult()))


def test_the_json_has_every_number(tmp_path: Path) -> None:
    result = study()
    told = json.loads(json.dumps(summary("s", result.evaluations, result.verdict, result.bench, result.remarks)))
    first = told["bench"]["compared"][0]
    assert (first["task"], first["metric"], first["items"], first["mean"], first["at_alpha_0"]) == (
        "gsm8k", "flexible", 200, 0.3, 0.5,
    )  # fmt: skip
    assert first["difference"] == pytest.approx(-0.2)
    assert first["verdict"] == "a loss"
    assert told["bench"]["tasks"][0]["alphas"][1] == {
        "alpha": 0.5, "items": 200, "means": {"flexible": 0.3, "strict": 0.0},
    }  # fmt: skip
    assert told["remarks"] == result.remarks != []


def test_the_note_says_it_and_no_name_is_markup() -> None:
    note = markdown_note(study(bench(title=EVIL)))
    assert "### Beyond the reward model" in note
    assert "GSM8K \\<b\\>\\|\\*x\\*" in note
    assert "expo-search bench" not in note, "it is done"
    assert "expo-search bench s" in markdown_note(study(BenchResult()))


def test_the_report_has_the_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    store = Store(url, "s")
    kept = BenchStore(store)
    kept.pin("gsm8k", {"title": EVIL, "metrics": [[m.name, m.title] for m in METRICS]})
    for alpha, n in ((0.0, 100), (0.5, 60)):
        of = {(item, i): given for i, (item, given) in enumerate(scores(n).items())}
        kept.add("gsm8k", alpha, {(item, 0): Answered("1", 1, "stop") for item, _ in of}, of)
    write_report(Store(url, "s", read_only=True), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Beyond the reward model" in page
    assert "GSM8K &lt;b&gt;|*x*" in page
    assert "<b>|" not in page
    assert "a loss" in page


def test_a_task_that_is_not_finished_is_said_to_be_in_table_report_and_note(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    kept = BenchStore(Store(url, "s"))
    kept.pin("gsm8k", {"title": "GSM8K", "metrics": [[m.name, m.title] for m in METRICS]})
    asked = Asked(["gsm8k"], {"gsm8k": "my/private.jsonl"}, None, [0.0, 0.5], 541)
    kept.describe("gsm8k", {"asked": asdict(asked)})
    kept.add("gsm8k", 0.0, {}, {(item, i): given for i, (item, given) in enumerate(scores(60, 154).items())})
    of, told = read_bench(kept), "GSM8K is not finished: 154 of 541 items answered at alpha = 0, 0 of 541 at 0.5."
    console = Console(width=60)
    with console.capture() as captured:
        print_bench(console, of)
    shown = " ".join(captured.get().split())
    assert told in shown
    assert shown.count("not finished") == 2
    assert told.replace("=", r"\=") in markdown_note(study(of)).replace("=", r"\=")
    write_report(Store(url, "s", read_only=True), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert told in page
    assert '<td data-head="">not finished</td>' in page
    assert "expo-search bench s --tasks gsm8k --data gsm8k=my/private.jsonl --alphas 0,0.5" in page
    assert "asked" not in of.tasks[0].settings


class TestCard:
    def test_it_has_the_table_the_sentence_and_the_hubs_metadata(self, tmp_path: Path) -> None:
        origin = replace(make_origin(tmp_path), bench=LOSS)
        text = card(origin)
        assert "## Beyond the reward model" in text
        assert "| GSM8K | the last number | 200 | 50.0 | 30.0 | -20.0 |" in text.replace("\\", "")
        (model,) = metadata(text)["model-index"]
        results = model["results"]
        assert results[0]["dataset"] == {"name": "GSM8K", "type": "openai/gsm8k"}
        assert [m for r in results for m in r["metrics"]] == [
            {"type": "flexible", "value": 0.3, "name": "flexible"},
            {"type": "strict", "value": 0.0, "name": "strict"},
        ]
        assert "and the tasks above were measured" in text
        assert [row["metric"] for row in provenance(origin)["bench"]] == ["flexible", "strict"]

    def test_another_alphas_benchmarks_are_not_this_models(self, tmp_path: Path) -> None:
        text = card(replace(make_origin(tmp_path), bench=bench(alpha=2.0)))
        assert "Beyond" not in text
        assert "model-index" not in text

    def test_a_name_of_a_task_injects_nothing(self, tmp_path: Path) -> None:
        origin = replace(make_origin(tmp_path), bench=bench(title=EVIL + "\n---\nlicense: mit"))
        text = card(origin)
        assert yaml.safe_load(text.split("---\n")[1])["license"] == "other"
        assert "<b>" not in text.split("---\n", 2)[2]


class TestGuardrails:
    @pytest.mark.parametrize(("limit", "ruled_out"), [(0.0, [0.5]), (0.14, [0.5]), (0.16, []), (0.5, [])])
    def test_only_a_loss_whose_whole_interval_lies_beyond_the_limit_rules_out(
        self, limit: float, ruled_out: list[float]
    ) -> None:
        assert 0.14 < -LOSS.compared[0].high < 0.16
        assert list(losses(LOSS, {"gsm8k": limit})) == ruled_out

    def test_a_loss_that_is_not_shown_and_a_task_without_a_limit_rule_nothing_out(self) -> None:
        assert losses(bench(n_right=97), {"gsm8k": 0.0}) == {}
        assert losses(LOSS, {"ifeval": 0.0}) == {}


class TestUnmeasured:
    """A guardrail that was held to nothing rules nothing out, and says so."""

    NONE = "The guardrail gsm8k was not measured at alpha = 0.5: `expo-search bench s --tasks gsm8k`."

    def test_every_view_says_that_the_recommended_alpha_was_not_held_to_it(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'a.db'}"
        store = Store(url, "s")
        trials = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 0.5, 0.5, 0.05)]
        for e in trials:
            trial = store.study.ask({"alpha": FloatDistribution(e.alpha, e.alpha)})
            keep(store, trial, e)
            store.tell(trial, e.gain.mean)
        store.keep(StudyAttributes(spec={"search": {}, "guardrails": {"bench": {"gsm8k": 0.02}}}))
        result = read_result(store)
        place = f" --storage {url}"
        told = self.NONE.replace("gsm8k`", f"gsm8k{place}`")
        assert result.remarks[-1] == told
        out = io.StringIO()
        print_result(Console(width=400, file=out), result, as_json=False)
        assert told in out.getvalue()
        out = io.StringIO()
        print_result(Console(file=out), result, as_json=True)
        assert told in json.loads(out.getvalue())["remarks"]
        assert self.NONE.partition(":")[0].replace("=", "") in markdown_note(result).replace("\\", "").replace("=", "")
        write_report(Store(url, "s", read_only=True), tmp_path / "r.html")
        assert "The guardrail gsm8k was not measured at alpha = 0.5" in (tmp_path / "r.html").read_text()

    def test_the_card_says_so_of_its_alpha(self, tmp_path: Path) -> None:
        origin = make_origin(tmp_path)
        guardrails = origin.spec.guardrails.model_copy(update={"bench": {"gsm8k": 0.02, "/home/me/own.py:rate": 1.0}})
        origin = replace(origin, spec=origin.spec.model_copy(update={"guardrails": guardrails}))
        text = card(origin).replace("\\", "")
        assert (
            "- The study's guardrails gsm8k, ./own.py:rate were not measured at this alpha (`expo-search bench`)"
            in text
        )
        assert "/home/me" not in text
        assert "guardrail ./own.py:rate was not measured" in card(replace(origin, bench=LOSS)).replace("\\", "")

    def test_once_it_is_measured_nothing_is_said(self) -> None:
        measured = bench(n_right=97)
        assert study(measured).remarks == []
        assert study(bench(alpha=0.7, n_right=97)).remarks == [self.NONE], "at another alpha"
        assert replace(study(BenchResult()), limits={}).remarks == []
        zero = replace(study(BenchResult()), verdict=verdict([make_evaluation(0, 0.0, 0.0, 0.0)]))
        assert zero.remarks == [], "nothing is recommended"

    def test_one_that_was_begun_names_the_command_that_goes_on(self) -> None:
        of = bench(n_right=97)
        asked = Asked(["gsm8k", "basics"], {"gsm8k": "my.jsonl"}, 300, [0.0, 0.5, 0.7], 300)
        begun = BenchResult([replace(of.tasks[0], asked=asked, unfinished="...")], of.compared)
        goes_on = "expo-search bench s --tasks gsm8k,basics --data gsm8k=my.jsonl --limit 300"
        assert study(begun).remarks == [f"The guardrail gsm8k was not measured to the end at alpha = 0.5: `{goes_on}`."]
        asked = replace(asked, n_items=200)
        there = BenchResult([replace(of.tasks[0], asked=asked, unfinished="...")], of.compared)
        assert study(there).remarks == [], "the items of another alpha alone are missing"

    def test_several_are_one_command(self) -> None:
        two = replace(study(BenchResult()), limits={"gsm8k": 0.02, "ifeval": 0.1})
        assert two.remarks == [
            "The guardrails gsm8k, ifeval were not measured at alpha = 0.5: `expo-search bench s --tasks gsm8k,ifeval`."
        ]


class TestFiles:
    ANSWERS = (
        Stored(0, Completion(Prompt("a", "Tell “me”."), "Yes\n", 3, "stop"), 1.25),
        Stored(1, Completion(Prompt("b", "?"), "", 64, "length"), -0.1),
    )

    def test_the_seeds_files_are_theirs_to_the_byte(self) -> None:
        assert outputs_file(self.ANSWERS) == (
            b'{"prompt": "Tell \\u201cme\\u201d.", "output": "Yes\\n", "length": 3, "finish_reason": "stop"}\n'
            b'{"prompt": "?", "output": "", "length": 64, "finish_reason": "length"}\n'
        )
        assert rewards_file(self.ANSWERS) == b"1.25\n-0.1\n"
        assert generator_name("zephyr", 0.1) == "zephyr_a0.1"

    def test_each_trial_has_two_files_of_the_same_rated_answers(self, tmp_path: Path) -> None:
        store = Store(f"sqlite:///{tmp_path / 'a.db'}", "mine")
        store.put_prompts("search", [s.completion.prompt for s in self.ANSWERS])
        store.add_completions(3, "search", {s.position: s.completion for s in self.ANSWERS})
        store.add_rewards(3, "search", {1: -0.1})
        files = trial_files(store, [make_evaluation(3, 0.25, 0.1, 0.1)])
        assert {name: len(content.splitlines()) for name, content in files.items()} == {
            "outputs_ultrafeedback/mine_a0.25.jsonl": 1,
            "rewards_ultrafeedback/mine_a0.25.jsonl": 1,
        }
        write_files(files, tmp_path / "out", "--answers")
        assert (tmp_path / "out/rewards_ultrafeedback/mine_a0.25.jsonl").read_bytes() == b"-0.1\n"

    def test_a_file_that_cannot_be_written_whole_stays_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_files({"a.jsonl": b"before\n"}, tmp_path, "--answers")

        def half(path: Path, content: bytes) -> int:
            with path.open("wb") as file:
                file.write(content[:2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(StudyError, match="No space left on device"):
            write_files({"a.jsonl": b"after\n"}, tmp_path, "--answers")
        assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a.jsonl", b"before\n")]

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("")
        with pytest.raises(StudyError, match=r"--answers .*f, a file; expected a folder"):
            write_files({"a/b": b""}, tmp_path / "f" / "deeper", "--answers")


def tax(*n_right: int, title: str = "GSM8K") -> BenchResult:
    """GSM8K at alphas 0.1, 0.2, ..., with so many of 200 right, 100 at alpha = 0."""
    compared = [c for i, n in enumerate(n_right) for c in bench((i + 1) / 10, n, title).compared]
    return replace(bench(title=title), compared=compared)


class TestTheTaxAsACurve:
    def test_it_is_drawn_of_a_task_with_two_alphas(self) -> None:
        assert tax_panels(tax(60)) == {}
        assert tax_svg(tax(60)) == ""
        assert terminal_tax(tax(60)) == ""
        panels = tax_panels(tax(100, 60, 140))
        assert [c.alpha for c in panels["gsm8k"]] == [0.1, 0.2, 0.3]
        assert {c.metric for c in panels["gsm8k"]} == {"flexible"}, "what decides, alone"

    def test_a_terminal_shows_losses_and_gains_apart_within_its_width(self) -> None:
        picture = terminal_tax(tax(100, 60, 140), width=70)
        assert max(map(len, picture.splitlines())) <= 70
        assert [mark in picture for mark in "●▲▼"] == [True] * 3
        assert "difference from alpha = 0 in points" in picture
        assert picture.splitlines()[-1] == "● no evidence of a loss   ▲ a gain   ▼ a loss"

    def test_scores_that_are_no_shares_are_no_points(self) -> None:
        at = [replace(c, mean=7.2, control=7.5, low=-0.6, high=math.inf) for c in tax(60, 60).compared]
        assert "in points" not in terminal_tax(replace(tax(), compared=at))
        assert "<svg" in tax_svg(replace(tax(), compared=at))

    def test_a_name_from_outside_is_no_markup_and_one_curve_gives_one_file(self) -> None:
        svg = tax_svg(tax(60, 140, title="GSM8K <b>$x$"))
        assert svg.startswith("<svg")
        assert "<b>" not in svg
        assert svg == tax_svg(tax(60, 140, title="GSM8K <b>$x$"))

    def test_the_table_and_the_curve_stand_together(self) -> None:
        console = Console(width=80)
        with console.capture() as captured:
            print_bench(console, tax(60, 140))
        shown = captured.get()
        assert shown.index("interval") < shown.index("▼") < shown.index("alpha = 0.1: GSM8K")
