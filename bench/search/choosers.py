"""Makes the choosers of a suite."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from tensorbench.plan.cells import PlanCell
from tensorbench.plan.suite import Suite
from tensorbench.search.allocation import CellAllocation
from tensorbench.search.chooser import Chooser
from tensorbench.search.pilot import PilotChooser
from tensorbench.search.rank_search import CellSearch
from tensorbench.search.ranks import RankChooser


def choosers_of(suite: Suite, cells: Iterable[PlanCell]) -> dict[str, Chooser]:
    """Makes the choosers of a suite with a section `search`, `allocation` or `pilot`.

    Ranks are chosen for each task on each backbone, by a chooser that writes a suite of its own. The keys are
    the names of task and backbone, or empty if there is a single chooser. A pilot comes before a search or an
    allocation, which the suite that it writes still has. Raises UserError for a section that does not fit the
    cells.
    """
    cells = list(cells)
    if suite.pilot is not None:
        return {"": PilotChooser(suite.pilot, cells)}
    kind, section = (CellSearch, suite.search) if suite.search else (CellAllocation, suite.allocation)
    pairs: dict[str, Chooser] = {
        f"{task}_{backbone}": RankChooser(kind, section, list(of_pair))
        for (task, backbone), of_pair in groupby(cells, lambda cell: (cell.task.task, cell.info.name))
    }
    return pairs if len(pairs) > 1 else dict.fromkeys([""], *pairs.values())
