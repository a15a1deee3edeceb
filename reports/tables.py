"""The tables of a report that people read, and its files in Markdown, LaTeX and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic_core import to_jsonable_python

from tensorbench.machine.table import NOTHING, Entry, Table
from tensorbench.machine.visible import markdown_text
from tensorbench.methods.errors import cut
from tensorbench.reports.advice import advise
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import (
    answer,
    answers,
    between,
    heading,
    in_words,
    of_allocations,
    order_note,
    over_tasks,
    remarks,
    score_name,
    setting_name,
    settings_counted,
    share_between,
    trend_note,
)
from tensorbench.reports.blocks import Block, Comparison, Entrant, Level
from tensorbench.reports.inference.rates import enough_to_smooth
from tensorbench.reports.ranks import Allocations, OverBudgets
from tensorbench.reports.recipes import Mixture
from tensorbench.reports.results import Cell, Results, TaskAndBackbone, distinct
from tensorbench.reports.tidy import tidy_tables
from tensorbench.reports.units import listed, minus, unit_of

#: The mark of a cell with missing trials.
INCOMPLETE = "†"
#: The mark of a row that misses its budget by more than the budget's tolerance.
MISSED = " !"
#: The heading of the column that counts studies in a tuned block, and seeds in any other block.
SAMPLES = ("studies", "seeds")
#: The first sentence of a report whose trials differ in protocol or data.
NOT_COMPARABLE = "These scores do not compare."
#: The note on the column of best rates.
BEST_RATE = (
    "Best rate: the one with the lowest smoothed validation loss, from the smallest to the largest over "
    "tasks. Beneath it: the rates that are within a point of the best on every task. ≤ and ≥ mark the ends "
    "of the tried rates."
)
#: The prefix of the HTML anchors of trials in their table.
ANCHOR = "trial-"
#: The number of colours of figures' series, and of their classes on the page: s0, s1 and so on.
COLOURS = 8


def scores_table(results: Results, block: Block, number: int = 0, page: str = "") -> Table:
    """The table of methods × tasks: scores after `block.k` trials, and the difference from the reference.

    On a page, the names of methods link to their suites. `number` is the index of the block, and `page` the
    report's page if the table is on another one.
    """
    against = f"difference from {block.against}" if block.against else "difference"
    fixed = ["method", "parameters", "mean", "difference", against, "verdict", *SAMPLES]
    names = _columns(block, fixed)
    lines = [
        _entrant_line(
            block, entrant, names, "" if results.foreign else f"{page}#suites-{number}-{place}", place
        )
        for place, entrant in enumerate(block.methods)
    ]
    lines += [_level_line(block, level, names) for level in block.levels]
    how = (
        f"after {block.k} trials of tuning: the expected score of the trial with the lowest validation loss"
        if block.tuned
        else "mean ± standard deviation over seeds that did not collapse"
    )
    scale = block.unit.named(f"{block.evaluated.capitalize()} {block.metric}")
    legend = f"{scale}, {how}. Differences are in {block.unit.points}, with simultaneous 95% intervals."
    if any(INCOMPLETE in text for line in lines for text in line.values()):
        legend += f" {INCOMPLETE} Seeds are missing: the mean is of those that are there."
    if block.without_examples:
        where = listed(setting_name(block.settings, setting) for setting in block.without_examples)
        legend += f" These intervals are too narrow: they lack test examples on {where}."
    notes = [legend, order_note(block), *block.notes, *map(str, block.collapsed)]
    named = [
        {against if head == "difference" else head: text for head, text in line.items()} for line in lines
    ]
    columns = ["method", "parameters", *names.values(), *["mean"] * (len(names) > 1), against, "verdict"]
    return Table(heading(block), named, tuple(filter(None, notes)), ("method", "verdict"), columns)


def board(results: Results, block: Block, number: int, page: str = "") -> Table:
    """The table of `scores_table` for a page: differences and verdicts come first, and notes are left out."""
    table = scores_table(results, block, number, page)
    method, parameters, *tasks = table.columns[: 2 + len(block.settings)]
    claims = table.columns[2 + len(block.settings) :]
    columns = [method, *claims, *tasks, parameters, SAMPLES[not block.tuned]]
    return replace(table, columns=columns, notes=())


def _columns(block: Block, fixed: Sequence[str]) -> dict[TaskAndBackbone, str]:
    """The heads of the columns of tasks, by setting. A task may have the name of a `fixed` column."""
    names = {setting: setting_name(block.settings, setting) for setting in block.settings}
    return {setting: f"task {name}" if name in fixed else name for setting, name in names.items()}


def _entrant_line(
    block: Block, entrant: Entrant, names: Mapping[TaskAndBackbone, str], link: str, place: int
) -> dict[str, str]:
    unit, comparison = block.unit, entrant.differences.get(block.k)
    whole = len(entrant.on) == len(block.settings)
    scores = dict.fromkeys(names.values(), NOTHING)
    for setting, own in entrant.on.items():
        cell = own.cell
        text = unit.score(own.scores[block.k].value)
        text += ("" if own.sd is None else f" ± {unit.score(own.sd)}") + incomplete(cell)
        if own.collapses and own.collapses.count:
            text += f" ({own.collapses.short})"
        if comparison:
            each = comparison.on[setting]
            style = "sure-beneath" * bool(each.verdict.side)
            text = Entry(text, "", minus(between(each, unit)), style=style)
        scores[names[setting]] = text
    counts = {each.count for each in entrant.studies}
    return {
        "method": Entry(
            f"{entrant.method} {INCOMPLETE}" if entrant.lost else entrant.method,
            style=f"dot s{place % COLOURS}",
            link=link,
        ),
        "parameters": parameters_of(entrant.cells),
        **scores,
        "mean": unit.score(entrant.means[block.k].value) if whole else NOTHING,
        **(
            _claim(block, comparison, block.extent(comparison))
            if comparison
            else {
                "difference": Entry("", "reference" if block.against == entrant.method else NOTHING),
                "verdict": "",
            }
        ),
        SAMPLES[not block.tuned]: " to ".join(map(str, sorted({min(counts), max(counts)}))),
    }


def parameters_of(cells: Iterable[Cell]) -> str:
    """A method's numbers of parameters, which may differ between backbones."""
    return " or ".join(dict.fromkeys(_number(cell.parameters, ",.0f") for cell in cells))


