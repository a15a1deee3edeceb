"""Makes and runs the conformance cases of methods. A case is one check of one method on one backbone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal, get_args, get_origin

from tensorbench.backbones.backbone import BackboneKind
from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import (
    BACKBONES,
    GEOMETRY,
    RANK,
    UNEQUAL,
    CheckFailed,
    Finding,
    NotApplicable,
    Status,  # noqa: F401 - the type of an inherited field
    Subject,
    judge,
    tiny,
    undisturbed,
)
from tensorbench.methods import METHODS, Method
from tensorbench.methods.errors import UserError, WrongCountError


@dataclass(frozen=True)
class Case:
    """One check of one method on one kind of backbone."""

    method: Method
    backbone: BackboneKind
    check: str

    def __str__(self) -> str:
        return f"{self.method.label}-{self.backbone}-{self.check}"


@dataclass(frozen=True)
class CheckResult(Finding):
    """The result of a case. `preset` is the label of the method."""

    preset: str
    backbone: BackboneKind
    seconds: float


def conformance_cases(
    method: str | type[Method] | Method | Iterable[Method],
    *,
    backbones: Sequence[BackboneKind] | None = None,
    checks: Sequence[str] | None = None,
    quick: bool = False,
) -> list[Case]:
    """Makes the cases of a method: its presets on every backbone, and its `variations` on the first.

    Beyond the first backbone, the presets of a registered method or a class adapt the MLP too, if they can.

    Args:
        method: The registered name of a method, or its class. If it is one or more `Method` objects, these
            are the presets, and there are no variations.
        backbones: The kinds of backbones. None: `BACKBONES`, and `UNEQUAL` for presets in checks that depend
            on shapes. Checks that depend on the method alone run on the first kind only.
        checks: The names of checks in `CHECKS`. None: those that run by default. Slow checks (compiling) run
            for presets only.
        quick: Whether to leave out variations, and slow checks that `checks` does not name.

    Raises:
        UserError: if the name of a method or of a check is unknown, or if the method's plug-in fails to
            import.
    """
    varied: Sequence[Method] = ()
    if isinstance(method, str | type):
        kind: type[Method] = METHODS.get(method) if isinstance(method, str) else method
        presets: Sequence[Method] = kind.presets()
        varied = () if quick else variations(presets)
    else:
        presets = [method] if isinstance(method, Method) else list(method)
    chosen = [
        check
        for check in CHECKS.values()
        if (check.name in checks if checks is not None else check.default and not (quick and check.slow))
    ]
    if checks is not None and (unknown := set(checks) - set(CHECKS)):
        raise UserError(f"unknown check {', '.join(sorted(unknown))}; known are {', '.join(CHECKS)}")
    kinds = BACKBONES if backbones is None else backbones
    cases = [
        Case(_sized(template), kind, check.name)
        for kind in kinds[:1]
        for templates in (presets, varied)
        for template in templates
        for check in chosen
        if not (check.slow and templates is varied)
    ]
    unequal = UNEQUAL if backbones is None else ()
    for other in (*kinds[1:], *unequal):
        checked = [check.name for check in chosen if (check.of_shapes if other in unequal else check.on_each)]
        for template in presets:
            wide = _wide(template, other) if isinstance(method, str | type) else template
            cases += [Case(_sized(wide), other, check) for check in checked]
    return cases


def _wide(template: Method, kind: BackboneKind) -> Method:
    """Returns the template with all projections as targets, or unchanged if it cannot adapt all of them."""
    geometry = tiny(kind).geometry
    try:
        wide = type(template).model_validate({**template.model_dump(), "targets": "qkvo+mlp"})
        _sized(wide).check(geometry, geometry.projections)
    except (UserError, ValueError):
        return template
    return wide


def variations(presets: Sequence[Method]) -> list[Method]:
    """Makes variants of the first preset, so that every pair of option values occurs in a variant or preset.

    Options are the fields of types `Literal` and `bool`, except `shared_heads` and the fields in the method's
    `unvaried`. A combination of values is left out if the method refuses it, if an option has no effect in
    it, or if it equals a preset.
    """
    base = presets[0]
    # The first backbone's geometry has no shared heads.
    left_out = {*base.unvaried, "shared_heads"}
    options = {
        name: values
        for name, field in type(base).model_fields.items()
        if name not in left_out and (values := _values(field))
    }
    built: dict[tuple[Any, ...], Method] = {}
    for values in product(*options.values()):
        fields = {**base.model_dump(), **dict(zip(options, values, strict=True))}
        try:
            method = type(base).model_validate(fields)
            _sized(method).check(GEOMETRY, GEOMETRY.projections)
        except (UserError, ValueError):
            continue
        # An option without effect is set to its default in the identity, so its pair would not be tested.
        shown_values = {name: type(base).model_fields[name].default for name in options} | method.identity()
        if all(shown_values[name] == value for name, value in zip(options, values, strict=True)):
            built[values] = method
    uncovered = {pair for values in built for pair in _pairs(values)}
    keys = {_key(preset) for preset in presets}
    for preset in presets:
        shown = tuple(getattr(preset, name) for name in options)
        uncovered -= set(_pairs(shown)) if shown in built else set()
    methods = []
    while uncovered:
        values = max(built, key=lambda values: sum(pair in uncovered for pair in _pairs(values)))
        uncovered -= set(_pairs(values))
        if _key(built[values]) not in keys:
            keys.add(_key(built[values]))
            methods.append(built[values])
    return methods


def _values(field: Any) -> tuple[Any, ...]:
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)
    return (False, True) if field.annotation is bool else ()


def _pairs(values: tuple[Any, ...]) -> Iterable[tuple[Any, ...]]:
    indexed = tuple(enumerate(values))
    return combinations(indexed, min(2, len(indexed)))


def _key(method: Method) -> str:
    return json.dumps(method.identity(), sort_keys=True)


def _sized(template: Method) -> Method:
    return template.isorank(RANK) if template.size is None else template


def check_case(case: Case) -> str:
    """Runs a case and returns the remark of its check. Empty without a remark.

    Raises AssertionError if the method fails the check, and NotApplicable if the check does not apply, which
    pytest shows as skipped. A wrong count of parameters fails the check `count` alone. Other errors of the
    method are raised unchanged. torch's random state is restored.
    """
    with undisturbed():
        try:
            return CHECKS[case.check].run(Subject(case.method, case.backbone)) or ""
        except WrongCountError as error:
            if case.check == "count":
                raise CheckFailed(str(error)) from error
            raise NotApplicable("the method's count is wrong") from error


def run_case(case: Case) -> CheckResult:
    """Runs a case and returns its result. Treats errors as `judge` does."""
    began = time.perf_counter()
    finding = judge(case.check, lambda: check_case(case))
    seconds = time.perf_counter() - began
    return CheckResult(**vars(finding), preset=case.method.label, backbone=case.backbone, seconds=seconds)


def run_checks(
    method: str | type[Method] | Method | Iterable[Method],
    *,
    backbones: Sequence[BackboneKind] | None = None,
    checks: Sequence[str] | None = None,
    quick: bool = False,
) -> list[CheckResult]:
    """Runs the cases that `conformance_cases` makes of these arguments, and returns their results."""
    return [
        run_case(case) for case in conformance_cases(method, backbones=backbones, checks=checks, quick=quick)
    ]
