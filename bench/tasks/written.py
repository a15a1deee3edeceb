"""Prompts with the answers that a language model is to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.tasks.base import Task
from bench.tasks.extraction import extracted, same
from bench.tasks.prompts import beginning
from bench.tasks.splits import TextSplit, send
from bench.tasks.storing import Arrays
from methods.errors import UserError, shown


def written(tokenizer: Any, max_tokens: int, prompts: Sequence[str], answers: Sequence[str]) -> Arrays:
    """The arrays of N prompts, each with its answer and the token that ends a text behind it.

    `tokens`, all end to end, and their `lengths`; `prompts`, how many tokens of an example are its prompt;
    `cut`, whether it had more than `max_tokens`. A prompt that leaves its answer no token is cut from the
    left, an answer from the right. `answer_bytes` and `answer_sizes` are the right answers in UTF-8. Raises
    UserError for a tokenizer without an end, and where there is no room.
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
        asked, told = (
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (prompt, answer)
        )
        whole = len(begin) + len(asked) + len(told) + len(end)
        asked = begin + asked[-room:]
        lengths.append(len(asked))
        rows.append([*asked, *told, *end][:max_tokens])
        cut.append(whole > max_tokens)
    encoded = [answer.encode() for answer in answers]
    return {
        "tokens": np.fromiter(chain.from_iterable(rows), dtype=np.int32),
        "lengths": np.array([len(row) for row in rows]),
        "prompts": np.array(lengths),
        "cut": np.array(cut),
        "answer_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "answer_sizes": np.array([len(one) for one in encoded]),
    }


def check_answers(task: Task, split: str, answers: Sequence[str], ids: Sequence[int]) -> None:
    """Raises UserError for a right answer of a scored split in which nothing counts: all would be wrong."""
    for answer, number in zip(answers, ids, strict=True):
        if not extracted(answer, task.answer_after):
            after = " or ".join(map(shown, task.answer_after))
            raise UserError(
                f"task '{task.name}': the answer of row {number}, in the {split} split, has nothing"
                f"{f' behind {after}' if after else ''} to compare with, got {shown(answer)}"
            )


def answers_of(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """The right answers that `written` stored."""
    whole, sizes = bytes(tensors["answer_bytes"].tolist()), tensors["answer_sizes"]
    ends = sizes.cumsum(0).tolist()
    return tuple(whole[end - size : end].decode() for end, size in zip(ends, sizes.tolist(), strict=True))


@dataclass(frozen=True)
class WrittenSplit(TextSplit):
    """N prompts with their answers behind them, as texts.

    `prompts`: int64 (N,), on the CPU, how many tokens of each are its prompt. `answers`: the right ones.
    `phrases`: what stands before the part of an answer that counts. `whole`: whether the prompt's tokens are
    trained on too.
    """

    prompts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    answers: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    whole: bool = False

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """That of the texts, with `scored` (B, tokens): which of the tokens are to be predicted."""
        batch = super().batch(indices)
        mask = batch["attention_mask"]
        places = torch.arange(mask.shape[1], device=mask.device)
        first = torch.ones(len(indices)) if self.whole else self.prompts[indices.cpu()]
        return {**batch, "scored": mask * (places >= send(first, mask.device)[:, None])}

    def asked(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """`input_ids` and `attention_mask` of the prompts alone, (B, tokens), padded on the left."""
        device = self.tokens.device
        lengths = self.prompts[indices.cpu()]
        width = int(lengths.max())
        place = torch.arange(width, device=device) - (width - send(lengths, device))[:, None]
        tokens = self.tokens[self.starts[send(indices, device), None] + place.clamp(min=0)].long()
        return tokens.masked_fill_(place < 0, self.pad_id), (place >= 0).long()

    def right(self, indices: Tensor, texts: Sequence[str]) -> list[bool]:
        """Which of the written texts answer these examples rightly."""
        return [
            same(extracted(text, self.phrases), extracted(self.answers[index], self.phrases))
            for index, text in zip(indices.tolist(), texts, strict=True)
        ]