def _level_line(block: Block, level: Level, names: Mapping[TaskAndBackbone, str]) -> dict[str, str]:
    scores = dict.fromkeys(names.values(), NOTHING)
    for setting, cell in level.cells.items():
        scores[names[setting]] = block.unit.score(level.scores.get(setting)) + incomplete(cell)
    if level.comparison:
        claim = _claim(block, level.comparison)
    else:
        difference = block.unit.difference(level.difference)
        unknown = level.difference is None and block.against
        why = "not on all tasks" if len(level.scores) < len(block.settings) else "another recipe"
        claim = {
            "difference": Entry(difference, minus(difference)),
            "verdict": Entry("", why * bool(unknown)),
        }
    first = {"method": Entry(level.method, "", "no adapter", style="level"), "parameters": "", "mean": ""}
    return {**first, **scores, **claim, SAMPLES[not block.tuned]: ""}


def _claim(block: Block, comparison: Comparison, extent: str = "") -> dict[str, str]:
    """The entries for a difference from the reference and its verdict.

    `extent` is a text on the number of settings, if the comparison does not cover all of them.
    """
    unit, side = block.unit, comparison.verdict.side
    difference, ends = unit.difference(comparison.effect.difference), between(comparison, unit)
    said = in_words(comparison.verdict, unit.size(block.threshold))
    return {
        "difference": Entry(
            f"{difference} ({ends}){extent}",
            minus(difference),
            minus(ends) + extent,
            style="sure" * bool(side),
        ),
        "verdict": Entry(said, style=f"verdict {side}"),
    }


def incomplete(cell: Cell) -> str:
    """The mark `INCOMPLETE` for a cell without studies if some seed has not finished. Otherwise empty."""
    return "" if cell.complete or cell.studies else f" {INCOMPLETE}"


# --- tables that only the page has ---


