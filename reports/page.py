"""The page: one HTML file that asks nothing of any server, with its figures, styles and script inside."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from bench.process.visible import visible
from bench.store.connect import shown_uri
from bench.wire.words import Measure, Status, Tag
from reports import mixtures
from reports.ablation import StoredAblation
from reports.analysis import Analysis
from reports.drawing import SERIES, Drawn, Looks
from reports.figures.cost import COSTS, PARAMETERS
from reports.mixtures import Mixture
from reports.pareto import pareto
from reports.rendering import environment
from reports.study import Cell, Study, grouped
from reports.tables import INCOMPLETE, main_tables
from reports.units import unit_of
from reports.words import listed

#: Lines of the lists that could be as long as the study; the CSV files hold all.
MOST_LINES = 300


def render(
    analysis: Analysis,
    drawn: Sequence[Drawn],
    ablations: Sequence[StoredAblation],
    of_ablations: Sequence[Sequence[Drawn]],
    found: Sequence[Mixture],
) -> str:
    """The page as text."""
    made = environment(autoescape=True)
    made.filters |= {
        "percent": _percent,
        "unit": unit_of,
        "minus": lambda text: text.replace("-", "−"),
        "count": _count,
        "number": _number,
        "p": _p,
        "shown_uri": shown_uri,
    }
    study = analysis.study
    cells = study.all_cells
    figures = {figure.name: figure for figure in drawn}
    text = made.get_template("page.html").render(
        data=Markup(_embedded(_seed_data(study))),
        title=study.title,
        analysis=analysis,
        study=study,
        rows=_board(analysis),
        choices={
            name: list(dict.fromkeys(getattr(cell, name) for cell in cells))
            for name in ("task", "backbone", "budget", "family")
        },
        facts=_facts(study),
        measured=_measured(cells),
        score_heading="Score, %" if all(unit_of(cell.metric).mark for cell in cells) else "Score",
        tables=main_tables(cells),
        incomplete=INCOMPLETE,
        figures=figures,
        inline=lambda figure: Markup(figure.inline()),
        costs=[figure for cost in COSTS for figure in drawn if figure.name.startswith(f"{cost.name}-")],
        curves=[figure for figure in drawn if figure.name.startswith("training-curves-")],
        plotly=Markup(_plotly()) if any(figure.plot for figure in drawn) else "",
        embedded=lambda plot: Markup(_embedded(vars(plot))),
        ablations=list(zip(ablations, of_ablations, strict=True)),
        mixtures=found,
        budgets=_budgets(cells),
        lost=[(cells[seed.cell], seed) for seed in study.all_seeds if not seed.finished],
        most=MOST_LINES,
        phases=_phases(study),
        tuned=[cell for cell in cells if cell.tuning],
        provenance=_provenance(study),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return visible(text)


@dataclass(frozen=True)
class Strip:
    """Where a mean and its interval lie on the strip of their setting, in percent of its width."""

    at: float
    start: float | None
    end: float | None


@dataclass(frozen=True)
class BoardRow:
    """A row of the leaderboard."""

    cell: Cell
    #: The number of its colour.
    colour: int
    #: Whether it is on the front of score and parameters.
    pareto: bool
    #: None where no seed has finished.
    strip: Strip | None


def _board(analysis: Analysis) -> list[BoardRow]:
    """The leaderboard: settings in the plan's order, the best first."""
    study = analysis.study
    looks = Looks(cell.family for cell in study.all_cells)
    front = {cell.number for cell in pareto(analysis.evidence, study.all_cells, PARAMETERS.of)}
    rows = []
    for cells in grouped(study.all_cells, lambda cell: cell.setting).values():
        low, high = _scale(study, cells)
        for cell in sorted(
            cells, key=lambda cell: -math.inf if cell.gain is None else cell.gain, reverse=True
        ):
            colour = looks.families.index(cell.family) % len(SERIES)
            rows.append(BoardRow(cell, colour, cell.number in front, _strip(cell, low, high)))
    return rows


def _scale(study: Study, cells: Sequence[Cell]) -> tuple[float, float]:
    """The range of a setting's strip: every seed is on it."""
    scores = [seed.score for cell in cells for seed in study.finished(cell.number) if seed.score is not None]
    if not scores:
        return 0.0, 1.0
    pad = max(0.08 * (max(scores) - min(scores)), 0.002)
    return min(scores) - pad, max(scores) + pad


