"""Messages -> token ids, through a tokenizer's own chat template, with exactly one beginning-of-sequence token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from expo_search.errors import PairError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str, *, trust_remote_code: bool, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, with a chat template.

    Raises:
        PairError: it cannot be loaded, or has no chat template and none is given.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as fault:
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
            do="mend the template, or set chat_template in the [pair] table of a study file",
        ) from None
    return tokenizer


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool
) -> list[int]:
    """Token ids of a conversation, shape (T,).

    The template's text is tokenised without special tokens of the tokenizer's own. Where the tokenizer would open a
    text with BOS, the result opens with exactly one: a template that writes none gets one, one written twice loses
    one. BOS strings further on are part of the text and stay (ChatML tokenizers open every turn with theirs).
    """
    text: Any = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while len(ids) > 1 and ids[0] == ids[1] == bos:
        ids.pop(0)
    opens_with_bos = list(tokenizer("", add_special_tokens=True)["input_ids"])[:1] == [bos]
    return [bos, *ids] if opens_with_bos and ids[:1] != [bos] else ids
