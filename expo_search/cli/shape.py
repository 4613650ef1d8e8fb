"""The command that looks for an alpha for each weight: `shape`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.text import Text

from expo_search.api import open_session
from expo_search.cli.completion import shapes
from expo_search.cli.console import (
    DEFAULT_LOG,
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
    print_table,
    terminal,
)
from expo_search.cli.signals import same_command, stop_on_signals
from expo_search.config.options import DEFAULT_SHAPES, DEFAULT_STORAGE, MIN_PROMPTS
from expo_search.weights.shape import dimensions


def search_shape(
    study: StudyName = None,
    kind: Annotated[
        str,
        typer.Option(
            "--shape", metavar="KIND", help="depth, attn-mlp, or blocks:K with K from 2 to 4.", autocompletion=shapes
        ),
    ] = "depth",
    trials: Annotated[int, typer.Option(min=1, help="Go on until so many shapes are evaluated.")] = DEFAULT_SHAPES,
    confirm: Annotated[
        int | None,
        typer.Option(min=MIN_PROMPTS, metavar="N", help="Measure the best one on N fresh prompts, against one alpha."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    engines: Engines = None,
    ray_address: RayAddress = None,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Spread the best alpha over layers or modules, and see whether that beats one alpha for all."""
    dimensions(kind)
    wanted_engines = n_engines(engines)
    name = known_study(study, storage)
    from expo_search.results.shapes import HEADS, shape_sentence, shape_table, shapes_json

    with terminal(log) as (out, err):
        session = open_session(
            name,
            storage,
            engines=wanted_engines,
            ray_address=ray_address,
            start=False,
            trust_remote_code=trust_remote_code,
            quiet=quiet,
            console=err,
            give_up=give_up_on(err),
        )
        with session, stop_on_signals(session.say) as stop:
            shapes = session.shape(kind, trials, confirm, stop=stop)
            stopped = stop()
        if as_json:
            out.print(Text(json.dumps(shapes_json(shapes), indent=2)), soft_wrap=True)
        else:
            print_table(out, shape_table(shapes, out.width), HEADS)
            print_prose(out, shape_sentence(shapes), style="bold")
            print_prose(out, f"{shapes.n_tokens:,} tokens were generated for the shapes.")
        if stopped:
            session.say(f"\nStopped. To go on:\n  {same_command(sys.argv[1:])}")
            raise typer.Exit(130)
