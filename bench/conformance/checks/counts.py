"""What a method says of itself: its identity, its count, its ranks, the sites that it adapts."""

from __future__ import annotations

import json

from bench.conformance.subject import NotApplicable, Subject, expect, sites_of
from methods import METHODS, Method, from_identity
from methods.backbone import Geometry
from methods.errors import UserError

#: Head size equal to, above and below the number of heads; 1, 3 and 5 layers.
COUNTED = (Geometry(16, 4, 3, 64), Geometry(24, 2, 1, 96), Geometry(24, 6, 5, 96))

#: ViT-S/14, and a shape in which no two modes are equal. Counted only, never built.
FITTED = (Geometry(384, 6, 12, 1536), Geometry(320, 5, 7, 1280))


def identity(subject: Subject) -> None:
    """The stored identity is JSON, and the method comes back from it."""
    method = subject.method
    stored = json.loads(json.dumps(method.identity()))
    expect(bool(method.label.strip()), "the label is empty")
    expect(stored["method"] == method.name, f"identity names '{stored['method']}', not '{method.name}'")
    if method.name not in METHODS or METHODS.get(method.name) is not type(method):
        raise NotApplicable(f"{type(method).__name__} is not registered as '{method.name}'")
    again = from_identity(stored)
    expect(again.identity() == method.identity(), "from_identity gives a method of another identity")
    expect(again.size == method.size, "from_identity gives a method of another size")


def count(subject: Subject) -> str:
    """`count` is the number of parameters that really train, on several geometries and ranks."""
    counted, refusals = 0, []
    for geometry in (None, *COUNTED):
        for method in _sizes(subject.method):
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
        raise NotApplicable(f"refuses every geometry: {refusals[0]}")
    return f"{counted} sizes" + (f", {len(refusals)} refused" if refusals else "")


def _sizes(method: Method) -> list[Method]:
    ranks = (1, 2, 5) if method.sizeable else ()
    return [method, *(method.isorank(rank) for rank in ranks)]


def isorank(subject: Subject) -> None:
    """`isorank` makes every rank equal, and a higher one never counts less."""
    method = _sizeable(subject)
    counts = []
    smallest, *_ = _smallest(method, FITTED[0]).size or (1,)
    for rank in (smallest, 2, 3, 8):
        sized = method.isorank(rank)
        expect(bool(sized.size), f"isorank({rank}) has no size")
        expect(set(sized.size or ()) == {rank}, f"isorank({rank}) has ranks {sized.size}")
        counts.append(sized.count(FITTED[0]))
    expect(counts == sorted(counts) and counts[0] < counts[-1], f"counts do not grow with the rank: {counts}")


def fit(subject: Subject) -> str:
    """`fit` comes as near to a budget as the ranks allow, and refuses what none can meet."""
    method, worst = _sizeable(subject), 0.0
    for geometry in FITTED:
        # LoRA's smallest, or the method's own where that is larger.
        unit = max(2 * geometry.hidden * 3 * geometry.layers, _smallest(method, geometry).count(geometry))
        counts = []
        for budget in (int(2.3 * unit), 4 * unit, int(7.7 * unit)):
            fitted = method.fit(geometry, budget)
            size = fitted.size
            expect(bool(size), f"fit leaves the size free at {geometry}")
            expect(min(size or ()) >= 1, f"fit gives ranks {size} at {geometry}")
            total = fitted.count(geometry)
            counts.append(total)
            where = f"{size} for {budget:,} at {geometry}: {total:,}"
            again = method.fit(geometry, total)
            expect(again.count(geometry) == total, f"{where}, yet for {total:,} it gives {again.size}")
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
    try:
        tiny = method.fit(FITTED[0], 0)
    except UserError:
        return f"within {worst:.1%}"
    raise AssertionError(
        f"a budget of 0 parameters is met with {tiny.size}, {tiny.count(FITTED[0]):,} parameters"
    )


def _smallest(method: Method, geometry: Geometry) -> Method:
    """With the smallest equal ranks that the method has there."""
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
    """Exactly the declared projections of every layer are adapted; a backbone that lacks one is refused."""
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
