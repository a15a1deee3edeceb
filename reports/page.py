"""The page: one HTML file that asks nothing of any server, with its figures, styles and script inside."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench.store.connect import shown_uri
from bench.wire.words import Measure, Tag
from reports import mixtures
from reports.ablation import Ablation
from reports.analysis import Analysis, pareto
from reports.drawing import SERIES, Drawn, Looks
from reports.mixtures import Mixture
from reports.reading import Frame, Study
from reports.tables import INCOMPLETE, main_tables

#: Lines of the lists that could be as long as the study; the CSV files hold all.
MOST_LINES = 300


def render(
    analysis: Analysis,
    drawn: Sequence[Drawn],
    ablations: Sequence[Ablation],
    of_ablations: Sequence[Sequence[Drawn]],
    found: Sequence[Mixture],
) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "count": _count,
        "number": _number,
        "p": _p,
    }
    study = analysis.study
    cells = study.cells
    figures = {figure.name: figure for figure in drawn}
    looks = Looks(cells["family"])
    return environment.get_template("page.html").render(
        data=Markup(_embedded(_seed_data(study))),
        title=study.title,
        analysis=analysis,
        study=study,
        rows=_rows(analysis, looks),
        choices={name: list(cells[name].unique()) for name in ("task", "backbone", "budget", "family")},
        facts=_facts(study),
        measured=_measured(cells),
        tables=main_tables(cells),
        incomplete=INCOMPLETE,
        figures=figures,
        inline=lambda figure: Markup(figure.inline()),
        costs=[figures[name] for name in figures if name.startswith("score-vs-")],
        ablations=list(zip(ablations, of_ablations, strict=True)),
        mixtures=found,
        budgets=_budgets(cells),
        lost=_lost(study),
        most=MOST_LINES,
        tuning=_tuning(study),
        sources=[
            {"name": s.name, "run_id": s.run_id, "store": shown_uri(s.uri), "closing": s.closing}
            for s in study.sources
        ],
        provenance=_provenance(study),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _rows(analysis: Analysis, looks: Looks) -> list[dict[str, Any]]:
    """The leaderboard's rows: settings in the plan's order, the best first."""
    cells, front = analysis.study.cells, set(pareto(analysis.study.cells, "parameters"))
    scales = {
        setting: _scale(analysis.study, group)
        for setting, group in cells.groupby(["task", "backbone"], sort=False)
    }
    places = {setting: place for place, setting in enumerate(scales)}
    rows = []
    for cell, line in cells.iterrows():
        low, high = scales[line["task"], line["backbone"]]
        at = _position(low, high)
        row = line.to_dict() | {
            "cell": cell,
            "colour": looks.families.index(line["family"]) % len(SERIES),
            "pareto": cell in front,
            "at": None if pd.isna(line["mean"]) else at(line["mean"]),
            "from": None if pd.isna(line["low"]) else at(line["low"]),
            "to": None if pd.isna(line["high"]) else at(line["high"]),
            "scale": (low, high),
            "place": places[line["task"], line["backbone"]],
        }
        rows.append({key: None if _absent(value) else value for key, value in row.items()})
    return sorted(rows, key=lambda row: (row["place"], -(row["mean"] if row["mean"] is not None else -9)))


def _absent(value: Any) -> bool:
    return isinstance(value, float) and pd.isna(value)


def _scale(study: Study, cells: Frame) -> tuple[float, float]:
    """The range of a setting's strip: every seed is on it."""
    scores = study.seeds.loc[study.seeds["cell"].isin(cells.index), "score"].dropna()
    if not len(scores):
        return 0.0, 1.0
    pad = max(0.08 * (scores.max() - scores.min()), 0.002)
    return float(scores.min() - pad), float(scores.max() + pad)


