"""Rows of texts by heading -> a table as wide as the terminal, in which no number and no word is broken.

Where there is no room, headings and texts go on in a line below, then columns stand closer, then the less telling
columns are left out, in the order that the caller gives. Only a name that has no room at all is broken, after one of
its own separators if it has one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from expo_search.text import one_line

if TYPE_CHECKING:
    from rich.table import Table

_EASY = 16  # characters of a text's line, below which columns are left out before it gets narrower
_NARROWEST = 4
_EDGES = 2  # blanks of the box, left and right
# blanks between columns -> rich's padding: top, right, bottom, left; the box has a blank of its own
_PADDING = {3: (0, 1, 0, 1), 2: (0, 1, 0, 0), 1: (0, 0, 0, 0)}
_SEPARATOR = re.compile(r"(?<=[:/_])|(?<=[A-Za-z][.-])")  # of names, not of numbers


def fitted_table(
    rows: Sequence[Mapping[str, str]],
    width: int,
    *,
    texts: Collection[str],
    leave_out: Sequence[str] = (),
    at_last: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> Table:
    """A table of rows with the same headings, at most `width` characters wide where its columns can be made so.

    Args:
        texts: headings of the columns whose cells may go on in a line below, at a blank; all others hold numbers.
        leave_out: what may be left out, first of all its first, before a text's lines get short.
        at_last: what is left out after these, where a text's longest word has no room.
        styles: rich's, a row each.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    cells = [{heading: one_line(cell) for heading, cell in row.items()} for row in rows]
    sizes, gap = _layout(cells, width, texts, leave_out, at_last)
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=_PADDING[gap])
    for heading, size in sizes.items():
        is_text = heading in texts
        head = escape(_broken(heading, size))
        table.add_column(head, justify="left" if is_text else "right", no_wrap=not is_text)
    for row, style in zip(cells, styles or [""] * len(cells), strict=True):
        shown = (_broken(row[h], size) if h in texts else row[h] for h, size in sizes.items())
        table.add_row(*map(escape, shown), style=style)
    return table


def headings(table: Table) -> list[str]:
    """A fitted table's headings, each on one line again."""
    return [" ".join(str(column.header).split()) for column in table.columns]


def left_out(table: Table, every: Sequence[str], option: str) -> str:
    """The line that says which of all headings a fitted table has no room for, and what has them; or nothing."""
    shown = headings(table)
    missing = [heading for heading in every if heading and heading not in shown]
    return f"left out for width: {', '.join(missing)}; all columns: {option}" if missing and shown else ""


def _layout(
    rows: Sequence[Mapping[str, str]],
    width: int,
    texts: Collection[str],
    leave_out: Sequence[str],
    at_last: Sequence[str],
) -> tuple[dict[str, int], int]:
    """The columns that are shown with their widths, and the blanks between two."""
    full = {h: max(map(_size, (h, *(row[h] for row in rows)))) for h in (rows[0] if rows else ())}
    least = {h: max(_longest_word(h), *(_least(row[h], h in texts) for row in rows)) for h in full}
    easy = {h: max(least[h], min(full[h], _EASY)) if h in texts else least[h] for h in full}
    for order, need, gap in ((leave_out, easy, 2), (at_last, least, 1)):
        for heading in order:
            if _total(need, full, gap) > width:
                full.pop(heading, None)
    gap = 3 if _total(full, full, 3) <= width else 2 if _total(least, full, 2) <= width else 1
    room = width - _total(dict.fromkeys(full, 0), full, gap)
    sizes = full
    names = {h: max(map(_longest_piece, (h, *(row[h] for row in rows)))) if h in texts else least[h] for h in full}
    last = {h: min(_NARROWEST, names[h]) if h in texts else least[h] for h in full}
    for floor in (easy, least, names, last):
        sizes = _shrunk(sizes, floor, room)
    return sizes, gap


def _total(sizes: Mapping[str, int], shown: Collection[str], gap: int) -> int:
    return _EDGES + sum(sizes[heading] for heading in shown) + gap * (len(shown) - 1)


def _shrunk(sizes: Mapping[str, int], floor: Mapping[str, int], room: int) -> dict[str, int]:
    """Widths that together fit into the room, as far as no column gets narrower than its floor; the widest yields."""
    sizes = dict(sizes)
    while sum(sizes.values()) > room and any(sizes[h] > floor[h] for h in sizes):
        sizes[max((h for h in sizes if sizes[h] > floor[h]), key=sizes.__getitem__)] -= 1
    return sizes


def _size(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _least(cell: str, is_text: bool) -> int:
    return _longest_word(cell) if is_text else _size(cell)


def _longest_word(text: str) -> int:
    return max(map(_size, text.split()), default=0)


def _longest_piece(text: str) -> int:
    return max((_size(piece) for word in text.split() for piece in _SEPARATOR.split(word)), default=0)


def _broken(text: str, size: int) -> str:
    """The text in lines of at most `size` characters, that end at blanks; in a longer word after a separator."""
    if _size(text) <= size:
        return text
    lines = [""]
    for word in text.split():
        for i, piece in enumerate(_pieces(word, size)):
            longer = f"{lines[-1]} {piece}" if lines[-1] and not i else lines[-1] + piece
            if _size(longer) <= size:
                lines[-1] = longer
            else:
                lines.append(piece)
    return "\n".join(line for line in lines if line)


def _pieces(word: str, size: int) -> list[str]:
    """A word, in pieces where it is longer than a line."""
    from rich.cells import chop_cells

    if _size(word) <= size:
        return [word]
    return [part for piece in _SEPARATOR.split(word) for part in chop_cells(piece, size)]
