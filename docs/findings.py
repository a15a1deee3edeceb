"""Writes the answers of the published packs into the pages of docs/results: `python docs/findings.py`.

The study's answers go into findings.md and leaderboard.md, the answers of the study of ranks into ranks.md
and README.md, and the decoder's table into decoder.md. If too few studies are complete for an interval, the
pages say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from answers import studies
from answers.answer import Answer
from answers.decoder import of_decoder
from answers.ranks import StudyOfRanks
from marked import replaced, table

DOCS = Path(__file__).parent
PAGES, PACKS = DOCS / "results", DOCS.parent / "results"
FINDINGS, STUDY, DECODER = PAGES / "findings.md", PAGES / "leaderboard.md", PAGES / "decoder.md"
README = DOCS.parent / "README.md"
#: The page of the study of ranks, and its pack. Before all studies are complete, `tensorbench verify` refuses
#: the pack as a publication, so that it lies beside the pages.
RANKS, OF_RANKS = PAGES / "ranks.md", PACKS / "study_ranks.tensorbench.zip"
BEGUN = PAGES / "begun" / OF_RANKS.name


def rewritten(page: Path, contents: Mapping[str, str]) -> str:
    """The text of the page with these contents between their marks, by the name in the marks."""
    text = page.read_text(encoding="utf-8")
    for name, content in contents.items():
        begin, end = f"<!-- {name}: docs/findings.py -->\n", f"<!-- end of {name} -->"
        text = replaced(text, begin, end, f"\n{content}\n\n")
    return text


def in_short(protocol: str, answers: Mapping[str, Answer]) -> str:
    """A table of questions, each with its answer by the registered rule and its answer in `answers`.

    `protocol` is the text of the page with the questions and their registered answers.
    """
    questions = dict(re.findall(r"^\| (\d) \| (.+?) \|", protocol, re.M))
    registered = dict(re.findall(r"^### Question (\d)\n\n(.+)$", protocol, re.M))
    numbered = {title.split()[-1]: answer for title, answer in answers.items()}
    rows = [
        [f"{number}. {questions[number]}", registered.get(number, "–"), each.short or each.text]
        for number, each in numbered.items()
    ]
    return table(["question", "answer", "by the sharper rule, which came after the trials"], rows)


def printed(answers: Mapping[str, Answer]) -> list[str]:
    """The paragraphs of all answers, each below its title as a heading."""
    return [
        part for title, each in answers.items() for part in (f"### {title}", each.short, each.text) if part
    ]


def pages() -> dict[Path, str]:
    """The contents of the pages with current answers, and of the findings' figure, by path."""
    study, trains = (PACKS / f"study{part}.tensorbench.zip" for part in ("", "_trains"))
    fresh = PAGES / "study_fresh.tensorbench.zip"
    questions = studies.of_questions(study)
    if trains.exists():
        questions["Question 6"] = studies.of_trains(study, trains)
    rest = {"The core's rate": studies.of_core_rate(study, PAGES / "core_lr.tensorbench.zip")}
    if fresh.exists():
        rest["Fresh tunings"] = studies.of_fresh_tunings(study, fresh)
    parts = printed({f"{title} by the sharper rule": each for title, each in (questions | rest).items()})
    files, answer = {}, questions["Question 1"].text
    if questions["Question 1"].short:
        picture = studies.picture(study)
        files[picture.path] = picture.svg()
        levels, on_tasks = studies.of_levels(study, PAGES / "study_full.tensorbench.zip")
        answer = f"**{studies.in_one_sentence(study)}** {levels}\n\n{picture.shown}"
        parts += ["### Without an adapter", on_tasks]
    advice, behind = studies.of_advice(study)
    contents = {
        "answer": answer,
        "costs": studies.of_costs(study),
        "questions": in_short(STUDY.read_text(encoding="utf-8"), questions),
        "advice": advice,
    }
    if of_ranks := next((StudyOfRanks(each, study) for each in (OF_RANKS, BEGUN) if each.exists()), None):
        answers_of_ranks = of_ranks.answers()
        behind_them = "\n\n".join(printed(answers_of_ranks))
        files[RANKS] = rewritten(RANKS, {"answer": of_ranks.first(answers_of_ranks), "answers": behind_them})
        files[README] = rewritten(README, {"ranks": of_ranks.in_readme(answers_of_ranks)})
        if answers_of_ranks["Question 1"].short:
            picture = of_ranks.picture()
            files[picture.path] = picture.svg()
    return files | {
        STUDY: rewritten(STUDY, {"answers": "\n\n".join(parts), "advice": behind}),
        FINDINGS: rewritten(FINDINGS, contents),
        DECODER: rewritten(DECODER, {"table": of_decoder(PACKS / "smollm2.tensorbench.zip")}),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
