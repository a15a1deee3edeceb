"""Writes the sentences of a report: its answers, and the remarks that qualify them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from tensorbench.records.stored_plan import rate_text
from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Block, Comparison, Entrant
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import LEAST_SEEDS
from tensorbench.reports.ranks import Allocations, Trend
from tensorbench.reports.results import FLOOR, TaskAndBackbone
from tensorbench.reports.units import Unit, listed, many, minus

#: The verdicts that an answer lists after the methods that are better, in this order.
LISTED = (Word.EQUIVALENT, Word.WORSE, Word.INCONCLUSIVE, Word.NONE)


def trials_of_tuning(k: int) -> str:
    return f"{many(k, 'trial')} of tuning"


def score_name(block: Block) -> str:
    """The name of a block's scores, which states the number of trials or that they are means over seeds."""
    return f"score after {trials_of_tuning(block.k)}" if block.tuned else "mean score over seeds"


def in_words(verdict: Verdict, size: str) -> str:
    """A verdict on a difference as text. `size` is the threshold with its unit.

    If runs collapsed, it says how often they do, and that the difference is that of the other runs. It also
    says how close the verdict is to the end of a window of learning rates.
    """
    word = equivalent(size) if verdict.word is Word.EQUIVALENT else verdict.word
    said = f"{word}: {verdict.reason}" if verdict.reason else str(word)
    answered = " ".join(filter(None, [said, verdict.condition]))
    return "; ".join(filter(None, [answered, verdict.collapses, verdict.window]))


def equivalent(size: str) -> str:
    """*Equivalent* as text with the threshold, `size`. The threshold is left out if it is empty."""
    return f"{Word.EQUIVALENT} (within {size})" if size else Word.EQUIVALENT


def no_interval(difference: Comparison) -> str:
    """The reason why a difference has no interval, as text."""
    if difference.effect.error is None:
        return f"no interval: {many(difference.effect.fewest, 'pair')}"
    return "no interval: no spread"


def between(difference: Comparison, unit: Unit) -> str:
    """The interval of a difference as text, or the reason why there is no interval."""
    if difference.interval is None:
        return no_interval(difference)
    return " to ".join(unit.difference(bound) for bound in difference.interval)


def share_between(share: float, difference: Comparison) -> str:
    """The interval of a method's share as text, or the reason why there is none.

    It is the interval of the difference from the reference, shifted to the method's share and clipped to
    possible shares, which are from 0 to 1.
    """
    if difference.interval is None:
        return no_interval(difference)
    shift = share - difference.effect.difference
    low, high = (min(max(bound + shift, 0.0), 1.0) for bound in difference.interval)
    return f"{100 * low:.0f} to {100 * high:.0f}%"


def answer(block: Block, *, guarded: bool = True) -> str:
    """Answers which method to use, in one sentence with the verdicts.

    Before it come the block's guards, if `guarded`. After it come sentences on best rates at edges.
    """
    text = _verdicts(block)
    text = f"After {trials_of_tuning(block.k)}, {text}" if block.tuned else f"{text[:1].upper()}{text[1:]}"
    return " ".join([*block.guards * guarded, text, *map(str, block.edges)])


def withheld(block: Block) -> bool:
    """Whether guards withhold the verdicts on all compared methods."""
    verdicts = [entrant.differences[block.k].verdict for entrant in block.compared]
    return bool(verdicts) and all(v.word is Word.NONE and v.reason for v in verdicts)


