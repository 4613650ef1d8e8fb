"""The command line: parses, wires the concrete classes, prints. Only the `cli` modules print, and only this one exits.

Exit codes: 0 done; 2 the input is at fault, or an engine that died twice, in one line on standard error; 130 stopped by
Ctrl-C or SIGTERM, with everything that was finished kept. Anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from expo_search import __version__
from expo_search.cli.console import (
    DEFAULT_LOG,
    Json,
    Log,
    Quiet,
    Storage,
    TrustRemoteCode,
    known_study,
    say_on,
    terminal,
)
from expo_search.cli.doctor import doctor
from expo_search.cli.export import export_model, reproduce_model
from expo_search.cli.inspect import dashboard, print_result, report_page, show
from expo_search.cli.signals import same_command, stop_on_signals, terminate_as_ctrl_c
from expo_search.cli.talk import chat, compare
from expo_search.config.presets import load_study
from expo_search.config.spec import DEFAULT_STORAGE, StudySpec
from expo_search.errors import ExpoError, StudyError
from expo_search.results.summary_json import confirmation_json
from expo_search.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expo_search.contracts import Prompt
    from expo_search.errors import EngineDied
    from expo_search.evaluation.result import Evaluation
    from expo_search.search.confirm import Confirmation
    from expo_search.session.progress import Progress
    from expo_search.session.running import Running
    from expo_search.store.study_store import Store

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the alpha of an ExPO extrapolation, aligned + alpha * (aligned - sft), on one running engine.",
    epilog="Example: expo-search --pair demo --trials 20",
)


def main() -> None:
    """Entry point of the `expo-search` command."""
    # Waiting OpenMP threads that spin without end make everything many times slower as soon as another program runs;
    # threads that sleep at once cost a fifth of the speed of an idle machine. A short spin does neither.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # the sampler's matrices are tiny; its threads spin into the switch
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    terminate_as_ctrl_c()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # an output that has no such character is no reason to fail
    try:
        app()
    except ExpoError as fault:
        Console(stderr=True).print(Text(f"expo-search: {one_line(str(fault))}"), soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # as typer wraps it
            command = next(iter(sys.argv[1:]), "-")
            keeps = command.startswith("-") or command == "confirm"  # the search has no name
            kept = "; what was finished is kept, the same command goes on" if keeps else ""
            Console(stderr=True).print(f"expo-search: stopped{kept}", soft_wrap=True)
        raise


@app.callback(invoke_without_command=True)
def search(
    context: typer.Context,
    pair: Annotated[str | None, typer.Option(help="A preset; see `expo-search pairs`.")] = None,
    study: Annotated[Path | None, typer.Option(metavar="FILE", help="A study file in TOML.")] = None,
    trials: Annotated[int, typer.Option(help="Go on until the study has this many finished trials.")] = 20,
    sft: Annotated[str | None, typer.Option(metavar="PATH_OR_ID", help="The SFT checkpoint.")] = None,
    aligned: Annotated[str | None, typer.Option(metavar="PATH_OR_ID", help="The checkpoint aligned from it.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_ID", help="A LoRA adapter: aligned is then --aligned with it merged in."),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_ID", help="A sequence classifier with one label.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE_OR_DATASET", help="JSONL or Parquet file, or Hub data set.")
    ] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Prompts of the search.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="New tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    alpha_min: Annotated[str | None, typer.Option(metavar="FLOAT|auto", help="Lower end of the range.")] = None,
    alpha_max: Annotated[str | None, typer.Option(metavar="FLOAT|auto", help="Upper end of the range.")] = None,
    objective: Annotated[str | None, typer.Option(help="reward, win-rate or length-controlled.")] = None,
    sampler: Annotated[str | None, typer.Option(help="expo, gp, tpe, grid or random.")] = None,
    racing: Annotated[
        bool | None, typer.Option("--racing/--no-racing", help="Stop a trial once it cannot win.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="End once going on should gain less than this share of the gain; 0: never.")
    ] = None,
    confirm: Annotated[
        int | None, typer.Option(metavar="N", help="At the end, measure the winner on N fresh prompts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes prompts' order, answers and sampler.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: auto (the checkpoint's), bfloat16, float16 or float32.")
    ] = None,
    arithmetic: Annotated[
        str | None,
        typer.Option(metavar="DTYPE|auto", help="What engine and reward model multiply in; auto suits the machine."),
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context in tokens.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs of one engine.")] = None,
    sources: Annotated[
        str | None, typer.Option(help="Where a switch reads the two checkpoints from: gpu, host or auto.")
    ] = None,
    engine_timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds without a token after which the engine starts anew.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the repositories' own Python.")
    ] = False,
    study_name: Annotated[str | None, typer.Option(help="Name in the database; the pair's by default.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Search for the best alpha of a pair, or go on with the study of that name."""
    if version:
        typer.echo(__version__)
        return
    given = [f"--{name.replace('_', '-')}" for name in context.params if _is_typed(context, name)]
    if context.invoked_subcommand is not None:
        if given:
            raise StudyError(
                where=" ".join(given),
                found=f"given before `{context.invoked_subcommand}`",
                expected="a command's options after its name",
                do=f"`expo-search {context.invoked_subcommand} ...` first, then its options",
            )
        return
    if pair is None and study is None and aligned is None and sft is None:
        if given:
            raise StudyError(
                where=" ".join(given),
                found="no pair",
                expected="--pair NAME, --study FILE, or --sft, --aligned and --reward-model",
                do="see `expo-search pairs` and `expo-search --help`",
            )
        typer.echo(context.get_help())
        return
    if trials < 1:
        raise StudyError(
            where="--trials", found=str(trials), expected="at least 1", do="give the number of trials wanted"
        )
    overrides = _overrides(
        pair={"sft": sft, "aligned": aligned, "adapter": adapter, "reward_model": reward_model},
        prompts={"source": prompts, "n": n_prompts},
        sampling={"max_tokens": max_tokens, "temperature": temperature},
        search={
            "alpha_min": alpha_min,
            "alpha_max": alpha_max,
            "objective": objective,
            "sampler": sampler,
            "racing": racing,
            "tolerance": tolerance,
            "seed": seed,
        },
        reward={"arithmetic": arithmetic},
        engine={
            "dtype": dtype,
            "arithmetic": arithmetic,
            "max_model_len": max_model_len,
            "tensor_parallel": tensor_parallel,
            "sources": sources,
            "timeout_s": engine_timeout,
        },
    )
    spec = load_study(
        preset=pair, file=study, overrides=overrides, name=study_name, trust_remote_code=trust_remote_code
    )
    _search(spec, trials, confirm, storage, log, quiet=quiet, as_json=as_json)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _search(
    spec: StudySpec, n_trials: int, n_confirm: int | None, storage: str, log: Path, *, quiet: bool, as_json: bool
) -> None:
    from expo_search.results.dashboard_updates import DashboardUpdates, artifact_folder
    from expo_search.search.loop import evaluations, why_done
    from expo_search.search.loop import search as run_search
    from expo_search.session.preflight import check
    from expo_search.session.progress import Progress
    from expo_search.session.running import pin, start
    from expo_search.store.study_store import Store

    with terminal(log) as (out, err):
        say = say_on(err, quiet)
        checked = check(spec, storage, say)
        fresh = [] if n_confirm is None else checked.confirm_prompts(n_confirm)
        published = spec.pair.published_alpha
        known = Store(storage, spec.name) if spec.name in _study_names(storage) else None
        done = why_done(known.study, spec.search, n_trials, published) if known else None
        if done is None or (fresh and known and _to_confirm(known, fresh) is not None):
            running = start(checked, say, _give_up_on(err))
            with (
                Progress(err, n_trials, len(evaluations(running.store.study)), quiet=quiet) as progress,
                stop_on_signals(progress.say) as stop,
                running.store.owned(),
            ):
                dashboard = DashboardUpdates(running.store, artifact_folder(storage), progress.say)

                def on_trial(evaluation: Evaluation) -> None:
                    progress.finished(evaluation)
                    dashboard.on_trial(evaluation)

                run_search(
                    running.store,
                    running.objective(progress, checked.search_prompts),
                    spec.search,
                    n_trials,
                    published_alpha=published,
                    relative_delta=running.model.sources.relative_delta,
                    before_tell=dashboard.before_tell,
                    on_trial=on_trial,
                    on_failure=_on_failure(progress),
                    stop=stop,
                )
                if not stop():
                    say(why_done(running.store.study, spec.search, n_trials, published) or "")
                    winner = _to_confirm(running.store, fresh) if fresh else None
                    if winner is not None:
                        _confirm(running, progress, winner, fresh, stop)
                stopped = stop()
        else:
            if known is not None:
                pin(known, checked)
            say(f"study {spec.name}: {done}")
            stopped = False
        print_result(out, Store(storage, spec.name), as_json=as_json)
        if stopped:
            say(f"\nStopped. To go on:\n  {same_command(sys.argv[1:])}")
    if stopped:
        raise typer.Exit(130)


