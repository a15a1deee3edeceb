"""What the search and the allocation share: points of a cell, their trials, and the rows that they write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from tensorbench.methods import UserError
from tensorbench.methods.errors import cut
from tensorbench.methods.validation import MOST_OF_LABEL
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Allocation, Search
from tensorbench.plan.recipe import Setting
from tensorbench.records.record import Record, latest, results
from tensorbench.records.words import OWN_SIZE
from tensorbench.search.chooser import Batch, Choices, Steps
from tensorbench.search.space import Ranks, RankSpace

if TYPE_CHECKING:
    # Imported after the trials, since it takes a second.
    from tensorbench.reports.choice import RankChoice

#: Yields the batches of a cell and receives the records of their trials. Returns the records of all of them.
Tries = Generator[Batch, Sequence[Record], Sequence[Record]]


@dataclass(frozen=True)
class RankPoint:
    """Ranks, with the rates and the scale that are tried together with them."""

    ranks: Ranks
    setting: Setting = field(default_factory=Setting)


class CellPoints:
    """The points that are tried in one cell, always within its budget. The first has the heuristic's ranks.

    With `below`, few parameters are a second objective. Raises UserError as `RankSpace` does.
    """

    #: The name of the suite's section, and the smallest number of ranks of a method that takes part.
    name_of_section: ClassVar[str]
    fewest: ClassVar[int] = 1

    def __init__(self, cell: PlanCell, section: Search | Allocation, *, below: bool = False) -> None:
        self.cell, self.section, self.below = cell, section, below
        method, geometry = cell.method, cell.info.geometry
        assert method.size
        self.budget = cell.target_count or method.count(geometry)
        self.space = RankSpace(method, geometry, self.budget, section.modes, below=below)
        self.heuristic = self.space.affordable(method.size)
        #: The ids of each point's trials, by seed.
        self.trials: dict[RankPoint, dict[int, str]] = {}

    @property
    def name(self) -> str:
        """The method, budget, task and backbone."""
        budget = self.cell.budget.label if self.cell.budget else OWN_SIZE
        return " · ".join((self.cell.shown.method, budget, self.cell.shown.task, self.cell.shown.backbone))

    def tries(self) -> Tries:
        """Tries points. Returns the records of all their trials."""
        raise NotImplementedError

    def add(self, batch: Batch, point: RankPoint) -> None:
        """Adds a point with its trials, one for each seed, to a batch."""
        method, setting = self.cell.method.with_size(point.ranks), self._rates(point.setting)
        trials = [
            self.cell.trial(seed, "validation", method=method, setting=setting, epochs=self.section.epochs)
            for seed in self.section.seeds
        ]
        self.trials[point] = batch.add(self.cell, trials, method=method, note=point.setting.label)

    def batch(self, points: Iterable[RankPoint]) -> Batch:
        """Returns a batch of these points."""
        batch = Batch(self.name)
        for point in points:
            self.add(batch, point)
        return batch

    def _rates(self, setting: Setting) -> Setting:
        """Returns a point's setting. In a suite with studies, a rate that it leaves open is the centre's."""
        if self.cell.suite.tuning is None:
            return setting
        window = self.cell.window()
        rates = window.setting(setting.lr or window.centre)
        return setting.model_copy(update=rates.model_dump(exclude_none=True))

    def mean(self, point: RankPoint, records: Sequence[Record]) -> float | None:
        """Returns the mean result by which points are ranked. None unless every seed has one."""
        ids = self.trials[point].values()
        values = results(latest(records), ids, self.section.by)
        return fmean(values) if len(values) == len(ids) else None

    def choice(self, records: Sequence[Record]) -> RankChoice:
        """Returns the choice among all points."""
        from tensorbench.reports.choice import RankChoice, TriedRanks

        by_id = latest(records)
        tried = [
            TriedRanks(
                label=point.setting.label,
                ranks=point.ranks,
                parameters=self.space.count(point.ranks),
                seeds=len(ids),
                scores=tuple(results(by_id, ids.values(), "score")),
                losses=tuple(results(by_id, ids.values(), "loss")),
            )
            for point, ids in self.trials.items()
        ]
        return RankChoice(
            name=self.name,
            modes=self.space.names,
            budget=self.budget,
            metric=self.cell.definition.metric,
            by=self.section.by,
            tried=tuple(tried),
            small=self.below,
        )

    def choose(self, records: Sequence[Record], choices: Choices, *, alone: bool) -> None:
        """Adds the choice, with the rows of the heuristic's ranks and of the chosen ones.

        Both have the rates and the scale of the choice. `alone` is true if no other cell has a method of the
        same name.
        """
        choice = self.choice(records)
        choices.ranks.append(choice)
        if not choice.chosen:
            choices.missing.append(f"{self.name}: no point has a result of every seed")
            return
        choices.lines += choice.sentences
        points = list(self.trials)
        chosen = [points[place] for place in choice.chosen]
        best = points[choice.ranked[0]]
        rows = choices.methods.setdefault(self.cell.number, [])
        size = "" if alone or not self.cell.budget else f", {self.cell.budget.label}"
        label = self.cell.method_row.label
        rows.append(self._row(RankPoint(self.heuristic, best.setting), label and _ending(label, size)))
        for point in chosen:
            if point.ranks != self.heuristic or point.setting != best.setting:
                parameters = f", {self.space.count(point.ranks):,} parameters" * self.below
                rows.append(self._row(point, _ending(self.cell.shown.method, f" chosen{size}{parameters}")))

    def _row(self, point: RankPoint, label: str | None) -> dict[str, Any]:
        """Returns a row of a suite whose method has a point's ranks, rates and scale."""
        cell, setting = self.cell, point.setting
        method = setting.method(cell.method.with_size(point.ranks))
        fields = type(method).model_fields
        options = {
            key: value
            for key, value in method.model_dump(mode="json").items()
            if getattr(method, key) != fields[key].get_default(call_default_factory=True)
        }
        recipe = cell.recipe.model_dump(mode="json")
        training = {key: recipe[key] for key in sorted(cell.method_row.training)}
        rates = setting.model_dump(exclude={"scale"}, exclude_none=True)
        centre = cell.method_row.centre
        if cell.suite.tuning:
            centre = rates.pop("lr", centre)
        file = cell.method_row.file
        row: dict[str, Any] = {"method": method.name, **({"file": str(file)} if file else {}), **options}
        if cell.budget and not cell.budget.isorank:
            row["budgets"] = [cell.budget.model_dump(mode="json", exclude_unset=True)]
        extra = {"training": training | rates or None, "centre": centre, "label": label}
        return row | {key: value for key, value in extra.items() if value is not None}


