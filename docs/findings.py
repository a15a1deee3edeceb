"""Writes the answers in findings.md from the packs of results/: `python docs/findings.py`.

A question is answered once all of its rows are there. Until then it says what is missing, and what is seen
on the tasks that are done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from answers.answer import Answer
from answers.forgetting import of_forgetting
from answers.packed import Packed, table
from answers.pairs import of_pairs
from answers.questions import AGAIN, COMPARED, DECODER, ON_IMAGES, RANKS, TUNED, UNTUNED
from answers.ranks import of_ranks
from answers.tuning import of_tuning
from marked import replaced

DOCS = Path(__file__).parent
PAGE = DOCS / "findings.md"
RESULTS = DOCS.parent / "results"


def answers(results: Path = RESULTS) -> dict[str, Answer]:
    """What is found of each question."""
    tuned, untuned = Packed(TUNED, results), Packed(UNTUNED, results)
    found = {question.letter: of_pairs(tuned, question) for question in COMPARED}
    return found | {
        "f": of_ranks(Packed(RANKS, results), [untuned, tuned]),
        "g": of_tuning(tuned, untuned),
        "h": of_forgetting(Packed(DECODER, results)),
        "i": of_pairs(Packed(AGAIN, results), ON_IMAGES),
    }


def rewritten(text: str, found: Mapping[str, Answer]) -> str:
    """The page with these answers."""
    questions = dict(re.findall(r"^## (\w)\. (.+)$", text, re.M))
    states = table(
        ["question", "state"],
        [[f"{letter}. {questions[letter]}", answer.state] for letter, answer in found.items()],
    )
    for name, content in {"states": states, **{letter: one.told for letter, one in found.items()}}.items():
        begin, end = f"<!-- {name}: docs/findings.py -->\n", f"<!-- end of {name} -->"
        text = replaced(text, begin, end, f"\n{content}\n\n")
    return text


if __name__ == "__main__":
    found = answers()
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    for picture in (picture for answer in found.values() for picture in answer.pictures):
        picture.path.write_text(picture.svg(), encoding="utf-8")
