"""An unfinished search says how far it is, in every view, and what goes on with it; a terminal breaks no word."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, make_evaluation, make_prompts
from rich.console import Console

from expo_search.cli import inspect
from expo_search.cli.inspect import print_result
from expo_search.config.presets import load_study, preset_names
from expo_search.config.spec import StudySpec
from expo_search.evaluation.objective import Objective
from expo_search.results.fitted_table import headings
from expo_search.results.html_report import write_report
from expo_search.results.note import markdown_note
from expo_search.results.study_results import StudyResult, read_result
from expo_search.results.terminal import HEADINGS, trial_table
from expo_search.results.trials_csv import trials_csv
from expo_search.results.verdict import confirmation_sentence, verdict
from expo_search.search.confirm import Confirmation
from expo_search.search.loop import search
from expo_search.search.standing import Left, Standing, read_standing
from expo_search.store.attributes import StudyAttributes
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store

PROMPTS = make_prompts(40)  # looks after 16, 32 and all of them
N = 4
SPEC = load_study(
    overrides={
        "pair": {"aligned": "a/aligned", "sft": "a/sft", "reward_model": "a/reward"},
        "search": {"sampler": "random", "seed": 5, "alpha_min": 0.0, "alpha_max": 1.0, "racing": False},
    },
    name="mine",
)
GOES_ON = (
    "expo-search --aligned a/aligned --sft a/sft --reward-model a/reward --sampler random --no-racing --seed 5 "
    f"--alpha-min 0 --alpha-max 1 --trials {N} --study-name mine --storage "
)


def store_of(folder: Path, spec: StudySpec = SPEC) -> Store:
    store = Store(f"sqlite:///{folder / 'test.db'}", "mine")
    store.pin_settings(Settings(), spec.model_dump(mode="json"))
    store.put_prompts("search", PROMPTS)
    store.keep(StudyAttributes(wanted=N))
    return store


def go(store: Store, model: FakeModel) -> None:
    objective = Objective(model, FakeScorer(), store, PROMPTS, FakeWatcher())
    search(store, objective, SPEC.search, N)


@pytest.fixture
def killed(tmp_path: Path) -> Store:
    """A search of four trials that was killed in its third, after a look at 32 prompts."""
    store = store_of(tmp_path)
    with pytest.raises(Killed):
        go(store, FakeModel(dies_after=2 * len(PROMPTS) + 35))
    return store


def test_a_killed_search_says_where_it_stopped_and_what_goes_on_in_every_view(killed: Store, tmp_path: Path) -> None:
    result = read_result(killed)
    [left] = result.standing.left
    assert (left.trial, left.n_prompts) == (2, 40)
    assert 16 <= left.n_answers <= 35
    said = f"Stopped at 2 of {N} trials; trial 2 at alpha = {left.alpha:.4g} has {left.n_answers} of 40 answers; to go"
    assert result.remarks == [f"{said} on: `{GOES_ON}{killed.url}`."]
    assert result.next_steps[0] == (f"{GOES_ON}{killed.url}", "the search, from where it stopped")
    assert "Stopped at 2 of 4 trials" in markdown_note(result)
    write_report(killed, tmp_path / "r.html")
    assert "Stopped at 2 of 4 trials" in (tmp_path / "r.html").read_text(encoding="utf-8")
    for as_json in (False, True):
        shown = printed(result, 120, as_json=as_json)
        assert "Stopped at 2 of 4 trials" in shown
    assert f"{left.n_answers} of 40" in printed(result, 120)
    assert "not finished" in printed(result, 120)


def test_a_search_that_goes_on_says_what_is_there(killed: Store) -> None:
    n_answers = read_result(killed).standing.left[0].n_answers
    assert read_standing(killed, None).there() == f"2 trials and {n_answers} answers of the next are there"
    assert Standing(n_finished=1).there() == "1 trial is there"
    assert Standing().there() == ""


def test_a_search_between_two_trials_is_unfinished_as_well(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    objective = Objective(FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    search(store, objective, SPEC.search, 2)
    assert read_result(store).remarks[0].startswith(f"Stopped at 2 of {N} trials; to go on: `expo-search ")
    search(store, objective, SPEC.search, N)
    assert read_result(store).remarks == []
    assert not any("stopped" in purpose for _, purpose in read_result(store).next_steps)


def test_a_search_that_runs_is_not_called_stopped_before_it_stops(killed: Store) -> None:
    with killed.owned():
        running, stopped = (read_result(killed, stopped=flag).remarks[0] for flag in (False, True))
    assert running.startswith("The search is at 2 of 4 trials; trial 2")
    assert "; where it was stopped, it goes on with `expo-search" in running
    assert stopped.startswith("Stopped at 2 of 4 trials; ")


def test_a_study_of_an_older_version_says_what_it_can(killed: Store) -> None:
    killed.study.set_user_attr("expo_wanted", None)
    assert read_result(killed).remarks[0].startswith("Stopped at 2 trials; trial 2 ")


# as wide as a trial's numbers get
TRIALS = [
    make_evaluation(0, 0.0, 0.0, 0.0),
    make_evaluation(1, 18.88, -12.4492, 0.05),
    make_evaluation(2, 0.5875, 0.2, 0.05),
    replace(make_evaluation(12, -0.5875, -0.2, 0.05), outcome="degenerate", broken=("repeating", "cut off")),
]


def printed(result: StudyResult, width: int, *, as_json: bool = False) -> str:
    out = io.StringIO()
    print_result(Console(file=out, width=width, force_terminal=True, color_system=None), result, as_json=as_json)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_word_and_no_number_is_broken_on_a_terminal(width: int) -> None:
    left = Standing(4, 20, is_done=False, left=(Left(13, 1.25, 40, 128),))
    text = printed(StudyResult("s", "sqlite:///s.db", TRIALS, {}, verdict(TRIALS), standing=left), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert [line for line in lines if len(line) > width and not line.startswith("  expo-search")] == []
    assert "…" not in text
    wide = TRIALS[1].gain
    for whole in (
        "-12.4492",
        f"[{wide.low:+.3f}, {wide.high:+.3f}]",
        "18.88",
        "-0.5875",
        "degenerate;",
        "not finished",
    ):
        assert whole in text
    # the words of the verdict, wherever its lines end
    assert " ".join(verdict(TRIALS).sentence().split()) in " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_columns_that_are_left_are_those_that_tell_most(width: int) -> None:
    heads = headings(trial_table(TRIALS, verdict(TRIALS), width))
    assert {"trial", "alpha", "gain", "95 % interval", ""} <= set(heads)
    if width >= 80:  # what shows whether answers only got longer
        assert {"equal length", "cut off", "tokens"} <= set(heads)


def test_at_60_columns_the_gain_at_equal_length_and_the_share_cut_off_stay_where_numbers_are_of_ordinary_length() -> (
    None
):
    found = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 2.883, 0.2611, 0.07)]
    found.append(replace(make_evaluation(2, 18.88, -1.2, 0.07, 16), outcome="hopeless"))
    assert {"equal length", "cut off", ""} <= set(headings(trial_table(found, verdict(found), 60)))


@pytest.mark.parametrize("width", [60, 80, 1000])
def test_what_a_terminal_has_no_room_for_is_named_with_where_it_is(width: int) -> None:
    text = " ".join(printed(StudyResult("s", "sqlite:///s.db", TRIALS, {}, verdict(TRIALS)), width).split())
    missing = [h for h in HEADINGS if h not in headings(trial_table(TRIALS, verdict(TRIALS), width))]
    assert bool(missing) == (width < 1000)
    told = f"left out for width: {', '.join(missing)}; all columns: expo-search show --csv"
    assert told in text if missing else "left out for width" not in text
    columns = trials_csv(TRIALS).splitlines()[0].split(",")
    assert {"length_controlled", "mean_length", "share_cut", "share_repeating", "reward"} <= set(columns)


def test_the_picture_names_the_trials_that_lie_below_it() -> None:
    text = printed(StudyResult("s", "sqlite:///s.db", TRIALS, {}, verdict(TRIALS)), 80)
    assert "↓ not in the picture, below it: alpha = 18.88, gain -12.45" in text


def test_pairs_are_one_a_line_at_80_columns_and_verbose_has_the_checkpoints() -> None:
    def run(*options: str) -> str:
        command = [sys.executable, "-m", "expo_search", "pairs", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    lines = run().splitlines()
    names = sorted({file.stem for file in preset_names().values()})
    assert sorted(line.split()[0] for line in lines[: len(names)]) == names
    assert max(map(len, lines)) <= 80
    assert re.search(r"aligned: HuggingFaceH4/zephyr-7b-beta\n", run("--verbose"))


@pytest.mark.parametrize("width", [60, 80])
def test_pairs_breaks_no_fact_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect, "console_on", lambda file: Console(file=file, width=width))
    inspect.list_pairs(verbose=False, as_json=False)
    listed = capsys.readouterr().out.partition("\n\n")[0]
    lines = [line for line in listed.splitlines() if line]
    assert max(map(len, lines)) <= width
    assert "…" not in listed
    assert ("runs its own code" in [line.strip() for line in lines]) == (width == 60)
    specs = [load_study(preset=name, trust_remote_code=True) for name in {f.stem for f in preset_names().values()}]
    told = " ".join(listed.split())
    for spec in specs:
        p = spec.pair
        facts = [p.family, f"published alpha {p.published_alpha or 0:g}", "runs its own code"]
        expected = facts[: 3 if p.needs_remote_code else 2 if p.published_alpha is not None else 1]
        assert f"{spec.name} {', '.join(filter(None, expected))}" in told


def test_the_confirmation_of_another_alpha_than_the_verdicts_is_shown() -> None:
    other = Confirmation(1, 18.88, -12.0, 0.5, 40, "hash", 0.1, 12.1)
    result = StudyResult("s", "sqlite:///s.db", TRIALS, {1: other}, verdict(TRIALS, {1: other}))
    assert f"Measured again, too: {confirmation_sentence(other)}" in printed(result, 1000)
    assert json.loads(printed(result, 80, as_json=True))["confirmations"][0]["alpha"] == 18.88
