"""Tasks of grade-school mathematics: GSM8K, and MetaMathQA as peft's comparison of methods uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tensorbench.machine.files import sha256, sha256_of
from tensorbench.methods.errors import UserError
from tensorbench.tasks.data_tasks import HubTask
from tensorbench.tasks.description import Description
from tensorbench.tasks.task import DataSource, Examples, SplitName

#: The prompt. As in peft's comparison, the answer follows without a space.
PROMPT = "Question: {prompt} Think step by step.\nAnswer:"

#: The phrases that precede the final number in an answer. If an answer has several, the first in this list
#: counts.
PHRASES = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")

#: Pairs of MetaMathQA are left out if question and answer, joined by a space, have more characters than this.
LONGEST = 1_300


def _written(hub: str, prompt: str, answer: str, **fields: Any) -> Description:
    return Description(
        hub=hub,
        text=prompt,
        label=answer,
        target="generation",
        template=PROMPT,
        answer_after=PHRASES,
        new_tokens=300,
        **fields,
    )


#: Cobbe et al., 2021: word problems with solutions.
GSM8K = HubTask(
    "gsm8k",
    _written("openai/gsm8k", "question", "answer", config="main"),
    parts={"train": "train", "test": "test"},
    fractions=(90, 10, 0),
    # Since version 2, the final answer may follow empty lines, and fractions are read as in peft.
    version=2,
    description="word problems of grade-school mathematics, solved step by step",
    license="MIT",
)


class MetaMath(HubTask):
    """MetaMathQA (Yu et al., 2023) as in peft's comparison of methods.

    The train split has the first 20,000 pairs of MetaMathQA with at most 1,300 characters. The validation
    split has 50 problems of GSM8K's train split: the first 50 in numpy's permutation with seed 0. The test
    split is GSM8K's. The loss includes the question's tokens.
    """

    file = "MetaMathQA-395K.json"
    sizes = (20_000, 50, 1_319)

    #: The source of validation and test problems. A suite cannot change it.
    problems = GSM8K.at(DataSource(revision="740312add88f781978c0658806c59bc2815b9866"))

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.file,)

    @property
    def data_hash(self) -> str:  # type: ignore[override]
        """Identifies the data by both repositories and their commits, or by a hash of a local folder's files.

        Raises UserError if a commit is not available, or if files are missing.
        """
        if self.source.local is None:
            return f"hub:{self.where}@{self.commit}, {self.problems.data_hash}"
        problems = self._problems().data_hash
        return f"sha256:{sha256_of(f'{sha256(self._json())} {problems}'.encode())}"

    def examples(self) -> Examples:
        """Returns the examples of all three splits.

        The id of a pair of MetaMathQA is its row. The id of a problem of GSM8K is -1 minus its id in `GSM8K`.
        """
        rows = self._kept()
        problems = self._problems().examples()
        assert problems.splits is not None  # GSM8K's own
        official = [i for i, split in enumerate(problems.splits) if split == "train"]
        tested = [i for i, split in enumerate(problems.splits) if split == "test"]
        shuffled = np.random.RandomState(0).permutation(len(official))
        validated = [official[i] for i in shuffled[: self.sizes[1]]]
        sizes: dict[SplitName, int] = {"train": len(rows), "validation": len(validated), "test": len(tested)}
        splits = [split for split, size in sizes.items() for _ in range(size)]
        scored: list[int] = [*validated, *tested]
        prompts: list[Any] = [PROMPT.replace("{prompt}", query) for _, query, _ in rows]
        answers: list[Any] = [response for _, _, response in rows]
        return Examples(
            prompts + [problems.inputs[i] for i in scored],
            answers + [problems.labels[i] for i in scored],
            [row for row, _, _ in rows] + [-1 - problems.ids[i] for i in scored],
            splits=splits,
        )

    def _problems(self) -> HubTask:
        """Returns GSM8K from the hub or, if the source is a local folder, from the folder gsm8k in it."""
        local = self.source.local
        return self.problems if local is None else self.problems.at(DataSource(local=local / "gsm8k"))

    def _json(self) -> Path:
        file = self.folder() / self.file
        if not file.is_file():
            raise UserError(f"task '{self.name}': there is no {file}")
        return file

    def _kept(self) -> list[tuple[int, str, str]]:
        """Returns row number, query and response of the first pairs of MetaMathQA that are not too long.

        Raises UserError for a file that is missing or malformed.
        """
        file = self._json()
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            pairs = [(row, pair["query"], pair["response"]) for row, pair in enumerate(rows)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"task '{self.name}': {file} should be a list of objects with query and response: {error!r}"
            ) from error
        short = [pair for pair in pairs if len(f"{pair[1]} {pair[2]}") <= LONGEST]
        return short[: self.sizes[0]]


METAMATH = MetaMath(
    "metamath",
    _written("meta-math/MetaMathQA", "query", "response", loss_on="all"),
    parts={"train": "train", "validation": "validation", "test": "test"},
    fractions=(100, 0, 0),
    # Since version 2, the final answer may follow empty lines, and fractions are read as in peft.
    version=2,
    description="problems from MetaMathQA to train on, and GSM8K's to be tested on",
    license="MIT",
)
