"""UltraFeedback split, local file or Hub data set -> prompts in one fixed, shuffled order.

The order depends only on the seed and the prompts' ids, so every alpha sees the same prompts in the same order. The
search takes from its front and a confirmation from its back: the two parts are disjoint, which is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_search.config.options import MIN_PROMPTS
from expo_search.contracts import Prompt
from expo_search.errors import PromptsError
from expo_search.folders import is_there, user_path
from expo_search.inputs.rows import SUFFIXES, file_rows, hub_rows

_COLUMNS = ("prompt", "prompt_id", "messages")
_EXPECTED = "a .jsonl, .json or .parquet file, or the id of a Hub data set"


def path_of(source: str) -> Path:
    """Where prompts lie if they are a file of this machine; `~` stands for a home folder, as in a shell.

    Raises:
        PromptsError: the system does not even look there.
    """
    path = user_path(source)
    is_there(path, PromptsError, where=f"prompts {source}", expected=_EXPECTED)
    return path


def load_prompts(
    source: str,
    split: str,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    at_least: int = 1,
    do: str | None = None,
) -> list[Prompt]:
    """All distinct prompts of a `.jsonl`, `.json` or `.parquet` file, or of a Hub data set's split, shuffled by `seed`.

    Rows whose prompt is blank, or no text that can be stored, are left out, and `say` gets a line with their number. A
    row of another form (not JSON, other columns) is an error. `do`: the advice where they must be those of a study that
    is stored; None: a search is begun, whose options are named.

    Raises:
        PromptsError: missing, empty, not readable (with the line), rows without a prompt, or fewer than `at_least`.
    """
    path = path_of(source)
    local = path.suffix in SUFFIXES
    if path.is_dir():
        raise _is_folder(source, path, do)
    if path.is_file() != local:
        raise PromptsError(
            where=f"prompts {source}",
            found="a file of another kind" if path.is_file() else "no such file",
            expected=_EXPECTED,
            do="check the path",
        )
    option, split_option = ("--prompts FILE", "--prompts-split") if do is None else (None, None)
    rows = (
        file_rows(path, _COLUMNS)
        if local
        else hub_rows(source, split, columns=_COLUMNS, option=option, split_option=split_option)
    )
    prompts: dict[str, Prompt] = {}
    ids: set[str] = set()
    left_out: list[str] = []
    n_equal = 0
    for where, row in rows:
        text = _first_user_turn(row, where)
        if (fault := _fault(text)) is not None:
            left_out.append(f"{where.rpartition(', ')[2]}: {fault}")
        elif text in prompts:
            n_equal += 1
        else:
            prompts[text] = Prompt(_id(row, text, ids), text)
            ids.add(prompts[text].id)
    few = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
    if not prompts:
        rows_read = f"{len(left_out)} rows, none with a prompt ({few})" if left_out else "no rows"
        raise PromptsError(
            where=f"prompts {source}", found=rows_read, expected="at least one prompt", do="check the file"
        )
    if len(prompts) < at_least:
        more = [
            f"{n_equal} duplicates" if n_equal else "",
            f"{len(left_out)} rows left out ({few})" if left_out else "",
        ]
        raise PromptsError(
            where=f"prompts {source}",
            found=" and ".join([f"{len(prompts)} different prompt{'s' * (len(prompts) > 1)}", *filter(None, more)]),
            expected=f"at least {at_least}",
            do=do or _fewer(len(prompts)),
        )
    if left_out:
        say(f"{len(left_out)} rows of the prompts left out ({few})")
    return sorted(prompts.values(), key=lambda p: hashlib.blake2b(f"{seed}:{p.id}".encode()).digest())


def search_part(
    prompts: Sequence[Prompt],
    n: int,
    *,
    where: str,
    exact: bool = True,
    fits: Callable[[Prompt], bool] | None = None,
    do: str | None = None,
) -> tuple[list[Prompt], int]:
    """The first n prompts of the order that fit the model's context, and how far into the order they reach.

    Fewer than n are enough unless `exact`: a data set that holds just n rows falls short by its duplicates. `do`: see
    `load_prompts`.

    Raises:
        PromptsError: there are fewer than n, or none at all.
    """
    kept: list[Prompt] = []
    reach = 0
    for prompt in prompts:
        if len(kept) == n:
            break
        reach += 1
        if fits is None or fits(prompt):
            kept.append(prompt)
    if len(kept) < (n if exact else 2):
        left_out = f", {reach - len(kept)} more are too long for the context" if reach > len(kept) else ""
        raise PromptsError(
            where=where,
            found=f"{len(kept)} prompts{left_out}",
            expected=f"at least {n if exact else 2}",
            do=do or _fewer(len(kept)),
        )
    return kept, reach


def _fewer(n: int) -> str:
    return f"give more prompts, or --n-prompts {n}" if n > 1 else "give more prompts"


def _is_folder(source: str, path: Path, do: str | None) -> PromptsError:
    try:
        first = next((f for f in sorted(path.iterdir()) if f.suffix in SUFFIXES and f.is_file()), None)
    except OSError:
        first = None
    return PromptsError(
        where=f"prompts {source}",
        found="a folder",
        expected=_EXPECTED,
        do=do or (f"give the file: --prompts {first}" if first else "give a file"),
    )


def confirm_part(
    prompts: Sequence[Prompt],
    reach: int,
    n: int | None,
    *,
    where: str,
    fits: Callable[[Prompt], bool] | None = None,
    option: str = "--n-prompts",
) -> list[Prompt]:
    """The last n prompts (or all) of the order, none of which a search that reached so far can have seen.

    `option`, by which n was given, is named in messages.

    Raises:
        PromptsError: fewer than n, or than `MIN_PROMPTS`, are left.
    """
    if n is not None and n < MIN_PROMPTS:
        raise PromptsError(
            where=option,
            found=str(n),
            expected=f"at least {MIN_PROMPTS}",
            do="one prompt has no standard error: give more",
        )
    unseen = [p for p in reversed(prompts[reach:]) if fits is None or fits(p)]
    n_left = len(unseen)
    wanted = max(MIN_PROMPTS, n_left) if n is None else n
    if wanted > n_left:
        raise PromptsError(
            where=where,
            found=f"{n_left} prompts that the search has not seen",
            expected=f"at least {wanted}",
            do=f"give {option} {n_left}" if n_left >= MIN_PROMPTS else "search with fewer prompts (--n-prompts)",
        )
    return unseen[:wanted]


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """16 hex digits over ids and texts, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.text]).encode())
    return digest.hexdigest()[:16]


