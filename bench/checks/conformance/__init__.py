"""The conformance checks that every method, task and backbone must pass, including those of plug-ins.

Checks of methods need no network. Checks of a task read its examples, and checks of a backbone load its
weights. At the terminal, `tensorbench check NAME` runs the checks. The tests of a plug-in run them like this:

    from tensorbench.checks.conformance import Case, check_case, conformance_cases

    @pytest.mark.parametrize("case", conformance_cases("my_method"), ids=str)
    def test_conformance(case: Case) -> None:
        check_case(case)

A case is one check of one method on one tiny random backbone. By default the following cases run:

- Checks that involve the backbone's modules (merging, detaching, training, storing) run for the presets of
  the method's class on every kind of backbone. Beyond the first kind, they adapt the MLP too, if they can.
- Checks that depend on the method alone (its count, gradients, seeds) run for the presets on BERT. With
  `backbones=["vit"]` everything runs on ViT.
- Checks that depend on shapes also run for the presets on two decoders and T5. The decoders have shared heads
  and a gated MLP; one of them and T5 have a head size of their own.
- All of these checks but compiling run on BERT for further variants of the method, in which every pair of
  options occurs.

A check that does not apply to a method is skipped with a reason.
"""

from tensorbench.checks.conformance.backbones import check_backbone, check_kind
from tensorbench.checks.conformance.cases import (
    Case,
    CheckResult,
    check_case,
    conformance_cases,
    run_case,
    run_checks,
    variations,
)
from tensorbench.checks.conformance.checked import Checked, check
from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import BACKBONES, UNEQUAL, CheckFailed, Finding, NotApplicable
from tensorbench.checks.conformance.tasks import check_task

__all__ = [
    "BACKBONES",
    "CHECKS",
    "UNEQUAL",
    "Case",
    "CheckFailed",
    "CheckResult",
    "Checked",
    "Finding",
    "NotApplicable",
    "check",
    "check_backbone",
    "check_case",
    "check_kind",
    "check_task",
    "conformance_cases",
    "run_case",
    "run_checks",
    "variations",
]
