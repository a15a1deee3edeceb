"""Tests the first sentences of a report on made-up results."""

from __future__ import annotations

from dataclasses import replace

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.guards import NO_GUARDS
from tensorbench.reports.headline import answer, better_methods, next_step
from tensorbench.reports.inference.effects import verdict
from tensorbench.reports.study import CONVERGED, FLOOR


def test_the_answer_names_the_better_methods_and_no_others(analysis: Analysis) -> None:
    blocks = [replace(block, guards=NO_GUARDS) for block in analysis.blocks]
    text = answer(blocks)
    compared = [each for block in analysis.blocks for each in block.comparisons]
    better = {each.method for each in compared if each.verdict.side == "better"}
    assert better
    assert {name for names in better_methods(analysis.blocks).values() for name in names} == better
    for block in blocks:
        worse = [c for c in block.comparisons if c.verdict.side != "better"]
        without = answer([replace(block, comparisons=tuple(worse))])
        assert without.startswith("No method is significantly better than LoRA") == bool(worse)
    assert text.startswith("Significantly better than LoRA: ")


def test_budgets_are_counted_and_not_comparisons(analysis: Analysis) -> None:
    block = next(block for block in analysis.blocks if block.comparisons)
    block = replace(block, guards=NO_GUARDS)
    none = replace(block, comparisons=tuple(c for c in block.comparisons if c.verdict.side != "better"))
    assert answer([none, none]).startswith("No method is significantly better than LoRA. ")
    other = replace(none, budget="another")
    assert answer([none, other]).startswith(
        "No method is significantly better than LoRA at any of 2 budgets."
    )


def test_nothing_is_claimed_without_an_interval(analysis: Analysis) -> None:
    block = next(block for block in analysis.blocks if block.comparisons)
    none = tuple(replace(each, interval=None, verdict=verdict(None, 0.01)) for each in block.comparisons)
    bare = answer([replace(block, comparisons=none, guards=NO_GUARDS)])
    assert bare.startswith("Nothing can be claimed: no difference from LoRA has an interval.")


def test_the_answer_says_what_may_go_undetected(analysis: Analysis) -> None:
    detectable = [
        (b.unit, b.design.finds) for b in analysis.blocks if b.comparisons and b.design and b.design.finds
    ]
    unit = detectable[0][0]
    for end in (min, max):
        assert unit.score(end(finds for _, finds in detectable), 1) in answer(analysis.blocks)


def test_the_reference_is_compared_with_the_best_head(analysis: Analysis) -> None:
    block = next(block for block in analysis.blocks if block.comparisons and block.reference)
    assert block.reference is not None

    def head(difference: float, half: float, family: str = FLOOR) -> AgainstReference:
        bounds = (difference - half, difference + half)
        each = next(each for each in block.comparisons if each.interval)
        effect = replace(each.effect, difference=difference)
        return replace(
            each, family=family, effect=effect, interval=bounds, verdict=verdict(bounds, block.threshold)
        )

    above = answer([replace(block, comparisons=(head(-0.05, 0.02), head(-0.04, 0.03, CONVERGED)))])
    name = block.reference.method
    assert f"{name} is 4.0 points above the converged head (interval 1.0 to 7.0)." in above
    assert "the head alone" not in above
    unknown = answer([replace(block, comparisons=(head(-0.01, 0.03),))])
    assert f"{name} is not shown to be above the head alone (interval −2.0 to 4.0)." in unknown


def test_nothing_is_answered_where_nothing_is_compared(analysis: Analysis) -> None:
    bare = [replace(block, reference=None, comparisons=()) for block in analysis.blocks]
    assert answer(bare) == next_step(bare) == ""


def test_the_next_step_is_what_the_design_needs(analysis: Analysis) -> None:
    block = next(block for block in analysis.blocks if block.design and block.design.finds)
    assert block.design is not None
    assert block.design.finds is not None
    decided = replace(block, threshold=2 * block.design.finds)
    assert next_step([decided]) == ""
    near = replace(block, threshold=0.9 * block.design.finds)
    needed = block.design.needs(near.threshold)
    assert needed is not None
    assert f"{needed} seeds" in next_step([near])
    far = replace(block, threshold=1e-9)
    assert block.design.needs(far.threshold) is None
    assert "not enough" in next_step([far])
