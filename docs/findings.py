"""Writes the answers of the published packs into the pages of docs/results: `python docs/findings.py`.

The study's answers go into findings.md and leaderboard.md, those of the study of ranks into ranks.md, those
of the studies of budgets, heads and trains into next-studies.md, those of the study on other tasks into
other-tasks.md, and the decoder's table into decoder.md. If too few studies are complete for
an interval, the pages say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from answers import studies
from answers.answer import Answer
from answers.budgets import StudyOfBudgets
from answers.decoder import of_decoder
from answers.family import of_family
from answers.other_tasks import StudyOfOtherTasks
from answers.ranks import StudyOfRanks
from answers.trains import StudyOfTrains
from marked import replaced, table

DOCS = Path(__file__).parent
PAGES, PACKS = DOCS / "results", DOCS.parent / "results"
FINDINGS, STUDY, DECODER = PAGES / "findings.md", PAGES / "leaderboard.md", PAGES / "decoder.md"
#: The pages of the studies after the first one.
RANKS, NEXT, OTHER = PAGES / "ranks.md", PAGES / "next-studies.md", PAGES / "other-tasks.md"
#: The tasks on which the pilot of the study on other tasks found no room.
WITHOUT_ROOM: tuple[str, ...] = ()


def packed(study: str) -> Path | None:
    """The pack of a study that has begun. None if the study has not.

    Before all its studies are complete, `tensorbench verify` refuses a pack as a publication, so that it lies
    beside the pages.
    """
    name = f"{study}.tensorbench.zip"
    return next((path for path in (PACKS / name, PAGES / "begun" / name) if path.exists()), None)


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


def opened(
    study: StudyOfBudgets | StudyOfOtherTasks | StudyOfRanks | StudyOfTrains, files: dict[Path, str]
) -> tuple[str, str, dict[str, Answer]]:
    """The text on a study in two parts, all in short and the answers, and the answers themselves.

    The figure goes into `files`. The first part is empty if a question has no answer.
    """
    answers, first = study.answers(), ""
    if all(each.short for each in answers.values()):
        first, picture = study.first(answers), study.picture()
        files[picture.path] = picture.svg()
    return first, "\n\n".join(printed(answers)), answers


def pages() -> dict[Path, str]:
    """The contents of the pages with current answers, and of the findings' figure, by path."""
    study, fresh = PACKS / "study.tensorbench.zip", PAGES / "study_fresh.tensorbench.zip"
    questions = studies.of_questions(study)
    files: dict[Path, str] = {}
    nothing: tuple[str, str, dict[str, Answer]] = "", "Nothing is compared yet.", {}
    trains = other = budgets = heads = nothing
    answers_of_ranks: dict[str, Answer] = {}
    if pack := packed("study_trains"):
        of_trains = StudyOfTrains(pack, study)
        questions["Question 6"] = of_trains.in_short()
        trains = opened(of_trains, files)
    rest = {"The core's rate": studies.of_core_rate(study, PAGES / "core_lr.tensorbench.zip")}
    if fresh.exists():
        rest["Fresh tunings"] = studies.of_fresh_tunings(study, fresh)
    parts = printed({f"{title} by the sharper rule": each for title, each in (questions | rest).items()})
    answer = questions["Question 1"].text
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
    if pack := packed("study_ranks"):
        of_ranks = StudyOfRanks(pack, study)
        answers_of_ranks = of_ranks.answers()
        behind_them = "\n\n".join(printed(answers_of_ranks))
        files[RANKS] = rewritten(RANKS, {"answer": of_ranks.first(answers_of_ranks), "answers": behind_them})
        if answers_of_ranks["Question 1"].short:
            picture = of_ranks.picture()
            files[picture.path] = picture.svg()
    if pack := packed("other_tasks"):
        other = opened(StudyOfOtherTasks(pack, WITHOUT_ROOM), files)
    if pack := packed("study_budgets"):
        budgets = opened(StudyOfBudgets(pack, study), files)
    if pack := packed("study_heads"):
        titles = tuple(f"Question H{number}" for number in range(1, 4))
        heads = opened(StudyOfRanks(pack, study, "head", studies.ALL_MODES, titles, "heads"), files)
    next_studies = {"budgets": budgets, "heads": heads, "trains": trains}
    every = {f"{title}, the first study": each for title, each in questions.items() if each.claims} | rest
    every |= {f"{title}, ranks": each for title, each in answers_of_ranks.items()}
    for of_study in next_studies.values():
        every |= of_study[2]
    files[FINDINGS] = rewritten(FINDINGS, contents | {"family": of_family(every)})
    first = {name: parts[0] for name, parts in next_studies.items()}
    by_question = {f"questions of {name}": parts[1] for name, parts in next_studies.items()}
    return files | {
        NEXT: rewritten(NEXT, first | by_question),
        OTHER: rewritten(OTHER, dict(zip(("answer", "answers"), other[:2], strict=True))),
        STUDY: rewritten(STUDY, {"answers": "\n\n".join(parts), "advice": behind}),
        DECODER: rewritten(DECODER, {"table": of_decoder(PACKS / "smollm2.tensorbench.zip")}),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
