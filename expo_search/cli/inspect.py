"""The commands that look: `pairs` into the presets, `show`, `report` and `dashboard` into a study."""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from expo_search.api import open_study
from expo_search.cli.completion import studies
from expo_search.cli.console import (
    Artifacts,
    Json,
    Storage,
    StudyName,
    check_there,
    console_on,
    known_study,
    print_prose,
    print_steps,
    print_table,
)
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.config.presets import load_study
from expo_search.errors import StudyError
from expo_search.text import clean

if TYPE_CHECKING:
    from expo_search.bench.result import BenchResult
    from expo_search.results.study_results import StudyResult

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def list_pairs(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Checkpoints, prompts, licence and notes.")] = False,
    as_json: Json = False,
) -> None:
    """List the presets, one a line."""
    from expo_search.config.presets import preset_names

    names = {name: file for name, file in preset_names().items() if file.stem == name}
    specs = {name: load_study(preset=name, trust_remote_code=True) for name in names}
    if as_json:
        typer.echo(json.dumps({name: spec.model_dump(mode="json") for name, spec in specs.items()}, indent=2))
        return
    console = console_on(sys.stdout)
    width = max(map(len, specs))
    for name, spec in specs.items():
        p = spec.pair
        alpha = "" if p.published_alpha is None else f"published alpha {p.published_alpha:g}"
        code = "runs its own code" if p.needs_remote_code else ""
        facts = [fact for fact in (p.family, alpha, code) if fact]
        if not verbose:
            lines = _fact_lines(facts, console.width - width - 2)
            console.print(Text(f"{name:{width}}  " + f"\n{'':{width}}  ".join(lines)), soft_wrap=True)
            continue
        console.print(Text(name, style="bold"))
        shipped = "ships with expo-search, built on first use"
        details = {
            "also": ", ".join(p.aliases),
            "family": ", ".join(facts),
            "aligned": p.aligned or shipped,
            "sft": p.sft or shipped,
            "reward model": p.reward_model or shipped,
            "prompts": f"{spec.prompts.source}, {spec.prompts.n} for the search",
            "licence": p.licence,
            "notes": p.notes,
        }
        for key, value in details.items():
            if value:
                print_prose(console, f"  {key}: {value}")
    if not verbose:
        print_prose(console, "\n--verbose has their checkpoints; search with: expo-search --pair NAME", style="dim")
        print_prose(console, "A pair that runs its own code asks for --trust-remote-code as well.", style="dim")


def _fact_lines(facts: Sequence[str], width: int) -> list[str]:
    """Facts with commas between them, in lines that end between two facts."""
    lines = [""]
    for i, fact in enumerate(facts):
        told = fact if i == len(facts) - 1 else f"{fact},"
        longer = f"{lines[-1]} {told}".lstrip()
        if lines[-1] and len(longer) > width:
            lines.append(told)
        else:
            lines[-1] = longer
    return lines


def show(
    study: StudyName = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the trials as CSV.")] = False,
    answers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each trial's answers and rewards in ExPO's own formats.")
    ] = None,
) -> None:
    """Show a study's trials, curve and verdict."""
    if as_csv and as_json:
        raise StudyError(where="--csv", found="--csv beside --json", expected="one of the two", do="drop one of them")
    name = known_study(study, storage)  # imports what it needs alone: a study that is not there is said at once
    from expo_search.results.answer_files import trial_files, write_files
    from expo_search.results.trials_csv import trials_csv
    from expo_search.store.study_store import Store

    result = open_study(storage, name)
    if answers is not None:
        write_files(trial_files(Store(storage, name, read_only=True), result.evaluations), answers, "--answers")
        console_on(sys.stderr).print(Text(clean(f"written to {answers}")), soft_wrap=True)
    if as_csv:
        sys.stdout.write(trials_csv(result.evaluations))
    else:
        print_result(console_on(sys.stdout), result, as_json=as_json, by_show=True)


