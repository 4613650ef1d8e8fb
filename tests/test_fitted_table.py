"""The tables of benchmarks, shapes and several reward models on a terminal: no number and no word is broken."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from fakes import make_evaluation
from rich.console import Console
from rich.table import Table

from expo_search.bench.comparison import compare, corrected
from expo_search.bench.result import BenchResult, TaskResult
from expo_search.bench.task import Metric
from expo_search.cli.console import print_table
from expo_search.cli.inspect import print_bench
from expo_search.results.bench_table import bench_rows, bench_table
from expo_search.results.fitted_table import fitted_table, headings, left_out
from expo_search.results.reward_models import ModelGain, model_gain_rows, model_gain_table
from expo_search.results.shapes import HEADS, shape_rows, shape_table
from expo_search.search.shapes import Against, Beginning, Shapes
from expo_search.stats.paired import Estimate
from expo_search.store.bench_store import Score
from expo_search.weights.shape import Shape, ShapedAlpha

WIDTHS = pytest.mark.parametrize("width", [60, 80, 120])
IFEVAL = [
    Metric("prompt_level_strict_acc", "prompts, strict"),
    Metric("inst_level_strict_acc", "instructions, strict"),
    Metric("prompt_level_loose_acc", "prompts, loose"),
    Metric("inst_level_loose_acc", "instructions, loose"),
]
GSM8K = [Metric("flexible", "the last number"), Metric("strict", "the number after ####")]
N = 134


def benched(*tasks: tuple[str, Sequence[Metric], int], alphas: Sequence[float] = (3.549,)) -> BenchResult:
    """Tasks of which alpha = 0 answers 54 right, each alpha so many."""
    results, compared = [], []
    for title, metrics, n_right in tasks:
        zero, at = ({f"i{i}": {m.name: Score(float(i < n)) for m in metrics} for i in range(N)} for n in (54, n_right))
        results.append(TaskResult(title, title, metrics, dict.fromkeys((0.0, *alphas), N), {}, {}))
        compared += [c for alpha in alphas if metrics for c in compare(title, title, metrics, alpha, at, zero)]
    return BenchResult(results, corrected(compared))


BENCHES = [
    benched(("basics", [Metric("right", "right answers")], 41), alphas=(2.883,)),
    benched(("IFEval", IFEVAL, 28), ("GSM8K", GSM8K, 53), ("AlpacaEval", [], 0)),
    benched(("IFEval, the 477 items without punkt", IFEVAL, 28), alphas=(0.1, 0.3, 0.5)),
    benched(("lm_eval:arc_challenge", [Metric("acc_norm", "acc_norm")], 41)),
]


def shapes() -> Shapes:
    """The demo's six shapes, as `docs/shapes.md` has them; one was stopped."""
    numbers = [(0.5, 0.0), (1.0, 0.5), (1.405, 1.0), (1.333, 0.168), (1.975, 0.175), (1.365, -0.308)]
    gains = [-0.032, 0.001, -0.085, 0.053, -0.147, 0.033]
    trials = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 2.883, 0.261, 0.07)]
    for i, of in enumerate(numbers):
        e = make_evaluation(2 + i, ShapedAlpha(2.883, Shape("depth", of, 30)), 0.261 + gains[i], 0.07)
        trials.append(replace(e, outcome="hopeless", broken=("repeating", "cut off")) if i == 4 else e)
    against = [Against(2 + i, Estimate(gain, 0.07, 128), ()) for i, gain in enumerate(gains)]
    return Shapes(Beginning("demo", 1, 2.883, "depth", 30), tuple(trials), tuple(against), trials[5])


GAINS = [
    ModelGain("openbmb/Eurus-RM-7b", 1, 2.883, "confirm", 1012.5, 998.25, Estimate(14.25, 5.5, 280), 120.0),
    ModelGain(
        "OpenAssistant/reward-model-deberta-v3-large-v2", 1, 2.883, "confirm", 9.0, 10.0, Estimate(-1, 0.2, 280), 5
    ),
]


