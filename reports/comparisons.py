"""Compares the methods of a block with its reference: their differences, with intervals and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tensorbench.records.metrics import bounds, direction
from tensorbench.reports.blocks import Block, Comparison, Entrant, Level, Transfer
from tensorbench.reports.comparable import Reference
from tensorbench.reports.complete import Material
from tensorbench.reports.inference import rates as of_rates
from tensorbench.reports.inference import studies as estimates
from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.effects import effect, verdict
from tensorbench.reports.inference.failures import Failures
from tensorbench.reports.inference.intervals import LEAST_SEEDS, simultaneous
from tensorbench.reports.inference.moderation import moderated
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.recipes import difference
from tensorbench.reports.results import CONVERGED, NO_ADAPTERS, Cell, Results, TaskAndBackbone, grouped
from tensorbench.reports.units import listed, many


def on_setting(results: Results, number: int, part: OnSetting) -> OnSetting:
    """Adds to a score or difference the typical size of scores on a cell's task, and its metric's range."""
    low, high = bounds(results.metrics[number])
    return replace(part, size=results.size(number), limit=high - low)


def failures_of(material: Material, numbers: Iterable[int], reference: Reference | None) -> Failures:
    """Estimates the probability of failures from the reference and the cells with these numbers."""
    every = dict.fromkeys([*numbers, *(reference.cells if reference else ())])
    return estimates.pooled_failures([material.studies[number] for number in every])


def moderated_on_settings(
    results: Results, parts: Mapping[int, OnSetting], collapsed: Collection[int]
) -> dict[int, OnSetting]:
    """Moderates the variances of scores or differences over the methods of each setting.

    `parts` and the result are by the number of the method's cell. Cells in `collapsed` do not enter the mean
    variance and are not moderated.
    """
    differences = {n: on_setting(results, n, part) for n, part in parts.items()}
    for numbers in grouped(differences, lambda number: results.all_cells[number].setting).values():
        sound = [number for number in numbers if number not in collapsed]
        differences |= zip(sound, moderated([differences[number] for number in sound]), strict=True)
    return differences


def compared(material: Material, block: Block) -> Block:
    """Adds to the block the comparisons with the reference, the levels and the sources of variance."""
    results, complete = material.results, material.studies
    own = block.reference.cells if block.reference else ()
    on = dict(zip(block.settings, own, strict=True)) if own else {}
    sides = {
        entrant.method: [complete[on[setting]] for setting in entrant.settings]
        for entrant in block.methods
        if on and entrant.cells != tuple(on[setting] for setting in entrant.settings)
    }
    shared = [
        entrant
        for entrant in block.methods
        if entrant.method in sides and _pairs(entrant, sides[entrant.method])
    ]
    notes = [
        f"{method} shares no finished seed with {block.against} on some setting: differences are taken seed "
        "by seed, so there is no comparison."
        for method in sides
        if not block.tuned and method not in {entrant.method for entrant in shared}
    ]
    # Tuned methods count even before they share a study with the reference.
    claims = len(sides) if block.tuned else len(shared)

    pairs = {
        number: estimates.paired(own, other)
        for entrant in shared
        for number, own, other in zip(entrant.cells, entrant.studies, sides[entrant.method], strict=True)
    }
    numbers = [number for entrant in block.methods for number in entrant.cells]
    failures = failures_of(material, numbers, block.reference)
    fell = {
        number
        for number in pairs
        if {number, on[results.all_cells[number].setting]} & material.collapses.keys()
    }
    differences = {
        k: moderated_on_settings(
            results,
            {n: estimates.of_pair(*pair, k, failures) for n, pair in pairs.items() if pair[0].most >= k},
            fell,
        )
        for k in block.ks
    }

    def finished(entrant: Entrant) -> Entrant:
        if entrant in shared:
            cells = [on[setting] for setting in entrant.settings]
            entrant = _against(block, entrant, sides[entrant.method], differences, claims)
            entrant = replace(entrant, lost=_lost(results, entrant, cells))
        return _transferred(results, block, entrant, len(block.entrants))

    entrants = [finished(entrant) for entrant in block.entrants]
    sign = direction(block.metric)
    entrants.sort(key=lambda entrant: (entrant.cells != own, -sign * entrant.means[block.k].value))
    of_settings = [[entrant.studies[place] for entrant in entrants] for place in range(len(block.settings))]
    block = replace(
        block,
        entrants=tuple(entrants),
        part=tuple(map(finished, block.part)),
        sources=tuple(of_rates.sources(studies, block.k) for studies in of_settings),
        notes=(*block.notes, *notes, *_limits(block, entrants)),
    )
    return replace(block, levels=tuple(_levels(material, block)))


def _pairs(entrant: Entrant, reference: Sequence[CompleteStudies]) -> bool:
    """Whether a method shares a study with the reference on each of its settings."""
    return all(
        {*own.numbers} & {*other.numbers} for own, other in zip(entrant.studies, reference, strict=True)
    )


def _lost(results: Results, entrant: Entrant, reference: Sequence[int]) -> int:
    """The number of planned pairs of seeds that have not finished.

    0 with tuning, since notes name the incomplete studies.
    """
    if entrant.sensitivity is not None:
        return 0
    planned = finished = 0
    for pair in zip(entrant.cells, reference, strict=True):
        both = [{seed.seed: seed.finished for seed in results.of_cell(number)} for number in pair]
        common = both[0].keys() & both[1].keys()
        planned += len(common)
        finished += sum(both[0][seed] and both[1][seed] for seed in common)
    return planned - finished


def _limits(block: Block, entrants: Sequence[Entrant]) -> Iterator[str]:
    """Yields notes on what intervals lack, on seeds without an interval, and on lost pairs of seeds."""
    compared = [(e, e.differences[block.k].effect) for e in entrants if block.k in e.differences]
    if block.tuned:
        parts = [part for _, each in compared for part in zip(block.settings, each.parts, strict=True)]
        if unknown := [setting for setting, part in parts if part.validation is None]:
            yield (
                f"On {listed(dict.fromkeys(unknown))} intervals lack the luck of the validation sample: the "
                "log-probabilities of examples, or the number of validation examples, are not stored."
            )
        return
    silent = [each for _, each in compared if each.interval(simultaneous(1)) is None]
    if few := sum(each.error is None for each in silent):
        yield (
            f"{many(few, 'method')} of {len(compared)} share fewer than {LEAST_SEEDS} seeds with "
            f"{block.against} on some setting: too few to estimate the noise, so there is no verdict."
        )
    if len(silent) > few:
        yield (
            f"All seed pairs of {many(len(silent) - few, 'method')} differ from {block.against} by the same "
            "amount on each setting: the noise is unknown, so there is no verdict."
        )
    if lost := sum(entrant.lost > 0 for entrant, _ in compared):
        yield (
            f"Seed pairs were lost of {many(lost, 'method')} (†): their intervals are of the remaining "
            "pairs, and wider. A method whose runs diverge is never called better, whatever the others score."
        )


def _against(
    block: Block,
    entrant: Entrant,
    reference: Sequence[CompleteStudies],
    parts: Mapping[int, Mapping[int, OnSetting]],
    claims: int,
) -> Entrant:
    """Adds the differences from the reference to a method that shares a study with it on each setting.

    `parts` has the differences on each setting, by k and by the number of the method's cell.
    """
    places = len(block.settings)
    differences = {
        k: comparison([of_cells[n] for n in entrant.cells], claims, places, block.threshold)
        for k, of_cells in parts.items()
        if all(number in of_cells for number in entrant.cells)
    }
    if entrant.sensitivity is None:
        return replace(entrant, differences=differences)

    def shares(share: Callable[[CompleteStudies], float]) -> Comparison:
        sides = zip(entrant.studies, reference, strict=True)
        parts = [replace(of_rates.of_share(share, own, other), limit=1.0) for own, other in sides]
        # Both shares of all methods are one family.
        return comparison(parts, 2 * claims, places, 0.0)

    sensitivity = replace(
        entrant.sensitivity,
        near_difference=shares(of_rates.share_near)
        if of_rates.enough_to_smooth(*entrant.studies, *reference)
        else None,
        failed_difference=shares(estimates.share_failed),
    )
    return replace(entrant, differences=differences, sensitivity=sensitivity)


def comparison(parts: Sequence[OnSetting], claims: int, places: int, threshold: float) -> Comparison:
    """Makes a comparison from these differences, one per setting.

    Its interval is simultaneous over `claims` comparisons. Its intervals on single settings are simultaneous
    over `claims` comparisons on each of `places` settings.
    """
    over_all, each = effect(parts), [effect([part]) for part in parts]
    interval = over_all.interval(simultaneous(claims))
    intervals = tuple(part.interval(simultaneous(claims * places)) for part in each)
    return Comparison(
        over_all,
        interval,
        verdict(interval, threshold),
        intervals,
        tuple(verdict(bounds_, threshold) for bounds_ in intervals),
    )


def _transferred(results: Results, block: Block, entrant: Entrant, claims: int) -> Entrant:
    """Adds to a method the transfer of learning rates between settings.

    The method stays unchanged without tuning, on a single setting, if the settings share no study, if most of
    the method's trials failed at every rate of some setting, or if some setting has too few trials to smooth.
    """
    if len(entrant.settings) < max(2, len(block.settings)) or entrant.sensitivity is None:
        return entrant
    if not set.intersection(*({*each.numbers} for each in entrant.studies)):
        return entrant
    if not (of_rates.enough_to_smooth(*entrant.studies) and of_rates.have_best_rates(*entrant.studies)):
        return entrant
    over_all = effect([on_setting(results, entrant.cells[0], of_rates.of_transfer(entrant.studies))])
    interval = over_all.interval(simultaneous(claims))
    costs = tuple(float(cost) for cost in of_rates.transfer(entrant.studies))
    transfer = Transfer(over_all.difference, interval, verdict(interval, block.threshold), costs)
    return replace(entrant, transfer=transfer)


# --- methods without adapter ---


def _levels(material: Material, block: Block) -> Iterator[Level]:
    """Yields the levels of the converged head, the head alone and full fine-tuning, if they have run."""
    results, made = material.results, material.recipes
    compared = {entrant.method for entrant in block.methods} | {block.against}
    levels = []
    on = dict(zip(block.settings, block.reference.cells, strict=True)) if block.reference else {}

    def other_recipe(cell: Cell) -> bool:
        return cell.setting in on and bool(difference(made[cell.number], made[on[cell.setting]]))

    for family in (CONVERGED, *(name for name in NO_ADAPTERS if name != CONVERGED)):
        own = [
            cell
            for cell in results.all_cells
            if cell.family == family
            and results.metrics[cell.number] == block.metric
            and cell.method not in compared
            and results.is_tuned(cell) == block.tuned
        ]
        for of_method in grouped(own, lambda cell: cell.method).values():
            # If cells of a setting differ in recipe, the one with the reference's recipe counts, or else the
            # first.
            cells: dict[TaskAndBackbone, Cell] = {}
            for cell in sorted(of_method, key=other_recipe):
                cells.setdefault(cell.setting, cell)
            level = _level(material, block, [cells.get(setting) for setting in block.settings])
            if level is not None:
                levels.append((level, _paired_level(material, block, level)))
    claims = sum(parts is not None for _, parts in levels)
    for level, parts in levels:
        if parts is None:
            yield level
            continue
        over_all = comparison(parts, claims, len(block.settings), block.threshold)
        each = tuple(part.difference for part in parts)
        yield replace(level, differences=each, difference=over_all.effect.difference, comparison=over_all)


def _level(material: Material, block: Block, cells: Sequence[Cell | None]) -> Level | None:
    """The level of a method with these cells, one per setting. None if it has no score."""
    complete, made = material.studies, material.recipes
    sign, own = direction(block.metric), block.reference
    scores: list[float | None] = []
    differences: list[float | None] = []
    for place, cell in enumerate(cells):
        gain = gain_of(cell, material, block.k)
        scores.append(None if gain is None else sign * gain)
        studies = complete[own.cells[place]] if own else None
        # Seeds compare with seeds of the same recipe. Studies have no recipe that others could share.
        alike = own and cell and (block.tuned or not difference(made[cell.number], made[own.cells[place]]))
        if gain is None or studies is None or studies.trials < block.k or not alike:
            differences.append(None)
        else:
            differences.append(gain - estimates.score_after(studies, block.k))
    if all(score is None for score in scores):
        return None
    every = [each for each in differences if each is not None]
    first = next(cell for cell in cells if cell)
    return Level(
        first.method,
        first.family,
        tuple(cell.number if cell else None for cell in cells),
        tuple(scores),
        tuple(differences),
        float(np.mean(every)) if len(every) == len(differences) else None,
    )


def _paired_level(material: Material, block: Block, level: Level) -> list[OnSetting] | None:
    """The differences of a method without adapter from the reference, paired by seed.

    None if they share no seed on some setting, or if the reference was tuned.
    """
    if block.tuned or block.reference is None or level.difference is None:
        return None
    parts = []
    for number, other in zip(level.cells, block.reference.cells, strict=True):
        assert number is not None, "a mean difference has a cell on every setting"
        pair = material.studies[number], material.studies[other]
        if not {*pair[0].numbers} & {*pair[1].numbers}:
            return None
        parts.append(on_setting(material.results, number, estimates.of_pair(*pair, block.k)))
    return parts


def gain_of(cell: Cell | None, material: Material, k: int) -> float | None:
    """The score of a cell after k trials or, if the cell has no studies, its mean score. Larger is better.

    None if the score is unknown.
    """
    if cell is None or cell.studies is None:
        return cell.gain if cell else None
    studies = material.studies.get(cell.number)
    return estimates.score_after(studies, k) if studies and studies.most >= k else None