def sensitivity_table(block: Block) -> Table:
    """The table of sensitivity to learning rates in a tuned block, with a line per method.

    It has the shares of trials near the best rate and of failed trials, and the cost of transferred rates.
    """
    near, failed, cost = "within a point of the best rate", "failed trials", "cost of a rate from other tasks"
    several = len(block.settings) > 1
    lines = []
    for place, entrant in enumerate(block.entrants):
        shares, transfer = entrant.sensitivity, entrant.transfer
        assert shares is not None, "tuned methods have shares"
        counted = f"{shares.failures} of {shares.trials}"
        line = {
            "method": _dotted(entrant, place),
            near: NOTHING if shares.near is None else _shared(shares.near, shares.near_difference),
            failed: _shared(shares.failed, shares.failed_difference, counted),
        }
        if several and transfer:
            ends = " to ".join(minus(block.unit.difference(end)) for end in transfer.interval or ())
            text = minus(block.unit.difference(transfer.effect.difference))
            line[cost] = Entry(text, "", ends or "no interval")
        lines.append(line)
    around = (
        f"; beneath each share the simultaneous 95% interval of its difference from {block.against}, put "
        f"around it; in bold, {block.against}'s share is outside"
        if block.against
        else ""
    )
    notes = [
        f"Means over tasks{around}. Within a point of the best rate: trials that succeed at rates whose "
        "smoothed score is within a point of the best. Failed: diverged, or 10 points or more below the "
        "trial that validation chooses."
    ]
    if several:
        notes[0] += (
            " Cost: the score at the rate that is best on the other tasks, less the score at the rate that "
            "validation chooses here."
        )
    return Table("Sensitivity", lines, notes, ("method",), ["method", near, failed, *[cost] * several])


def _shared(share: float, difference: Comparison | None, counted: str = "") -> Entry:
    beneath = [share_between(share, difference)] if difference else []
    sure = bool(difference and difference.verdict.side)
    text = f"{100 * share:.0f}%"
    return Entry(text, "", " · ".join(filter(None, [*beneath, counted])), style="sure" * sure)


def _dotted(entrant: Entrant, place: int) -> Entry:
    return Entry(entrant.method, style=f"dot s{place % COLOURS}")


def rates_table(block: Block) -> Table:
    """The rate to start from, for each method of a tuned block on each task."""
    names = _columns(block, ["method"])
    lines = []
    for place, entrant in enumerate(block.entrants):
        line: dict[str, str] = {"method": _dotted(entrant, place)}
        for setting, own in entrant.on.items():
            if rates := advise(own.cell, own.studies):
                line[names[setting]] = Entry(f"{rates.start:.2g}", "", rates.range)
            else:
                lacking = "most failed" if enough_to_smooth(own.studies) else "too few trials"
                line[names[setting]] = "all failed" if own.studies.failed.all() else lacking
        lines.append(line)
    return Table("Rates to start from", lines, (), ("method",), ["method", *names.values()])


def tasks_table(block: Block) -> Table:
    """The tests with tasks as the sample: mean ranks, median differences and verdicts, best rank first."""
    tests, unit, lines = block.over_tasks, block.unit, []
    assert tests is not None
    rows = {row.method: row for row in tests.rows}
    for method, rank in sorted(tests.ranks.items(), key=lambda each: each[1]):
        line = {"method": method, "mean rank": f"{rank:.2f}"}
        if row := rows.get(method):
            said = in_words(row.verdict, unit.size(block.threshold))
            line |= {
                "median difference": minus(unit.difference(row.median)),
                "ahead on": f"{row.ahead} of {tests.tasks}",
                "p (Holm)": f"{row.p:.2g}",
                "verdict": Entry(said, style=f"verdict {row.verdict.side}"),
            }
        lines.append(line)
    columns = ["method", "mean rank", "median difference", "ahead on", "p (Holm)", "verdict"]
    return Table("Tasks as the sample", lines, [over_tasks(block)], ("method", "verdict"), columns)


def variance_table(block: Block) -> Table:
    """The standard deviation of scores by source, on each task."""
    lines = []
    for setting, sources in block.sources.items():
        found = {"method": (sources.method, "")}
        if block.tuned:
            found |= {"learning rate": (sources.rate, "all failed"), "seed": (sources.seed, "all failed")}
        else:
            found["seed"] = (sources.seed, "one seed")
        found["test examples"] = (sources.examples, "not stored")
        shown = {
            name: unknown if variance is None else block.unit.score(variance**0.5)
            for name, (variance, unknown) in found.items()
        }
        lines.append({"task": setting_name(block.settings, setting), **shown})
    of = (
        "Learning rate: of the smoothed score over the window. Seed: of trials about it. Failed trials are "
        "left out."
        if block.tuned
        else "Seed: of a method's seeds."
    )
    note = (
        f"Standard deviations in {block.unit.points}. Method: of the methods' scores. {of} Test examples: of "
        "a trial's score over test sets of this size."
    )
    return Table("Variance by source", lines, [note], ("task",))


