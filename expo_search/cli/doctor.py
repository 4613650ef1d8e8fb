"""The command that looks at the machine and the installation: `doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.text import Text

from expo_search.cli.console import DEFAULT_LOG, Json, Log, terminal
from expo_search.text import one_line

if TYPE_CHECKING:
    from expo_search.session.installation import Fact


def doctor(log: Log = DEFAULT_LOG, as_json: Json = False) -> None:
    """Say what this machine and installation can do, and what to do about what they cannot."""
    with terminal(log) as (out, _):
        from expo_search.session.installation import check_can_search, inspect_installation

        facts = inspect_installation()
        can_search = all(fact.status != "missing" for fact in facts)
        if as_json:
            report = {"can_search": can_search, "facts": [asdict(fact) for fact in facts]}
            out.print(Text(json.dumps(report, indent=2)), soft_wrap=True)
        else:
            for line in lines(facts):
                out.print(Text(line), soft_wrap=True)
            if can_search:
                out.print(Text("\nA search can run."), soft_wrap=True, style="bold")
        check_can_search(facts)


def lines(facts: list[Fact]) -> list[str]:
    """A line a fact, its columns one below the other."""
    width = max(len(fact.name) for fact in facts)
    return [
        f"{fact.status:7}  {fact.name:{width}}  {one_line(fact.text)}{f'; {fact.do}' if fact.do else ''}"
        for fact in facts
    ]
