"""Writes the answers in findings.md from the packs of results/: `python docs/findings.py`.

A question is answered once all of its rows are there. Until then it says what is missing, and what is seen
on the tasks that are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from answers import Answer, of_pairs, of_ranks
from cautions import cautions
from forest import Axis, Forest, Row
from marked import replaced
from packed import Packed, Progress, number, plain, progress, table
from questions import BUDGET, COMPARED, DECODER, RANKS, ROWS, TUNED, TWO_TASKS, UNTUNED
from scipy import stats

from reports.analysis import analyse
from reports.findings import findings
from reports.inference.crossed import of_seeds
from reports.inference.effects import Effect, effect
from reports.inference.intervals import Array, simultaneous
from reports.part import Part
from reports.ranking import MOST_PAIRED
from reports.study import REFERENCE, Cell, Study
from reports.words import listed

DOCS = Path(__file__).parent
PAGE = DOCS / "findings.md"
RESULTS = DOCS.parent / "results"


def answers(results: Path = RESULTS) -> dict[str, Answer]:
    """What is found of each question."""
    tuned = Packed(TUNED, results)
    found = {question.letter: of_pairs(tuned, question) for question in COMPARED}
    return found | {
        "f": of_ranks(Packed(RANKS, results)),
        "g": of_tuning(tuned, Packed(UNTUNED, results)),
        "h": of_forgetting(Packed(DECODER, results)),
    }


def of_tuning(tuned: Packed, untuned: Packed) -> Answer:
    """Question g: the two rankings of the same rows."""
    sides = {"tuned": tuned, "untuned": untuned}
    done = [progress(side, ROWS, BUDGET, TWO_TASKS) for side in sides.values()]
    missing = {
        task: [
            f"{name} {label}" for label, one in zip(sides, done, strict=True) for name in one.missing[task]
        ]
        for task in TWO_TASKS
    }
    both = Progress(sum(one.trials for one in done), sum(one.planned for one in done), 2 * len(ROWS), missing)
    if not both.there:
        return Answer(both.state, both.told)
    ranked = {f"on {task}": [task] for task in both.there}
    if len(ranked) > 1:
        ranked = {"by the mean over both tasks": both.there} | ranked
    lines = [
        f"- Kendall's correlation of the two rankings of {len(ROWS)} rows, {how}: "
        f"**{number(_kendall(tuned, untuned, tasks))}**."
        for how, tasks in ranked.items()
    ]
    lines += [f"- {label.capitalize()}: {_best(side, both.there)}" for label, side in sides.items()]
    commands = "\n".join(
        f"tensorbench report {side.files} --out {label} --budget '{BUDGET}' --task {','.join(both.there)}"
        for label, side in sides.items()
    )
    shown = "\n".join(
        f"- {label.capitalize()}: {cautions(side, side.rows(ROWS, BUDGET, both.there))}"
        for label, side in sides.items()
    )
    figure = Forest("g", list(_gained(tuned, untuned, both.there)))
    told = [both.told, "\n".join(lines), figure.shown, shown, f"```\n{commands}\n```"]
    return Answer(both.state, "\n\n".join(told), figure)


def _gained(tuned: Packed, untuned: Packed, tasks: Sequence[str]) -> Iterator[Row]:
    """What tuning gave each row, from the most on, seed by seed. Intervals hold at once."""
    found = [(name, _differences(tuned, untuned, name, tasks)) for name in ROWS]
    whole = [
        (name, on, effect(list(map(of_seeds, on.values())))) for name, on in found if len(on) == len(tasks)
    ]
    level = simultaneous(len(whole))
    for name, on, gain in sorted(whole, key=lambda one: -one[2].difference):
        by_task = {task: float(differences.mean()) for task, differences in on.items()}
        yield Row(name, "untuned", gain.difference, gain.interval(level), by_task)


def _differences(tuned: Packed, untuned: Packed, name: str, tasks: Sequence[str]) -> dict[str, Array]:
    """By task; those are left out on which the two sides share no seed."""
    found = {}
    for task in tasks:
        own, other = (side.gains(side.cells(task, BUDGET)[name]) for side in (tuned, untuned))
        if both := sorted(own.keys() & other.keys()):
            found[task] = np.array([own[seed] - other[seed] for seed in both])
    return found


def _kendall(tuned: Packed, untuned: Packed, tasks: Sequence[str]) -> float:
    means = []
    for side in (tuned, untuned):
        cells = [side.cells(task, BUDGET) for task in tasks]
        # What diverged on every seed has no mean, and is the last.
        means.append([np.mean([of[name].mean or 0.0 for of in cells]) for name in ROWS])
    return float(stats.kendalltau(*means).statistic)


def _best(side: Packed, tasks: Sequence[str]) -> str:
    study = side.part(Part(tasks=tasks, budgets=[BUDGET]))
    found = next(findings(study, analyse(study).blocks))
    if found.best is None or found.equals is None:
        return "nothing tells methods apart."
    others = listed(map(plain, found.equals)) or "none"
    return (
        f"**{plain(found.best)}** has the best mean at LoRA's budget. Not told apart from it, of the "
        f"{MOST_PAIRED} best by mean rank: {others}."
    )


def of_forgetting(packed: Packed) -> Answer:
    """Question h, but for the cost at inference."""
    study = packed.study
    cells = [cell for cell in study.all_cells if cell.forgetting is not None] if study else []
    if study is None or not cells:
        return Answer("not run yet", "**Not run yet.**")
    cells.sort(key=lambda cell: cell.forgetting or 0.0)
    ended, planned = (sum(getattr(cell, name) for cell in cells) for name in ("finished", "seeds"))
    state = "forgetting: all there" if ended == planned else f"so far: {ended:,} of {planned:,} trials"
    head = ["method", "parameters", "accuracy", "forgetting", "more than LoRA", "interval", "verdict"]
    told = (
        f"{ended:,} of {planned:,} trials, of {listed(dict.fromkeys(cell.setting for cell in cells))}. "
        "Forgetting is the rise of the loss of a token on text that no task trains on, in nats, the mean "
        "over seeds. Intervals are over seeds, and hold at once with 95%."
    )
    more = _compared(study, cells)
    figure = Forest("h", list(more.values()), Axis("difference in forgetting, in nats a token", _nats))
    lines = [_forgotten(packed, cell, more.get(cell.number)) for cell in cells]
    command = f"```\ntensorbench report {packed.files} --out h\n```"
    shown = [told, table(head, lines), figure.shown, cautions(packed, cells), command]
    return Answer(state, "\n\n".join(shown), figure)


def _compared(study: Study, cells: Sequence[Cell]) -> dict[int, Row]:
    """By the numbers of the cells, LoRA's left out."""
    found = [(cell, more) for cell in cells if (more := _more(study, cell, cells))]
    level = simultaneous(len(found))
    return {
        cell.number: Row(cell.method, "LoRA", more.difference, more.interval(level)) for cell, more in found
    }


