"""Compares the methods of a block with its reference: their differences, with intervals and verdicts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tensorbench.records.metrics import bounds, direction
from tensorbench.reports.blocks import Block, Comparison, Ends, Entrant, Level, Performance, Sensitivity
from tensorbench.reports.collapses import DIVERGED, CollapseRates
from tensorbench.reports.complete import Material
from tensorbench.reports.inference import rates as of_rates
from tensorbench.reports.inference import studies as estimates
from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.effects import Verdict, Word, effect, verdict
from tensorbench.reports.inference.intervals import LEAST_SEEDS, Bounds, simultaneous
from tensorbench.reports.inference.moderation import moderated_together
from tensorbench.reports.inference.sequential import Looks
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.inference.tasks import TaskTests, task_tests
from tensorbench.reports.recipes import difference
from tensorbench.reports.results import CONVERGED, NO_ADAPTERS, Cell, Results, TaskAndBackbone, grouped
from tensorbench.reports.units import listed, many

#: The studies of a method and of the reference on one setting.
Pair = tuple[CompleteStudies, CompleteStudies]
#: Up to this number of compared methods, intervals are too narrow if one method varies much more.
FEW_METHODS = 3

#: The performances of a method, by setting.
OnSettings = Mapping[TaskAndBackbone, Performance]


def on_setting(results: Results, cell: Cell, part: OnSetting) -> OnSetting:
    """Adds to a score or difference on a cell's task the typical size of scores, their range, and looks."""
    low, high = bounds(results.metrics[cell.number])
    return replace(part, size=results.size(cell), limit=high - low, looks=looks_of(cell))


def looks_of(cell: Cell) -> Looks | None:
    """The looks after which a cell's methods are compared. None unless the experiment is sequential."""
    plan = cell.studies.looks if cell.studies else None
    return Looks(plan.after, plan.spending) if plan else None


@dataclass(frozen=True)
class Moderated:
    """Scores or differences with moderated variances."""

    #: By the number of the method's cell.
    parts: Mapping[int, OnSetting]
    #: The ratio of variances of each method that varies much more than the others (see `noisy`), by name. Its
    #: variances are its own.
    noisy: Mapping[str, float]


def moderated_on_settings(
    results: Results, parts: Mapping[int, OnSetting], fell: Collection[int]
) -> Moderated:
    """Moderates the variances of scores or differences over the methods of each setting.

    Correlations between methods, and which methods vary much more than the others, are estimated from all
    settings together.

    `parts` is by the number of the method's cell. Cells in `fell` (see `Material`), and those of methods that
    vary much more, do not enter the mean variance and are not moderated.
    """
    cells = results.all_cells
    differences = {n: on_setting(results, cells[n], part) for n, part in parts.items()}
    methods = list(dict.fromkeys(cells[number].method for number in parts))
    on_settings = [
        {methods.index(cells[number].method): number for number in numbers if number not in fell}
        for numbers in grouped(parts, lambda number: cells[number].setting).values()
    ]
    together, apart = moderated_together(
        [[differences[on[n]] if n in on else None for n in range(len(methods))] for on in on_settings]
    )
    for on, shrunk in zip(on_settings, together, strict=True):
        differences |= {number: part for n, number in on.items() if (part := shrunk[n]) is not None}
    return Moderated(differences, {methods[place]: ratio for place, ratio in apart.items()})


def comparison(parts: Sequence[OnSetting], claims: int, threshold: float) -> Comparison:
    """Makes a comparison from these differences, one per setting, without comparisons on single settings.

    Its interval is simultaneous over `claims` comparisons and over all looks.
    """
    over_all = effect(parts)
    interval = over_all.interval(over_all.level(claims))
    return Comparison(over_all, interval, verdict(interval, threshold))


