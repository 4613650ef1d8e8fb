"""Study files and overrides: what a `StudySpec` holds, and that all faults come in one message."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expo_search.config.presets import load_study
from expo_search.config.spec import StudySpec
from expo_search.errors import StudyError

PAIR = {"aligned": "a/b", "sft": "c/d", "reward_model": "e/f"}
PAIR_TOML = '[pair]\naligned = "a/b"\nsft = "c/d"\nreward_model = "e/f"\n'


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def fault_of(**arguments: Any) -> StudyError:
    with pytest.raises(StudyError) as fault:
        load_study(**arguments)
    return fault.value


def test_the_defaults_are_the_papers_settings() -> None:
    spec = load_study(overrides={"pair": PAIR})
    s = spec.sampling
    assert (s.temperature, s.top_p, s.top_k, s.max_tokens) == (0.7, 0.9, 50, 2048)
    assert (s.presence_penalty, s.frequency_penalty) == (0.1, 0.1)
    assert (spec.prompts.source, spec.prompts.split) == ("HuggingFaceH4/ultrafeedback_binarized", "test_gen")
    assert spec.prompts.n == 1000
    assert spec.name == "custom"


def test_without_a_range_the_search_finds_its_own_and_stops_what_cannot_win() -> None:
    search = load_study(overrides={"pair": PAIR}).search
    assert (search.alpha_min, search.alpha_max, search.sampler) == ("auto", "auto", "expo")
    assert (search.racing, search.objective) == (True, "reward")
    assert 0 < search.tolerance < 1


def test_a_bound_may_be_a_number_or_auto_also_as_a_word_of_the_command_line() -> None:
    given = {"alpha_min": "-0.5", "alpha_max": "auto"}
    search = load_study(overrides={"pair": PAIR, "search": given}).search
    assert (search.alpha_min, search.alpha_max) == (-0.5, "auto")


def test_guardrails_are_part_of_the_study_file(tmp_path: Path) -> None:
    limits = "[guardrails]\ncut_off_rise = 0.05\nlength_ratio = 1.5\n"
    guardrails = load_study(file=write(tmp_path, PAIR_TOML + limits)).guardrails
    assert (guardrails.cut_off_rise, guardrails.length_ratio) == (0.05, 1.5)
    assert guardrails.repeating_rise == load_study(overrides={"pair": PAIR}).guardrails.repeating_rise


def test_a_file_may_be_named_by_a_text(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('preset = "zephyr"', encoding="utf-8")
    assert load_study(file=str(tmp_path / "mine.toml")) == load_study(file=tmp_path / "mine.toml")


def test_options_lie_over_the_file_and_the_file_over_its_preset(tmp_path: Path) -> None:
    base = load_study(preset="demo")
    file = write(tmp_path, 'preset = "demo"\n[prompts]\nn = 9\n[search]\nseed = 5\nalpha_max = 3.0\n')
    spec = load_study(file=file, overrides={"search": {"seed": 6}})
    assert (spec.prompts.n, spec.search.seed, spec.search.alpha_max) == (9, 6, 3.0)
    assert (spec.pair, spec.prompts.source, spec.sampling) == (base.pair, base.prompts.source, base.sampling)


def test_a_studys_name_is_the_given_one_else_the_files_own_else_the_presets_else_the_files(tmp_path: Path) -> None:
    named = write(tmp_path, 'name = "inside"\n' + PAIR_TOML)
    assert load_study(file=named, name="given").name == "given"
    assert load_study(file=named).name == "inside"
    assert load_study(preset="demo").name == "demo"
    assert load_study(file=write(tmp_path, PAIR_TOML, "fresh.toml")).name == "fresh"


def test_the_pairs_context_is_the_engines_unless_that_is_set() -> None:
    pair = PAIR | {"max_model_len": 1024}
    sampling = {"max_tokens": 64}
    assert load_study(overrides={"pair": pair, "sampling": sampling}).engine.max_model_len == 1024
    engine = {"max_model_len": 512}
    assert load_study(overrides={"pair": pair, "sampling": sampling, "engine": engine}).engine.max_model_len == 512


def test_a_spec_cannot_be_changed() -> None:
    spec = load_study(overrides={"pair": PAIR})
    with pytest.raises(ValueError, match="frozen"):
        spec.search.seed = 3  # type: ignore[misc]


def test_an_unknown_preset_names_the_nearest_ones() -> None:
    fault = fault_of(preset="zephir")
    assert fault.where == "--pair"
    assert fault.found == "unknown preset 'zephir'"
    assert "zephyr" in fault.expected
    assert "expo-search pairs" in fault.do


def test_a_preset_unlike_any_other_still_says_where_the_names_are() -> None:
    assert str(fault_of(preset="§§§§§§")) == (
        "--pair: unknown preset '§§§§§§'; expected a preset's name; "
        "see `expo-search pairs`, or give --sft, --aligned, --reward-model and --prompts"
    )


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    text = PAIR_TOML + '[prompts]\nn = 1\n[sampling]\ntop_p = 1.5\ntemprature = 1.0\n[search]\nsampler = "best"\n'
    fault = fault_of(file=write(tmp_path, text))
    limits = ("prompts.n: 1 (wanted: at least 2)", "sampling.top_p: 1.5 (wanted: at most 1)")
    for part in (*limits, "sampling.temprature", "search.sampler"):
        assert part in fault.found
    assert fault.found.count("; ") == 3
    assert fault.where == str(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("table", "values", "found"),
    [
        ("search", {"alpha_min": 2.0, "alpha_max": 1.0}, "alpha_min 2 is not below alpha_max 1"),
        ("search", {"alpha_min": 1.0, "alpha_max": 1.0}, "alpha_min 1 is not below alpha_max 1"),
        ("search", {"alpha_max": "wide"}, "search.alpha_max"),
        ("search", {"objective": "length"}, "search.objective"),
        ("search", {"tolerance": 1.0}, "search.tolerance"),
        ("search", {"tolerance": -0.01}, "search.tolerance"),
        ("guardrails", {"cut_off_rise": -0.1}, "guardrails.cut_off_rise"),
        ("guardrails", {"length_ratio": 0.9}, "guardrails.length_ratio"),
        ("search", {"alpha_max": math.nan}, "search.alpha_max"),
        ("search", {"alpha_min": -math.inf}, "search.alpha_min"),
        ("search", {"seed": -1}, "search.seed"),
        ("search", {"seed": 2**31}, "search.seed"),
        ("sampling", {"temperature": -0.1}, "sampling.temperature"),
        ("sampling", {"temperature": math.nan}, "sampling.temperature"),
        ("sampling", {"temperature": 2.1}, "sampling.temperature"),
        ("sampling", {"temperature": 0.009}, "sampling.temperature"),
        ("pair", {"stop_strings": [""]}, "pair.stop_strings.0"),
        ("sampling", {"max_tokens": 0}, "sampling.max_tokens"),
        ("sampling", {"presence_penalty": 2.1}, "sampling.presence_penalty"),
        ("sampling", {"frequency_penalty": -2.1}, "sampling.frequency_penalty"),
        ("prompts", {"n": 0}, "prompts.n"),
        ("engine", {"dtype": "int8"}, "engine.dtype"),
        ("pair", {"sft": None}, "no sft; expected aligned, sft and reward_model"),
        ("name", "a b", "name"),
        ("name", "", "name"),
        ("nonsense", 1, "nonsense"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_place(table: str, values: Any, found: str) -> None:
    given = {"pair": PAIR, table: (PAIR | values if table == "pair" else values)}
    fault = fault_of(overrides=given)
    assert found in str(fault)
    assert fault.do == "fix the option or the file"


@pytest.mark.parametrize(
    "text",
    [
        "[pair",
        "pair = 3",
        "engine = 3",
        "search = 3",
        "preset = 3",
        "preset = ['demo']",
        f"n = {'9' * 5000}",
        "n = " + "[" * 5000,
    ],
)
def test_a_file_that_is_no_study_is_one_clear_error(tmp_path: Path, text: str) -> None:
    found = str(fault_of(file=write(tmp_path, text + "\n" + PAIR_TOML if "pair" not in text else text)))
    assert "expected" in found
    assert str(tmp_path / "mine.toml") in found or "preset" in found


def test_a_fault_says_once_what_was_expected_and_names_the_option_that_made_it(tmp_path: Path) -> None:
    half = {"reward": {"judge_url": "http://localhost:1/v1"}}
    fault = fault_of(preset="demo", overrides=half)
    assert str(fault) == (
        "--judge-url: reward: half a judge; expected judge_url and judge_model; fix the option or the file"
    )
    file = tmp_path / "mine.toml"
    file.write_text('preset = "demo"\n[reward]\njudge_url = "http://localhost:1/v1"\n')
    fault = fault_of(file=file)
    assert (fault.where, fault.expected) == (str(file), "judge_url and judge_model")
    both = half | {"search": {"alpha_min": 2.0, "alpha_max": 1.0}}
    text = str(fault_of(preset="demo", overrides=both))
    assert text.startswith("--alpha-min --alpha-max --judge-url: ")
    assert "half a judge (wanted: judge_url and judge_model)" in text
    assert text.count("; expected ") == 1


@pytest.mark.parametrize("text", ['preset = "demo"\n[sampling]\ntop_p = 2\n', "no TOML", None])
def test_a_fault_of_an_option_is_told_before_the_file_is_read(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "mine.toml"
    if text is not None:
        file.write_text(text)
    fault = fault_of(file=file, overrides={"search": {"seed": -1}})
    assert (fault.where, fault.found, fault.expected) == ("--seed", "search.seed: -1", "at least 0")
    assert fault_of(file=file, overrides={"search": {"seed": 1}}).where == str(file)


def test_a_fault_of_a_table_that_a_file_brings_about_is_told_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "demo"\n[sampling]\ntop_p = 2\n[search]\nalpha_max = 1\n')
    assert fault_of(file=file, overrides={"search": {"alpha_min": 2}}).where == str(file)


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("prompts.n = 3.5", "prompts.n: 3.5", "a whole number"),
        ('prompts.n = "many"', "prompts.n: 'many'", "a whole number"),
        ("prompts.n = []", "prompts.n: a list", "a whole number"),
        ("prompts.source = 3", "prompts.source: 3", "a text"),
        ('sampling.temperature = "warm"', "sampling.temperature: 'warm'", "a number"),
        ("sampling.temperature = inf", "sampling.temperature: inf", "a finite number"),
        ("sampling.top_p = 0", "sampling.top_p: 0", "above 0"),
        ("sampling.top_p = 1.5", "sampling.top_p: 1.5", "at most 1"),
        ("search.seed = 2147483648", "search.seed: 2147483648", "below 2147483648"),
        ('search.racing = "perhaps"', "search.racing: 'perhaps'", "true or false"),
        ('search.objective = "length"', "search.objective: 'length'", "reward, win-rate or length-controlled"),
        ("engine.max_num_seqs = 0", "engine.max_num_seqs: 0", "at least 1 or auto"),
        ("engine.max_num_seqs = {}", "engine.max_num_seqs: a table", "a whole number or auto"),
        ("pair.stop_strings = 3", "pair.stop_strings: 3", "a list"),
        ("guardrails.bench = 3", "guardrails.bench: 3", "a table"),
        ("engine = 3", "engine: 3", "a table"),
        ('reward.scorer = ""', "reward.scorer: ''", "a text that is not empty"),
        ('pair.parts.version = "1"\npair.parts.file = "f"\npair.parts.package = "p"\n'
         f'pair.parts.sha256 = "{"0" * 64}"\npair.parts.aligned_adapter = "a"',
         "pair.parts.reward_adapter: nothing", "a value"),
    ],
)  # fmt: skip
def test_what_a_value_should_have_been_is_said_in_our_words(
    tmp_path: Path, text: str, found: str, expected: str
) -> None:
    fault = fault_of(file=write(tmp_path, f'preset = "zephyr"\n{text}\n'))
    assert (fault.found, fault.expected) == (found, expected)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    assert fault_of(file=tmp_path / "none.toml").found == "no such file"
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert fault_of(file=tmp_path / "bytes.toml").where == str(tmp_path / "bytes.toml")
    assert fault_of(file=tmp_path).expected == "a study file in TOML"


def test_remote_code_needs_consent() -> None:
    pair = {"pair": PAIR | {"needs_remote_code": True}}
    assert fault_of(overrides=pair).do == "pass --trust-remote-code if you trust the repository"
    assert load_study(overrides=pair, trust_remote_code=True).trust_remote_code


def test_a_file_cannot_give_itself_consent(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('trust_remote_code = true\npreset = "zephyr"\n[reward]\nscorer = "evil.py:score"\n')
    for trusts in (False, True):
        fault = fault_of(file=file, trust_remote_code=trusts)
        assert (fault.where, fault.found) == (str(file), "trust_remote_code")
        assert "--trust-remote-code" in fault.do


@pytest.mark.parametrize(("max_tokens", "fits"), [(63, True), (64, False), (65, False)])
def test_answers_must_leave_room_for_a_prompt_in_the_context(max_tokens: int, fits: bool) -> None:
    tables: dict[str, dict[str, Any]] = {
        "pair": PAIR,
        "sampling": {"max_tokens": max_tokens},
        "engine": {"max_model_len": 64},
    }
    if fits:
        assert load_study(overrides=tables).sampling.max_tokens == max_tokens
    else:
        assert "lower --max-tokens" in fault_of(overrides=tables).do


scalar = st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.booleans(), st.none())
tables = st.dictionaries(
    st.sampled_from(["pair", "prompts", "sampling", "search", "reward", "engine", "name", "other"]),
    scalar
    | st.dictionaries(
        st.sampled_from(
            ["aligned", "n", "temperature", "alpha_min", "alpha_max", "tolerance", "seed", "max_tokens", "x"]
        ),
        scalar,
    ),
)


@settings(max_examples=50, deadline=None)
@given(given_tables=tables, with_pair=st.booleans())
def test_any_values_give_a_spec_within_its_bounds_or_a_study_error(
    given_tables: dict[str, Any], with_pair: bool
) -> None:
    try:
        spec = load_study(overrides=({"pair": PAIR} if with_pair else {}) | given_tables)
    except StudyError:
        return
    assert isinstance(spec, StudySpec)
    given_range = [end for end in (spec.search.alpha_min, spec.search.alpha_max) if end != "auto"]
    assert all(isinstance(end, float) and math.isfinite(end) for end in given_range)
    assert len(set(given_range)) == len(given_range)
    assert sorted(given_range) == given_range
    assert spec.sampling.max_tokens < spec.engine.max_model_len


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60)
    | st.text("[]{}=\"'.\n# \\u0aepairnx19-", max_size=60).map(lambda text: (PAIR_TOML + text).encode())
)
def test_any_file_gives_a_spec_or_a_study_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.toml"
    file.write_bytes(content)
    try:
        aligned = load_study(file=file).pair.aligned
    except StudyError:
        return
    assert aligned == "a/b"
