"""README and docs: their Python runs as it stands there, their commands parse, the table of modules is the tree."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import typer.main
from databases import PostgresServer
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts
from twins import write_prompts
from typer.testing import CliRunner

import expo_search as es
from expo_search.bench.own_task import OwnTask
from expo_search.bench.registry import TASKS
from expo_search.cli.main import app
from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import StudyError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.own_scorer import FunctionScorer
from expo_search.evaluation.result import Evaluation
from expo_search.search.loop import search
from expo_search.session.forecast import forecast
from expo_search.session.installation import TESTED
from expo_search.store.bench_store import Answered, BenchStore
from expo_search.store.study_store import Store

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(language: str) -> list[tuple[str, str]]:
    """Of the pages' fenced blocks in a language: page and text."""
    fence = rf"^```{language}\n(.*?)^```"
    return [(p.name, text) for p in PAGES for text in re.findall(fence, p.read_text("utf-8"), re.DOTALL | re.MULTILINE)]


def python_of(page: str) -> list[str]:
    return [text for name, text in blocks("python") if name == page]


SEARCH, SAMPLER = python_of("python.md")


def commands() -> list[str]:
    """Of the pages' indented blocks: page, and each command that stands there."""
    asked = r"^    (?:\.venv/bin/)?(expo-search .*?)(?: +#.*)?$"
    return [f"{p.name}: {line}" for p in PAGES for line in re.findall(asked, p.read_text("utf-8"), re.MULTILINE)]


def test_the_page_on_versions_names_those_that_doctor_calls_tested() -> None:
    page = (ROOT / "docs" / "vllm.md").read_text("utf-8")
    [table] = re.findall(r"^\| package \| tested with \|\n\| --- \| --- \|\n((?:\|.*\n)+)", page, re.MULTILINE)
    told = dict(re.findall(r"^\| (\S+) \| (\S+) \|$", table, re.MULTILINE))
    assert re.fullmatch(r"3\.\d+", told.pop("Python"))
    assert told == TESTED


@pytest.mark.slow
def test_the_search_on_the_demo_pair_runs_and_its_export_is_verified(tmp_path: Path) -> None:
    # without what the command line, run by another test in this process, has set for vLLM
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert '"verified": true' in (tmp_path / "model" / "expo.json").read_text()
    result = es.open_study(f"sqlite:///{tmp_path / 'demo.db'}", "demo")
    assert len(result.evaluations) == 3
    assert result.verdict.confirmed is not None
    assert result.verdict.confirmed.n == 16
    assert " INFO " not in done.stdout + done.stderr, "vLLM's log is not for a notebook"


def test_the_sampler_in_a_study_of_ones_own_runs() -> None:
    names = {"evaluate": lambda alpha: es.Estimate(1 - (alpha - 0.8) ** 2 - (1 - 0.8**2), 0.02, 200)}
    exec(SAMPLER, names)
    study = names["study"]
    assert isinstance(study, optuna.Study)
    assert abs(study.best_trial.params["alpha"] - 0.8) < 0.15


def test_the_scorer_of_ones_own_rates_answers(tmp_path: Path) -> None:
    (code,) = python_of("scorers.md")
    (tmp_path / "mine.py").write_text(code)
    scorer = FunctionScorer(f"{tmp_path}/mine.py:score")
    scorer.try_out()
    answers = [Completion(Prompt(f"p{i}", "?"), text, 3, "stop") for i, text in enumerate(("A whole one. ", "Cut", ""))]
    assert scorer.score(answers, lambda _: None) == ([1.0, 0.0, 0.0], 0)


def test_the_benchmark_of_ones_own_scores_answers(tmp_path: Path) -> None:
    (code,) = python_of("bench.md")
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "items.jsonl").write_text('{"prompt": "Say yes.", "wanted": "yes"}\n')
    name = f"{tmp_path}/mine.py:rate"
    task = OwnTask(name, {name: tmp_path / "items.jsonl"})
    scored = [task.score(task.items[0], [Answered(text, 1, "stop")]) for text in (" yes\n", "no", "")]
    assert [one["score"].value for one in scored] == [1.0, 0.0, 0.0]


