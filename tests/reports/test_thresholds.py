"""Tests that each threshold belongs to one metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.reports.thresholds import thresholds

from ..fixtures import Call


def test_unset_thresholds_are_the_metrics_default() -> None:
    assert thresholds(["accuracy", "matthews", "f1"], {"accuracy": 0.03}) == {
        "accuracy": 0.03,
        "matthews": 0.02,
        "f1": 0.01,
    }


def test_a_number_alone_holds_for_one_metric() -> None:
    assert thresholds(["matthews"], 0.05) == {"matthews": 0.05}
    assert thresholds(["accuracy", "accuracy"], 0) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        (0.02, "cannot hold for several metrics (accuracy, matthews)"),
        ({"acuracy": 0.02}, "unknown metric of these results 'acuracy': did you mean 'accuracy'?"),
        ({"accuracy": 2}, "threshold of accuracy: must be from 0 to 1"),
        ({"accuracy": -0.1}, "threshold of accuracy: must be from 0 to 1"),
        ({"accuracy": float("nan")}, "threshold of accuracy: expected a number of at least 0 (got nan)"),
        ({"accuracy": "0.1"}, "threshold of accuracy: expected a number of at least 0 (got '0.1')"),
    ],
)
def test_impossible_thresholds_are_refused(requested: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        thresholds(["accuracy", "matthews"], requested)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "matthews=0.02"], "unknown metric of these results 'matthews'"),
        (["--threshold", "accuracy=high"], "'accuracy=high' is neither a number nor NAME=NUMBER"),
        (["--threshold", "accuracy=0.1", "--threshold", "accuracy=0.2"], "--threshold"),
        (["--threshold", "0.1,accuracy=0.2"], "--threshold"),
    ],
)
def test_the_command_refuses_impossible_thresholds_too(
    call: Call, small: str, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "out"
    ended = call("report", "small", "--store", small, "--out", str(out), "--no-log", *options)
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", " ").split())
    assert not out.exists()
