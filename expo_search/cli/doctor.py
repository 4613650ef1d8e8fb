"""The command that looks at the machine and the installation: `doctor`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING

from rich.text import Text

from expo_search.cli.console import DEFAULT_LOG, Json, Log, RayAddress, Storage, terminal
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.text import one_line

if TYPE_CHECKING:
    from expo_search.session.fact import Fact

_FENCE = "```"  # what lies between two of them is shown as it is, where bug reports are written


def doctor(
    storage: Storage = DEFAULT_STORAGE, ray_address: RayAddress = None, log: Log = DEFAULT_LOG, as_json: Json = False
) -> None:
    """Say what this machine and installation can do, in a block for a bug report, and what to do about the rest."""
    with terminal(log) as (out, _):
        from expo_search.session.installation import check_can_search, inspect_installation

        facts = inspect_installation(storage)
        if ray_address is not None:
            from expo_search.session.cluster_facts import inspect_cluster

            facts += inspect_cluster(ray_address)
        can_search = all(fact.status != "missing" for fact in facts)
        if as_json:
            report = {"can_search": can_search, "facts": [asdict(fact) for fact in facts]}
            out.print(Text(json.dumps(report, indent=2)), soft_wrap=True)
        else:
            width = out.width if out.is_terminal else None
            for line in (_FENCE, *lines(facts, width), _FENCE):
                out.print(Text(line), soft_wrap=True)
            if can_search:
                out.print(Text("\nA search can run."), soft_wrap=True, style="bold")
        check_can_search(facts)


def lines(facts: list[Fact], width: int | None = None) -> list[str]:
    """A line a fact, its columns one below the other. The home folder is `~`: it may hold a name.

    With a `width` a fact goes on below its own column, in lines that end between words.
    """
    names = max(len(fact.name) for fact in facts)
    told = (
        f"{fact.status:7}  {fact.name:{names}}  {one_line(fact.text)}{f'; {fact.do}' if fact.do else ''}"
        for fact in facts
    )
    homeless = [re.sub(rf"(?<![\w/]){re.escape(str(Path.home()))}(?=/)", "~", line) for line in told]
    if width is None:
        return homeless
    below = " " * (len("missing") + names + 4)
    whole = TextWrapper(width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False)
    return [part for line in homeless for part in whole.wrap(line)]
