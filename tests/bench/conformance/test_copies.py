"""Tests that a module with any method's adapter can be copied and pickled, and that copies run alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from tensorbench.checks.conformance import Case, conformance_cases
from tensorbench.checks.conformance.subject import Subject, loss, outputs, trained, undisturbed
from tensorbench.methods import METHODS, create

CASES = [case for name in METHODS for case in conformance_cases(name, quick=True, backbones=["bert"])]
DROPPING = Case(create("tenslora", variant="qkv", dropout=0.1).isorank(2), "bert", "count")


@pytest.mark.parametrize(
    "case", [*(case for case in CASES if case.check == "count"), DROPPING], ids=lambda case: case.method.label
)
def test_a_copy_of_an_adapted_module_runs_by_itself(case: Case) -> None:
    with undisturbed():
        subject = Subject(case.method, case.backbone)
        backbone, adapter = subject.randomised()
        batch = subject.batch()
        # Its graph lives while the module is copied.
        logits = backbone.module.train()(**batch)
        expected = outputs(backbone, batch)
        for copied in (copy.deepcopy(backbone.module), pickle.loads(pickle.dumps(backbone.module))):
            with torch.no_grad():
                assert torch.equal(copied.eval()(**batch), expected)
            loss(copied.train()(**batch)).backward()
            assert all(parameter.grad is None for parameter in trained(adapter, backbone).values())
            with torch.no_grad():
                for parameter in copied.parameters():
                    parameter.add_(torch.randn_like(parameter))
                assert not torch.equal(copied.eval()(**batch), expected)
        assert torch.equal(outputs(backbone, batch), expected)
        loss(logits).backward()