def test_every_python_block_of_a_page_is_run_by_a_test_of_this_file() -> None:
    pages = [page for page, _ in blocks("python")]
    assert pages == ["bench.md", "python.md", "python.md", "scorers.md", "storage.md"]


@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=[page for page, _ in blocks("python")])
def test_what_the_python_of_a_page_takes_from_the_package_is_there(page: str, code: str) -> None:
    """Also of the search, which is run whole in the long form alone."""
    tree = ast.parse(code)
    taken = [(n.module, a.name) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    taken += [("expo_search", name) for name in re.findall(r"\bes\.(\w+)", code)]
    assert [(m, name) for m, name in taken if m and not hasattr(importlib.import_module(m), name)] == []


@pytest.mark.parametrize(("page", "text"), blocks("toml"), ids=[page for page, _ in blocks("toml")])
def test_a_study_file_of_a_page_can_be_copied_as_it_stands(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    names_code = "scorer =" in text  # which asks for consent, as the page says
    if names_code:
        with pytest.raises(StudyError, match="--trust-remote-code"):
            es.load_study(file=tmp_path / "mine.toml")
    es.load_study(file=tmp_path / "mine.toml", trust_remote_code=names_code)


def test_no_toml_or_python_of_a_page_is_outside_a_block_that_is_tested() -> None:
    assert len(blocks("toml")) >= 5
    loose = r"^    (?:\[+[a-z.]+\]+|def .*|import .*|from \S+ import .*)$"
    outside = {p.name: re.sub(r"^```.*?^```", "", p.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE) for p in PAGES}
    assert [(page, line) for page, text in outside.items() for line in re.findall(loose, text, re.MULTILINE)] == []


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_has_options_that_there_are(command: str) -> None:
    group: Any = typer.main.get_command(app)
    words = shlex.split(command.partition("expo-search ")[2])
    with group.make_context("expo-search", words) as context:
        rest = [*context._protected_args, *context.args]
        if rest:
            name, asked, words = group.resolve_command(context, rest)
            asked.make_context(name, words, parent=context).close()


def test_every_task_of_bench_stands_on_its_page_and_in_its_help() -> None:
    group: Any = typer.main.get_command(app)
    told = group.commands["bench"].get_help(typer.Context(group.commands["bench"]))
    page = (ROOT / "docs" / "bench.md").read_text("utf-8")
    assert [name for name in TASKS if f"| `{name}` |" not in page or name not in told] == []


def test_every_command_stands_on_a_page() -> None:
    group: Any = typer.main.get_command(app)
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert [name for name in group.commands if f"expo-search {name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_of_a_page_works_in_the_repository_too(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_plain_text_for_models() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    sections = config[config.index("- llmstxt:") : config.index("site_url:")]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}  # beside those that the build generates
    assert pages <= set(re.findall(r"[\w-]+\.md", sections))


def test_the_notebook_is_linked_where_python_is_explained() -> None:
    assert "](demo.ipynb)" in (ROOT / "docs" / "python.md").read_text("utf-8")


def test_messages_that_troubleshooting_quotes_are_in_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r'^\*\*"(.*?)"', text, re.MULTILINE)
    source = "\n".join(file.read_text("utf-8") for file in Path(es.__file__).parent.rglob("*.py"))
    parts = [part.strip() for quote in quoted for part in re.split(r"\.\.\.|(?<=\().*(?=\))", quote)]
    assert len(quoted) >= 2
    assert [part for part in parts if len(part) > 2 and part.removesuffix(".") not in source] == []


def keys_of(value: Any) -> set[str]:
    """Of all objects inside, but of those whose keys are names of the study's own."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    inside = (keys_of(v) for k, v in value.items() if k not in ("excess", "covariances"))
    return set(value).union(*inside)


def test_every_key_of_json_and_csv_stands_on_the_page_of_the_verdict(tmp_path: Path) -> None:
    url, prompts = f"sqlite:///{tmp_path / 'mine.db'}", tmp_path / "prompts.jsonl"
    write_prompts(prompts, 80)
    pair = {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/reward"}
    overrides: dict[str, dict[str, Any]] = {"pair": pair, "prompts": {"source": str(prompts), "n": 48}}
    spec = es.load_study(name="mine", overrides=overrides | {"search": {"sampler": "grid", "alpha_max": 1.0}})
    with es.open_session(
        spec, url, model=FakeModel(), scorer=FakeScorer(noise=0.5), quiet=True, start=False
    ) as session:
        best = session.search(n_trials=4).verdict.best
        session.confirm(best, 32)
        session.find_judge("my/judge", scorer=FakeScorer())
        assert session.check(best) is not None
        forecasted = forecast(session.checked, 4).as_json()
    page = (ROOT / "docs" / "verdict.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page[page.index("## JSON and CSV") :]))

    def show(how: str) -> str:
        return CliRunner().invoke(app, ["show", "mine", "--storage", url, how]).output

    shown = keys_of(json.loads(show("--json"))) | forecasted.keys()
    assert shown >= {"edge", "best_other", "alphas_tried", "verdict_by", "left_out", "least_gain_sd"}
    columns = {name for name in show("--csv").splitlines()[0].split(",") if not name.startswith("excess_")}
    assert {"gain_low", "gain_high"} <= columns
    assert {re.sub("_(se|95)$", "", key) for key in shown | columns} - {
        re.sub("_(se|95)$", "", key) for key in named
    } == set()


def test_the_readme_has_the_first_hour() -> None:
    """The demo, a look at it, and a check of one's own pair: as commands that work one after the other."""
    text = (ROOT / "README.md").read_text("utf-8")
    typed = [line.partition("#")[0].split() for line in re.findall(r"^    (.*)", text, re.MULTILINE)]
    first = [" ".join(words[:3]) for words in typed]
    asked = ["make demo", "expo-search confirm demo", "expo-search dashboard demo", "expo-search report demo"]
    assert [line for line in first if line in asked] == asked
    assert any({"--sft", "--aligned", "--dry-run"} <= set(words) for words in typed)
    assert any(words[:2] == ["expo-search", "init"] for words in typed)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_what_is_to_be_typed_has_no_place_holder_that_a_shell_takes_for_a_file(page: Path) -> None:
    assert re.findall(r"^    .*<[a-z ]+>.*", page.read_text("utf-8"), re.MULTILINE) == []


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


def test_the_table_of_modules_is_the_tree() -> None:
    package = Path(es.__file__).parent
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text[text.index("| `expo_search/` |") :]
    named = set(re.findall(r"`([a-z0-9_]+)/?`", table))
    there = {p.stem for p in package.rglob("*.py")} - {"__init__", "__main__"}
    assert there - named == set()


def test_the_picture_of_the_architecture_has_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.svg").read_text("utf-8")
    named = {word for names in re.findall(r'class="name"[^>]*>([^<]+)<', text) for word in names.split()}
    package = Path(es.__file__).parent
    assert named == {"api", *(f"{file.parent.name}/" for file in package.glob("*/__init__.py"))}
    assert "(architecture.svg)" in (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_a_study_is_moved_to_a_server_as_the_page_says(tmp_path: Path, postgres: PostgresServer) -> None:
    (code,) = python_of("storage.md")
    old, new, prompts = f"sqlite:///{tmp_path / 'old.db'}", postgres.database(), make_prompts(6)
    Store(new, "another").close()  # so that the two numbers of the study differ

    def run(url: str, n_trials: int) -> list[Evaluation]:
        store = Store(url, "zephyr")
        store.put_prompts("search", prompts)
        objective = Objective(FakeModel(), FakeScorer(), store, prompts, FakeWatcher())
        return search(store, objective, SearchSpec(sampler="random", seed=5), n_trials)

    run(old, 2)
    BenchStore(Store(old, "zephyr")).pin("basics", {"n": 3})
    for written, meant in (("sqlite:///expo-search.db", old), ("postgresql+psycopg://me@dbhost/expo", new)):
        code = code.replace(written, meant)
    exec(code, {})
    assert Store(new, "zephyr").rated(1, "search") == Store(old, "zephyr").rated(1, "search")
    assert BenchStore(Store(new, "zephyr")).settings("basics") == {"n": 3}
    moved, there = run(new, 4), run(old, 4)
    assert [(e.alpha, e.reward, e.gain) for e in moved] == [(e.alpha, e.reward, e.gain) for e in there]
