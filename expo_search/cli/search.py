"""The commands that add to a study: the search itself, which has no name, and `confirm`."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer
from rich.text import Text

from expo_search.api import Session, open_session, open_study
from expo_search.cli.bench import Wanted, task_files, task_names
from expo_search.cli.completion import presets, tasks, words_of
from expo_search.cli.console import (
    CONSENT,
    DEFAULT_LOG,
    Artifacts,
    Engines,
    Json,
    Log,
    Quiet,
    RayAddress,
    Storage,
    StudyName,
    TrustRemoteCode,
    give_up_on,
    known_study,
    n_engines,
    print_prose,
    terminal,
)
from expo_search.cli.inspect import print_result, print_reward_models
from expo_search.cli.menu import Menu, is_wanted
from expo_search.cli.signals import same_command, stop_on_signals
from expo_search.cli.usage import flag_of
from expo_search.config.amounts import seconds as seconds_of
from expo_search.config.amounts import tokens as tokens_of
from expo_search.config.options import (
    DEFAULT_STORAGE,
    DEFAULT_TRIALS,
    MIN_PROMPTS,
    OF_SEARCH,
    OPTIONS,
    PANELS,
    TRIALS_OF_A_BUDGET,
    overrides,
)
from expo_search.config.presets import load_study
from expo_search.config.spec import StudySpec
from expo_search.errors import StudyError
from expo_search.version import __version__

if TYPE_CHECKING:
    from expo_search.evaluation.result import Evaluation
    from expo_search.search.budget import Budget

_LEAST_CONFIRMED = 16  # prompts on which a confirmation tells anything


class _Where(TypedDict):
    """What runs the engines, as `open_session` takes it."""

    engines: int | Literal["auto"] | None
    ray_address: str | None


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `config.options` in the place of its `**settings`, None where one is not given."""

    def parameter(option: Any) -> inspect.Parameter:
        panel = option.panel or PANELS[option.table]
        words = words_of(option.table, option.key) if option.kind is str else None
        shown = typer.Option(
            option.flag, help=option.help, metavar=option.metavar, rich_help_panel=panel, autocompletion=words
        )
        if option.kind is bool:
            both = f"{option.flag}/{option.flag.replace('--', '--no-', 1)}"
            shown = typer.Option(both, help=option.help, rich_help_panel=panel)
        kind = inspect.Parameter.KEYWORD_ONLY
        taken = list[option.kind] if option.repeats else option.kind
        return inspect.Parameter(option.parameter, kind, default=None, annotation=Annotated[taken | None, shown])

    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    after = next(i for i, p in enumerate(own) if p.name == "trials") + 1
    everything = [*keyword_only[:after], *map(parameter, OPTIONS), *keyword_only[after:]]
    command.__signature__ = signature.replace(parameters=everything)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in everything} | {"return": None}
    return command


