"""Writes the answers in the pages of results/: `python docs/findings.py`.

The answers of the study go into leaderboard.md. The answers of the first leaderboard go into findings.md and
evidence.md. Draws the figures of evidence.md, and prints the commands that write the reports behind it.

A question is answered once all of its rows are complete. Until then the text lists the missing rows and the
results on finished tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from answers.answer import Answer
from answers.forgetting import of_forgetting
from answers.packed import Packed, table
from answers.pairs import of_pairs
from answers.questions import COMPARED, DECODER, ON_IMAGES, RANKS, RETUNED, TUNED, UNTUNED
from answers.ranks import of_ranks
from answers.studies import of_core_rate, of_studies
from answers.tuning import of_tuning
from marked import replaced

DOCS = Path(__file__).parent
PAGES = DOCS / "results"
FINDINGS, EVIDENCE, STUDY = PAGES / "findings.md", PAGES / "evidence.md", PAGES / "leaderboard.md"
RESULTS = DOCS.parent / "results"


def answers(results: Path = RESULTS) -> dict[str, Answer]:
    """The answers to the questions of the first leaderboard, by letter."""
    tuned, untuned = Packed(TUNED, results), Packed(UNTUNED, results)
    of_pairs_by_letter = {question.letter: of_pairs(tuned, question) for question in COMPARED}
    return of_pairs_by_letter | {
        "f": of_ranks(Packed(RANKS, results), [untuned, tuned]),
        "g": of_tuning(tuned, untuned),
        "h": of_forgetting(Packed(DECODER, results)),
        "i": of_pairs(Packed(RETUNED, results), ON_IMAGES),
    }


def in_short(evidence: str, by_letter: Mapping[str, Answer]) -> str:
    """The table of findings.md: each question with its short answer or its progress."""
    questions = dict(re.findall(r"^## (\w)\. (.+)$", evidence, re.M))
    return table(
        ["question", "answer"],
        [
            [
                f"[{letter}. {questions[letter]}](evidence.md#{letter})",
                answer.short or f"**not yet** ({answer.state})",
            ]
            for letter, answer in by_letter.items()
        ],
    )


def of_study(packs: Path = PAGES) -> dict[str, Answer]:
    """The study's answers by title, in the order of its questions.

    While the study cannot answer its first question, one entry for all questions says how far the study is.
    """
    study = packs / "study.tensorbench.zip"
    by_title = of_studies(study, packs / "study_fresh.tensorbench.zip")
    if not by_title["Question 1"].short:
        by_title = {"Questions 1 to 5": by_title["Question 1"]}
    return by_title | {"The core's rate": of_core_rate(study, packs / "core_lr.tensorbench.zip")}


def rewritten(page: str, contents: Mapping[str, str]) -> str:
    """The page with these contents between their marks."""
    for name, content in contents.items():
        begin, end = f"<!-- {name}: docs/findings.py -->\n", f"<!-- end of {name} -->"
        page = replaced(page, begin, end, f"\n{content}\n\n")
    return page


def pages(by_letter: Mapping[str, Answer], by_title: Mapping[str, Answer]) -> dict[Path, str]:
    """The texts of the pages with the current answers, by file.

    `by_letter` has the answers of the first leaderboard, `by_title` those of the study.
    """
    findings, evidence, study = (page.read_text(encoding="utf-8") for page in (FINDINGS, EVIDENCE, STUDY))
    parts = [part for title, each in by_title.items() for part in (f"### {title}", each.short, each.text)]
    return {
        STUDY: rewritten(study, {"answers": "\n\n".join(filter(None, parts))}),
        FINDINGS: rewritten(findings, {"answers": in_short(evidence, by_letter)}),
        EVIDENCE: rewritten(evidence, {letter: answer.text for letter, answer in by_letter.items()}),
    }


if __name__ == "__main__":
    of_leaderboard, of_the_study = answers(), of_study()
    for page, text in pages(of_leaderboard, of_the_study).items():
        page.write_text(text, encoding="utf-8")
    for letter, answer in of_leaderboard.items():
        print(f"# {letter}\n{answer.command}")
    for answer in (*of_leaderboard.values(), *of_the_study.values()):
        for picture in answer.pictures:
            picture.path.write_text(picture.svg(), encoding="utf-8")
