"""Tests that each conformance check finds the faults that it looks for, and passes correct methods."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tensorbench.checks.conformance import BACKBONES, CHECKS, UNEQUAL, run_checks
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.errors import NotLowRank, UserError

from .faulty import FAULTS, CountsTooFew, DiffersWhenCompiled, Pairs, RaisesAnotherError


def test_a_method_of_a_plug_in_passes() -> None:
    results = run_checks(Pairs(rank=3), backbones=BACKBONES, quick=True)
    assert {result.backbone for result in results} == set(BACKBONES)
    assert {r.check: r.message for r in results if r.status == "failed"} == {}
    assert {r.check: r.message for r in results if r.status == "not applicable"} == {
        "identity": "Pairs is not registered as 'pairs'"
    }


def test_a_method_that_takes_all_weights_for_squares_is_caught_on_decoders() -> None:
    results = run_checks(Pairs(rank=3), checks=["factors"])
    assert {result.backbone for result in results} == {*BACKBONES, *UNEQUAL}
    # This up factor has too many rows for Llama's value, and is cut. It has too few for Qwen3's query.
    assert [result.backbone for result in results if result.status == "failed"] == ["qwen3"]


@pytest.mark.parametrize(
    ("method", "check", "message"),
    [(m, *v) for m, v in FAULTS.items()],
    ids=[method.__name__ for method in FAULTS],
)
def test_the_checks_catch(method: type[Pairs], check: str, message: str) -> None:
    (result,) = run_checks(method(rank=3), backbones=["bert"], checks=[check])
    assert result.status == "failed", result
    assert re.search(message, result.message), result.message


def test_a_wrong_count_is_found_once() -> None:
    results = run_checks(CountsTooFew(rank=3), quick=True)
    assert [(r.check, r.backbone) for r in results if r.status == "failed"] == [("count", "bert")]
    reasons = {result.message for result in results if result.status == "not applicable"}
    assert reasons == {"the method's count is wrong", "CountsTooFew is not registered as 'pairs'"}


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _ in FAULTS.values()} == set(CHECKS) - {"inductor"}


@pytest.mark.parametrize(("method", "status"), [(Pairs, "passed"), (DiffersWhenCompiled, "failed")])
def test_generated_code_is_asked_for_and_compared(
    method: type[Pairs], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No code is generated here, only the backend is checked. test_numerics.py generates code.
    backends, compiled = [], torch.compile

    def traced(module: torch.nn.Module, *, backend: str) -> object:
        backends.append(backend)
        return compiled(module, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr("shutil.which", lambda program: program)
    (result,) = run_checks(method(rank=3), backbones=["bert"], checks=["inductor"])
    assert (result.status, backends) == (status, ["inductor"]), result


def test_a_method_without_low_rank_form_passes_if_it_says_so() -> None:
    class Dense(Pairs):
        class adapter(RaisesAnotherError.adapter):  # noqa: N801
            def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
                raise NotLowRank("dense")

    results = run_checks(Dense(rank=2), backbones=["bert"], checks=["factors", "merge", "start", "detach"])
    assert [result.status for result in results] == ["passed"] * 4
    assert "not low-rank: dense" in [result.message for result in results]


def test_checks_of_missing_features_are_not_applicable_with_a_reason() -> None:
    class NeedsSquareHeads(Pairs):
        def count(self, geometry: Geometry) -> int:
            if geometry.heads != geometry.head_size:
                raise UserError("needs as many heads as channels in each")
            return super().count(geometry)

    results = run_checks(NeedsSquareHeads(rank=2), backbones=["vit"], checks=["count", "start", "merge"])
    assert [result.status for result in results] == ["passed", "not applicable", "not applicable"]
    assert results[0].message == "4 sizes, 12 refused"
    assert results[1].message.startswith("refuses this backbone")