def report_page(
    study: StudyName = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page, FILE.html; needed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Write a study on one HTML page that needs no network: verdict, curve, trials, answers, settings."""
    if out is None:
        raise StudyError(where="--out", found="nothing", expected="a file for the page", do="give --out FILE.html")
    write_page(storage, known_study(study, storage), out, console_on(sys.stderr), force=force)


def write_page(storage: str, name: str, out: Path, console: Console, *, force: bool = False) -> None:
    """Write a study's page, and say so."""
    from expo_search.results.html_report import write_report
    from expo_search.store.study_store import Store

    write_report(Store(storage, name, read_only=True), out, force=force)
    console.print(Text(clean(f"written to {out}")), soft_wrap=True)


def dashboard(
    study: Annotated[
        str | None, typer.Argument(help="Name in the database; all of them by default.", autocompletion=studies)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8080,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve the studies of a database, their notes, figures and answers, to a browser; also while a search runs."""
    check_there(storage)
    from expo_search.results.dashboard_server import open_dashboard
    from expo_search.store.database import study_names

    name = None if study is None and len(study_names(storage)) > 1 else known_study(study, storage)
    server = open_dashboard(storage, name, host, port, artifacts)
    err = console_on(sys.stderr)
    if host not in _LOOPBACK:
        warning = f"open to everyone who can reach {host}: no password is asked for, and studies can be deleted"
        print_prose(err, warning)
    if server.lost:
        there = f"no folder {' and no '.join(server.lost)}: the trials' answers and curves are not shown"
        print_prose(err, f"{there}; move it there with its database, or give --artifacts")
    err.print(Text(f"{server.url}   (Ctrl-C ends it)"), soft_wrap=True)
    if open_browser:
        webbrowser.open(server.url)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def print_bench(console: Console, bench: BenchResult) -> None:
    """Of a study's benchmarks the table, the curve of each task, and a sentence for each task and alpha; or nothing."""
    from expo_search.results.bench_table import HEADINGS, bench_table
    from expo_search.results.curve.tax import terminal_tax

    if bench.tasks:
        print_table(console, bench_table(bench, console.width), HEADINGS)
        picture = terminal_tax(bench, width=min(100, console.width))
        if picture:
            console.print(Text(picture), soft_wrap=True)
    for sentence in bench.sentences():
        print_prose(console, sentence, style="bold")


def print_reward_models(console: Console, result: StudyResult) -> None:
    """Of a study that several reward models rate, what each of them makes of the best alpha; or nothing."""
    from expo_search.results.reward_models import MODEL_GAINS, model_gain_rows, model_gain_table

    if result.model_gains:
        table = model_gain_table(result.model_gains, console.width)
        print_table(console, table, list(model_gain_rows(result.model_gains)[0]))
        print_prose(console, MODEL_GAINS + "\n", style="dim")


def print_result(console: Console, result: StudyResult, *, as_json: bool, by_show: bool = False) -> None:
    """Table, curve, verdict and what can be done next; or all numbers as JSON. `by_show`: `show` prints it."""
    from expo_search.results import terminal
    from expo_search.results.curve.terminal import terminal_curve
    from expo_search.results.fitted_table import headings
    from expo_search.results.legend import legend
    from expo_search.results.shapes import shapes_json
    from expo_search.results.summary_json import confirmation_json, summary
    from expo_search.results.verdict import confirmation_sentence

    known, verdict = result.evaluations, result.verdict
    if as_json:
        numbers = summary(result.name, known, verdict, result.bench, result.remarks)
        numbers["confirmations"] = [confirmation_json(c) for c in result.confirmations.values()]
        numbers["checks"] = [check.as_json() for check in result.checks]
        numbers["reward_models"] = [gain.as_json() for gain in result.model_gains]
        numbers["shapes"] = [shapes_json(shapes) for shapes in result.shapes]
        console.print(Text(json.dumps(numbers, indent=2)), soft_wrap=True)
        return
    table = terminal.trial_table(known, verdict, console.width, result.standing.left)
    print_table(console, table, terminal.HEADINGS, "--csv")
    explained = legend(known, verdict, headings(table))
    if explained:
        print_prose(console, "\n".join(explained) + "\n", style="dim")
    if len(known) > 1:
        picture = terminal_curve(known, verdict, band=result.band, width=min(100, console.width))
        console.print(Text(picture), soft_wrap=True)
    print_prose(console, " ".join([verdict.sentence(), *result.remarks]), style="bold")
    print_reward_models(console, result)
    for confirmation in result.confirmations.values():
        if confirmation is not verdict.confirmed:  # of another alpha than the verdict's
            print_prose(console, f"Measured again, too: {confirmation_sentence(confirmation)}")
    for sentence in result.other_checks:
        print_prose(console, sentence)
    print_prose(console, terminal.stage_seconds(known))
    print_bench(console, result.bench)
    console.print("\nNext:")
    steps = result.next_steps
    print_steps(console, [step for step in steps if not (by_show and step[0].startswith("expo-search show "))])