@with_settings
def search(
    context: typer.Context,
    pair: Annotated[
        str | None,
        typer.Option(help="A preset; see `expo-search pairs`.", rich_help_panel="Pair", autocompletion=presets),
    ] = None,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A study file in TOML.", rich_help_panel="Pair")
    ] = None,
    trials: Annotated[
        int,
        typer.Option(
            min=1,
            help=f"Go on until the study has this many finished trials; {TRIALS_OF_A_BUDGET} with --time or --tokens.",
            rich_help_panel="Search",
        ),
    ] = DEFAULT_TRIALS,
    confirm: Annotated[
        int | None,
        typer.Option(
            min=MIN_PROMPTS,
            metavar="N",
            help="At the end, measure the winner on N fresh prompts.",
            rich_help_panel="Search",
        ),
    ] = None,
    bench: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,..",
            help="At the end, compare the winner with alpha = 0 on these tasks.",
            autocompletion=tasks,
            rich_help_panel="Search",
        ),
    ] = None,
    bench_data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=FILE", help="As --data of `bench`; may be given again.", rich_help_panel="Search"),
    ] = None,
    bench_limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="As --limit of `bench`.", rich_help_panel="Search")
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="2h",
            help="Spend so much time, confirmation included; 90m, 1h30m.",
            rich_help_panel="Search",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="3M",
            help="Spend so many tokens on the study, confirmation included; 250k, 40000.",
            rich_help_panel="Search",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help=CONSENT, rich_help_panel="Pair")
    ] = False,
    study_name: Annotated[
        str | None, typer.Option(help="Name in the database; the pair's by default.", rich_help_panel="Search")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, tell tokens, minutes and disk; start nothing, write to caches alone.",
            rich_help_panel="Search",
        ),
    ] = False,
    engines: Engines = None,
    ray_address: RayAddress = None,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = None,
    track: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,..",
            help="Write trials and verdict to mlflow, wandb or tensorboard too.",
            rich_help_panel="Output",
        ),
    ] = None,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
    no_menu: Annotated[
        bool,
        typer.Option("--no-menu", help="On a terminal, end without asking what is next.", rich_help_panel="Output"),
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", rich_help_panel="Output")] = False,
    **settings: Any,
) -> None:
    """Search for the best alpha of a pair, or go on with the study of that name."""
    if version:
        typer.echo(__version__)
        return
    given = [flag_of(p) for p in context.command.params if p.name in context.params and _is_typed(context, p.name)]
    if context.invoked_subcommand is not None:
        if given:
            raise StudyError(
                where=" ".join(given),
                found=f"given before `{context.invoked_subcommand}`",
                expected="a command's options after its name",
                do=f"`expo-search {context.invoked_subcommand} ...` first, then its options",
            )
        return
    if pair is None and study is None and settings["aligned"] is None and settings["sft"] is None:
        if given:
            raise StudyError(
                where=" ".join(given),
                found="no pair",
                expected="--pair NAME, --study FILE, or --sft, --aligned and --reward-model",
                do="see `expo-search pairs` and `expo-search --help`",
            )
        typer.echo(context.get_help())
        return
    budget = _budget(time_limit, tokens)
    if budget is not None and not _is_typed(context, "trials"):
        trials = TRIALS_OF_A_BUDGET
    # what the command line alone says is checked before any file is read
    where: _Where = {"engines": n_engines(engines), "ray_address": ray_address}
    trackers = [] if track is None else _tracker_names(track)
    wanted = _benchmarks(bench, bench_data or [], bench_limit)
    spec = load_study(
        preset=pair, file=study, overrides=overrides(settings), name=study_name, trust_remote_code=trust_remote_code
    )
    if dry_run:
        if artifacts is not None:
            _check_artifacts(artifacts)
        _check_trackers(trackers)
        _forecast(
            spec, trials, confirm, wanted, storage, log, where, budget, track=trackers, quiet=quiet, as_json=as_json
        )
        return
    _search(
        spec,
        trials,
        confirm,
        wanted,
        storage,
        artifacts,
        log,
        where,
        budget,
        track=trackers,
        quiet=quiet,
        as_json=as_json,
        no_menu=no_menu,
    )


def _benchmarks(tasks: str | None, data: Sequence[str], limit: int | None) -> Wanted | None:
    """What is to be benchmarked at the end, if anything."""
    if tasks is not None:
        names = task_names(tasks, OF_SEARCH)
        return Wanted(names, task_files(data, names, OF_SEARCH), limit)
    for option, is_given in ((OF_SEARCH.data, bool(data)), (OF_SEARCH.limit, limit is not None)):
        if is_given:
            raise StudyError(
                where=option, found="no --bench", expected="--bench A,B beside it", do="add the tasks, or leave it out"
            )
    return None


def _check_artifacts(place: str) -> None:
    from expo_search.results.artifacts import check_given

    check_given(place)


def _check_trackers(names: Sequence[str]) -> None:
    if names:
        from expo_search.results.trackers.tracking import check_installed

        check_installed(names)


def _tracker_names(text: str) -> list[str]:
    from expo_search.results.trackers.tracking import tracker_names

    return tracker_names(text)