# --- ranks ---


def allocations_table(section: Allocations) -> Table:
    """A method's allocations of ranks, with their differences from the heuristic."""
    block, lines = section.block, []
    against = f"difference from {block.against}" if block.against else "difference"
    for place, entrant in enumerate(block.methods):
        cells = entrant.cells
        if comparison := entrant.differences.get(block.k):
            claim = _claim(block, comparison, block.extent(comparison))
        else:
            claim = {"difference": Entry("", NOTHING if entrant.method != block.against else "reference")}
        sizes = (_number(cell.parameters, ",.0f") + MISSED * (cell.within is False) for cell in cells)
        lines.append(
            {
                "allocation": _dotted(entrant, place),
                against: claim["difference"],
                "verdict": claim.get("verdict", ""),
                **({"best rate": _best_rate(entrant)} if block.tuned else {}),
                "ranks": " or ".join(dict.fromkeys(cell.ranks for cell in cells)),
                "parameters": " or ".join(dict.fromkeys(sizes)),
            }
        )
    notes = [
        f"Ranks are of {block.entrants[0].cells[0].rank_names.replace(',', ', ')}. "
        f"Differences are in {block.unit.points}, with simultaneous 95% intervals over the allocations."
    ]
    if block.tuned:
        notes.append(BEST_RATE)
    if any(MISSED in line["parameters"] for line in lines):
        notes.append(f"{MISSED.strip()} misses the budget by more than its tolerance.")
    return Table(f"Ranks of {section.method}", lines, notes, ("allocation", "verdict", "ranks"))


def _best_rate(entrant: Entrant) -> Entry:
    """A method's best rates over tasks and, beneath them, the rates near the best on all tasks.

    A dash if there is no advice on some task.
    """
    own = [advice for each in entrant.on.values() if (advice := advise(each.cell, each.studies))]
    if len(own) < len(entrant.on):
        return Entry(NOTHING)
    low, high = max(own, key=lambda each: each.low), min(own, key=lambda each: each.high)
    both = replace(low, high=high.high, is_highest=high.is_highest)
    start = " to ".join(dict.fromkeys(f"{end([each.start for each in own]):.2g}" for end in (min, max)))
    near = both.range if both.low <= both.high else "none on every task"
    return Entry(f"{start} ({near})", start, near)


def budgets_table(group: OverBudgets) -> Table:
    """Methods under several budgets: scores, and differences from the same method under a smaller budget."""
    first, against = group.blocks[0], "difference from the next smaller budget"
    lines: list[dict[str, str]] = []
    blocks = {block.budget: block for block in group.blocks}
    for place, (method, entrants) in enumerate(group.methods.items()):
        for budget, entrant in entrants.items():
            block, step = blocks[budget], group.steps.get(method, {}).get(budget)
            mean = entrant.means[block.k]
            none = NOTHING if lines and lines[-1]["method"] == method else "smallest"
            claim = _claim(block, step) if step else {"difference": Entry("", none)}
            lines.append(
                {
                    "method": _dotted(entrant, place),
                    "budget": budget,
                    "mean": Entry(
                        block.unit.estimate(mean.value, mean.interval),
                        block.unit.score(mean.value),
                        block.unit.between(mean.interval),
                    ),
                    against: claim["difference"],
                    "verdict": claim.get("verdict", ""),
                    **({"best rate": _best_rate(entrant)} if block.tuned else {}),
                    "parameters": parameters_of(entrant.cells),
                }
            )
    scale = first.unit.named(f"{first.evaluated.capitalize()} {first.metric}")
    notes = [
        f"{scale}, the {score_name(first)}, as a mean over {settings_counted(first)}, with its 95% interval. "
        f"Differences are in {first.unit.points}, each of a method from itself, with simultaneous 95% "
        "intervals over all of them."
    ]
    if first.tuned:
        notes.append(BEST_RATE)
    return Table("Scores by budget", lines, notes, ("method", "budget", "verdict"))


