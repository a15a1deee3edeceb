"""Converts texts, prompts and answers to token ids, in arrays of examples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorbench.backbones.inputs import Prompt
from tensorbench.methods.errors import UserError
from tensorbench.tasks.task import Task

#: Maps each array that holds all examples end to end to the array with the examples' lengths.
END_TO_END = {"tokens": "lengths", "answer_bytes": "answer_sizes"}

#: Arrays of N examples, by name. Shapes are (N, ...), except for those in `END_TO_END` and the scalar
#: `pad_id`.
Arrays = dict[str, NDArray[Any]]


def joined(batches: list[Arrays]) -> Arrays:
    """Concatenates the arrays of all batches."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def taken(arrays: Arrays, positions: NDArray[np.int64]) -> Arrays:
    """Returns the arrays of the examples at these positions, in this order."""
    chosen = {
        name: values[positions] for name, values in arrays.items() if values.shape and name not in END_TO_END
    }
    for name in END_TO_END.keys() & arrays.keys():
        lengths = arrays[END_TO_END[name]]
        starts, counts = (lengths.cumsum() - lengths)[positions], lengths[positions]
        # A running index, plus each example's start, minus its offset in the result.
        offsets = np.repeat(starts - (counts.cumsum() - counts), counts)
        chosen[name] = arrays[name][offsets + np.arange(len(offsets))]
    return {**arrays, **chosen}


def encoded(task: Task, tokenizer: Any, max_tokens: int, texts: Sequence[Any]) -> Arrays:
    """Tokenises texts or pairs of texts, each cut to `max_tokens` tokens.

    Returns the arrays of `flat`, `cut` as in `written` and, for pairs, `seconds` as in `TextSplit`. Raises
    UserError if `max_tokens` leaves no room beside the tokenizer's special tokens.
    """
    paired = isinstance(texts[0], tuple)
    if max_tokens <= (special := tokenizer.num_special_tokens_to_add(pair=paired)):
        raise UserError(
            f"task '{task.name}': max_tokens must exceed the tokenizer's {special} special tokens, "
            f"got {max_tokens}"
        )
    columns = tuple(map(list, zip(*texts, strict=True))) if paired else (texts,)
    encoded = tokenizer(*columns, truncation=True, max_length=max_tokens)
    rows, types = encoded["input_ids"], encoded.get("token_type_ids", [])
    # Frees what was cut, which fast tokenizers keep.
    del encoded
    arrays = flat(rows) | {"cut": np.zeros(len(rows), dtype=bool)}
    # Texts that fill `max_tokens` may have been as long as that or longer.
    full = [position for position, row in enumerate(rows) if len(row) == max_tokens]
    if full:
        whole = tokenizer(*([column[i] for i in full] for column in columns), verbose=False)["input_ids"]
        arrays["cut"][full] = [len(row) > max_tokens for row in whole]
    if paired:
        # Tokenizers without token types do not distinguish the two texts.
        seconds = [row.index(1) for row in types if any(row)]
        arrays |= {"seconds": np.array(seconds)} if seconds else {}
    return arrays


def prompted(
    tokenizer: Any, prompt: Prompt, max_tokens: int, texts: Sequence[Any]
) -> tuple[list[list[int]], list[bool]]:
    """Fills each text into the prompt. Returns the token ids of each prompt, and whether it was cut.

    Prompts begin with the `bos_token` if the tokenizer adds one. They have no end token, since an answer
    follows. A prompt that exceeds `max_tokens` together with the longest answer is cut from the left, so that
    the question at its end remains. Raises UserError for a prompt whose template has no placeholder for the
    texts, for answer words without tokens, and if `max_tokens` leaves no room for the text.
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
    prompt_tokens = [tokenizer(prompt.filled(text), add_special_tokens=False)["input_ids"] for text in texts]
    return [begin + tokens[-room:] for tokens in prompt_tokens], [
        len(tokens) > room for tokens in prompt_tokens
    ]


def written(tokenizer: Any, max_tokens: int, prompts: Sequence[str], answers: Sequence[str]) -> Arrays:
    """Tokenises N prompts, each followed by its answer and the token that ends a text.

    Returns these arrays:

    - `tokens`, the examples end to end, and `lengths` (N,), the number of tokens in each example.
    - `prompts` (N,), the number of tokens in each prompt.
    - `cut` (N,), whether an example exceeded `max_tokens`.
    - `answer_bytes`, the correct answers in UTF-8 end to end, and `answer_sizes` (N,), the bytes in each.

    An example that is too long loses the end of its answer. A prompt that leaves no room for an answer is cut
    from the left first. Raises UserError if the tokenizer has no token that ends a text, and if `max_tokens`
    leaves no room for a prompt and an answer.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the backbone's tokenizer has no token that ends a text, with which answers end")
    begin, end = beginning(tokenizer), [tokenizer.eos_token_id]
    if (room := max_tokens - len(begin) - 1) < 1:
        raise UserError(
            f"max_tokens should be at least {len(begin) + 2}, for a prompt and an answer, got {max_tokens}"
        )
    rows: list[list[int]] = []
    lengths: list[int] = []
    cut: list[bool] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        prompt_tokens, answer_tokens = (
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (prompt, answer)
        )
        length = len(begin) + len(prompt_tokens) + len(answer_tokens) + len(end)
        prompt_tokens = begin + prompt_tokens[-room:]
        lengths.append(len(prompt_tokens))
        rows.append([*prompt_tokens, *answer_tokens, *end][:max_tokens])
        cut.append(length > max_tokens)
    encoded = [answer.encode() for answer in answers]
    return {
        **flat(rows),
        "prompts": np.array(lengths),
        "cut": np.array(cut),
        "answer_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "answer_sizes": np.array([len(answer) for answer in encoded]),
    }


def beginning(tokenizer: Any) -> list[int]:
    """Returns the `bos_token` in a list if the tokenizer begins texts with it, otherwise an empty list."""
    begun: list[int] = tokenizer("")["input_ids"][:1]
    return begun if begun and begun[0] == tokenizer.bos_token_id else []


def flat(rows: Sequence[Sequence[int]]) -> Arrays:
    """Returns the arrays `tokens`, with all rows end to end, and `lengths`, the number of tokens per row."""
    return {
        "tokens": np.fromiter(chain.from_iterable(rows), dtype=np.int32),
        "lengths": np.array([len(row) for row in rows]),
    }
