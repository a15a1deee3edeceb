"""The conformance checks that every method, task and backbone must pass, ours and plug-ins'.

Those of methods need no network; a task's read its examples, and a backbone's load its weights.

In the tests of a plug-in:

    from bench.conformance import Case, check_case, conformance_cases

    @pytest.mark.parametrize("case", conformance_cases("my_method"), ids=str)
    def test_conformance(case: Case) -> None:
        check_case(case)

A case is one check of one method on one tiny random backbone. The methods are the class's `presets`,
and every pair of its other options on BERT (without compiling). Presets meet every kind of backbone where
what is checked goes through the backbone's modules: merging, detaching, training, storing. What depends on
the method alone (its count, its gradients, its seeds) is asked on BERT; `backbones=["vit"]` asks all of it
there. Presets meet two decoders too, with shared heads, a head size of its own and a gated MLP, where what is
checked depends on shapes. What a check cannot ask of a method is skipped with its reason. At the terminal:
`tensorbench check NAME`, of a method, a task or a backbone.
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
