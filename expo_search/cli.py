"""The command line: parses, wires the concrete classes, prints. Only the `cli` modules print, and only this one exits.

Exit codes: 0 done; 2 the input is at fault, in one line on standard error; 130 stopped by Ctrl-C, with everything
that was finished kept. Anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from expo_search import __version__
from expo_search.cli_export import export_model
from expo_search.cli_inspect import print_result, show
from expo_search.errors import ExpoError, StudyError
from expo_search.study import DEFAULT_STORAGE, StudySpec, load_study, stored_spec
from expo_search.terminal import DEFAULT_LOG, Json, Log, Quiet, Storage, known_study, plain, say_on, terminal

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
    try:
        app()
    except ExpoError as fault:
        Console(stderr=True).print(Text(f"expo-search: {plain(str(fault))}"), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "expo-search: stopped; what was finished is kept, the same command goes on", soft_wrap=True
        )
        sys.exit(130)


@app.callback(invoke_without_command=True)
def search(
    context: typer.Context,
    pair: Annotated[str | None, typer.Option(help="A preset; see `expo-search pairs`.")] = None,
    study: Annotated[Path | None, typer.Option(metavar="FILE", help="A study file in TOML.")] = None,
    trials: Annotated[int, typer.Option(help="Go on until the study has this many finished trials.")] = 20,
    sft: Annotated[str | None, typer.Option(metavar="PATH_OR_ID", help="The SFT checkpoint.")] = None,
    aligned: Annotated[str | None, typer.Option(metavar="PATH_OR_ID", help="The checkpoint aligned from it.")] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_ID", help="A sequence classifier with one label.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE_OR_DATASET", help="JSONL or Parquet file, or Hub data set.")
    ] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Prompts of the search.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="New tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    alpha_min: Annotated[float | None, typer.Option(help="Lower end of the range.")] = None,
    alpha_max: Annotated[float | None, typer.Option(help="Upper end of the range.")] = None,
    sampler: Annotated[str | None, typer.Option(help="gp, tpe, grid or random.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes prompts' order, answers and sampler.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context in tokens.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs of one engine.")] = None,
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
    if context.invoked_subcommand is not None:
        return
    if pair is None and study is None and aligned is None and sft is None:
        typer.echo(context.get_help())
        return
    if trials < 1:
        raise StudyError(
            where="--trials", found=str(trials), expected="at least 1", do="give the number of trials wanted"
        )
    overrides = _overrides(
        pair={"sft": sft, "aligned": aligned, "reward_model": reward_model},
        prompts={"source": prompts, "n": n_prompts},
        sampling={"max_tokens": max_tokens, "temperature": temperature},
        search={"alpha_min": alpha_min, "alpha_max": alpha_max, "sampler": sampler, "seed": seed},
        engine={"dtype": dtype, "max_model_len": max_model_len, "tensor_parallel": tensor_parallel},
    )
    spec = load_study(
        preset=pair, file=study, overrides=overrides, name=study_name, trust_remote_code=trust_remote_code
    )
    _search(spec, trials, storage, log, quiet=quiet, as_json=as_json)


def _search(spec: StudySpec, n_trials: int, storage: str, log: Path, *, quiet: bool, as_json: bool) -> None:
    from expo_search.run import check, start
    from expo_search.search import evaluations
    from expo_search.search import search as run_search
    from expo_search.store import Store

    with terminal(log) as (out, err):
        say = say_on(err, quiet)
        checked = check(spec, storage, say)
        done = len(_finished(storage, spec.name))
        if done < n_trials:
            from expo_search.progress import Progress

            running = start(checked, say)
            with Progress(err, n_trials, len(evaluations(running.store.study)), quiet=quiet) as progress:
                objective = running.objective(progress, checked.search_prompts)
                run_search(
                    running.store,
                    objective,
                    spec.search,
                    n_trials,
                    published_alpha=spec.pair.published_alpha,
                    on_trial=progress.finished,
                )
        else:
            say(f"study {spec.name} has {done} finished trials already")
        print_result(out, Store(storage, spec.name), as_json=as_json)


@app.command("pairs")
def list_pairs(as_json: Json = False) -> None:
    """List the presets."""
    from expo_search.study import preset_names

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
            f"{spec.search.alpha_min:g} .. {spec.search.alpha_max:g}",
            "yes" if p.needs_remote_code else "",
        )
    Console().print(table)


@app.command("confirm")
def confirm_winner(
    study: Annotated[str | None, typer.Argument(help="Name in the database.")] = None,
    n_prompts: Annotated[int | None, typer.Option(help="Fresh prompts; all that the search left, by default.")] = None,
    alpha: Annotated[float | None, typer.Option(help="An alpha that was evaluated; the best one by default.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="As in the search.")] = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the best alpha against alpha = 0 on prompts and seeds the search never used."""
    from expo_search import report
    from expo_search.confirm import confirm
    from expo_search.database import stored_attribute
    from expo_search.progress import Progress
    from expo_search.run import check, start
    from expo_search.search import evaluations
    from expo_search.store import SPEC, Store

    name = known_study(study, storage)
    spec = stored_spec(stored_attribute(storage, name, SPEC), name=name, trust_remote_code=trust_remote_code)
    with terminal(log) as (out, err):
        say = say_on(err, quiet)
        winner = report.trial_at(evaluations(Store(storage, name).study), alpha, name)
        checked = check(spec, storage, say)
        fresh = checked.confirm_prompts(n_prompts)
        running = start(checked, say, confirm=True)
        with Progress(err, 2, 0, quiet=quiet) as progress:
            objective = running.objective(progress, fresh, "confirm")
            found = confirm(running.store, objective, winner.trial, winner.alpha, fresh)
        if as_json:
            out.print(Text(json.dumps(report.confirmation_json(found), indent=2)), soft_wrap=True)
        else:
            out.print(Text(report.confirmation_sentence(found)), soft_wrap=True, style="bold")


def _finished(storage: str, name: str) -> list[Any]:
    """The finished trials of a study that may not exist, without writing."""
    from expo_search.database import study_names
    from expo_search.search import evaluations
    from expo_search.store import Store

    return evaluations(Store(storage, name).study) if name in study_names(storage) else []


def _overrides(**tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options that were given, by table of the study file."""
    return {
        name: given for name, values in tables.items() if (given := {k: v for k, v in values.items() if v is not None})
    }


app.command("export")(export_model)
app.command("show")(show)
