"""The database: what is kept survives, one process writes, and every database that cannot be used is one clear line."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from databases import rows
from fakes import make_prompts

from expo_search.contracts import Completion, Rated
from expo_search.errors import SettingsChanged, StoreError
from expo_search.store.attributes import StudyAttributes, stored_attributes
from expo_search.store.database import study_names
from expo_search.store.settings import Settings, compare_settings
from expo_search.store.study_store import Store

PROMPTS = make_prompts(4)


def answer(i: int, text: str = "yes") -> Completion:
    return Completion(PROMPTS[i], text, 3 + i, "stop" if i % 2 else "length")


def test_completions_rewards_and_prompts_survive_reopening(url: str) -> None:
    store = Store(url, "s")
    store.put_prompts("search", PROMPTS)
    store.add_completions(7, "search", {2: answer(2, "two"), 0: answer(0, "zero")})
    store.add_rewards(7, "search", {2: -1.5})
    again = Store(url, "s")
    assert again.prompts("search") == PROMPTS
    found = again.completions(7, "search", PROMPTS)
    assert [(s.position, s.completion, s.reward) for s in found] == [
        (0, answer(0, "zero"), None),
        (2, answer(2, "two"), -1.5),
    ]
    assert again.rated(7, "search") == {2: Rated(-1.5, answer(2).n_tokens)}


def test_trials_parts_and_studies_are_kept_apart(url: str) -> None:
    one, two = Store(url, "one"), Store(url, "two")
    one.add_completions(0, "search", {0: answer(0, "a")})
    one.add_completions(1, "search", {0: answer(0, "b")})
    one.add_completions(0, "confirm", {0: answer(0, "c")})
    two.add_completions(0, "search", {0: answer(0, "d")})
    kept = [(one, 0, "search"), (one, 1, "search"), (one, 0, "confirm"), (two, 0, "search")]
    assert [s.completions(t, p, PROMPTS)[0].completion.text for s, t, p in kept] == ["a", "b", "c", "d"]  # type: ignore[arg-type]
    one.drop("confirm")
    assert [len(s.completions(t, p, PROMPTS)) for s, t, p in kept] == [1, 1, 0, 1]  # type: ignore[arg-type]


def test_a_part_that_is_dropped_can_be_made_anew_with_other_weights_and_prompts(url: str) -> None:
    store = Store(url, "s")
    for prompts, fingerprint in ((PROMPTS, "aaaa"), (PROMPTS[::-1], "bbbb")):
        store.put_prompts("confirm", prompts)
        store.pin_weights(0, "confirm", 0.0, fingerprint)
        store.add_completions(0, "confirm", {0: answer(0)})
        assert store.prompts("confirm") == prompts
        store.drop("confirm")


def test_prompts_can_be_put_again(url: str) -> None:
    store = Store(url, "s")
    store.put_prompts("search", PROMPTS)
    store.put_prompts("search", PROMPTS)
    assert store.prompts("search") == PROMPTS
    assert store.prompts("confirm") == []


def test_an_answer_is_never_stored_twice(url: str) -> None:
    store = Store(url, "s")
    store.add_completions(0, "search", {0: answer(0, "first")})
    with pytest.raises(StoreError, match=r"(?i)unique|duplicate entry"):
        store.add_completions(0, "search", {0: answer(0, "second"), 1: answer(1)})
    assert [s.completion.text for s in store.completions(0, "search", PROMPTS)] == ["first"]


def test_any_text_can_be_stored(url: str) -> None:
    texts = {
        "half \ud83d of a smile": "half ? of a smile",
        "nul \0 byte": "nul \ufffd byte",
        "\U0001f600 ü\n\t' \" ; DROP TABLE expo_completions --": None,
        "x" * 100_000: None,
        "": None,
    }
    store = Store(url, "s")
    for trial, text in enumerate(texts):
        store.add_completions(trial, "search", {0: answer(0, text)})
    again = Store(url, "s")
    for trial, (text, kept) in enumerate(texts.items()):
        assert again.completions(trial, "search", PROMPTS)[0].completion.text == (text if kept is None else kept)


def test_write_ahead_mode_is_on_so_that_a_dashboards_open_read_ends_no_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    store = Store(url, "s")
    assert rows(url, "PRAGMA journal_mode") == [("wal",)]
    reader = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM trials").fetchall()
    store.study.tell(store.study.ask(), 1.25)
    store.add_completions(0, "search", {0: answer(0)})
    reader.close()
    assert Store(url, "s").study.best_value == 1.25


def test_weights_are_pinned_to_the_answers_they_made(url: str) -> None:
    store = Store(url, "s")
    store.pin_weights(3, "search", 0.1, "aaaa")
    Store(url, "s").pin_weights(3, "search", 0.1, "aaaa")
    store.pin_weights(3, "confirm", 0.1, "bbbb")
    for alpha, fingerprint in ((0.1, "cccc"), (0.2, "aaaa")):
        with pytest.raises(SettingsChanged) as fault:
            store.pin_weights(3, "search", alpha, fingerprint)
        assert fault.value.where == "study s, trial 3"
        assert fault.value.found == f"weights {fingerprint} at alpha {alpha:g}"
        assert fault.value.expected == "aaaa at alpha 0.1, which made the stored answers"
        assert "--study-name" in fault.value.do


def test_settings_and_spec_are_kept_and_read_again_without_opening_the_study(url: str) -> None:
    assert stored_attributes(url, "s") is None
    assert Store(url, "s").attributes == StudyAttributes()
    assert stored_attributes(url, "s") == StudyAttributes()
    settings = Settings.from_flat({"prompts.n": 5, "sampling.top_p": 0.9, "pair.stop_token_ids": [1, 2]})
    spec = {"name": "s", "pair": {"sft": "a"}}
    Store(url, "s").pin_settings(settings, spec)
    Store(url, "s").pin_settings(settings, spec)
    assert stored_attributes(url, "s") == Store(url, "s").attributes == StudyAttributes(settings=settings, spec=spec)
    assert stored_attributes(url, "another") is None
    assert study_names(url) == ["s"]


def test_other_settings_are_refused_and_the_stored_ones_stay(url: str) -> None:
    five, six = (Settings.from_flat({"prompts.n": n}) for n in (5, 6))
    Store(url, "s").pin_settings(five, {"name": "s"})
    with pytest.raises(SettingsChanged, match=r"prompts\.n: 5 there, 6 now"):
        Store(url, "s").pin_settings(six, {"name": "t"})
    assert stored_attributes(url, "s") == StudyAttributes(settings=five, spec={"name": "s"})


def test_settings_are_kept_flat_and_what_another_version_kept_stays() -> None:
    flat = {"prompts.n": 5, "search.racing": True, "engine.new_key": "x", "new_table.key": [1, 2]}
    assert Settings.from_flat(flat).flat() == flat
    both = Settings.from_flat({"prompts.n": 5, "prompts.hash": "a"}).updated(Settings.from_flat({"prompts.n": 6}))
    assert both.flat() == {"prompts.n": 6, "prompts.hash": "a"}


def test_every_setting_that_differs_is_named_with_both_values() -> None:
    stored = Settings.from_flat({"t.a": 1, "t.b": "x", "t.c": [1], "t.only_stored": 1})
    now = {"t.a": 1, "t.b": "x", "t.c": [1], "t.only_now": 2}
    compare_settings(stored, Settings.from_flat(now), name="s")
    with pytest.raises(SettingsChanged) as fault:
        compare_settings(stored, Settings.from_flat(now | {"t.a": 2, "t.b": "y"}), name="s")
    assert str(fault.value) == (
        "study s: other settings (t.a: 1 there, 2 now; t.b: 'x' there, 'y' now); expected those it was made under; "
        "drop the differing options, or give another --study-name"
    )