def _budget(time_limit: str | None, n_tokens: str | None) -> Budget | None:
    """What may be spent, from now on; None: no limit was given."""
    if time_limit is None and n_tokens is None:
        return None
    from expo_search.search.budget import Budget

    return Budget(
        tokens=None if n_tokens is None else tokens_of(n_tokens, where="--tokens"),
        seconds=None if time_limit is None else seconds_of(time_limit, where="--time"),
    )


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _forecast(
    spec: StudySpec,
    n_trials: int,
    n_confirm: int | None,
    bench: Wanted | None,
    storage: str,
    log: Path,
    where: _Where,
    budget: Budget | None = None,
    *,
    track: Sequence[str] = (),
    quiet: bool,
    as_json: bool,
) -> None:
    """Print what a search would take, once all that it would check is checked."""
    from expo_search.session.forecast import forecast

    with (
        terminal(log) as (out, err),
        # what is said on the way, the memory plan too, is for people
        open_session(
            spec,
            storage,
            start=False,
            fetch=False,
            to_confirm=None if n_confirm is None else (n_confirm, "--confirm"),
            quiet=quiet or as_json,
            console=err,
            **where,
        ) as session,
    ):
        if bench is not None:
            session.check_bench(bench.tasks, data=bench.data, limit=bench.limit)
        judge = session.find_judge()
        budget = _reserving(session, budget, n_confirm)
        done = session.why_done(n_trials, budget)
        to_confirm = n_confirm or (0 if budget is None else budget.n_confirm)
        if done is not None:
            left = _to_confirm(session, n_confirm, budget)
            to_confirm = 0 if left is None else left[1]
        spent = session.with_spent(budget)
        expected = forecast(
            session.checked, n_trials, n_confirm=to_confirm, budget=spent, done=done, to_fetch=session.to_fetch
        )
        if as_json:
            plan = session.checked.memory
            told = expected.as_json() | {"memory": None if plan is None else plan.sentence()}
            out.print(Text(json.dumps(told, indent=2)), soft_wrap=True)
            return
        if done is not None and not to_confirm:
            after = [option for option, given in (("--bench", bench), ("--check-reward-model", judge)) if given]
            but = f" but {' and '.join(after)}, where not done yet" if after else ""
            print_prose(out, f"{done}: nothing is left to do{but}")
        else:
            for line in expected.sentences():
                print_prose(out, line)
        not_asked = f" Not asked: {', '.join(track)}, which is opened before the engine starts." if track else ""
        said = "Checked. Nothing was started, nothing written but what was fetched or built into caches."
        print_prose(out, f"{said}{not_asked}")


