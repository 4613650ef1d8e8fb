"""Messages -> token ids, through a tokenizer's own chat template, with exactly one beginning-of-sequence token.

Prompts and answers are text, whatever is in them: a "<|im_end|>" that someone typed, or that a model spelled out letter
by letter, ends no turn. Only the template writes special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from expo_search.contracts import Prompt, Request
from expo_search.errors import PairError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_known_special: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, ...]] = WeakKeyDictionary()


def load_tokenizer(path: str, *, trust_remote_code: bool, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, with a chat template.

    Raises:
        PairError: it cannot be loaded, or has no chat template and none is given.
    """
    from huggingface_hub.errors import StrictDataclassError
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as fault:
        raise PairError(
            where=f"tokenizer of {path}",
            found=" ".join(str(fault).split())[:200],
            expected="a tokenizer that transformers can load" + ("" if trust_remote_code else " without remote code"),
            do="check the folder's tokenizer files" + ("" if trust_remote_code else ", or pass --trust-remote-code"),
        ) from None
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise PairError(
            where=f"tokenizer of {path}",
            found="no chat template",
            expected="a chat template",
            do="set chat_template in the [pair] table of a study file",
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateError as fault:
        raise PairError(
            where=f"chat template of {path}",
            found=f"{type(fault).__name__}: {fault}",
            expected="a Jinja template that takes a user turn",
            do="fix the template, or set chat_template in the [pair] table of a study file",
        ) from None
    return tokenizer


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool
) -> list[int]:
    """Token ids of a conversation, shape (T,).

    The template's text is tokenised without special tokens of the tokenizer's own; where a message holds the string of
    a special token, that string is tokenised as the plain text that it is. Where the tokenizer would open a text with
    BOS, the result opens with exactly one: a template that writes none gets one, one written twice loses one. BOS
    further on stays (ChatML tokenizers open every turn with theirs).
    """
    ids = _encode_rendered(tokenizer, messages, add_generation_prompt)
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while len(ids) > 1 and ids[0] == ids[1] == bos:
        ids.pop(0)
    opens_with_bos = _ids(tokenizer, "", add_special_tokens=True)[:1] == [bos]
    return [bos, *ids] if opens_with_bos and ids[:1] != [bos] else ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of what a model answers to: one user turn in its template, or what a `Request` has in its place.

    A request's raw text opens with what the tokenizer itself opens a text with.
    """
    if not isinstance(prompt, Request):
        return encode_chat(tokenizer, [{"role": "user", "content": prompt.text}], add_generation_prompt=True)
    if prompt.ids:
        return list(prompt.ids)
    if prompt.is_raw:
        return _ids(tokenizer, prompt.text, add_special_tokens=True)
    return encode_chat(tokenizer, prompt.messages, add_generation_prompt=True)


def _encode_rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], add_generation_prompt: bool
) -> list[int]:
    """The template's text as tokens. Special strings in messages pass through it as marks of private-use letters."""
    said = "".join(m["content"] for m in messages)
    special = [string for string in _special_strings(tokenizer) if string in said]
    if not special:
        return _ids(tokenizer, _render(tokenizer, messages, add_generation_prompt))
    mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in said)
    pattern = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)))
    marked = [
        m | {"content": pattern.sub(lambda s: f"{mark}{special.index(s[0])}{mark}", m["content"])} for m in messages
    ]
    text = _render(tokenizer, marked, add_generation_prompt)
    ids: list[int] = []
    for i, piece in enumerate(re.split(f"{mark}([0-9]+){mark}", text)):
        ids += _as_text(tokenizer, special[int(piece)]) if i % 2 else _ids(tokenizer, piece)
    return ids


def _special_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The strings of its special tokens, as when it first encodes: to list thousands of them anew takes long."""
    strings = _known_special.get(tokenizer)
    if strings is None:
        strings = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        _known_special[tokenizer] = strings
    return strings


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    text: Any = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return str(text)


def _as_text(tokenizer: PreTrainedTokenizerBase, special: str) -> list[int]:
    """Token ids of a special token's string, tokenised as plain text."""
    ids = _ids(tokenizer, special, split_special_tokens=True)
    if tokenizer.convert_tokens_to_ids(special) in ids:  # an ordinary token of the vocabulary too
        return [i for letter in special for i in _ids(tokenizer, letter)]
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    encoded: Any = tokenizer(text, **({"add_special_tokens": False} | options))
    return list(encoded["input_ids"])
