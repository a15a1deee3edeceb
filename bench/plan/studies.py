"""The trials of a suite's studies: where in a method's window each rate lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from bench.plan.cells import Cell
from bench.plan.rows import Row
from bench.plan.settings import Setting
from bench.plan.trial import Trial
from bench.suite.choosing import Studies
from bench.wire.plan import StudyPlan, StudyTrial
from methods import UserError

#: The centre of methods whose source states no rate, and of those that train the backbone's own weights.
CENTRE, CENTRE_OF_WEIGHTS = 5e-3, 1e-4

#: The largest learning rate of AdamW that makes sense: a step moves every number by about its rate.
LARGEST_RATE = 1.0

#: Decimals of an offset, and of a rate's mantissa: rates are the same on every machine, and so are ids.
DECIMALS, MANTISSA = 4, 3


@dataclass(frozen=True)
class RateWindow:
    """The learning rates of a cell's studies."""

    centre: float
    decades: float
    #: The head's rate. None where the window is the head's, as nothing else is trained, and without a head.
    head_lr: float | None

    def rate(self, offset: float) -> float:
        """The learning rate this many decades from the centre."""
        return float(f"{self.centre * 10**offset:.{MANTISSA}e}")

    def setting(self, rate: float) -> Setting:
        """The rates of a trial of the cell at this one."""
        return Setting(lr=rate, head_lr=self.head_lr or rate)


def offsets(studies: Studies, study: int, setting: str) -> list[float]:
    """The positions of a study's points, in decades from the centre: the same for all methods of a setting.

    The window is cut into as many equal strata as there are points. One point lies in each, uniformly, and
    the order of strata is shuffled. Each setting (a task on a backbone, by any name that tells it from
    others) has draws of its own, so that means over settings average the luck of the draws too.
    """
    # Of Python's generator only `random` promises the same numbers in every version.
    draw = Random(f"study {study} of {setting}").random
    order = sorted(range(studies.points), key=lambda _: draw())
    width = studies.lr.decades / studies.points
    return [round(width * (stratum + draw()) - studies.lr.decades / 2, DECIMALS) for stratum in order]


def window(cell: Cell) -> RateWindow:
    """The rates of a cell's studies.

    The centre is that of the method's row, else of the suite's window, else the published one. What trains
    the head alone has the head's rate for its centre, and full fine-tuning `CENTRE_OF_WEIGHTS`.

    Raises UserError for a window that reaches beyond what AdamW takes.
    """
    studies, method = cell.suite.studies, cell.method
    assert studies is not None
    head_lr = studies.head_lr if cell.head_follows else cell.recipe.head_lr
    assert head_lr is not None
    adapts = method.count(cell.info.geometry) > 0
    if not adapts:
        default = head_lr
    elif method.trains_weights:
        default = CENTRE_OF_WEIGHTS
    elif studies.lr.around == "published":
        default = method.published_lr or CENTRE
    else:
        default = studies.lr.around
    rates = RateWindow(
        cell.centre or default, studies.lr.decades, head_lr if adapts and cell.has_head else None
    )
    lowest, highest = (rates.rate(side * studies.lr.decades / 2) for side in (-1, 1))
    if lowest <= cell.recipe.lr_floor or highest > LARGEST_RATE:
        raise UserError(
            f"tuning.lr: the rates of {method.label} on task '{cell.task.task}' would be {lowest:g} to "
            f"{highest:g}; accepted are those above lr_floor {cell.recipe.lr_floor:g} and up to "
            f"{LARGEST_RATE:g}: give another centre, or fewer decades"
        )
    return rates


def study_row(cell: Cell) -> tuple[Row, Iterator[tuple[int, int, Trial]]]:
    """The row of a cell's studies, and its trials, each with its study and point.

    A fitted head has no rate and comes out the same for every seed, so that it is a single trial.
    """
    studies = cell.suite.studies
    assert studies is not None
    if cell.method.fits_head:
        trial = cell.trial(studies.seed(0, 0), cell.suite.evaluate)
        return cell.row({trial.seed: trial.id}), iter([(0, 0, trial)])
    rates, setting = window(cell), f"{cell.task.task} on {cell.info.weights_hash}"
    planned: dict[int, StudyTrial] = {}
    trials: dict[int, Trial] = {}
    for study in range(studies.studies):
        for point, offset in enumerate(offsets(studies, study, setting)):
            seed, lr = studies.seed(study, point), rates.rate(offset)
            trials[seed] = cell.trial(seed, cell.suite.evaluate, setting=rates.setting(lr))
            planned[seed] = StudyTrial(study=study, point=point, offset=offset, lr=lr)
    plan = StudyPlan(
        studies=studies.studies,
        points=studies.points,
        ks=studies.ks,
        centre=rates.centre,
        decades=rates.decades,
        head_lr=rates.head_lr,
        trials=planned,
    )
    row = cell.row({seed: trial.id for seed, trial in trials.items()}, studies=plan)
    return row, ((*studies.place(seed), trial) for seed, trial in trials.items())
