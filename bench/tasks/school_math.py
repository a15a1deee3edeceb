"""Grade-school mathematics: GSM8K, and MetaMathQA as peft's comparison of methods trains on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.process.files import sha256
from bench.tasks.base import DataSource, Examples, SplitName
from bench.tasks.hub import HubTexts
from methods.errors import UserError

#: What is asked. The answer follows it without a space, as in peft's comparison.
PROMPT = "Question: {question} Think step by step.\nAnswer:"

#: What stands before the number that counts, in the order in which it is looked for.
PHRASES = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")

#: Characters of a question of MetaMathQA with its answer that is kept.
LONGEST = 1_300


class Gsm8k(HubTexts):
    """Cobbe et al., 2021: 7,473 word problems with solutions, 1,319 to test on."""

    name = "gsm8k"
    repository = "openai/gsm8k"
    config = "main"
    parts = {"train": "train", "test": "test"}
    columns = ("question",)
    label = "answer"
    target = "generation"
    metric = "exact_match"
    #: 2: what is behind empty lines counts, and fractions are read as peft reads them.
    version = 2
    answer_after = PHRASES
    new_tokens = 300
    fractions = (90, 10, 0)
    description = "word problems of grade-school mathematics, solved step by step"
    license = "MIT"

    def inputs(self, tables: list[Any]) -> Any:
        return [_asked(question) for question in super().inputs(tables)]


class MetaMath(HubTexts):
    """Yu et al., 2023, as peft's comparison of methods has it.

    Trained on are the first 20,000 answers of MetaMathQA that have, with their question and a space, at most
    1,300 characters. It is validated on 50 problems of GSM8K's train split, those that numpy's seed 0 puts
    first, and tested on GSM8K's test split. The loss is of the question's tokens too.
    """

    name = "metamath"
    repository = "meta-math/MetaMathQA"
    file = "MetaMathQA-395K.json"
    parts = {"train": "train"}
    official = frozenset({"train", "validation", "test"})
    columns = ("query",)
    label = "response"
    target = "generation"
    metric = "exact_match"
    #: 2: what is behind empty lines counts, and fractions are read as peft reads them.
    version = 2
    answer_after = PHRASES
    loss_on = "all"
    new_tokens = 300
    fractions = (100, 0, 0)
    sizes = (20_000, 50, 1_319)
    description = "problems from MetaMathQA to train on, and GSM8K's to be tested on"
    license = "MIT"

    #: The data set of the problems that are tested on, which no suite chooses.
    problems = Gsm8k().at(DataSource(revision="740312add88f781978c0658806c59bc2815b9866"))

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.file,)

    @property
    def data_hash(self) -> str:  # type: ignore[override]
        """Both repositories with their commits, or the hash of the folder's files. Raises UserError."""
        if self.source.local is None:
            return f"hub:{self.where}@{self.commit}, {self.problems.data_hash}"
        problems = self._problems().data_hash
        digest = hashlib.sha256(f"{sha256(self._json())} {problems}".encode())
        return f"sha256:{digest.hexdigest()}"

    def examples(self) -> Examples:
        """Ids of MetaMathQA are its rows, those of GSM8K -1 less its own ones."""
        rows = self._kept()
        known = self._problems().examples()
        assert known.splits is not None  # GSM8K's own
        official = [i for i, split in enumerate(known.splits) if split == "train"]
        tested = [i for i, split in enumerate(known.splits) if split == "test"]
        shuffled = np.random.RandomState(0).permutation(len(official))
        validated = [official[i] for i in shuffled[: self.sizes[1]]]
        sizes: dict[SplitName, int] = {"train": len(rows), "validation": len(validated), "test": len(tested)}
        splits = [split for split, size in sizes.items() for _ in range(size)]
        others: list[int] = [*validated, *tested]
        prompts: list[Any] = [_asked(query) for _, query, _ in rows]
        answers: list[Any] = [response for _, _, response in rows]
        return Examples(
            prompts + [known.inputs[i] for i in others],
            answers + [known.labels[i] for i in others],
            [row for row, _, _ in rows] + [-1 - known.ids[i] for i in others],
            splits=splits,
        )

    def _problems(self) -> Gsm8k:
        """GSM8K, where a folder stands for the hub out of a folder of that name in it."""
        local = self.source.local
        return self.problems if local is None else self.problems.at(DataSource(local=local / "gsm8k"))

    def _json(self) -> Path:
        file = self.folder() / self.file
        if not file.is_file():
            raise UserError(f"task '{self.name}': there is no {file}")
        return file

    def _kept(self) -> list[tuple[int, str, str]]:
        """Row, query and response of the first rows that are short enough. Raises UserError."""
        file = self._json()
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            found = [(row, one["query"], one["response"]) for row, one in enumerate(rows)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"task '{self.name}': {file} should be a list of objects with query and response: {error!r}"
            ) from error
        short = [(row, query, told) for row, query, told in found if len(f"{query} {told}") <= LONGEST]
        return short[: self.sizes[0]]


def _asked(question: str) -> str:
    return PROMPT.replace("{question}", question)


GSM8K, METAMATH = Gsm8k(), MetaMath()
