"""What pydantic says of settings -> one error of ours: found and expected, by the types of its errors, in our words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from expo_search.config.options import option_of
from expo_search.errors import StudyError

_EXPECTED = "; expected "  # in a validator's own text, and in ours
# pydantic names the kind that it tried ("float", "literal['auto']") as if it were a key
_KINDS = ("float", "constrained-int", "literal[")
NAME, FILLED = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", r"\S"  # patterns of texts, with words for them:
_PATTERNS = {
    NAME: "at most 100 letters, digits, dots, _ and -, with a letter or a digit first",
    FILLED: "a text that is not empty",
}
_TEXT, _WHOLE, _NUMBER, _SWITCH = "a text", "a whole number", "a number", "true or false"
_WANTED = {
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "a smaller number",
    "int_type": _WHOLE,
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "mapping_type": "a table",
    "missing": "a value",
    "model_attributes_type": "a table",
    "model_type": "a table",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_short": "a text that is not empty",
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "tuple_type": "a list",
}


def wanted(error: Mapping[str, Any]) -> str | None:
    """What a value should have been; None where a validator of ours says it in its own text (see `own_text`)."""
    if error["type"] == "value_error":
        return None
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] in _PATTERNS:
        return _PATTERNS[error["ctx"]["pattern"]]
    context = {key: _plain(value) for key, value in error.get("ctx", {}).items()}
    usual = str(error["msg"]).removeprefix("Input should be ")
    return _WANTED.get(error["type"], usual.replace("{", "{{").replace("}", "}}")).format(**context)


def _plain(value: Any) -> Any:
    """A limit without a fraction that is none, words without the quotes around each."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.replace("'", "") if isinstance(value, str) else value


def own_text(error: Mapping[str, Any]) -> str:
    """A validator's own text."""
    return str(error["msg"]).removeprefix("Value error, ")


def not_allowed(
    errors: Sequence[Any], where: str, typed: Mapping[str, Mapping[str, Any]], model: type[BaseModel]
) -> StudyError:
    """One error of all faults of a model. Where there is one, what it expected is what is expected.

    `typed`: the settings that options gave; where the faults are theirs alone, the options are named, and not `where`.
    """
    texts = _texts(errors, model)
    flags = [_flags(error, typed) for error in errors]
    if all(flags):
        where = " ".join(dict.fromkeys(" ".join(flags).split()))
    found, expected = "; ".join(_in_one(text) for text in texts), "values that are allowed"
    if len(texts) == 1:
        found, says, own = texts[0].partition(_EXPECTED)
        expected = own if says else "one that is allowed"
    return StudyError(where=where, found=found, expected=expected, do="fix the option or the file")


def _in_one(text: str) -> str:
    found, says, expected = text.partition(_EXPECTED)
    return f"{found} (wanted: {expected})" if says else text


def _flags(error: Any, typed: Mapping[str, Mapping[str, Any]]) -> str:
    """The options that gave a fault's setting, or of a table's fault the settings that it names; empty: none did."""
    table, key = (*map(str, error["loc"][:2]), "", "")[:2]
    given = typed.get(table)
    if not isinstance(given, Mapping):
        return ""
    if key:
        named = [key] if key in given else []
    else:  # what half a pair has is not at fault
        named = [k for k in given if table != "pair" and re.search(rf"\b{k}\b", error["msg"])]
    options = [option_of(table, k) for k in named]
    return " ".join(option.flag for option in options if option is not None)


def _texts(errors: Sequence[Any], model: type[BaseModel]) -> list[str]:
    """One text a fault; a value that may be of several kinds has an error for each, and one text."""
    kinds: dict[str, list[str]] = {}
    for error in errors:
        loc = ["reward", *error["loc"][1:]] if error["loc"][:1] == ("rewards",) else error["loc"]
        place = ".".join(str(p) for p in loc if not str(p).startswith(_KINDS)) or "file"
        expected = wanted(error)
        if error["type"] == "extra_forbidden":
            kinds[f"{place}: no such setting{_meant(error['loc'], model)}{_seen(error)}"] = []
        elif error["type"] == "missing" and place == "pair":
            kinds[f"{place}: nothing"] = ['preset = "NAME", or a table [pair]']
        elif expected is None:
            shown = "" if place == "reward.judge_url" else _seen(error)  # which may have a key in it
            found, says, ours = own_text(error).partition(_EXPECTED)
            kinds[f"{place}: {found}{shown}{says}{ours}"] = []
        else:
            kinds.setdefault(f"{place}: {_given(error)}", []).append(expected)
    return [f"{text}{_EXPECTED}{' or '.join(each)}" if each else text for text, each in kinds.items()]


def _seen(error: Mapping[str, Any]) -> str:
    return f" (found {error['input']!r})" if isinstance(error["input"], str | int | float) else ""


def _given(error: Mapping[str, Any]) -> str:
    """A value of another kind or out of its range; a table or a list by that name, for they may be long."""
    value = error["input"]
    if error["type"] == "missing":
        return "nothing"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value) if isinstance(value, str | int | float) else str(value)


def _meant(place: Sequence[Any], model: Any) -> str:
    """A question for the name that a misspelt table or key may have meant; empty where none is near."""
    *tables, name = map(str, place)
    for table in tables:
        model = model.model_fields[table].annotation if table in getattr(model, "model_fields", {}) else None
    near = difflib.get_close_matches(name, getattr(model, "model_fields", {}), n=1)
    return f" ({near[0]}?)" if near else ""