def in_family(compared: Comparison, claims: int, threshold: float) -> Comparison:
    """The comparison with an interval that is simultaneous over `claims` comparisons, and with its verdict.

    `claims` is at least the number over which the interval was simultaneous before. A verdict that a guard
    has weakened stays so. Its reason goes if it withheld a side that the new interval no longer shows.
    Comparisons on single settings are left out.
    """
    wider = comparison(compared.effect.parts, claims, threshold)
    given, bare = compared.verdict, verdict(compared.interval, threshold)
    if given.reason and (given.word is Word.NONE or wider.verdict.side):
        made = given
    elif wider.verdict.word is Word.EQUIVALENT and (given.word, bare.word) != (Word.EQUIVALENT,) * 2:
        # A guard may withhold *equivalent* on this comparison, where the narrower interval was of one sign.
        made = Verdict(Word.INCONCLUSIVE)
    else:
        made = wider.verdict
    rates = compared.collapses and replace(compared.collapses, level=compared.effect.level(claims))
    made = with_window(with_collapses(made, rates), wider.interval, threshold, compared.ends)
    return replace(wider, verdict=made, bound=compared.bound, collapses=rates, ends=compared.ends)


def unregistered(compared: Comparison) -> Comparison:
    """The comparison, whose verdicts say that it is not the one by which a sequential experiment stopped."""
    verdict, said = compared.verdict, "in a comparison that was not registered"
    if verdict.word is not Word.NONE:
        verdict = replace(verdict, condition=", ".join(filter(None, [verdict.condition, said])))
    on = {setting: unregistered(each) for setting, each in compared.on.items()}
    return replace(compared, verdict=verdict, on=on)


def with_collapses(verdict: Verdict, rates: CollapseRates | None) -> Verdict:
    """Adds to a verdict how often runs collapse and, without tuning, that it is on those that do not."""
    withheld = verdict.word is Word.NONE and verdict.reason
    if rates is None or withheld or not str(rates):
        return verdict
    drawn = verdict.word is not Word.NONE and not verdict.reason
    return replace(verdict, condition=rates.condition * drawn, collapses=str(rates))


def with_window(verdict: Verdict, interval: Bounds | None, threshold: float, ends: Ends | None) -> Verdict:
    """Adds to a verdict how many kept trials lie in the outer fifth of a window.

    It does so for the method if the verdict is *worse*, and for the reference if the verdict is *better* or
    *equivalent* and more of them lie there than if all rates were equally good. In that case it also says by
    how much a wider window would have to raise the score to change the verdict, if the interval moves along.
    """
    if interval is None or ends is None:
        return verdict
    own, reference, (low, high) = ends.own, ends.reference, interval
    change, said = "{} there would change it", ""
    if verdict.word is Word.WORSE and own:
        said = f"{own}, {change.format(ends.unit.difference(-high))}" if own.truncated else str(own)
    elif verdict.word in (Word.BETTER, Word.EQUIVALENT) and reference and reference.truncated:
        gain = low + threshold * (verdict.word is Word.EQUIVALENT)
        said = f"{reference.method} has {reference}, {change.format(ends.unit.difference(gain))}"
    return replace(verdict, window=said)


def _on_each(
    block: Block,
    parts: Mapping[TaskAndBackbone, OnSetting],
    claims: int,
    thin: Collection[TaskAndBackbone] = (),
) -> Comparison:
    """Makes a comparison of a block from these differences, with the comparisons on single settings.

    The mean leaves out the settings in `thin`.
    """
    several = claims * len(block.settings)
    on = {setting: comparison([part], several, block.threshold) for setting, part in parts.items()}
    mean = [part for setting, part in parts.items() if setting not in thin]
    return replace(comparison(mean, claims, block.threshold), on=on)