def lost_table(results: Results) -> Table:
    """The table of trials that have not finished, such as failed and missing trials."""
    settings = {cell.setting for cell in results.all_cells}
    lines = [
        {
            "method": seed.method,
            "task": setting_name(settings, results.all_cells[seed.cell].setting),
            "budget": seed.budget,
            "seed": str(seed.seed),
            "state": Entry(seed.failure or seed.status.lower(), style="warn"),
            "message": Entry(cut(seed.message, 200), style="message"),
            "run": Entry(seed.run_id or NOTHING, style="code"),
        }
        for seed in distinct(results.all_seeds)
        if not seed.finished
    ]
    texts = ("method", "task", "budget", "state", "message", "run")
    return Table("Failed and missing trials", lines, (), texts)


def trials_table(analysis: Analysis) -> Table:
    """The table of all planned trials. A trial that belongs to two rows occurs once."""
    results = analysis.results
    links = {each.name: each.source.link for each in results.experiments}
    settings = {cell.setting for cell in results.all_cells}
    lines = []
    for seed in distinct(results.all_seeds):
        link = links[seed.experiment]
        cell, studies = results.all_cells[seed.cell], analysis.studies.get(seed.cell)
        number = seed.seed if seed.study is None else seed.study
        failed = analysis.failed(seed)
        outcome = seed.failure or seed.status.lower()
        if failed:
            outcome = f"failed: {seed.failure}" if seed.failure else "failed"
        if studies is None or number not in studies.numbers:
            outcome += ", left out"
        line = {"method": seed.method, "task": setting_name(settings, cell.setting), "budget": seed.budget}
        if seed.study is not None:
            line |= {"study": f"{seed.study}", "point": f"{seed.point}", "rate": f"{seed.lr:.3g}"}
        loss = seed.validation_loss
        lines.append(
            line
            | {
                "seed": str(seed.seed),
                "validation loss": NOTHING if loss is None else minus(f"{loss:.4f}"),
                "score": unit_of(cell.metric, cell.unit).score(seed.score),
                "outcome": Entry(outcome, style="sure warn" * failed),
                "trial": Entry(seed.trial_id, style="code", anchor=f"{ANCHOR}{seed.trial_id}"),
                "run": Entry(
                    seed.run_id,
                    style="code",
                    link=f"{link}{seed.record.run_id}" if link and seed.run_id else "",
                ),
            }
        )
    tuned = any("study" in line for line in lines)
    columns = ["method", "task", "budget", *["study", "point", "rate"] * tuned, "seed", "validation loss"]
    texts = ("method", "task", "budget", "outcome", "trial", "run")
    return Table("All trials", lines, (), texts, [*columns, "score", "outcome", "trial", "run"])


# --- costs ---


#: The costs in the table of costs, by heading. Each has its column of `Cell` and its format.
COSTS: Mapping[str, tuple[str, str]] = {
    "peak MiB": ("peak_mib", ",.0f"),
    "ms/step": ("step_ms", ".1f"),
    "with adapter": ("adapted_forward", ".2f"),
    "merged": ("merged_forward", ".2f"),
    "bytes": ("adapter_bytes", ",.0f"),
    "forgetting, nats": ("forgetting", "+.4f"),
}


def costs_table(analysis: Analysis) -> Table:
    """The table of all cells with their ranks, parameters and budgets, and with the costs that are stored."""
    cells = analysis.results.all_cells
    shown = {head: each for head, each in COSTS.items() if any(cell[each[0]] is not None for cell in cells)}
    lines = []
    for cell in cells:
        unit = unit_of(cell.metric, cell.unit)
        ratio = NOTHING if cell.ratio is None else f"{cell.ratio:.3f}" + MISSED * (cell.within is False)
        peak = f" (peak {cell.peak:,.0f})" if cell.peak else ""
        lines.append(
            {
                "cell": str(cell.number),
                "method": cell.method,
                "task": cell.task,
                "backbone": cell.backbone,
                "budget": cell.budget,
                "ranks": f"left: {cell.left}" if cell.left else cell.ranks or NOTHING,
                "requested": NOTHING if cell.asked is None else f"{cell.asked:,.0f}",
                "parameters": f"{_number(cell.parameters, ',.0f')}{peak}",
                "ratio": ratio,
                "% of LoRA": NOTHING if cell.percent_of_lora is None else f"{cell.percent_of_lora:.2f}",
                "trials": f"{cell.finished}/{cell.seeds}",
                "score": unit.score(_mean(analysis, cell)) + incomplete(cell),
                **{head: _number(cell[column], form) for head, (column, form) in shown.items()},
            }
        )
    missed = sum(cell.within is False for cell in cells)
    audit = f"{missed} rows miss their budget (!)" if missed else "No row misses its budget"
    budgeted = any(cell.within is not None for cell in cells)
    notes = [f"{audit} by more than its tolerance. " * budgeted + "Counts exclude the head."]
    if "ms/step" in shown:
        notes.append("Times of steps rank nothing: other trials may have run at the same time.")
    if "with adapter" in shown:
        notes.append(
            "With adapter and merged: the time of a forward pass relative to the bare backbone. `tensorbench "
            "tools perf` measures times on a silent machine."
        )
    if "forgetting, nats" in shown:
        notes.append("Forgetting: the rise of the mean loss on text that no task trains on, per token.")
    return Table("Budgets and costs", lines, notes, ("method", "task", "backbone", "budget", "ranks"))