def _to_confirm(store: Store, fresh: Sequence[Prompt]) -> Evaluation | None:
    """The trial that the verdict recommends, unless it is confirmed on these prompts already."""
    from expo_search.inputs.prompts import prompts_hash
    from expo_search.results.study_results import judge

    found = judge(store).verdict
    done = found.confirmed is not None and found.confirmed.prompts == prompts_hash(fresh)
    return None if done else found.best


def _confirm(
    running: Running, progress: Progress, winner: Evaluation, fresh: Sequence[Prompt], stop: Callable[[], bool]
) -> Confirmation | None:
    """Confirm a trial and show it in the dashboard. None: it was asked to stop before the end."""
    from expo_search.evaluation.objective import Stopped
    from expo_search.results.dashboard_updates import DashboardUpdates, artifact_folder
    from expo_search.search.confirm import confirm

    store = running.store
    progress.say(f"confirming alpha = {winner.alpha:.4g} on {len(fresh)} fresh prompts")
    with store.owned():
        objective = running.objective(progress, fresh, "confirm")
        try:
            found = confirm(store, objective, winner.trial, winner.alpha, fresh, stop, _on_failure(progress))
        except Stopped:
            return None
        DashboardUpdates(store, artifact_folder(store.url), progress.say).refresh()
    return found


