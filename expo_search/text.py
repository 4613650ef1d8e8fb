"""Text that is not ours (of models, users, libraries, other people's files), made safe to show, to store, to log."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Overrides of the writing direction: with them a text can look like another one.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_STEERING = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories
# of Markdown and HTML, and what GitHub's Markdown makes a link of by itself: addresses, and `www.`
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#!|~&@$]|:(?=//)|^\+|(?<=www)\.)")
_LONGEST = 20_000  # characters of one text in a file; longer ones are cut, and say so
_SECRET = r"\w*(?:pass|pwd|secret|token)\w*"


def _secrets(blank: str) -> re.Pattern[str]:
    """What SQLAlchemy takes for a password, up to the last @ before the host, and secret values of a query.

    A user's name may have an @ in it, and a password a slash; of a web address a port is no password. `blank`: what is
    in neither, as an expression for a set of characters.
    """
    web = rf"https?://[^:/{blank}]*:(?!\d+/)"
    database = rf"(?!https?:)[\w+.-]+://[^:/{blank}]*:"
    password = rf"(?P<user>\b(?:{web}|{database}))[^@{blank}]*(?:@[^/?@{blank}]*)*(?=@)"
    return re.compile(rf"{password}|(?<=[?&])(?P<key>{_SECRET}=)[^&{blank}]*", re.IGNORECASE)


_SECRETS_OF_URL, _SECRETS_IN_TEXT = _secrets(""), _secrets(r"\s")


def clean(text: str) -> str:
    """A text without what could steer a terminal or a page; U+FFFD shows where something was taken out.

    Taken out are control characters but newline and tab, Unicode's line and paragraph separators, overrides of the
    writing direction, halves of surrogate pairs. Joiners stay: many scripts need them.
    """
    return "".join(
        c if c in "\n\t" or (unicodedata.category(c) not in _STEERING and c not in _BIDI) else "�"
        for c in text.replace("\r\n", "\n")
    )


def cut(text: str, n_max: int = _LONGEST) -> str:
    """The first n_max characters, and how many are left out."""
    return text if len(text) <= n_max else f"{text[:n_max]}… ({len(text) - n_max} more characters)"


def shortened(text: str, n_max: int = 160) -> str:
    """On one line, and cut after a word that is within n_max characters; "…" says that there was more."""
    line = " ".join(text.split())
    if len(line) <= n_max:
        return line
    words, _, _ = line[: n_max + 1].rpartition(" ")
    return f"{words or line[:n_max]} …"


def first_of(texts: Sequence[str], n_max: int = 5, between: str = "; ") -> str:
    """The first n_max of many texts in one; "..." says that there are more."""
    return between.join([*texts[:n_max], *(["..."] if len(texts) > n_max else [])])


def clock(seconds: float | None) -> str:
    """Minutes and seconds, hours where there are some; "?" where they are not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(n_bytes: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point, in powers of 1,000 as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def one_line(text: str) -> str:
    """`clean`, and on one line whatever a name or a library's message holds."""
    return " ".join(clean(text).split())


def markdown(text: object) -> str:
    """Text that Markdown and HTML show as it is, on one line: nothing in it is markup or a link."""
    return _MARKUP.sub(r"\\\1", one_line(str(text)))


def spans(text: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it stood between backticks: commands and names of files in our sentences."""
    return [(piece, i % 2 == 1) for i, piece in enumerate(text.split("`")) if piece]


def markdown_spans(text: str) -> str:
    """As `markdown`, with what stands between backticks as code."""
    return "".join(f"`{one_line(piece)}`" if is_code else _escaped(piece) for piece, is_code in spans(text))


def _escaped(piece: str) -> str:
    """As `markdown`, with the blanks at its ends."""
    before, after = (" " if end.isspace() else "" for end in (piece[:1], piece[-1:]))
    return f"{before}{markdown(piece)}{after}" if piece.strip() else " "


def storable(text: str) -> str:
    """Lone surrogates and NUL cannot be stored in every database."""
    return text.encode("utf-8", "replace").decode().replace("\0", "�")


def shown(url: str) -> str:
    """A URL, or a text with some, as messages and commands may show it: passwords and the like are stars."""
    secrets = _SECRETS_OF_URL if re.match(r"[\w+.-]+://", url) else _SECRETS_IN_TEXT
    return secrets.sub(lambda found: (found["user"] or found["key"] or "") + "***", url)


def is_secret(key: str) -> bool:
    """Whether a key of a URL's query sounds as if its value is a secret."""
    return re.fullmatch(_SECRET, key, re.IGNORECASE) is not None