def _mean(analysis: Analysis, cell: Cell) -> float | None:
    """A cell's mean over the seeds that did not collapse or, if all did, over all. None with studies."""
    return trained.value if not cell.studies and (trained := analysis.score(cell)) else cell.mean


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


# --- files ---


def markdown(analysis: Analysis, mixtures: Sequence[Mixture] = ()) -> str:
    """The report as Markdown: answers and tables of all blocks, ranks, costs and notes."""
    results = analysis.results
    text = [f"# {markdown_text(results.title)}"]
    text += [markdown_text(each.closing) for each in results.experiments if each.closing]
    text += [f"**{NOT_COMPARABLE}** {markdown_text(str(mixed))}" for mixed in mixtures if mixed.serious]
    first = analysis.faults if analysis.blocks else answers(analysis)
    text += [f"**{markdown_text(sentence)}**" for sentence in first]
    for block in analysis.blocks:
        if len(analysis.blocks) > 1:
            text.append(f"## {markdown_text(heading(block))}")
        text.append(" ".join([f"**{markdown_text(answer(block))}**", *map(markdown_text, remarks(block))]))
        text.append(scores_table(results, block).markdown())
        if block.over_tasks:
            text.append(tasks_table(block).markdown())
    for section in analysis.allocations:
        trends = [trend_note(section, trend) for trend in section.trends]
        text.append(f"## Ranks of {markdown_text(section.method)}")
        text.append(" ".join([f"**{markdown_text(of_allocations(section))}**", *map(markdown_text, trends)]))
        text.append(allocations_table(section).markdown())
    for group in analysis.over_budgets:
        text += ["## Scores by budget", budgets_table(group).markdown()]
    costs = costs_table(analysis)
    text += [f"## {costs.title}", costs.markdown()]
    if notes := [*analysis.notes, *(str(mixture) for mixture in mixtures if not mixture.serious)]:
        text += ["## Notes", "\n".join(f"- {markdown_text(note)}" for note in notes)]
    return "\n\n".join(text) + "\n"


def latex(analysis: Analysis) -> str:
    r"""The tables of methods × tasks and of allocations, as LaTeX for `\input`."""
    every = [scores_table(analysis.results, block) for block in analysis.blocks]
    every += map(allocations_table, analysis.allocations)
    return "\n".join(table.latex() for table in every)


def as_json(analysis: Analysis, mixtures: Sequence[Mixture]) -> str:
    """The contents of the report as JSON. NaN and infinite numbers become null."""
    content = {
        "experiments": [
            {"name": experiment.name, "run_id": experiment.run_id, "closing": experiment.closing}
            for experiment in analysis.results.experiments
        ],
        "thresholds": analysis.thresholds,
        "faults": analysis.faults,
        "notes": analysis.notes,
        "blocks": [
            {
                "block": block.title,
                "metric": block.metric,
                "score": score_name(block),
                "k": block.k,
                "ks": block.ks,
                "reference": block.against,
                "threshold": block.threshold,
                "settings": block.settings,
                "answer": answer(block),
                "left_out": block.left_out,
                "notes": block.notes,
            }
            for block in analysis.blocks
        ],
        "ranks": [
            {
                "block": section.block.title,
                "heuristic": section.method,
                "answer": of_allocations(section),
                "trends": [trend_note(section, trend) for trend in section.trends],
            }
            for section in analysis.allocations
        ],
        "mixtures": list(map(str, mixtures)),
        "tables": {name: table.records() for name, table in tidy_tables(analysis).items()},
    }
    plain = to_jsonable_python(content, inf_nan_mode="null", fallback=lambda value: value.item())
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"