def _forgotten(packed: Packed, cell: Cell, more: Row | None) -> list[str]:
    told = ["reference" if cell.family == REFERENCE else "–", "", ""]
    if more is not None:
        low, high = more.interval or (-np.inf, np.inf)
        shown = "none" if more.interval is None else f"{_nats(low)} to {_nats(high)}"
        told = [_nats(more.difference), shown, "more" if low > 0 else "less" if high < 0 else "undecided"]
    value = packed.link(_nats(cell.forgetting or 0.0), cell)
    accuracy = "–" if cell.mean is None else number(100 * cell.mean)
    return [cell.method, f"{cell.parameters:,}", accuracy, value, *told]


def _more(study: Study, cell: Cell, cells: Sequence[Cell]) -> Effect | None:
    """By how much a row forgets more than LoRA on its setting, seed by seed; None of LoRA itself."""
    lora = next((one for one in cells if one.family == REFERENCE and one.setting == cell.setting), None)
    if lora is None or lora is cell:
        return None
    own, other = (
        {seed.seed: seed.forgetting for seed in study.finished(one.number) if seed.forgetting is not None}
        for one in (cell, lora)
    )
    both = sorted(own.keys() & other.keys())
    return effect([of_seeds(np.array([own[seed] - other[seed] for seed in both]))]) if both else None


def _nats(value: float) -> str:
    return f"{round(value, 9):+.3f}".replace("-", "−")


def rewritten(text: str, found: Mapping[str, Answer]) -> str:
    """The page with these answers."""
    states = table(["question", "state"], [[letter, answer.state] for letter, answer in found.items()])
    for name, content in {"states": states, **{letter: one.told for letter, one in found.items()}}.items():
        begin, end = f"<!-- {name}: docs/findings.py -->\n", f"<!-- end of {name} -->"
        text = replaced(text, begin, end, f"\n{content}\n\n")
    return text


if __name__ == "__main__":
    found = answers()
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    for answer in found.values():
        if answer.figure:
            answer.figure.path.write_text(answer.figure.svg(), encoding="utf-8")