def _ending(name: str, end: str) -> str:
    """Returns a label that ends with `end`. If it would be too long, the name before it is cut."""
    return cut(name, MOST_OF_LABEL - len(end)) + end


class RankChooser:
    """The chooser of ranks, for each method and budget of one task on one backbone.

    `kind` is the class of the points that it tries. Raises UserError if no method has as many ranks as it
    takes to choose, and as `kind` does.
    """

    def __init__(self, kind: type[CellPoints], section: Any, cells: Sequence[PlanCell]) -> None:
        self.section = kind.name_of_section
        sized = [cell for cell in cells if len(cell.method.rank_names) >= kind.fewest]
        if not sized:
            labels = ", ".join(dict.fromkeys(cell.method.label for cell in cells))
            few = "a single mode" if any(cell.method.rank_names for cell in cells) else "no rank"
            raise UserError(f"{self.section}: {few} in {labels}, so there is nothing to choose")
        suite, cell = sized[0].suite, sized[0]
        #: The indices of the task and the backbone in the suite.
        self.pair: tuple[int, int] | None = (
            [row.task for row in suite.tasks].index(cell.task.task),
            [spec.pinned(cell.info) for spec in suite.backbones].index(cell.spec),
        )
        self.points = [kind(cell, section) for cell in sized]

    def steps(self) -> Steps:
        """Tries points of one cell after the other, and chooses in each."""
        choices = Choices()
        names = Counter(points.cell.shown.method for points in self.points)
        for points in self.points:
            points.trials.clear()
            records = yield from points.tries()
            points.choose(records, choices, alone=names[points.cell.shown.method] == 1)
        return choices