def compared(material: Material, block: Block) -> Block:
    """Adds to the block the comparisons with the reference, the levels and the sources of variance."""
    results, reference = material.results, block.reference
    of_reference = reference.on if reference else {}
    others = [each for each in block.methods if reference and each.cells != reference.cells]
    shared = [
        each
        for each in others
        if all({*own.studies.numbers} & {*of_reference[s].studies.numbers} for s, own in each.on.items())
    ]
    notes = [
        f"{each.method} shares no finished seed with {block.against} on some setting: differences are taken "
        "seed by seed, so there is no comparison."
        for each in others
        if not block.tuned and each not in shared
    ]
    # Tuned methods count even before they share a study with the reference.
    claims = len(others if block.tuned else shared)

    every = [own for entrant in block.methods for own in entrant.on.values()]
    studies = {own.cell.number: own.studies for own in (*every, *of_reference.values())}
    failures = estimates.pooled_failures([*studies.values()])
    sides = {own.cell.number: (own, of_reference[s]) for each in shared for s, own in each.on.items()}
    pairs = {n: estimates.paired(own.studies, other.studies) for n, (own, other) in sides.items()}
    fell = {n for n, pair in sides.items() if {each.cell.number for each in pair} & material.fell}

    def differences_of(pairs: Mapping[int, Pair]) -> dict[int, Moderated]:
        of_pairs = {
            k: {
                n: estimates.of_pair(*pair, k, failures)
                for n, pair in pairs.items()
                if min(studies.most for studies in pair) >= k
            }
            for k in block.ks
        }
        return {k: moderated_on_settings(results, parts, fell) for k, parts in of_pairs.items()}

    differences = differences_of(pairs)
    absent = {n: counts for n, pair in sides.items() if any(counts := tuple(map(_absent(results), pair)))}
    worst = [differences_of(each) for each in _worst_cases(sides, pairs, absent)] if absent else []

    def compared_after(entrant: Entrant, k: int) -> Comparison:
        thin = _thin(results, entrant, pairs)
        found, *cases = (
            _on_each(
                block, {s: each[k].parts[own.cell.number] for s, own in entrant.on.items()}, claims, thin
            )
            for each in (differences, *worst)
        )
        counts = {s: sum(map(len, absent.get(own.cell.number, ()))) for s, own in entrant.on.items()}
        return _holding(found, cases, counts, thin)

    def finished(entrant: Entrant) -> Entrant:
        against = of_reference if entrant in shared else {}
        transfer, costs = _transfer(results, block, entrant)
        return replace(
            entrant,
            differences={
                k: compared_after(entrant, k)
                for k, of_cells in differences.items()
                if all(cell.number in of_cells.parts for cell in entrant.cells)
            },
            lost=_lost(entrant, against),
            sensitivity=_sensitivity(entrant, against, claims) if entrant.tuned else None,
            transfer=transfer,
            costs=costs,
        )

    entrants = [finished(entrant) for entrant in block.entrants]
    sign = direction(block.metric)
    entrants.sort(
        key=lambda each: (not reference or each.cells != reference.cells, -sign * each.means[block.k].value)
    )
    block = replace(
        block,
        entrants=tuple(entrants),
        part=tuple(map(finished, block.part)),
        sources={
            setting: of_rates.sources([each.on[setting].studies for each in entrants], block.k)
            for setting in block.settings
        },
        notes=(*block.notes, *notes, *_limits(block, entrants, differences[block.k].noisy)),
    )
    return replace(block, levels=tuple(_levels(material, block)), over_tasks=_over_tasks(block))


def _over_tasks(block: Block) -> TaskTests | None:
    """The tests with tasks as the sample. None if a comparison has an interval, and for too few tasks."""
    if any(entrant.differences[block.k].effect.error for entrant in block.compared):
        return None
    sign, methods = direction(block.metric), dict.fromkeys(e.method for e in block.compared)
    sides = [e for e in block.entrants if e.method in methods or e.method == block.against]
    if not methods or block.against not in {e.method for e in sides}:
        return None
    scores = {e.method: [sign * own.scores[block.k].value for own in e.on.values()] for e in sides}
    return task_tests(scores, block.against, block.threshold)


