"""Texts as prompts of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.inputs import Prompt
from methods.errors import UserError


def prompted(
    tokenizer: Any, prompt: Prompt, max_tokens: int, texts: Sequence[Any]
) -> tuple[list[list[int]], list[bool]]:
    """The token ids of each text's prompt, and whether it was cut.

    Prompts begin as the tokenizer begins a text and do not end as it ends one, for an answer follows. With
    the answer none has more than `max_tokens`; a longer one is cut from the left, so that the question at its
    end stays. Raises UserError where the prompt has no place for the texts, words have no tokens, or
    `max_tokens` leaves a text none.
    """
    prompt.check(paired=isinstance(texts[0], tuple))
    longest = max(map(len, prompt.word_tokens(tokenizer)))
    begin = beginning(tokenizer)
    room = max_tokens - longest - len(begin)
    end = len(tokenizer(prompt.end, add_special_tokens=False)["input_ids"])
    if room <= end:
        raise UserError(
            f"max_tokens should be at least {max_tokens - room + end + 1}, for a token of the text, what the "
            f"verbalizer's prompt has behind it and the longest words, got {max_tokens}"
        )
    asked = [tokenizer(prompt.asked(text), add_special_tokens=False)["input_ids"] for text in texts]
    return [begin + tokens[-room:] for tokens in asked], [len(tokens) > room for tokens in asked]


def beginning(tokenizer: Any) -> list[int]:
    """The token with which the tokenizer begins a text, if there is one."""
    begun: list[int] = tokenizer("")["input_ids"][:1]
    return begun if begun and begun[0] == tokenizer.bos_token_id else []
