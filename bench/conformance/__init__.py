"""The conformance checks that every method, task and backbone must pass, including those of plug-ins.

Checks of methods need no network; checks of a task read its examples, and of a backbone load its weights.

In the tests of a plug-in:

    from bench.conformance import Case, check_case, conformance_cases

    @pytest.mark.parametrize("case", conformance_cases("my_method"), ids=str)
    def test_conformance(case: Case) -> None:
        check_case(case)

A case is one check of one method on one tiny random backbone. The methods are the class's `presets`, and on
BERT variants that show every pair of options (without compiling). Presets run on every kind of backbone for
checks that involve the backbone's modules: merging, detaching, training, storing. Checks that depend on the
method alone (its count, gradients, seeds) run on BERT; `backbones=["vit"]` runs all of them there. Presets
also run on two decoders, with shared heads, another head size and a gated MLP, for checks that depend on
shapes. A check that does not apply to a method is skipped with its reason. At the terminal: `tensorbench
check NAME`, for a method, a task or a backbone.
"""

from bench.conformance.backbones import check_backbone, check_kind
from bench.conformance.cases import (
    Case,
    CheckResult,
    check_case,
    conformance_cases,
    run_case,
    run_checks,
    variations,
)
from bench.conformance.checks import CHECKS
from bench.conformance.findings import Finding
from bench.conformance.subject import BACKBONES, DECODERS, CheckFailed, NotApplicable
from bench.conformance.tasks import check_task

__all__ = [
    "BACKBONES",
    "CHECKS",
    "DECODERS",
    "Case",
    "CheckFailed",
    "CheckResult",
    "Finding",
    "NotApplicable",
    "check_backbone",
    "check_case",
    "check_kind",
    "check_task",
    "conformance_cases",
    "run_case",
    "run_checks",
    "variations",
]