def _is_foreign(results: Results, cell: Cell) -> bool:
    return results.experiment(cell.experiment).source.foreign


def _absent(results: Results) -> Callable[[Performance], list[int]]:
    """Returns a function that gives the numbers of a performance's absent seeds or studies.

    Only tables of other programs count: what is absent there may have been left out because it was bad.
    """

    def absent(own: Performance) -> list[int]:
        if not _is_foreign(results, own.cell):
            return []
        if own.cell.studies:
            return sorted({*own.cell.by_study} - {*own.studies.numbers})
        ran = (seed.finished or seed.failure == DIVERGED for seed in own.cell.trials)
        return [seed.seed for seed, there in zip(own.cell.trials, ran, strict=True) if not there]

    return absent


def _worst_cases(
    sides: Mapping[int, tuple[Performance, Performance]],
    pairs: Mapping[int, Pair],
    absent: Mapping[int, tuple[list[int], ...]],
) -> Iterator[dict[int, Pair]]:
    """Yields the pairs with absent runs at their worst for the method, then at their worst for the reference.

    A side's absent runs get the lowest score that any method has on the setting, and the other side's get the
    highest. Scores are those of runs that did not collapse, or of the trials that studies keep.
    """
    kept: defaultdict[TaskAndBackbone, list[float]] = defaultdict(list)
    for own, other in sides.values():
        kept[own.cell.setting] += [*own.studies.kept_scores, *other.studies.kept_scores]
    for ends in ((min, max), (max, min)):
        yield {
            n: estimates.paired(
                *(
                    estimates.filled(side.studies, numbers, end(kept[side.cell.setting]))
                    for side, numbers, end in zip(sides[n], absent[n], ends, strict=True)
                )
            )
            if n in absent
            else pair
            for n, pair in pairs.items()
        }


def _thin(results: Results, entrant: Entrant, pairs: Mapping[int, Pair]) -> list[TaskAndBackbone]:
    """The settings of a foreign table with too few pairs for an interval, if others have enough."""
    if not _is_foreign(results, entrant.cells[0]):
        return []
    few = [s for s, own in entrant.on.items() if pairs[own.cell.number][0].count < LEAST_SEEDS]
    return few if len(few) < len(entrant.on) else []


def _holding(
    found: Comparison,
    worst: Sequence[Comparison],
    absent: Mapping[TaskAndBackbone, int],
    thin: Collection[TaskAndBackbone] = (),
) -> Comparison:
    """Weakens verdicts that absent runs could change.

    `worst` has the comparison with absent runs at their worst for the method and for the reference. *Better*
    must hold in the first case, *worse* in the second and *equivalent* in both. `absent` has the number of
    absent runs of both sides on each setting. The mean leaves out the settings in `thin`.
    """
    if not worst:
        return found
    on = {
        setting: _holding(each, [other.on[setting] for other in worst], {setting: absent[setting]})
        for setting, each in found.on.items()
    }
    count = sum(number for setting, number in absent.items() if setting not in thin)
    word = found.verdict.word
    needed = {Word.BETTER: worst[:1], Word.WORSE: worst[1:], Word.EQUIVALENT: worst}.get(word, ())
    given = found.verdict
    if count and any(each.verdict.word is not word for each in needed):
        verb = "run is absent, which" if count == 1 else "runs are absent, which"
        given = Verdict(Word.INCONCLUSIVE, reason=f"{count:,} {verb} could change it")
    return replace(found, verdict=given, on=on)


def _lost(entrant: Entrant, reference: OnSettings) -> int:
    """The number of planned pairs of seeds of which a run is missing, or was lost by the machine.

    0 with tuning, since notes name the incomplete studies.
    """
    lost = 0
    for setting, own in entrant.on.items():
        if reference and not entrant.tuned:
            cells = own.cell, reference[setting].cell
            done, others = (
                {seed.seed: seed.finished or seed.failure == DIVERGED for seed in cell.trials}
                for cell in cells
            )
            lost += sum(not (done[seed] and others[seed]) for seed in done.keys() & others.keys())
    return lost