def _verdicts(block: Block) -> str:
    """One sentence that lists the methods by verdict, or says why nothing is compared."""
    if not block.reference:
        return (
            "nothing is compared: there is no reference that ran on all tasks (--reference METHOD names one)."
        )
    unpaired = [
        e.method for e in block.entrants if block.k not in e.differences and e.method != block.against
    ]
    apart = f"no {'study' if block.tuned else 'seed'} in common with {block.against}"
    if not block.compared:
        if unpaired and not block.left_out:
            return f"nothing is compared: {apart}: {listed(unpaired)}."
        if not block.left_out and len(block.entrants) == 1:
            return f"no adapter beside {block.against} is compared."
        sample = "complete studies" if block.tuned else "finished seeds"
        return f"no {block.noun} has enough {sample} on all tasks for a comparison with {block.against}."
    verdicts = {_qualified(e, block.k): e.differences[block.k].verdict for e in block.compared}
    if withheld(block):
        return f"no verdict is given on {joined(list(verdicts))}."
    if tests := block.over_tasks:
        verdicts = {row.method: row.verdict for row in tests.rows}
    lists = {word: [name for name, own in verdicts.items() if own.word is word] for word in Word}
    better = lists.pop(Word.BETTER)
    lead = f"{joined(better)} {'is' if len(better) == 1 else 'are'}" if better else f"no {block.noun} is"
    lead += f" significantly better than {block.against}"
    lists[Word.NONE] = [name for name in lists[Word.NONE] if not verdicts[name].reason]
    headings = {
        Word.EQUIVALENT: equivalent(block.unit.size(block.threshold)),
        Word.NONE: "without an interval",
    }
    if tests:
        lead = f"over {many(tests.tasks, 'task')} as the sample, {lead}"
    elif few := _too_few(block):
        lead, lists[Word.NONE] = few, []
    groups = [(headings.get(word, word), lists[word]) for word in LISTED]
    groups += [(apart, unpaired), ("not on all tasks", list(block.left_out))]
    said = "; ".join([lead, *(f"{words}: {listed(names)}" for words, names in groups if names)]) + "."
    few = _too_few(block) if tests else ""
    return f"{said} {few[:1].upper()}{few[1:]}." if few else said


def _too_few(block: Block) -> str:
    """Says how many more runs give an interval, if no compared method has enough for one. Otherwise empty."""
    differences = [entrant.differences[block.k] for entrant in block.compared]
    counts = {difference.effect.fewest for difference in differences}
    if max(counts) >= LEAST_SEEDS or any(difference.verdict.reason for difference in differences):
        return ""
    run, more = "tuning run" if block.tuned else "seed", LEAST_SEEDS - min(counts)
    return (
        f"no difference from {block.against} has an interval, which takes {many(LEAST_SEEDS, run)} of each "
        f"{block.noun}; {many(more, f'more {run}')} each {'gives' if more == 1 else 'give'} an interval"
    )


def _qualified(entrant: Entrant, k: int) -> str:
    """The name of a method and, if runs collapsed, which runs its verdict is on, and how often they do."""
    difference = entrant.differences[k]
    verdict, on, every = difference.verdict, len(difference.effect.parts), len(difference.on)
    extent = f"on {on} of {every} tasks" * (on < every)
    said = "; ".join(filter(None, [extent, verdict.condition, verdict.collapses]))
    return f"{entrant.method} ({said})" if said else entrant.method


def answers(analysis: Analysis) -> list[str]:
    """The answers of all blocks, then those on allocations of ranks. Faults of the analysis come first.

    If there is no block, a sentence says that too few studies are complete.
    """
    every = [of_block(analysis, block) for block in analysis.blocks]
    if not every:
        tuned = any(cell.studies for cell in analysis.results.all_cells)
        lacking = "Too few studies are complete" if tuned else "Too few seeds have finished"
        if not tuned and any(each.count for each in analysis.collapses.values()):
            lacking += " without a collapse"
        none = "No study is complete." if tuned else "No seed has finished."
        every = [f"{lacking} to compare methods on the same tasks." if analysis.studies else none]
    for section in analysis.allocations:
        said = [of_allocations(section)] if is_apart(analysis, section) else []
        every += filter(None, [" ".join([*said, *(trend_note(section, trend) for trend in section.trends)])])
    return [*analysis.faults, *every]


def is_apart(analysis: Analysis, section: Allocations) -> bool:
    """Whether the comparison of allocations with the heuristic differs from that in their block.

    It is the same if the heuristic is the block's reference and the block compares nothing else.
    """
    block = analysis.blocks[section.number]
    return block.against != section.method or len(block.claims) > len(section.block.claims)


def of_allocations(section: Allocations) -> str:
    """Answers which allocation of ranks to use. Guards are left out, since the block's answer has them."""
    return f"{section.method} at {section.size}: {answer(section.block, guarded=False)}{_largest(section)}"


