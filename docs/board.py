"""Writes the tables of the packs in results/board into docs/board.md: `python docs/board.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from marked import replaced

from tensorbench.checks.submission import Card, Submission, read_card, read_submission
from tensorbench.machine.table import NOTHING, Table
from tensorbench.machine.visible import markdown_text
from tensorbench.methods import UserError
from tensorbench.records.pack_format import ENDING
from tensorbench.reports.blocks import Entrant
from tensorbench.reports.results import grouped
from tensorbench.reports.units import many

DOCS = Path(__file__).parent
PAGE, BOARD = DOCS / "board.md", DOCS.parent / "results" / "board"
BEGIN, END = "<!-- tables: docs/board.py -->\n", "<!-- end of tables -->"


def entries() -> list[tuple[Submission, Card]]:
    """The entries of the board, from the oldest to the newest. Raises UserError if an entry has no card."""
    read = [(read_submission(pack), read_card(pack)) for pack in sorted(BOARD.glob(f"*{ENDING}"))]
    if lacking := [submission.name for submission, card in read if card is None]:
        raise UserError(f"{lacking[0]}.yaml is missing in {BOARD}")
    carded = [(submission, card) for submission, card in read if card is not None]
    return sorted(carded, key=lambda entry: entry[0].results.experiments[0].last_day)


def line(submission: Submission, card: Card, entrant: Entrant) -> dict[str, str]:
    """The line of a method. It is "verified" if somebody other than the submitter ran trials again."""
    checked = "verified" if card.verified else "by machine"
    return submission.line(entrant) | {"checked": checked, "submission": submission.name}


def source(submission: Submission, card: Card) -> dict[str, str]:
    """The line of a submission: who ran it where, and who ran it again."""
    gpu = submission.provenance(submission.newcomers, "gpu")
    reruns = [f"{many(run.trials, 'trial')} by {run.by}, {run.date}, {run.processor}" for run in card.reruns]
    return {
        "submission": submission.name,
        "by": card.by,
        "until": submission.results.experiments[0].last_day,
        "processor": submission.provenance(submission.newcomers, "cpu") if gpu == "unknown" else gpu,
        "run again": "; ".join(reruns) or NOTHING,
    }


def lines(of_suite: Sequence[tuple[Submission, Card]]) -> Iterator[dict[str, str]]:
    """Yields lines for a suite's own methods, then for the submitted methods, best first.

    The lines of the suite's own methods are from the oldest entry.
    """
    first, card = of_suite[0]
    yield from (line(first, card, own) for own in first.block.entrants if own not in first.newcomers)
    rows = [(entry, card, entrant) for entry, card in of_suite for entrant in entry.newcomers]
    rows.sort(key=lambda row: -row[2].differences[row[0].block.k].effect.difference)
    yield from (line(*row) for row in rows)


def tables(every: Sequence[tuple[Submission, Card]]) -> str:
    parts = [f"As of {every[-1][0].results.experiments[0].last_day}: {many(len(every), 'submission')}."]
    for suite, of_suite in grouped(every, lambda entry: entry[0].suite).items():
        texts = ("method", "verdict", "checked", "submission")
        table = Table("", list(lines(of_suite)), of_suite[0][0].table().notes, texts)
        parts += [f"## `{suite}`", table.markdown()]
        notes = [f"- {markdown_text(f'{each.name}: {note}')}" for each, _ in of_suite for note in each.notes]
        parts += ["\n".join(notes)] * bool(notes)
    sources = [source(*entry) for entry in reversed(every)]
    return "\n\n".join([*parts, "## Submissions", Table("", sources, (), tuple(sources[0])).markdown()])


def rewritten(text: str) -> str:
    """The text of the page with the tables of the current entries."""
    return replaced(text, BEGIN, END, f"\n{tables(entries())}\n\n")


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