def drawn(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def has(text: str, whole: str) -> bool:
    return re.search(rf"(^|\s){re.escape(whole)}(\s|$)", text, re.MULTILINE) is not None


def assert_whole(table: Table, rows: Sequence[Mapping[str, str]], texts: Sequence[str], width: int) -> None:
    """Each number stands in its row, each word of a text in one piece, and nothing is wider than the terminal."""
    lines = drawn(table, width)
    text, shown = "\n".join(lines), headings(table)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for row in rows:
        numbers = [row[h] for h in shown if h not in texts]
        assert any(all(has(line, number) for number in numbers) for line in lines), numbers
        assert all(has(text, word) for h in shown if h in texts for word in row[h].split()), row
    assert all(has(text, word) for word in " ".join(shown).split())


@WIDTHS
@pytest.mark.parametrize("bench", BENCHES)
def test_a_benchs_table_is_whole(bench: BenchResult, width: int) -> None:
    table = bench_table(bench, width)
    assert_whole(table, bench_rows(bench), ("task", "metric", ""), width)
    assert {"task", "metric", "difference", "95 % interval"} <= set(headings(table))
    if width == 60:
        assert "alpha = 0" not in headings(table)


@WIDTHS
def test_a_shapes_table_is_whole(width: int) -> None:
    found = shapes()
    table = shape_table(found, width)
    assert_whole(table, shape_rows(found), ("shape", ""), width)
    assert {"shape", "over uniform", "95 % interval", ""} <= set(headings(table))
    assert (headings(table) == list(HEADS)) == (width == 120)
    assert [row.style for row in table.rows] == ["", "", "", "", "", "bold", "", ""]


@WIDTHS
def test_the_table_of_several_reward_models_is_whole_but_for_a_name_that_is_longer_than_its_room(width: int) -> None:
    some = GAINS if width == 120 else GAINS[:1]
    table = model_gain_table(some, width)
    assert_whole(table, model_gain_rows(some), ("reward model",), width)
    assert {"reward model", "gain", "95 % interval"} <= set(headings(table))


def test_a_name_that_is_longer_than_its_room_goes_on_after_its_separator() -> None:
    lines = drawn(model_gain_table(GAINS, 60), 60)
    assert any(line.split() == ["OpenAssistant/reward-model-", "-1.0000", "[-1.3937,", "-0.6063]"] for line in lines)
    assert "…" not in "".join(lines)


def test_where_the_verdicts_column_is_left_out_the_sentences_have_it_and_a_task_without_one_keeps_its_remark() -> None:
    console = Console(width=60, force_terminal=True, color_system=None)
    with console.capture() as captured:
        print_bench(console, BENCHES[1])
    text = captured.get()
    assert "" not in headings(bench_table(BENCHES[1], 60))
    assert "answered at 0 (134), 3.549 (134); it is not scored here" in " ".join(text.split())
    assert "no evidence of a loss" in " ".join(text.split())


def test_what_was_left_out_is_said_with_where_it_is() -> None:
    def said(width: int) -> str:
        console = Console(width=width, force_terminal=True, color_system=None)
        with console.capture() as captured:
            print_table(console, fitted_table(rows, width, texts=(), leave_out=("b b", "c")), ("a", "b b", "c"))
        return captured.get()

    rows = [{"a": "1" * 20, "b b": "2" * 20, "c": "3" * 20}]
    assert "left out for width: b b; all columns: expo-search show --json" in " ".join(said(50).split())
    assert "left out" not in said(80)


def test_nothing_in_a_cell_is_markup_and_a_table_without_rows_is_empty() -> None:
    table = fitted_table([{"name": "[red]x[/red]\nb"}], 60, texts=("name",))
    assert any("[red]x[/red] b" in line for line in drawn(table, 60))
    assert not fitted_table([], 60, texts=()).columns
    assert left_out(fitted_table([], 60, texts=()), HEADS, "") == ""
