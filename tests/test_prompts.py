"""Prompts from files: what is read, in which order, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expo_search.contracts import Prompt
from expo_search.errors import PromptsError
from expo_search.inputs.prompts import confirm_part, load_prompts, prompts_hash, search_part

ROWS = [{"prompt": f"Question {i}?", "prompt_id": f"q{i}"} for i in range(40)]


def write(folder: Path, rows: list[Any], name: str = "prompts.jsonl") -> str:
    file = folder / name
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(file)


def texts(source: str, seed: int = 1) -> list[str]:
    return [p.text for p in load_prompts(source, "any", seed)]


def fault_of(source: str) -> PromptsError:
    with pytest.raises(PromptsError) as fault:
        load_prompts(source, "any", 1)
    assert "\n" not in str(fault.value)
    return fault.value


def test_where_they_must_be_a_stored_studys_the_advice_is_the_callers(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    few = write(folder, ROWS[:2])
    for source, at_least in ((str(folder), 1), (few, 3)):
        with pytest.raises(PromptsError) as fault:
            load_prompts(source, "any", 1, at_least=at_least, do="put them back")
        assert fault.value.do == "put them back"


def test_all_kinds_of_file_give_the_same_prompts_in_the_same_order(tmp_path: Path) -> None:
    lines = write(tmp_path, ROWS)
    whole = tmp_path / "prompts.json"
    whole.write_text(json.dumps(ROWS))
    table = tmp_path / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    assert load_prompts(lines, "", 3) == load_prompts(str(whole), "", 3) == load_prompts(str(table), "", 3)
    assert sorted(texts(lines)) == sorted(row["prompt"] for row in ROWS)


def test_the_order_depends_on_the_seed_and_not_on_the_files_order(tmp_path: Path) -> None:
    forward, backward = write(tmp_path, ROWS), write(tmp_path, ROWS[::-1], "backward.jsonl")
    assert texts(forward, 1) == texts(backward, 1)
    assert texts(forward, 1) != texts(forward, 2)
    assert texts(forward, 1) != sorted(texts(forward, 1))


def test_the_first_user_turn_of_a_conversation_is_the_prompt(tmp_path: Path) -> None:
    system, user, more = (
        {"role": r, "content": c} for r, c in (("system", "s"), ("user", "first"), ("user", "second"))
    )
    assert texts(write(tmp_path, [{"messages": [system, user, more], "prompt": "column"}])) == ["first"]
    assert texts(write(tmp_path, [{"messages": [system], "prompt": "column"}])) == ["column"]


def test_conversations_are_read_from_parquet_as_ultrafeedback_keeps_them(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "prompt_id": "i", "messages": [{"role": "user", "content": "turn"}], "score": 1.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "uf.parquet")
    assert load_prompts(str(tmp_path / "uf.parquet"), "", 1) == [Prompt("i", "turn")]


def test_a_prompt_that_occurs_twice_is_taken_once(tmp_path: Path) -> None:
    assert len(texts(write(tmp_path, [*ROWS, *ROWS, {"prompt": "Question 3?"}]))) == 40


def test_ids_are_unique_also_where_the_file_gives_one_id_to_two_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "prompt_id": "same"}, {"prompt": "b", "prompt_id": "same"}]
    assert {p.id for p in load_prompts(write(tmp_path, rows), "", 1)} == {"same", hashlib.sha256(b"b").hexdigest()}


@pytest.mark.parametrize("given", [None, 5, "", "x" * 129, "a\nb", "a\ud800"])
def test_an_id_that_is_not_plain_text_is_replaced_by_the_hash_of_the_prompt(tmp_path: Path, given: object) -> None:
    found = load_prompts(write(tmp_path, [{"prompt": "hi", "prompt_id": given}]), "", 1)
    assert found == [Prompt(hashlib.sha256(b"hi").hexdigest(), "hi")]


def test_blank_lines_a_byte_order_mark_and_line_separators_inside_strings_are_no_faults(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('\n{"prompt": "a\u2028b"}\r\n\n  \n{"prompt": "c"}', encoding="utf-8-sig")
    assert sorted(texts(str(file))) == ["a\u2028b", "c"]


def test_a_prompts_seed_is_its_own_the_same_every_time_and_fits_in_31_bits() -> None:
    seeds = [Prompt(f"q{i}", "").seed(7) for i in range(1000)]
    assert seeds == [Prompt(f"q{i}", "other text").seed(7) for i in range(1000)]
    assert seeds != [Prompt(f"q{i}", "").seed(8) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) < max(seeds) < 2**31


TEN = [Prompt(str(i), "long" if i in (1, 8) else "short") for i in range(10)]


def short(prompt: Prompt) -> bool:
    return prompt.text == "short"


def ids(prompts: list[Prompt]) -> list[str]:
    return [p.id for p in prompts]


def test_search_and_confirmation_take_disjoint_parts_from_the_two_ends() -> None:
    searched, reach = search_part(TEN, 6, where="x")
    assert (searched, reach) == (TEN[:6], 6)
    assert ids(confirm_part(TEN, reach, None, where="x")) == ["9", "8", "7", "6"]
    assert ids(confirm_part(TEN, reach, 2, where="x")) == ["9", "8"]


def test_prompts_that_do_not_fit_are_passed_over_at_both_ends() -> None:
    searched, reach = search_part(TEN, 6, where="x", fits=short)
    assert (ids(searched), reach) == (["0", "2", "3", "4", "5", "6"], 7)
    assert ids(confirm_part(TEN, reach, None, where="x", fits=short)) == ["9", "7"]


def test_a_data_set_that_falls_short_is_enough_unless_the_number_was_asked_for() -> None:
    assert search_part(TEN, 1000, where="x", exact=False) == (TEN, 10)
    for prompts, exact, expected in ((TEN[:1], False, 2), (TEN[:3], True, 4)):
        with pytest.raises(PromptsError) as fault:
            search_part(prompts, 4, where="prompts p.jsonl", exact=exact)
        assert fault.value.found == f"{len(prompts)} prompts"
        assert fault.value.expected == f"at least {expected}"
    assert str(fault.value) == "prompts p.jsonl: 3 prompts; expected at least 4; give more prompts, or --n-prompts 3"


def test_prompts_that_are_too_long_are_counted_where_there_are_too_few() -> None:
    with pytest.raises(PromptsError) as fault:
        search_part(TEN, 9, where="x", fits=short)
    assert fault.value.found == "8 prompts, 2 more are too long for the context"


@pytest.mark.parametrize(
    ("reach", "n", "left", "wanted"), [(6, 5, 4, 5), (9, None, 1, 2), (10, None, 0, 2), (10, 3, 0, 3)]
)
def test_too_few_unseen_prompts_for_a_confirmation_say_how_many_are_left(
    reach: int, n: int | None, left: int, wanted: int
) -> None:
    with pytest.raises(PromptsError) as fault:
        confirm_part(TEN, reach, n, where="prompts p")
    assert fault.value.found == f"{left} prompts that the search has not seen"
    assert fault.value.expected == f"at least {wanted}"
    assert ("give --n-prompts 4" if left > 1 else "search with fewer") in fault.value.do


@pytest.mark.parametrize("n", [1, 0, -3])
def test_a_confirmation_on_one_prompt_or_none_is_refused(n: int) -> None:
    with pytest.raises(PromptsError) as fault:
        confirm_part(TEN, 5, n, where="prompts p")
    assert str(fault.value) == (f"--n-prompts: {n}; expected at least 2; one prompt has no standard error: give more")


def test_the_hash_covers_ids_texts_and_order() -> None:
    a, b = Prompt("1", "x"), Prompt("2", "y")
    hashes = {
        prompts_hash(p)
        for p in ([a, b], [b, a], [a], [a, Prompt("2", "z")], [a, Prompt("3", "y")], [Prompt("1x", ""), b])
    }
    assert len(hashes) == 6
    assert prompts_hash([a, b]) == prompts_hash(iter([Prompt("1", "x"), Prompt("2", "y")]))


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    source = str(tmp_path / name)
    assert str(fault_of(source)) == (
        f"prompts {source}: no such file; expected a .jsonl, .json or .parquet file, or the id of a Hub data set; "
        "check the path"
    )


def test_a_home_folder_that_does_not_exist_is_a_missing_file() -> None:
    assert fault_of("~no-such-user/p.jsonl").found == "no such file"


def test_a_file_of_another_kind_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\nhello\n")
    assert fault_of(str(tmp_path / "p.csv")).found == "a file of another kind"


@pytest.mark.parametrize(
    ("name", "content", "where", "found"),
    [
        ("p.jsonl", b"", "prompts", "no rows"),
        ("p.jsonl", b"\n\n", "prompts", "no rows"),
        ("p.json", b"[]", "prompts", "no rows"),
        ("p.jsonl", b'{"prompt": "a"}\n\nnot json\n', "line 3", "not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "b"', "line 2", "not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', "line 2", "bytes that are not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n["b"]', "line 2", "a list"),
        ("p.jsonl", b'{"prompt": "a"}\n{"question": "b", "id": 1}', "line 2", "columns id, question"),
        ("p.jsonl", b"{}", "line 1", "columns none"),
        ("p.jsonl", b'{"prompt": 5}', "line 1", "columns prompt"),
        ("p.jsonl", b"[" * 100_000, "line 1", "not JSON"),
        ("p.json", b"[" * 100_000, "p.json", "not JSON"),
        ("p.json", b'{"prompt": "a"}', "p.json", "not a list of rows"),
        ("p.json", b'[{"prompt": "a"}, 5]', "row 2", "a int"),
        ("p.parquet", b"PAR1 no", "p.parquet", "not readable as Parquet"),
        ("p.parquet", b"", "p.parquet", "not readable as Parquet"),
    ],
)
def test_a_faulty_file_is_named_with_the_line_and_what_is_there(
    tmp_path: Path, name: str, content: bytes, where: str, found: str
) -> None:
    (tmp_path / name).write_bytes(content)
    fault = fault_of(str(tmp_path / name))
    assert str(tmp_path / name) in fault.where
    assert where in fault.where
    assert found in fault.found


BLANK, SMILE, NUL = {"prompt": " \n"}, {"prompt": "half \ud83d of a smile"}, {"prompt": "a\0b"}
UNSAID = {"messages": [{"role": "user", "content": ""}]}


def test_rows_without_a_usable_prompt_are_left_out_and_counted(tmp_path: Path) -> None:
    said: list[str] = []
    source = write(tmp_path, [ROWS[0], BLANK, SMILE, ROWS[1], UNSAID, NUL])
    assert sorted(p.text for p in load_prompts(source, "", 1, said.append)) == ["Question 0?", "Question 1?"]
    assert said == [
        "4 rows of the prompts left out "
        "(line 2: an empty prompt; line 3: half of a surrogate pair; line 5: an empty prompt; ...)"
    ]
    load_prompts(write(tmp_path, ROWS), "", 1, said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("row", "why"), [(BLANK, "an empty prompt"), (UNSAID, "an empty prompt"), (SMILE, "half of"), (NUL, "a NUL")]
)
def test_a_file_with_nothing_but_such_rows_is_refused_with_the_reason(
    tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    fault = fault_of(write(tmp_path, [row, row]))
    assert fault.found.startswith("2 rows, none with a prompt (line 1: ")
    assert why in fault.found


def test_prompts_in_any_script_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"prompt": t}
        for t in ("مرحبا", "שלום", "你好", "👩\u200d👩\u200d👧", "e\u0301 and \u00e9", "é", "\u202eabc", "a\ufeff")
    ]
    assert sorted(texts(write(tmp_path, rows))) == sorted(row["prompt"] for row in rows)


def test_a_hundred_thousand_prompts_are_loaded_without_holding_the_file(tmp_path: Path) -> None:
    file, n = tmp_path / "many.jsonl", 100_000
    ballast = "x" * 700  # columns that are not ours, as UltraFeedback's answers
    with file.open("w") as stream:
        stream.writelines(json.dumps({"prompt": f"Question {i}?", "chosen": ballast}) + "\n" for i in range(n))
    tracemalloc.start()
    try:
        prompts = load_prompts(str(file), "", 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len({p.id for p in prompts}) == n
    # an id of 64 letters and a text each, in a few containers: below the 75 MB of the file, however long its rows are
    assert peak < 600 * n


def test_a_parquet_file_without_a_prompt_column_says_which_columns_are_wanted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "p.parquet")
    assert "`prompt`" in fault_of(str(tmp_path / "p.parquet")).expected


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that cannot be read even by root")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").symlink_to("/proc/self/mem")
    assert "not readable" in fault_of(str(tmp_path / "p.jsonl")).found


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "x"]), v, max_size=2),
    max_leaves=5,
)
row = st.fixed_dictionaries({}, optional={"prompt": json_value, "prompt_id": json_value, "messages": json_value})
anything = st.binary(max_size=80) | st.lists(row | json_value, max_size=4).map(
    lambda rows: "\n".join(map(json.dumps, rows)).encode()
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=anything, suffix=st.sampled_from([".jsonl", ".json"]))
def test_any_file_gives_distinct_prompts_or_a_prompts_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"any{suffix}"
    file.write_bytes(content)
    try:
        prompts = load_prompts(str(file), "", 1)
    except PromptsError as fault:
        named, prompts = fault.where, []
    else:
        named = ""
    assert str(file) in named or prompts
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)
    assert all(p.text.strip() and p.text.encode() for p in prompts)
