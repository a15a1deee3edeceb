"""The conformance checks that every method must pass, ours and plug-ins'. No network is needed.

In the tests of a plug-in:

    from bench.conformance import Case, check_case, conformance_cases

    @pytest.mark.parametrize("case", conformance_cases("my_method"), ids=str)
    def test_conformance(case: Case) -> None:
        check_case(case)

A case is one check of one method on one tiny random backbone. The methods are the class's `presets`,
and every pair of its other options on BERT (without compiling). Presets meet every kind of backbone where
what is checked goes through the backbone's modules: merging, detaching, training, storing. What depends on
the method alone (its count, its gradients, its seeds) is asked on BERT; `backbones=["vit"]` asks all of it
there. What a check cannot ask of a method is skipped with its reason. At the terminal:
`tensorbench check my_method`.
"""

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
from bench.conformance.display import print_checks
from bench.conformance.subject import BACKBONES, CheckFailed, NotApplicable

__all__ = [
    "BACKBONES",
    "CHECKS",
    "Case",
    "CheckFailed",
    "CheckResult",
    "NotApplicable",
    "check_case",
    "conformance_cases",
    "print_checks",
    "run_case",
    "run_checks",
    "variations",
]
