"""The commands that look into a study: `show`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from expo_search.study import DEFAULT_STORAGE
from expo_search.terminal import Json, Storage, console_on, known_study

if TYPE_CHECKING:
    from expo_search.report import Verdict
    from expo_search.store import Store


def show(
    study: Annotated[str | None, typer.Argument(help="Name in the database.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Show a study's trials, curve and verdict."""
    from expo_search.store import Store

    print_result(console_on(sys.stdout), Store(storage, known_study(study, storage)), as_json=as_json)


def print_result(console: Console, store: Store, *, as_json: bool) -> None:
    from expo_search import report
    from expo_search.confirm import confirmations
    from expo_search.search import evaluations

    found, confirmed = evaluations(store.study), confirmations(store)
    if as_json:
        text = json.dumps(report.summary(store.name, found, confirmed), indent=2)
        console.print(Text(text), soft_wrap=True)
        return
    console.print(report.trial_table(found))
    if len(found) > 1:
        console.print(Text(report.curve(found, width=min(100, console.width))), soft_wrap=True)
    verdict = report.verdict(found, confirmed)
    console.print(Text(verdict.sentence()), soft_wrap=True, style="bold")
    console.print(Text(report.stage_seconds(found)), soft_wrap=True)
    console.print(Text(_next_steps(store, verdict)), soft_wrap=True)


def _next_steps(store: Store, verdict: Verdict) -> str:
    at = "" if store.url == DEFAULT_STORAGE else f" --storage {store.url}"
    steps = []
    if verdict.word == "better" and verdict.confirmed is None:
        steps.append((f"expo-search confirm {store.name}{at}", "measure the gain on prompts the search never saw"))
    steps.append((f"expo-search show {store.name}{at}", "this again"))
    if verdict.word == "better":
        steps.append((f"expo-search export {store.name} --out DIR{at}", "the model at the best alpha"))
    steps.append((f"optuna-dashboard {store.url}", "look into the study in a browser"))
    width = max(len(command) for command, _ in steps)
    return "\nNext:\n" + "\n".join(f"  {command:{width}}   {purpose}" for command, purpose in steps)
