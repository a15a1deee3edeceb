"""Checks of a method's declarations: its identity, its count, its ranks and the sites that it adapts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from tensorbench.checks.conformance.subject import NotApplicable, Subject, expect, same_bits, sites_of
from tensorbench.methods import METHODS, Method, from_identity
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import UserError

#: The geometries on which parameters of real adapters are counted. The head size is equal to the number of
#: heads in the first, above it in the second and below it in the third. They have 3, 1 and 5 layers.
COUNTED = (Geometry(16, 4, 3, 64), Geometry(24, 2, 1, 96), Geometry(24, 6, 5, 96))

#: The geometries on which counts are computed without building an adapter: that of ViT-S/14, and one in which
#: no two modes have equal sizes.
FITTED = (Geometry(384, 6, 12, 1536), Geometry(320, 5, 7, 1280))


def identity(subject: Subject) -> None:
    """Checks that the method's identity, written as JSON and read again, restores an equal method.

    Also checks that options in `idle` do not change outputs.
    """
    method = subject.method
    stored = json.loads(json.dumps(method.identity()))
    expect(bool(method.label.strip()), "the label is empty")
    expect(stored["method"] == method.name, f"identity names '{stored['method']}', not '{method.name}'")
    if idle := [(name, other) for name, other in _variants(method) if name in method.idle]:
        own = _in_training(subject, method)
        for name, other in idle:
            same = same_bits(_in_training(subject, other), own)
            expect(same, f"idle names {name}, yet {name}={dict(other)[name]} changes the outputs")
    restored = from_identity(stored) if method.name in METHODS else None
    if type(restored) is not type(method):
        raise NotApplicable(f"{type(method).__name__} is not registered as '{method.name}'")
    assert restored is not None
    expect(restored.identity() == method.identity(), "from_identity gives a method of another identity")
    expect(restored.size == method.size, "from_identity gives a method of another size")


def _in_training(subject: Subject, method: Method) -> Tensor:
    # These outputs depend on the start, the forward and dropout.
    backbone, _ = subject.randomised(method=method)
    backbone.module.train()
    torch.default_generator.manual_seed(7)
    logits: Tensor = backbone.module(**subject.batch())
    return logits.detach()


def _variants(method: Method) -> Iterator[tuple[str, Method]]:
    for name, value in method:
        annotation = type(method).model_fields[name].annotation
        others: list[Any] = []
        if get_origin(annotation) is Literal:
            others = [other for other in get_args(annotation) if other != value]
        elif isinstance(value, bool):
            others = [not value]
        elif isinstance(value, float):
            others = [value / 2 or 0.2]
        elif isinstance(value, int):
            others = [value + 1]
        for other in others:
            # Some combinations of values are invalid.
            with suppress(UserError, ValueError):
                yield name, type(method).model_validate({**dict(method), name: other})


def _expect_options_kept(method: Method, what: str, sized: Callable[[Method], Method]) -> None:
    small, large = (dict(method.isorank(rank)) for rank in (2, 3))
    for name, other in _variants(method):
        if small[name] != large[name]:
            continue
        with suppress(UserError):
            kept, value = dict(sized(other))[name], dict(other)[name]
            expect(kept == value, f"{what} of a method with {name}={value} gives one with {name}={kept}")


def count(subject: Subject) -> str:
    """Checks that `peak_count` is the number of parameters that train at the start.

    Several sizes of the method are tried on several geometries. A method that refuses every kind of backbone
    fails. Returns the number of adapters that were counted, and the number that the method refused.
    """
    counted, refusals = 0, []
    sizes = [subject.method, *(subject.method.isorank(rank) for rank in (1, 2, 5) if subject.method.sizeable)]
    for geometry in (None, *COUNTED):
        for method in sizes:
            backbone = subject.backbone(geometry=geometry)
            try:
                adapter = subject.attach(backbone, method=method)
            except NotApplicable as refusal:
                refusals.append(f"{backbone.geometry}: {refusal}")
                continue
            head = {id(parameter) for parameter in backbone.head.parameters()}
            real = {
                id(parameter): parameter.numel()
                for parameter in (*backbone.module.parameters(), *adapter.named_parameters().values())
                if parameter.requires_grad and id(parameter) not in head
            }
            total, formula = sum(real.values()), method.peak_count(backbone.geometry)
            expect(
                total == formula,
                f"{method.size} at {backbone.geometry}: {total:,} train, the formula says {formula:,}",
            )
            counted += 1
    if not counted:
        # A method that no backbone takes would pass, as no other check would apply.
        expect(not subject.refused_by_all(), f"refuses the tiny backbone of every kind: {refusals[0]}")
        raise NotApplicable(f"refuses every geometry: {refusals[0]}")
    return f"{counted} sizes" + (f", {len(refusals)} refused" if refusals else "")


def isorank(subject: Subject) -> None:
    """Checks that `isorank` makes all ranks equal, and that a higher rank never gives fewer parameters.

    Also checks that `with_size` sets the requested ranks, that each rank has a name and a limit, and that
    `isorank` and `with_size` leave all other options unchanged.
    """
    method = _sizeable(subject)
    counts = []
    smallest, *_ = _smallest(method, FITTED[0]).size or (1,)
    for rank in (smallest, 2, 3, 8):
        sized = method.isorank(rank)
        expect(bool(sized.size), f"isorank({rank}) has no size")
        expect(set(sized.size or ()) == {rank}, f"isorank({rank}) has ranks {sized.size}")
        counts.append(sized.count(FITTED[0]))
    expect(counts == sorted(counts) and counts[0] < counts[-1], f"counts do not grow with the rank: {counts}")
    names, limits = method.rank_names, method.rank_limits(FITTED[0])
    ranks = tuple(range(2, 2 + len(method.size or ())))
    for what, entries in (("rank_names", names), ("rank_limits", limits)):
        message = f"{what} has {len(entries)} entries for {len(ranks)} ranks: {entries}"
        expect(len(entries) == len(ranks), message)
    sized = method.with_size(ranks)
    expect(sized.size == ranks, f"with_size({ranks}) has ranks {sized.size}")
    _expect_options_kept(method, "isorank", lambda other: other.isorank(2))
    _expect_options_kept(method, "with_size", lambda other: other.with_size(ranks))


def fit(subject: Subject) -> str:
    """Checks that `fit` comes near to a budget, keeps all other options, and refuses a budget of zero.

    If the method has one rank, no neighbouring rank may be nearer to the budget. If it has several, the count
    may differ from the budget by at most `fit_tolerance`. Returns the largest difference in percent.
    """
    method, worst = _sizeable(subject), 0.0
    for geometry in FITTED:
        # LoRA's smallest count, or the method's own if that is larger.
        unit = max(2 * geometry.hidden * 3 * geometry.layers, _smallest(method, geometry).count(geometry))
        counts = []
        for budget in (int(2.3 * unit), 4 * unit, int(7.7 * unit)):
            # With the keyword, as plans call it.
            fitted = method.fit(geometry, budget, uneven=False)
            size = fitted.size
            expect(bool(size), f"fit leaves the size free at {geometry}")
            expect(min(size or ()) >= 1, f"fit gives ranks {size} at {geometry}")
            total = fitted.count(geometry)
            counts.append(total)
            where = f"{size} for {budget:,} at {geometry}: {total:,}"
            refitted = method.fit(geometry, total)
            expect(refitted.count(geometry) == total, f"{where}, yet for {total:,} it gives {refitted.size}")
            worst = max(worst, abs(total / budget - 1))
            if size and len(size) == 1:
                for rank in {max(size[0] - 1, 1), size[0] + 1}:
                    near = method.isorank(rank).count(geometry)
                    nearer = (abs(near - budget), near) < (abs(total - budget), total)
                    expect(not nearer, f"{where}, but rank {rank} counts {near:,}")
            else:
                tolerance = method.fit_tolerance
                expect(abs(total / budget - 1) <= tolerance, f"{where}, more than {tolerance:.0%} away")
        expect(counts == sorted(counts), f"a larger budget gives a smaller count at {geometry}: {counts}")
    _expect_options_kept(method, "fit", lambda other: other.fit(FITTED[0], counts[-1]))
    try:
        tiny = method.fit(FITTED[0], 0)
    except UserError:
        return f"within {worst:.1%}"
    raise AssertionError(
        f"a budget of 0 parameters is met with {tiny.size}, {tiny.count(FITTED[0]):,} parameters"
    )


def _smallest(method: Method, geometry: Geometry) -> Method:
    """Returns the method with all ranks 1, or 2 if it refuses 1. Raises AssertionError if it refuses both."""
    for rank in (1, 2):
        smallest = method.isorank(rank)
        try:
            smallest.count(geometry)
        except UserError:
            continue
        return smallest
    raise AssertionError(f"neither isorank(1) nor isorank(2) can be counted at {geometry}")


def _sizeable(subject: Subject) -> Method:
    if not subject.method.sizeable:
        raise NotApplicable("has no rank to set")
    return subject.method


def sites(subject: Subject) -> None:
    """Checks that the method adapts exactly the declared projections, in every layer.

    Also checks that the method refuses a backbone that lacks one of them.
    """
    backbone = subject.backbone()
    adapter = subject.attach(backbone)
    if subject.method.projections:
        expect(
            set(adapter.bases) == sites_of(subject.method, subject.geometry),
            f"adapts {sorted(map(str, adapter.bases))}",
        )
        lacking = tuple(name for name in backbone.projections if name != subject.method.projections[-1])
        try:
            subject.method.check(backbone.geometry, lacking)
        except UserError as error:
            expect(subject.method.projections[-1] in str(error), f"does not name what is missing: {error}")
        else:
            raise AssertionError(f"accepts a backbone without {subject.method.projections[-1]}")