def _largest(section: Allocations) -> str:
    """A sentence on the largest difference that the intervals allow.

    Empty if a difference is significant, withheld or without an interval, if a method is left out, and if
    best rates lie at an edge or runs collapsed.
    """
    block = section.block
    if block.collapsed:
        return ""
    differences = [entrant.differences[block.k] for entrant in block.compared]
    verdicts = [each.verdict for each in differences]
    if not verdicts or block.left_out or block.edges or any(each.side or each.reason for each in verdicts):
        return ""
    bounds = [abs(bound) for each in differences for bound in each.interval or (math.inf, math.inf)]
    if not math.isfinite(max(bounds)):
        return ""
    # Rounded up, so that the sentence is not stronger than the intervals.
    digits = 4 if block.unit.mark else 3 - math.floor(math.log10(max(bounds)))
    most = math.ceil(max(bounds) * 10**digits - 1e-6) / 10**digits
    size = f"{block.unit.score(most)} {block.unit.points}"
    return f" No {block.noun} differs from {block.against} by more than {size}."


def trend_note(section: Allocations, trend: Trend) -> str:
    """A sentence on how the score changes with the rank of a mode."""
    unit = section.block.unit
    slope, ends = minus(unit.difference(trend.slope.effect.difference)), minus(between(trend.slope, unit))
    return (
        f"The rank of {trend.mode}, over {joined(trend.allocations)}: {trend_words(trend.slope.verdict)}, "
        f"{slope} {unit.points} a doubling ({ends})."
    )


def trend_words(verdict: Verdict) -> str:
    """The verdict on a slope as text."""
    sides = {"better": "the score improves with the rank", "worse": "the score worsens with the rank"}
    return sides.get(verdict.side) or in_words(verdict, "")


def of_block(analysis: Analysis, block: Block, *, guarded: bool = True) -> str:
    """The answer of a block, after the block's heading if there are several blocks."""
    return f"{heading(block)}: " * (len(analysis.blocks) > 1) + answer(block, guarded=guarded)


def window_advice(analysis: Analysis) -> list[str]:
    """Sentences with YAML that widens or moves the windows at whose edges the best learning rates lie.

    If all methods of a block have the same window, the YAML is a wider window for all of them. Otherwise it
    is a new centre for the row of each method whose best rates lie at an edge, unless its windows differ
    between settings. There is no advice where windows may not extend further.
    """
    advice = []
    for block in (block for block in analysis.blocks if block.edges):
        windows = {
            entrant.method: {cell.studies.ends for cell in entrant.cells if cell.studies}
            # A reference may be one from another budget.
            for entrant in (*block.methods, *filter(None, [block.reference]))
        }
        if len(every := set().union(*windows.values())) == 1:
            low = min(edge.wider[0] for edge in block.edges)
            high = max(edge.wider[1] for edge in block.edges)
            if (low, high) not in every:
                around, width = rate_text(math.sqrt(low * high)), f"{math.log10(high / low):.3g}"
                advice.append(
                    "To hold the best rates, write in tuning, a window for all methods: "
                    f"lr: {{around: {around}, decades: {width}}}"
                )
            continue
        centres = [
            f"in the row of {edge.method}: centre: {rate_text(edge.centre)}"
            for edge in block.edges
            if len(own := windows[edge.method]) == 1
            and not math.isclose(edge.centre, math.sqrt(math.prod(*own)))
        ]
        if centres:
            advice.append(f"To hold the best rates, write {'; '.join(centres)}")
    return list(dict.fromkeys(advice))


def joined(names: Sequence[str]) -> str:
    """The names as a list in words, with "and" before the last name. `names` must not be empty."""
    return names[0] if len(names) == 1 else f"{listed(names[:-1])} and {names[-1]}"


