"""Makes suites that train in seconds, with random weights, few examples and few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite

DIGITS = {"task": "digits", "train_size": 60, "validation_size": 30, "test_size": 40}
MOVIES = {
    "task": "movie-sentiment",
    "train_size": 64,
    "validation_size": 30,
    "test_size": 45,
    "max_tokens": 32,
}

VISION: dict[str, Any] = {
    "name": "toy",
    "backbones": ["tiny-random-vit"],
    "tasks": [DIGITS],
    "methods": ["lora"],
    "budgets": [{"isoparameters": 2}],
    "seeds": [0],
    "training": {"lr": 5e-3, "batch_size": 16, "epochs": 2},
    "floor": "none",
}
#: For studies, which draw their own seeds.
UNSEEDED = {field: value for field, value in VISION.items() if field != "seeds"}
TEXT = {**VISION, "backbones": ["tiny-random-bert"], "tasks": [MOVIES]}


def suite(base: dict[str, Any] = VISION, **changes: Any) -> Suite:
    return validate(Suite, {**base, **changes}, "toy suite")


def plan(base: dict[str, Any] = VISION, device: str = "cpu", **changes: Any) -> Plan:
    return make_plan(suite(base, **changes), device)


def write(folder: Path, base: dict[str, Any] = VISION, **changes: Any) -> Path:
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({**base, **changes}))
    return file