def _first_user_turn(row: object, where: str) -> str:
    expected = "a column `prompt` (text) or `messages` (a list of {role, content})"
    if not isinstance(row, Mapping):
        raise PromptsError(
            where=where, found=f"a {type(row).__name__}", expected="an object", do="write one JSON object a line"
        )
    messages = row.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        for message in messages:
            if (
                isinstance(message, Mapping)
                and message.get("role") == "user"
                and isinstance(message.get("content"), str)
            ):
                return str(message["content"])
    if isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    raise PromptsError(
        where=where,
        found=f"columns {', '.join(sorted(map(str, row))) or 'none'}",
        expected=expected,
        do="name the column `prompt`",
    )


def _fault(text: str) -> str | None:
    """Why a text cannot be a prompt; None if it can."""
    if not text.strip():
        return "an empty prompt"
    try:
        return "a NUL" if b"\0" in text.encode() else None
    except UnicodeEncodeError:  # JSON can spell it, but no tokenizer and no database takes it
        return "half of a surrogate pair"


def _id(row: Mapping[str, Any], text: str, taken: Collection[str]) -> str:
    """The row's own id where it is plain and not taken, else the text's hash (as UltraFeedback's prompt_id is)."""
    given = row.get("prompt_id")
    if isinstance(given, str) and given.isprintable() and 0 < len(given) <= 128 and given not in taken:
        return given
    return hashlib.sha256(text.encode()).hexdigest()