def _on_failure(progress: Progress) -> Callable[[EngineDied], None]:
    return lambda fault: progress.say(f"{fault}; starting the engine anew")


@app.command("pairs")
def list_pairs(as_json: Json = False) -> None:
    """List the presets."""
    from expo_search.config.presets import preset_names

    names = {name: file for name, file in preset_names().items() if file.stem == name}
    specs = {name: load_study(preset=name, trust_remote_code=True) for name in names}
    if as_json:
        typer.echo(json.dumps({name: spec.model_dump(mode="json") for name, spec in specs.items()}, indent=2))
        return
    from rich.table import Table

    table = Table(header_style="bold", pad_edge=False)
    for heading in ("pair", "aligned", "sft", "published alpha", "range", "remote code"):
        table.add_column(heading, overflow="fold")
    for name, spec in specs.items():
        p = spec.pair
        shipped = "built on first use"
        table.add_row(
            ", ".join([name, *p.aliases]),
            p.aligned or shipped,
            p.sft or shipped,
            "" if p.published_alpha is None else f"{p.published_alpha:g}",
            f"{spec.search.alpha_min} .. {spec.search.alpha_max}",
            "yes" if p.needs_remote_code else "",
        )
    Console().print(table)


@app.command("confirm")
def confirm_winner(
    study: Annotated[str | None, typer.Argument(help="Name in the database.")] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Fresh prompts; all that the search left, by default.")] = None,
    alpha: Annotated[float | None, typer.Option(help="An alpha that was evaluated; the best one by default.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the best alpha against alpha = 0 on prompts and seeds the search never used."""
    from expo_search.results import verdict as report
    from expo_search.search.loop import evaluations
    from expo_search.session.preflight import check_stored
    from expo_search.session.progress import Progress
    from expo_search.session.running import start
    from expo_search.store.study_store import Store

    name = known_study(study, storage)
    with terminal(log) as (out, err):
        say = say_on(err, quiet)
        checked = check_stored(storage, name, say, trust_remote_code=trust_remote_code)
        winner = report.trial_at(evaluations(Store(storage, name, read_only=True).study), alpha, name)
        fresh = checked.confirm_prompts(n_prompts)
        running = start(checked, say, _give_up_on(err))
        with Progress(err, 2, 0, quiet=quiet) as progress, stop_on_signals(progress.say) as stop:
            found = _confirm(running, progress, winner, fresh, stop)
        if found is None:
            say(f"Stopped. To go on:\n  {same_command(sys.argv[1:])}")
            raise typer.Exit(130)
        if as_json:
            out.print(Text(json.dumps(confirmation_json(found), indent=2)), soft_wrap=True)
        else:
            out.print(Text(report.confirmation_sentence(found)), soft_wrap=True, style="bold")


def _give_up_on(console: Console) -> Callable[[ExpoError], None]:
    """What ends this process from another thread where the main one hangs: the one line, and exit code 2."""

    def end(fault: ExpoError) -> None:
        console.print(Text(f"expo-search: {one_line(str(fault))}"), soft_wrap=True)
        os._exit(2)

    return end


def _study_names(storage: str) -> list[str]:
    from expo_search.store.database import study_names

    return study_names(storage)


def _overrides(**tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options that were given, by table of the study file."""
    return {
        name: given for name, values in tables.items() if (given := {k: v for k, v in values.items() if v is not None})
    }


app.command("export")(export_model)
app.command("reproduce")(reproduce_model)
app.command("show")(show)
app.command("report")(report_page)
app.command("dashboard")(dashboard)
app.command("compare")(compare)
app.command("chat")(chat)
app.command("doctor")(doctor)