def _strip(cell: Cell, low: float, high: float) -> Strip | None:
    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    if cell.mean is None:
        return None
    if cell.low is None or cell.high is None:
        return Strip(place(cell.mean), None, None)
    return Strip(place(cell.mean), place(cell.low), place(cell.high))


def _seed_data(study: Study) -> dict[str, Any]:
    """What the script draws dots and lists runs from: by cell, seeds in order."""
    return {
        "seeds": {
            str(cell): [
                [
                    seed.seed,
                    None if seed.score is None else round(seed.score, 6),
                    None if seed.validation is None else round(seed.validation, 6),
                    seed.status,
                    seed.run_id,
                    seed.trial_id,
                    visible(seed.failure),
                ]
                for seed in seeds
            ]
            for cell, seeds in grouped(study.all_seeds, lambda seed: seed.cell).items()
        },
        "links": {visible(each.name): each.source.link for each in study.experiments},
        "moved": {
            record.origin: record.run_id
            for each in study.experiments
            for record in each.records.values()
            if record.origin != record.run_id
        },
        # Scores that are in no percent.
        "plain": [cell.number for cell in study.all_cells if not unit_of(cell.metric).mark],
        "experiments": {str(cell.number): visible(cell.experiment) for cell in study.all_cells},
    }


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plotly() -> str:
    """The script that draws figures; `vendor/README.md` says where it is from."""
    return (files("reports") / "vendor" / "plotly-basic.min.js").read_text(encoding="utf-8")


def _measured(cells: Sequence[Cell]) -> str:
    """What the scores are: split and metric, or those that there are."""
    units = {f"{cell.evaluated} {cell.metric}": unit_of(cell.metric).mark for cell in cells if cell.metric}
    percent, plain = (
        listed(name for name in units if bool(units[name]) is marked) for marked in (True, False)
    )
    told = [f"{percent} in percent"] if percent or not plain else []
    told += [f"{plain} in units of the targets"] if plain else []
    return "; ".join(told).strip().capitalize()


@dataclass(frozen=True)
class Facts:
    """The numbers at the top of the page."""

    trials: int
    finished: int
    failed: int
    methods: int
    tasks: int
    backbones: int
    #: Of the cell that has most.
    seeds: int
    hours: float

    @property
    def missing(self) -> int:
        return self.trials - self.finished - self.failed


def _facts(study: Study) -> Facts:
    cells = study.all_cells
    # A trial of two cells counts once; those that wait for their tuning have no id yet.
    trials = {seed.trial_id or (seed.cell, seed.seed): seed for seed in reversed(study.all_seeds)}.values()
    return Facts(
        trials=len(trials),
        finished=sum(seed.finished for seed in trials),
        failed=sum(seed.status == Status.FAILED for seed in trials),
        methods=len({cell.method for cell in cells}),
        tasks=len({cell.task for cell in cells}),
        backbones=len({cell.backbone for cell in cells}),
        seeds=max(cell.seeds for cell in cells),
        hours=sum(seed.seconds or 0.0 for seed in trials if seed.finished) / 3600,
    )


class Size(NamedTuple):
    """A line of the budget audit."""

    method: str
    backbone: str
    budget: str
    ranks: str
    asked: float | None
    parameters: int
    peak: int | None
    ratio: float | None
    within: bool | None
    percent_of_lora: float


def _budgets(cells: Sequence[Cell]) -> list[Size]:
    """One line a method, backbone and budget, those beyond their tolerance first."""
    every = dict.fromkeys(Size(*(getattr(cell, name) for name in Size._fields)) for cell in cells)
    return sorted(every, key=lambda size: size.within is not False)


@dataclass(frozen=True)
class Phase:
    """What was spent on choosing."""

    name: str
    trials: int
    hours: float


def _phases(study: Study) -> list[Phase]:
    """What tuning, searches and allocations have spent."""
    records = [record for experiment in study.experiments for record in experiment.records.values()]
    by_phase = grouped(records, lambda record: record.tag(Tag.PHASE, "final"))
    return [
        Phase(name, len(some), sum(record.measure(Measure.SECONDS) or 0.0 for record in some) / 3600)
        for name, some in by_phase.items()
        if name != "final"
    ]


def _provenance(study: Study) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each kind of provenance with its values and how many trials have them."""
    counts: dict[str, Counter[str]] = {}
    for tags in mixtures.provenance(study):
        for key, value in tags.items():
            counts.setdefault(key.replace("version_", ""), Counter())[value or "none"] += 1
    return [(key, values.most_common()) for key, values in counts.items()]


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 1 else "1"