def _limits(block: Block, entrants: Sequence[Entrant], noisy: Mapping[str, float]) -> Iterator[str]:
    """Yields notes on what intervals lack, on seeds without an interval, and on lost pairs of seeds.

    `noisy` has the ratio of variances of methods that vary much more than the others.
    """
    for method, ratio in noisy.items():
        yield (
            f"Differences of {method} vary {math.sqrt(ratio):.1f} times as much as those of other methods: "
            f"its interval is from its own {'studies' if block.tuned else 'seeds'} alone."
        )
    compared = [(e, e.differences[block.k]) for e in entrants if block.k in e.differences]
    for entrant, own in compared:
        if len(own.effect.parts) < len(own.on):
            thin = [s for s, each in own.on.items() if each.effect.fewest < LEAST_SEEDS]
            pairs = "studies" if block.tuned else "seeds"
            yield (
                f"{entrant.method} shares fewer than {LEAST_SEEDS} {pairs} with {block.against} on "
                f"{listed(thin)}: left out of the mean difference."
            )
    if noisy and block.tuned and len(compared) <= FEW_METHODS:
        yield (
            "With so few methods, one of which varies much more, 95% intervals may be too narrow: after "
            "8 trials of tuning they hold in 88 to 94% of simulations."
        )
    points = min(own.losses.shape[1] for each in entrants for own in each.studies)
    if block.tuned and block.k > points:
        yield (
            f"After more trials than the {points} of a study, 95% intervals on single tasks may be too "
            "narrow: in some simulations they hold in less than nine of ten."
        )
    if block.tuned:
        each = [(setting, part) for _, own in compared for setting, part in own.on.items()]
        if unknown := [s for s, own in each for part in own.effect.parts if part.validation is None]:
            yield (
                f"On {listed(dict.fromkeys(unknown))} intervals lack the luck of the validation sample: the "
                "number of its examples is not stored, or the log-probabilities are not, which only "
                "classification has."
            )
        return
    silent = [own.effect for _, own in compared if own.effect.interval(simultaneous(1)) is None]
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
            "pairs, and wider."
        )


def _sensitivity(entrant: Entrant, reference: OnSettings, claims: int) -> Sensitivity:
    """The sensitivity of a tuned method. It has no difference if `reference` is empty."""
    studies = entrant.studies
    others = [reference[setting].studies for setting in entrant.on] if reference else []
    smooth = of_rates.enough_to_smooth(*studies)

    def compared_by(share: Callable[[CompleteStudies], float]) -> Comparison:
        sides = zip(studies, others, strict=True)
        parts = [
            replace(of_rates.of_share(share, own, other), limit=1.0, looks=looks_of(entrant.cells[0]))
            for own, other in sides
        ]
        # Both shares of all methods are one family.
        return comparison(parts, 2 * claims, 0.0)

    return Sensitivity(
        near=float(np.mean([of_rates.share_near(each) for each in studies])) if smooth else None,
        failed=float(np.mean([estimates.share_failed(each) for each in studies])),
        failures=sum(int(each.failed.sum()) for each in studies),
        trials=sum(each.trials for each in studies),
        near_difference=compared_by(of_rates.share_near)
        if others and smooth and of_rates.enough_to_smooth(*others)
        else None,
        failed_difference=compared_by(estimates.share_failed) if others else None,
    )


def _transfer(
    results: Results, block: Block, entrant: Entrant
) -> tuple[Comparison | None, dict[TaskAndBackbone, float]]:
    """The transfer of learning rates between settings, and its cost on each of them.

    There is none without tuning, on a single setting, if the settings share no study, if most of the method's
    trials failed at every rate of some setting, or if some setting has too few trials to smooth.
    """
    studies = entrant.studies
    if (
        not entrant.tuned
        or len(studies) < max(2, len(block.settings))
        or not set.intersection(*({*each.numbers} for each in studies))
        or not of_rates.enough_to_smooth(*studies)
        or not of_rates.have_best_rates(*studies)
    ):
        return None, {}
    part = on_setting(results, entrant.cells[0], of_rates.of_transfer(studies))
    costs = dict(zip(entrant.on, of_rates.transfer(studies).tolist(), strict=True))
    return comparison([part], len(block.entrants), block.threshold), costs