def level_notes(block: Block) -> list[str]:
    """Sentences on how the converged head and full fine-tuning differ from the reference.

    In a tuned block no such difference has an interval, and the sentence says why. For a method that ran on
    some tasks only, the sentence names these tasks instead.
    """
    notes = []
    for level in (level for level in block.levels if level.family != FLOOR):
        if level.difference is not None:
            by = block.unit.difference(level.difference).replace("-", "−")
            text = f"{level.method.capitalize()}: {by} {block.unit.points} from {block.against}"
            if level.comparison is None:
                why = "it has no studies whose luck of tuning the interval would hold"
                text += f", without an interval: {why if block.tuned else 'they share too few seeds'}."
            else:
                interval = between(level.comparison, block.unit).replace("-", "−")
                said = in_words(level.comparison.verdict, block.unit.size(block.threshold))
                text += f" ({interval}): {said}."
            notes.append(text)
        elif len(level.scores) < len(block.settings):
            where = joined([setting.task for setting in level.scores])
            notes.append(
                f"{level.method.capitalize()} ran on {where} alone, so it has no mean over all tasks."
            )
    return notes


def remarks(block: Block) -> list[str]:
    """Sentences beneath a block's answer: on methods without adapter, and on what the block can detect."""
    return list(filter(None, [*level_notes(block), detectable(block), over_tasks(block)]))


def over_tasks(block: Block) -> str:
    """A sentence on the tests with tasks as the sample. Empty without them."""
    if not (tests := block.over_tasks):
        return ""
    text = (
        "Tasks are the sample: Wilcoxon's signed-rank test with Holm's correction says what to expect on "
        "other tasks of this kind, and nothing of another seed."
    )
    if tests.friedman is None:
        return text
    return (
        f"{text} Friedman's test of all methods: p = {tests.friedman:.2g}; two mean ranks differ from a "
        f"critical difference of {tests.critical:.2f} on."
    )


def detectable(block: Block) -> str:
    """A sentence on the smallest difference that the block detects.

    Empty if the noise of comparisons is unknown, or if guards withhold all verdicts.
    """
    if not block.design or not block.design.finds or withheld(block):
        return ""
    unit, design = block.unit, block.design
    text = f"True differences smaller than {unit.score(design.finds, 1)} {unit.points} may go undetected."
    if block.tuned or (design.finds or 0.0) <= block.threshold:
        return text
    if not any(entrant.differences[block.k].verdict.word is Word.INCONCLUSIVE for entrant in block.compared):
        return text
    needed, size = design.needs(block.threshold), unit.size(block.threshold)
    if needed is None:
        return f"{text} For {size}, more seeds are not enough: add tasks, test examples or studies."
    return f"{text} For {size}, take {needed:,} seeds."


def order_note(block: Block) -> str:
    """Says whether the order of methods depends on how much they are tuned.

    It does if a method is significantly better than the reference after few trials of tuning and
    significantly worse after many, or the reverse. The text is empty if nothing is compared, if it is
    compared after one number of trials only, or if guards withhold all verdicts.
    """
    if not block.compared or len(block.ks) < 2 or withheld(block):
        return ""
    # One trial is no tuning, unless two are all that there is.
    few, most = block.ks[len(block.ks) > 2], block.ks[-1]
    turned = []
    for entrant in block.compared:
        sides = {entrant.differences[k].verdict.side for k in (few, most) if k in entrant.differences}
        if {"better", "worse"} <= sides:
            turned.append(entrant.method)
    if turned:
        return (
            f"The order depends on how much is tuned: {joined(turned)} and {block.against} change places "
            f"between {few} and {most} trials."
        )
    return (
        f"No {block.noun} is significantly on one side of {block.against} after {trials_of_tuning(few)} and "
        f"on the other after {most}."
    )


def heading(block: Block) -> str:
    """The heading of a block: its title, or "methods of fixed size" if it has no others."""
    return "methods of fixed size" if block.title == OWN_SIZE else block.title


def settings_counted(block: Block) -> str:
    """The number of settings as text: of tasks or, if a task is on several backbones, of pairs of both."""
    tasks = {setting.task for setting in block.settings}
    return many(len(block.settings), "task" if len(tasks) == len(block.settings) else "task-backbone pair")


def setting_name(settings: Collection[TaskAndBackbone], setting: TaskAndBackbone) -> str:
    """The name of the setting's task. If `settings` have the task on several backbones, also the backbone."""
    several = sum(other.task == setting.task for other in settings) > 1
    return str(setting) if several else setting.task
