"""Guards of comparisons: withhold verdicts that something else than the methods would decide.

There is no verdict on a setting where nothing trained, or where the reference is no better than a head. Where
runs of the reference collapsed, no method is called better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tensorbench.methods.errors import first_few
from tensorbench.reports.collapses import Collapses, untrained
from tensorbench.reports.inference.effects import Answer, Verdict
from tensorbench.reports.study import (
    CONVERGED,
    FLOOR,
    NO_ADAPTERS,
    OWN_SIZE,
    REFERENCE,
    Cell,
    Study,
    TaskAndBackbone,
    grouped,
)
from tensorbench.reports.units import unit_of
from tensorbench.reports.words import listed

#: The heads that every adapter should beat: their families, with names for sentences.
HEADS = {FLOOR: "the head alone", CONVERGED: "the converged head"}

#: Sentences on differences from a failed reference, for collapsed runs and for a mean below a head's.
OF_FAILED_RUNS = "Differences from it there measure its failed runs."
OF_NO_BETTER = "Differences there are from a baseline that does no better than a head."
#: The sentence for a reference without a finished run.
OF_NO_SCORE = "It has no score there, so nothing is compared with it."
#: The largest number of tasks that the reason for a withheld verdict names.
MOST_TASKS = 4
#: The reason why there is no verdict where nothing trained.
NOTHING = "nothing trained"


@dataclass(frozen=True)
class Guards:
    """What withholds verdicts on the methods of a block."""

    #: Sentences that come before any answer.
    sentences: tuple[str, ...] = ()
    #: The reason why there is no verdict on a setting. Settings with verdicts are absent.
    lost: Mapping[TaskAndBackbone, str] = field(default_factory=dict)
    #: The reason why no method is called better on a setting: runs of the reference collapsed.
    collapsed: Mapping[TaskAndBackbone, str] = field(default_factory=dict)

    def left(self, verdict: Verdict, settings: Sequence[TaskAndBackbone]) -> Verdict:
        """What the guards leave of a verdict over these settings together."""
        if why := _over(self.lost, settings):
            return Verdict(Answer.NONE, reason=why)
        if verdict.side == "better" and (why := _over(self.collapsed, settings)):
            return Verdict(Answer.UNDECIDED, reason=why)
        return verdict


NO_GUARDS = Guards()


def _over(reasons: Mapping[TaskAndBackbone, str], settings: Sequence[TaskAndBackbone]) -> str:
    """The reasons on these settings, with the tasks if there are several settings."""
    tasks = grouped((setting for setting in settings if setting in reasons), reasons.__getitem__)
    if len(settings) == 1:
        return "".join(tasks)
    return "; ".join(
        f"{why} on {first_few(list(dict.fromkeys(setting.task for setting in on)), MOST_TASKS)}"
        for why, on in tasks.items()
    )


def find_guards(
    study: Study,
    scored: Sequence[Cell],
    methods: Collection[int],
    reference: Collection[int],
    collapsed: Mapping[int, Collapses],
) -> Guards:
    """Finds the guards of the methods of a block.

    Args:
        scored: All cells of the report. Cells with studies have their score after tuning as their mean.
        methods: The numbers of the block's cells.
        reference: Those of the reference.
        collapsed: The collapsed runs or kept trials, by the number of the cell.
    """
    own = [cell for cell in scored if cell.number in methods or cell.number in reference]
    nothing = untrained(study, own)
    sentences = []
    if nothing:
        tasks = listed(dict.fromkeys(setting.task for setting in nothing))
        sentences.append(f"Nothing trained on {tasks}: no adapter is shown to beat a constant answer.")
    lost, fallen = dict.fromkeys(nothing, NOTHING), {}
    for setting, cells in grouped(own, lambda cell: cell.setting).items():
        if setting in lost:
            continue
        there = [cell for cell in scored if cell.setting == setting]
        baselines = [cell for cell in cells if cell.number in reference]
        failed, beaten = failed_references(there, baselines, collapsed), unbeaten(there)
        sentences += beaten or failed.values()
        counted = () if beaten else failed
        sentences += [str(collapsed[n]) for c in cells if (n := c.number) in collapsed and n not in counted]
        for baseline in baselines:
            if failed_references(there, [baseline], {}):
                lost[setting] = f"{baseline.method} is no better than a head"
            elif baseline.number in collapsed:
                fallen[setting] = f"runs of {baseline.method} collapsed"
    return Guards(tuple(dict.fromkeys(sentences)), lost, fallen)


# --- references and heads ---


def plain_lora(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of plain LoRA (LoRA without options), which is the default reference."""
    return [cell for cell in cells if cell.family == REFERENCE and cell.method == cell.title]


def failed_references(
    cells: Sequence[Cell], references: Iterable[Cell], collapses: Mapping[int, Collapses]
) -> dict[int, str]:
    """A sentence for each reference that failed, by the number of its cell.

    A reference has failed if some of its runs collapsed, or if its mean is not above that of a head on the
    same setting (see `HEADS`). Methods without an adapter, and cells without a run that ended, never count as
    failed.

    `cells` are all cells of the report. `collapses` has the collapsed runs by the number of the cell.
    """
    sentences = {}
    for cell in references:
        if failure := _failure(cell, cells, collapses.get(cell.number)):
            rest = OF_FAILED_RUNS if cell.number in collapses else OF_NO_BETTER
            sentences[cell.number] = f"{failure}. {OF_NO_SCORE if cell.gain is None else rest}"
    return sentences


def _failure(cell: Cell, cells: Sequence[Cell], collapsed: Collapses | None) -> str:
    """Says how a reference failed (see `failed_references`). Empty if it did not."""
    if cell.family in NO_ADAPTERS:
        return ""
    unit, reasons = unit_of(cell.metric, cell.unit), []
    for family, name in HEADS.items():
        heads = [
            other
            for other in cells
            if (other.family, other.setting, other.metric) == (family, cell.setting, cell.metric)
            and other.gain is not None
        ]
        best = max(heads, key=lambda other: other.gain or 0.0, default=None)
        if best is not None and cell.gain is not None and (best.gain or 0.0) >= cell.gain:
            reasons.append(
                f"it is not above {name} ({unit.score(cell.mean)} against {unit.score(best.mean)})"
            )
            break
    if collapsed is not None:
        reasons.append(collapsed.counted)
    name = cell.method if cell.budget == OWN_SIZE else f"{cell.method} ({cell.budget})"
    # Means that are close to each other show no failure.
    verb = "scored no better than a head" if collapsed is None else "failed"
    return f"{name} {verb} on {cell.setting}: {'; '.join(reasons)}" if reasons else ""


def unbeaten(cells: Iterable[Cell]) -> list[str]:
    """A sentence for each setting on which no adapter has a higher mean than the converged head.

    There is no sentence if the converged head has not run, or if runs of adapters are missing.
    """
    sentences = []
    for setting, of_setting in grouped(cells, lambda cell: cell.setting).items():
        head = next((cell for cell in of_setting if cell.family == CONVERGED and cell.gain is not None), None)
        adapters = [cell for cell in of_setting if cell.family not in NO_ADAPTERS]
        scored = [cell for cell in adapters if cell.gain is not None]
        if head is None or not scored or any(cell.missing for cell in adapters):
            continue
        best = max(scored, key=lambda cell: cell.gain or 0.0)
        if (best.gain or 0.0) <= (head.gain or 0.0):
            unit = unit_of(head.metric, head.unit)
            sentences.append(
                f"No adapter beats the converged head on {setting}: {unit.score(head.mean)} against "
                f"{unit.score(best.mean)} at best ({best.method})."
            )
    return sentences
