"""The command that looks past the edge of a range: complete, and of the same study where the sampler allows it."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from fakes import make_evaluation
from rich.console import Console
from test_html_report import stored_study

from expo_search.api import open_study
from expo_search.cli.inspect import print_result, show
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.config.presets import load_study
from expo_search.config.spec import StudySpec
from expo_search.results.next_commands import search_again

OWN = {"aligned": "me/aligned", "sft": "/a folder/sft", "reward_model": "me/rm"}


def again(spec: StudySpec, edge: float | None, *, n_trials: int = 9, url: str = DEFAULT_STORAGE) -> str:
    return search_again(spec.model_dump(mode="json"), spec.name, url, edge, n_trials)


def ranged(low: Any, high: Any, sampler: str = "expo", **tables: Any) -> StudySpec:
    search = {"alpha_min": low, "alpha_max": high, "sampler": sampler} | tables.pop("search", {})
    return load_study(preset="zephyr", overrides={"search": search, **tables})


@pytest.mark.parametrize(
    ("low", "high", "edge", "options"),
    [
        (0.0, 0.3, 0.3, "--alpha-min 0 --alpha-max auto"),
        ("auto", 0.3, 0.3, "--alpha-max auto"),
        (0.0, 2.0, 0.0, "--alpha-max 2 --alpha-min -1"),
        (0.1, "auto", 0.1, "--alpha-min 0"),
        (-2.0, 1.0, -2.0, "--alpha-max 1 --alpha-min -4"),
        (0.0, 100.0, 100.0, "--alpha-min 0 --alpha-max 200"),
    ],
)
def test_expo_goes_on_with_the_same_study_past_its_edge(low: Any, high: Any, edge: float, options: str) -> None:
    assert again(ranged(low, high), edge) == f"expo-search --pair zephyr {options} --study-name zephyr"


@pytest.mark.parametrize(
    ("edge", "options"), [(2.0, "--alpha-min 0 --alpha-max 4"), (0.0, "--alpha-max 2 --alpha-min -1")]
)
@pytest.mark.parametrize("sampler", ["gp", "tpe", "grid", "random"])
def test_other_samplers_get_a_study_of_their_own(sampler: str, edge: float, options: str) -> None:
    assert again(ranged(0.0, 2.0, sampler), edge) == (
        f"expo-search --pair zephyr --sampler {sampler} {options} --study-name zephyr-2"
    )


def test_it_asks_for_more_trials_than_there_are() -> None:
    assert " --trials 30 " in again(ranged(0.0, 2.0), 2.0, n_trials=20)
    assert " --trials 40 " in again(ranged(0.0, 2.0, "gp"), 2.0, n_trials=40)


def test_options_that_were_given_are_given_again_and_make_the_same_study() -> None:
    spec = ranged(
        0.0, 0.5, prompts={"n": 64}, sampling={"max_tokens": 99}, search={"racing": False, "objective": "win-rate"},
    )  # fmt: skip
    assert again(spec, 0.5) == (
        "expo-search --pair zephyr --n-prompts 64 --max-tokens 99 --no-racing --objective win-rate "
        "--alpha-min 0 --alpha-max auto --study-name zephyr"
    )


def test_a_pair_of_ones_own_is_named_whole_with_its_database_but_no_password() -> None:
    spec = load_study(overrides={"pair": OWN, "prompts": {"source": "p.jsonl"}, "search": {"alpha_max": 1.0}})
    assert shlex.split(again(spec, 1.0, url="postgresql://me:secret@host/db")) == [
        "expo-search", "--aligned", "me/aligned", "--sft", "/a folder/sft", "--reward-model", "me/rm",
        "--prompts", "p.jsonl", "--alpha-max", "auto", "--study-name", "custom",
        "--storage", "postgresql://me:***@host/db",
    ]  # fmt: skip


def test_what_no_option_can_say_stands_in_the_study_file() -> None:
    spec = ranged(0.0, 0.5, guardrails={"length_ratio": 2.0}, prompts={"n": 64})
    assert again(spec, 0.5) == (
        "expo-search --study FILE --n-prompts 64 --alpha-min 0 --alpha-max auto --study-name zephyr"
    )


def test_the_end_that_a_sampler_has_where_none_was_given_is_moved_too() -> None:
    assert "--alpha-max 2 " in again(ranged("auto", "auto", "gp"), 1.0)


def test_a_reward_model_beside_a_scorer_which_rates_nothing_is_left_out() -> None:
    pair = {"aligned": "a", "sft": "b", "reward_model": "r"}
    spec = load_study(file=None, overrides={"pair": pair}).model_dump(mode="json")
    spec["reward"] = spec["reward"] | {"scorer": "mine.py:score"}  # as older versions took it
    command = search_again(spec | {"search": spec["search"] | {"alpha_max": 1.0}}, "s", DEFAULT_STORAGE, 1.0, 9)
    assert "--scorer mine.py:score" in command
    assert "--reward-model" not in command


def test_without_an_edge_or_a_spec_there_is_no_command() -> None:
    assert again(ranged(0.0, 2.0), None) == ""
    assert search_again(None, "s", DEFAULT_STORAGE, 2.0, 9) == ""
    assert search_again({"name": "s"}, "s", DEFAULT_STORAGE, 2.0, 9) == ""


def test_one_option_forces_what_engine_and_reward_model_multiply_in_and_a_file_says_either_alone() -> None:
    both = ranged(0.0, 0.5, engine={"arithmetic": "float32"}, reward={"arithmetic": "float32"})
    assert again(both, 0.5).startswith("expo-search --pair zephyr --arithmetic float32 --alpha-min")
    forced = {"arithmetic": "float32"}
    for one_table in (ranged(0.0, 0.5, engine=forced), ranged(0.0, 0.5, reward=forced)):
        one = again(one_table, 0.5)
        assert one.startswith("expo-search --study FILE --alpha-min")


def test_show_does_not_send_to_itself_and_a_search_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 0.5, 0.5, 0.1)]
    url = stored_study(f"sqlite:///{tmp_path / 's.db'}", "s", trials, "yes").url
    show("s", url)
    shown = capsys.readouterr().out.partition("Next:")[2]
    assert "expo-search report s" in shown
    assert "expo-search show" not in shown
    out = io.StringIO()
    print_result(Console(file=out, width=200), open_study(url, "s"), as_json=False)  # as a search does at its end
    assert "expo-search show s" in out.getvalue().partition("Next:")[2]
