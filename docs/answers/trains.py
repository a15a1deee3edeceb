"""Answers question T of results/next-studies.md, trains or a Tucker tensor, by its registered rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

from marked import table

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import joined
from tensorbench.reports.blocks import Block, Entrant
from tensorbench.reports.drawing import Looks, styled
from tensorbench.reports.figures.compared import differences
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell, Results
from tensorbench.reports.selection import Selection

from .answer import Answer, Picture
from .registered import (
    NONE_AT_ENDS,
    at_ends_of_pilot,
    completed,
    limits,
    nothing_compared,
    power_seen,
    qualified,
)
from .studies import LORA, QKV_DEPTH, Rule, after_tuning, analysed, answered, compared, studies_complete

#: Two tensor trains for all matrices, a train for each matrix, and a CP tensor for all of them.
TRAIN, METATT, TT_LORA, LORTA = f"{QKV_DEPTH} (factorization=tt)", "MetaTT-4D", "TT-LoRA", "LoRTA"
#: The families of the question: the methods that are compared with each reference, and what that tells.
FAMILIES = {
    LORA: ((TRAIN, METATT, TT_LORA, LORTA), "Beside LoRA with as many parameters (TT-LoRA has 7% more)"),
    QKV_DEPTH: ((TRAIN,), "A train beside the Tucker tensor with the same modes"),
    TT_LORA: (
        (TRAIN, METATT),
        "One train for all matrices beside one for each (TT-LoRA, on Q and V)",
    ),
}
#: The smallest and the largest rate that the pilot tries, and those that it tries for LoRTA.
ENDS_OF_PILOT, ENDS_OF_LORTA = (5e-4, 5e-2), (5e-3, 0.5)

_name = attrgetter("method")


def _ends(cell: Cell) -> tuple[float, float]:
    return ENDS_OF_LORTA if cell.method == LORTA else ENDS_OF_PILOT


@dataclass(frozen=True)
class StudyOfTrains:
    """The answers of the study of trains, from its pack and the pack of the first study.

    The pack `trains` has the trials of the train, MetaTT, TT-LoRA and LoRTA, and `study` those of Tucker and
    LoRA.
    """

    trains: Path
    study: Path

    @cached_property
    def against(self) -> dict[str, Analysis]:
        """The analysis of each family, by its reference."""
        return {
            reference: analysed(
                self.study, self.trains, selection=Selection(methods=methods, reference=reference)
            )
            for reference, (methods, _) in FAMILIES.items()
        }

    @cached_property
    def own(self) -> Results:
        return read("", [str(self.trains)])

    @property
    def blocks(self) -> dict[str, Block]:
        """The block of each family, by its reference."""
        return {reference: analysis.blocks[0] for reference, analysis in self.against.items()}

    @property
    def entrants(self) -> dict[str, Entrant]:
        """All rows, by their methods, beginning with LoRA."""
        return {entrant.method: entrant for block in self.blocks.values() for entrant in block.entrants}

    @property
    def withheld(self) -> str:
        """A sentence on methods whose scores are lower bounds. Empty if there are none."""
        if not (low := {edge.method: None for each in self.blocks.values() for edge in each.edges}):
            return ""
        return (
            f"At least half of the trials that {joined([*low])} kept lie in an outer fifth of their windows, "
            "so their scores are lower bounds, and they are *inconclusive* wherever a better rate could turn "
            "the verdict."
        )

    def answers(self) -> dict[str, Answer]:
        """The answers of the families, by title. Each says what it is compared with."""
        titles = [f"Question T: compared with {reference}" for reference in FAMILIES]
        if reason := nothing_compared(self.own.all_cells, (LORA, QKV_DEPTH)):
            return dict.fromkeys(titles, Answer(f"**Nothing is compared**: {reason}"))
        rule: Rule = after_tuning
        return {
            title: completed(answered([(analysis, rule)]), analysis, self.qualified(analysis))
            for title, analysis in zip(titles, self.against.values(), strict=True)
        }

    def qualified(self, *analyses: Analysis) -> Iterator[str]:
        """Yields sentences on withheld verdicts, and on centres and best rates at ends."""
        yield from qualified(analyses, _name)
        yield from at_ends_of_pilot(analyses, _ends, _name)

    def in_short(self) -> Answer:
        """The answers of all families at once, with a pointer to the tables behind them."""
        answers = self.answers()
        text = "The tables are those of the [study of trains](next-studies.md#trains)."
        if missing := next((each.text for each in answers.values() if not each.short), ""):
            return Answer(missing)
        by_family = zip(FAMILIES, answers.values(), strict=True)
        short = [f"Compared with {name}: {each.short}" for name, each in by_family]
        return Answer(text, " ".join(filter(None, (*short, self.withheld))))

    def picture(self) -> Picture:
        """The figure of the largest family: the difference of each method from LoRA."""
        results, block = self.against[LORA].results, self.blocks[LORA]
        with styled():
            looks = Looks(cell.family for cell in results.all_cells)
            drawn = differences(block, "trains", f"Trains and LoRTA, beside {LORA}", looks)
        return Picture("findings-trains", drawn)

    def first(self, answers: dict[str, Answer]) -> str:
        """The part with which the answers begin: all in short, a figure, a table and limits."""
        block, picture = self.blocks[LORA], self.picture()
        complete, _ = studies_complete(self.against[LORA])
        short = [
            f"{subject}: {each.short}"
            for (_, subject), each in zip(FAMILIES.values(), answers.values(), strict=True)
        ]
        begun = f"Scores after {block.k} trials, by {complete} studies. *Equivalent* is within a point."
        parts = [
            " ".join(filter(None, (begun, self.withheld))),
            "\n".join(f"- {each}" for each in short),
            picture.shown,
            picture.drawn.caption,
            self.by_method(),
            "\n".join(f"- {limit}" for limit in self.limits()),
        ]
        return "\n\n".join(parts)

    def by_method(self) -> str:
        """A table of all rows, with their differences from each reference."""
        beside = {
            reference: {entrant.method: entrant.differences[block.k] for entrant in block.compared}
            for reference, block in self.blocks.items()
        }
        block = self.blocks[LORA]
        rows = []
        for method, entrant in self.entrants.items():
            sizes = dict.fromkeys(f"{cell.parameters:,}" for cell in entrant.cells)
            score = block.unit.score(entrant.means[block.k].value)
            changes = (compared(differences.get(method)) for differences in beside.values())
            rows.append([method, " or ".join(sizes), score, *(text for both in changes for text in both)])
        head = ["method", "parameters", "accuracy, %"]
        return table([*head, *(text for name in FAMILIES for text in (f"from {name}", "verdict"))], rows)

    def limits(self) -> Iterator[str]:
        """Yields what limits the answers."""
        analyses = self.against.values()
        remarks = (
            "Each method keeps the projections of its default: LoRA, TensLoRA and its train have Q, K and V, "
            "MetaTT-4D and TT-LoRA Q and V, and LoRTA Q, K, V and O. Starts and scales differ, too.",
            "The windows of rates, which intervals take as given, were chosen by pilots on movie sentiment.",
            " ".join(self.qualified(*analyses)) or NONE_AT_ENDS,
        )
        new = (cell for cell in self.own.all_cells if cell.method in FAMILIES[LORA][0])
        power = power_seen(self.blocks[LORA], "methods")
        extent = "Six methods, one budget, two small backbones, four tasks"
        return limits(extent, remarks, self.entrants, new, self.own, power)
