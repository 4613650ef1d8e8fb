"""Answers beside those of alpha = 0, as rows that are safe to show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import make_prompts

from expo_search.contracts import Completion
from expo_search.results.answers import Sample, json_lines, samples
from expo_search.store.study_store import Store
from expo_search.text import clean, cut


def make_sample(i: int, text: str = "an answer") -> Sample:
    return Sample(i, f"Question {i}?", text, "at 0", 1.0, 0.25, 3, "stop")


def test_each_answer_stands_beside_the_one_at_alpha_0_to_the_same_prompt(tmp_path: Path) -> None:
    store, prompts = Store(f"sqlite:///{tmp_path / 's.db'}", "s"), make_prompts(3)
    store.put_prompts("search", prompts)
    for trial, reward in ((0, 1.0), (1, 1.5)):
        store.add_completions(trial, "search", {i: Completion(p, f"{trial} to {p.id}", 4, "stop") for i, p in
                                                enumerate(prompts[: 3 - trial])})  # fmt: skip
        store.add_rewards(trial, "search", {0: reward})
    first, second = samples(store, 1)
    assert (first.prompt, first.answer, first.control) == ("Question 0?", "1 to id-0", "0 to id-0")
    assert (first.reward, first.difference) == (1.5, 0.5)
    assert (second.reward, second.difference) == (None, None)  # not scored yet
    assert [s.difference for s in samples(store, 0)] == [0.0, None, None]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab\r\n", "two\nlines\tand a tab\n"),
        ("\x1b[31mred\x1b]0;title\x07", "�[31mred�]0;title�"),
        ("\x9b2Jgone\x00", "�2Jgone�"),
        ("user\u202etxt.exe", "user�txt.exe"),
        ("half \ud83d of a pair", "half � of a pair"),
        ("👩\u200d👩\u200d👧 می\u200cخواهم ñ 汉字", "👩\u200d👩\u200d👧 می\u200cخواهم ñ 汉字"),
    ],
)
def test_what_steers_a_terminal_or_a_page_is_replaced_and_scripts_stay_whole(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_long_texts_are_cut_and_say_so() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefgh", 6) == "abcdef… (2 more characters)"


def test_rows_are_json_lines_with_the_columns_of_the_dashboards_table() -> None:
    table, n = json_lines([make_sample(i) for i in range(3)], n_max=10, bytes_max=10_000)
    rows = [json.loads(line) for line in table.decode().splitlines()]
    assert n == len(rows) == 3
    assert list(rows[0]) == [
        "prompt", "answer", "answer_at_alpha_0", "reward", "difference", "tokens", "finish_reason"
    ]  # fmt: skip


def test_rows_stop_at_the_cap_in_rows_and_at_the_cap_in_bytes() -> None:
    rows = [make_sample(i, "x" * 1000) for i in range(10)]
    assert json_lines(rows, n_max=4, bytes_max=10**6)[1] == 4
    table, n = json_lines(rows, n_max=100, bytes_max=5000)
    assert n == 4  # each row has 1000 characters and its names, somewhat less than 1250 bytes
    assert len(table) <= 5000