# --- methods without adapter ---


def _levels(material: Material, block: Block) -> Iterator[Level]:
    """Yields the levels of the converged head, the head alone and full fine-tuning, if they have run."""
    results, reference = material.results, block.reference.on if block.reference else {}
    compared = {entrant.method for entrant in block.methods} | {block.against}
    levels = []

    def other_recipe(cell: Cell) -> bool:
        own = reference.get(cell.setting)
        return own is not None and bool(difference(cell.recipe, own.cell.recipe))

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
            first: dict[TaskAndBackbone, Cell] = {}
            for cell in sorted(of_method, key=other_recipe):
                first.setdefault(cell.setting, cell)
            cells = {setting: first[setting] for setting in block.settings if setting in first}
            level = _level(material, block, cells, reference)
            if level is not None:
                levels.append((level, _paired(material, block, level, reference)))
    claims = sum(bool(parts) for _, parts in levels)
    for level, parts in levels:
        if parts:
            over_all = _on_each(block, parts, claims)
            each = {setting: part.difference for setting, part in parts.items()}
            mean = over_all.effect.difference
            level = replace(level, differences=each, difference=mean, comparison=over_all)
        yield level


def _level(
    material: Material, block: Block, cells: Mapping[TaskAndBackbone, Cell], reference: OnSettings
) -> Level | None:
    """The level of a method with these cells, before it is paired by seed. None if it has no score."""
    sign, gains = direction(block.metric), dict[TaskAndBackbone, float]()
    differences: dict[TaskAndBackbone, float] = {}
    for setting, cell in cells.items():
        if (gain := gain_of(cell, material, block.k)) is None:
            continue
        gains[setting], other = gain, reference.get(setting)
        # Seeds compare with seeds of the same recipe. Studies have no recipe that others could share.
        if (
            other
            and other.studies.trials >= block.k
            and (block.tuned or not difference(cell.recipe, other.cell.recipe))
        ):
            differences[setting] = gain - estimates.score_after(other.studies, block.k)
    if not gains:
        return None
    first, whole = next(iter(cells.values())), len(differences) == len(block.settings)
    return Level(
        first.method,
        first.family,
        cells,
        {setting: sign * gain for setting, gain in gains.items()},
        differences,
        float(np.mean([*differences.values()])) if whole else None,
    )


def _paired(
    material: Material, block: Block, level: Level, reference: OnSettings
) -> dict[TaskAndBackbone, OnSetting]:
    """The differences of a method without adapter from the reference, paired by seed.

    Empty if they share no seed on some setting, or if the reference was tuned.
    """
    if block.tuned or level.difference is None:
        return {}
    parts = {}
    for setting, cell in level.cells.items():
        # A cell of which all runs collapsed has no studies.
        own, other = material.studies.get(cell.number), reference[setting].studies
        if own is None or not {*own.numbers} & {*other.numbers}:
            return {}
        pair = own, other
        parts[setting] = on_setting(material.results, cell, estimates.of_pair(*pair, block.k))
    return parts


def gain_of(cell: Cell, material: Material, k: int) -> float | None:
    """The score of a cell after k trials. Larger is better. None if the score is unknown.

    Without studies it is the mean over the runs that did not collapse or, if all did, over all runs.
    """
    studies = material.studies.get(cell.number)
    if cell.studies is None:
        return estimates.score_after(studies, 1) if studies else cell.gain
    return estimates.score_after(studies, k) if studies and studies.most >= k else None