def _reserving(session: Session, budget: Budget | None, n_confirm: int | None) -> Budget | None:
    """The budget with enough kept back for the confirmation."""
    if budget is None:
        return None
    return replace(budget, n_confirm=n_confirm or min(session.n_fresh(), len(session.checked.search_prompts) // 2))


def _search(
    spec: StudySpec,
    n_trials: int,
    n_confirm: int | None,
    bench: Wanted | None,
    storage: str,
    artifacts: str | None,
    log: Path,
    where: _Where,
    budget: Budget | None = None,
    *,
    track: Sequence[str],
    quiet: bool,
    as_json: bool,
    no_menu: bool,
) -> None:
    stopped = False
    with terminal(log) as (out, err):
        session = open_session(
            spec,
            storage,
            start=False,
            artifacts=artifacts,
            to_confirm=None if n_confirm is None else (n_confirm, "--confirm"),
            quiet=quiet,
            console=err,
            give_up=give_up_on(err),
            **where,
        )
        from expo_search.results.trackers.tracking import Tracking  # what is wrong with the input is said by now

        with session, Tracking(track, session.say) as tracking:
            if bench is not None:
                session.check_bench(bench.tasks, data=bench.data, limit=bench.limit)
            session.find_judge()
            budget = _reserving(session, budget, n_confirm)
            done = session.why_done(n_trials, budget) is not None
            if done and _to_confirm(session, n_confirm, budget) is None:
                session.search(n_trials, budget=budget)  # says why there is nothing left to do
                with stop_on_signals(session.say) as stop:
                    _bench(session, bench, stop)
                    if not stop():
                        session.check(stop=stop)
                    stopped = stop()
            else:
                session.start()
                with stop_on_signals(session.say) as stop, session.owned():
                    # a study is read for its trackers alone: on a server that is a wait for all that is on its way
                    to_trackers = (lambda _: tracking.update(session.result)) if track else None
                    session.search(n_trials, stop=stop, budget=budget, on_trial=to_trackers)
                    began = time.monotonic()
                    _bench(session, bench, stop)
                    if budget is not None:  # which a benchmark is not counted in
                        budget = replace(budget, began=budget.began + time.monotonic() - began)
                    wanted = None if stop() else _to_confirm(session, n_confirm, budget)
                    if wanted is not None:
                        session.confirm(*wanted, stop=stop)
                    if not stop():
                        session.check(stop=stop)
                    stopped = stop()
            tracking.update(session.result)
            asks = not stopped and is_wanted(out, no_menu=no_menu, quiet=quiet, as_json=as_json)
            if asks:
                print_result(out, session.result(), as_json=False)
                Menu(session, out, err).run()
        if not asks:
            print_result(out, open_study(storage, spec.name), as_json=as_json)
        if stopped:
            session.say(f"\nStopped. To go on:\n  {same_command(sys.argv[1:])}")
    if stopped:
        raise typer.Exit(130)


def _bench(session: Session, wanted: Wanted | None, stop: Callable[[], bool]) -> None:
    """Benchmark the winner, where that is wanted, and the next best where it loses too much."""
    if wanted is not None and not stop():
        session.bench_winner(wanted.tasks, data=wanted.data, limit=wanted.limit, stop=stop)


def _to_confirm(session: Session, n: int | None, budget: Budget | None) -> tuple[Evaluation, int] | None:
    """The trial to confirm at the end of a search, and on how many fresh prompts; None: there is nothing to confirm.

    On n prompts where they are given; with a budget alone on as many as are left and it pays, unless that was done.
    """
    if n is None and budget is not None:
        verdict = session.result().verdict
        if verdict.confirmed is not None or verdict.best is None:
            return None
        n = session.n_confirmable(budget)
        return (verdict.best, n) if n >= _LEAST_CONFIRMED else None
    winner = None if n is None else session.unconfirmed(n)
    return None if winner is None or n is None else (winner, n)


def confirm_winner(
    study: StudyName = None,
    n_prompts: Annotated[
        int | None, typer.Option(min=MIN_PROMPTS, help="Fresh prompts; all that the search left, by default.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="An alpha that was evaluated; the best one by default.")] = None,
    check_reward_model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_ID", help="A reward model that the search never used rates the same answers."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    engines: Engines = None,
    ray_address: RayAddress = None,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the best alpha against alpha = 0 on prompts and seeds the search never used."""
    where: _Where = {"engines": n_engines(engines), "ray_address": ray_address}
    name = known_study(study, storage)
    if alpha is not None:
        open_study(storage, name).trial_at(alpha)  # one that was not evaluated is said before anything is checked
    from expo_search.results.second_judge import check_sentence
    from expo_search.results.summary_json import confirmation_json
    from expo_search.results.verdict import confirmation_sentence

    with terminal(log) as (out, err):
        session = open_session(
            name,
            storage,
            start=False,
            to_confirm=None if n_prompts is None else (n_prompts, "--n-prompts"),
            trust_remote_code=trust_remote_code,
            quiet=quiet,
            console=err,
            give_up=give_up_on(err),
            **where,
        )
        with session:
            winner = session.result().trial_at(alpha)
            is_there = session.confirmed(winner, n_prompts) is not None
            judge, check = session.find_judge(check_reward_model), None
            if not is_there:
                session.start()
            with stop_on_signals(session.say) as stop:
                confirmation = session.confirm(winner, n_prompts, stop=stop)
                if confirmation is not None and not stop():
                    check = session.check(winner, stop=stop)
                stopped = confirmation is None or (judge is not None and check is None and stop())
        if confirmation is None or stopped:
            session.say(f"Stopped. To go on:\n  {same_command(sys.argv[1:])}")
            raise typer.Exit(130)
        result = open_study(storage, name)
        several = confirmation == result.verdict.confirmed and result.model_gains
        if as_json:
            told = confirmation_json(confirmation) | ({} if check is None else {"check": check.as_json()})
            told |= {"reward_models": [gain.as_json() for gain in result.model_gains]} if several else {}
            out.print(Text(json.dumps(told, indent=2)), soft_wrap=True)
            return
        print_prose(out, confirmation_sentence(confirmation), style="bold")
        if several:
            print_reward_models(out, result)
        if check is not None:
            print_prose(out, check_sentence(check))