def _position(low: float, high: float) -> Any:
    return lambda value: round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def _seed_data(study: Study) -> dict[str, Any]:
    """What the script draws dots and lists runs from: by cell, seeds in order."""
    links = {s.name: _link(s.uri, s.store.experiment_id) for s in study.sources}
    data: dict[str, list[list[Any]]] = {}
    columns = ["cell", "seed", "score", "validation", "status", "run_id", "trial_id", "failure"]
    for cell, seed, score, validation, *rest in study.seeds[columns].itertuples(index=False):
        values = [None if pd.isna(value) else round(value, 6) for value in (score, validation)]
        data.setdefault(str(cell), []).append([seed, *values, *rest])
    experiments = dict(zip(map(str, study.cells.index), study.cells["experiment"], strict=True))
    return {"seeds": data, "links": links, "experiments": experiments}


def _link(uri: str, experiment_id: str) -> str | None:
    """Where MLflow's interface shows the runs of an experiment; None where the store is no server."""
    return (
        f"{shown_uri(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/"
        if uri.startswith("http")
        else None
    )


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _measured(cells: Frame) -> str:
    """What the scores are: split and metric, or those that there are."""
    known = cells[cells["metric"] != ""]
    names = dict.fromkeys(f"{e} {m}" for e, m in zip(known["evaluated"], known["metric"], strict=True))
    return ", ".join(names).capitalize()


def _facts(study: Study) -> dict[str, Any]:
    # A trial of two rows counts once; those that wait for their tuning have no id yet.
    seeds = study.seeds[(study.seeds["trial_id"] == "") | ~study.seeds.duplicated("trial_id")]
    states = seeds["status"].value_counts()
    return {
        "trials": int(states.sum()),
        "finished": int(states.get("FINISHED", 0)),
        "failed": int(states.get("FAILED", 0)),
        "missing": int(states.sum() - states.get("FINISHED", 0) - states.get("FAILED", 0)),
        "methods": int(study.cells["method"].nunique()),
        "tasks": int(study.cells["task"].nunique()),
        "backbones": int(study.cells["backbone"].nunique()),
        "seeds": int(study.cells["seeds"].max()),
        "hours": float(seeds.loc[seeds["status"] == "FINISHED", "seconds"].sum() / 3600),
    }


def _budgets(cells: Frame) -> list[dict[str, Any]]:
    """One line a method, backbone and budget, those beyond their tolerance first."""
    columns = [
        "budget",
        "backbone",
        "method",
        "ranks",
        "parameters",
        "asked",
        "ratio",
        "within",
        "percent_of_lora",
    ]
    unique = cells[columns].drop_duplicates()
    lines = [
        {str(key): None if _absent(value) else value for key, value in line.items()}
        for line in unique.to_dict("records")
    ]
    return sorted(lines, key=lambda line: line["within"] is not False)


def _lost(study: Study) -> list[dict[str, Any]]:
    lost = study.seeds[study.seeds["status"] != "FINISHED"]
    return [
        study.cells.loc[line["cell"], ["method", "task", "backbone", "budget"]].to_dict() | line
        for line in lost.to_dict("records")
    ]


def _tuning(study: Study) -> dict[str, Any]:
    """What was spent on choosing: trials and hours by phase, and what was chosen for each row."""
    phases: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for source in study.sources:
        for record in source.records.values():
            phase = record.tag(Tag.PHASE, "final")
            if phase != "final":
                phases[phase] += 1
                seconds[phase] += record.measure(Measure.SECONDS) or 0.0
    rows = study.cells[study.cells["tuning"].notna()]
    return {
        "phases": [(phase, trials, seconds[phase] / 3600) for phase, trials in phases.items()],
        "rows": rows.to_dict("records"),
    }


def _provenance(study: Study) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each kind of provenance with its values and how many trials have them."""
    counts: dict[str, Counter[str]] = {}
    for tags in mixtures.provenance(study):
        for key, value in tags.items():
            counts.setdefault(key.replace("version_", ""), Counter())[value or "none"] += 1
    return [(key, values.most_common()) for key, values in counts.items()]


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f}"


def _points(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{100 * value:+.2f}".replace("-", "−")


def _count(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:,.0f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 1 else "1"
