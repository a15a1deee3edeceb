"""Tests that trials keep their ids. `ids.json` holds the ids that an earlier version computed.

Two defaults of the recipe have changed since that version: it gave adapters the weight decay of heads, and it
tested the state with the best validation score. A suite that asks for both old values gets the old ids. A
suite that asks for neither gets new ids, and `ids.json` holds some of the new ids under `toys by loss`.

That version also drew dropout from the backbone's random stream. So every trial with dropout, which FacT and
CaRA have by default, has a new id. For these trials `ids.json` holds the new ids only.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tensorbench.plan.make import make_plan
from tensorbench.plan.recipe import AS_HEAD
from tensorbench.plan.suite_file import load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import StoredPlan

from ..toy_suites import DIGITS, MOVIES, TEXT, VISION, plan

ROOT = Path(__file__).parents[3]
SUITES = ROOT / "suites"
STORED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "ids.json").read_text())

TRAINING = VISION["training"]

#: The two defaults of the earlier version that have changed, with their old values.
THEN = {"adapter_weight_decay": AS_HEAD, "select": "score"}

#: Toy trials by their names in `ids.json`, each as a suite and changes of this suite. Some changes set a
#: field that was added after the first ids, to its default or to another value. Others set an option that
#: has no effect.
TOYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": (VISION, {}),
    "normalise": (VISION, {"tasks": [{**DIGITS, "normalise": False}]}),
    "resize": (VISION, {"tasks": [{**DIGITS, "resize": 40}]}),
    "split": (VISION, {"tasks": [{**DIGITS, "split": "per_seed"}]}),
    "augmentation": (VISION, {"training": {**TRAINING, "augmentation": ["flip", "crop"]}}),
    "compile": (VISION, {"training": {**TRAINING, "compile": True}}),
    "deterministic": (VISION, {"training": {**TRAINING, "deterministic": True}}),
    "image size": (VISION, {"backbones": [{"name": "tiny-random-vit", "image_size": 16}]}),
    "text": (TEXT, {}),
    "padding": (TEXT, {"tasks": [{**MOVIES, "padding": "max_tokens"}]}),
    "starts": (VISION, {"methods": [{"method": "tenslora", "variant": "att", "starts": "identical"}]}),
    "starts of one tensor": (
        VISION,
        {"methods": [{"method": "tenslora", "variant": "qkv_depth", "starts": "identical"}]},
    ),
    "heads without a head mode": (
        VISION,
        {"methods": [{"method": "tenslora", "variant": "depth", "heads": "interleaved"}]},
    ),
    "place of no dropout": (
        {**VISION, "backbones": ["random-vit-small"], "budgets": []},
        {"methods": [{"method": "cara", "rank": 2, "dropout": 0, "dropout_on": "update"}]},
    ),
    "place of dropout": (
        {**VISION, "backbones": ["random-vit-small"], "budgets": []},
        {"methods": [{"method": "cara", "rank": 2, "dropout_on": "update"}]},
    ),
    "configuration of peft": (
        VISION,
        {"methods": [{"method": "peft", "type": "LORA", "config": {"lora_dropout": 0.1}}]},
    ),
}


@pytest.mark.parametrize("name", [name for name in STORED if not name.startswith("toys")])
def test_the_trials_of_a_suite_keep_their_ids(name: str) -> None:
    now = {}
    suite = load_suite(SUITES / f"{name}.yaml")
    then = suite.model_copy(update={"training": suite.training.model_copy(update=THEN)})
    for row in make_plan(then).rows:
        budget = row.budget or "own size"
        for seed, trial in row.trials.items():
            now[f"{row.method}, {budget}, {row.backbone}, {row.task}, seed {seed}"] = trial
    assert {what: now.get(what) for what in STORED[name]} == STORED[name]


@pytest.mark.parametrize(
    "pack",
    [*ROOT.joinpath("results").glob("study*.zip"), *ROOT.joinpath("docs/results").glob("*.zip")],
    ids=lambda pack: pack.name,
)
def test_published_suites_plan_the_trials_of_their_packs(pack: Path) -> None:
    with zipfile.ZipFile(pack) as file:
        (name,) = (name for name in file.namelist() if name.endswith("plan.json"))
        stored = StoredPlan.model_validate_json(file.read(name))
    planned = make_plan(load_suite(SUITES / f"{stored.suite}.yaml")).stored()
    assert [(row.method, row.task, row.trials) for row in planned.rows] == [
        (row.method, row.task, row.trials) for row in stored.rows
    ]


def test_later_fields_change_ids_only_off_their_default() -> None:
    now = {}
    for what, (base, changes) in TOYS.items():
        training = changes.get("training", base["training"]) | THEN
        (trial,) = plan(base, **{**changes, "training": training}).trials
        now[what] = trial.id
    assert now == STORED["toys"]


def test_trials_that_select_by_loss_keep_their_ids() -> None:
    now = {}
    for what in STORED["toys by loss"]:
        base, changes = TOYS[what]
        (trial,) = plan(base, **changes).trials
        assert trial.recipe.select == "loss"
        now[what] = trial.id
    assert now == STORED["toys by loss"]


@pytest.mark.parametrize("written", ["score", "validation"])
def test_selection_by_the_score_is_what_was_called_validation(written: str) -> None:
    (trial,) = plan(VISION, training=TRAINING | THEN | {"select": written}).trials
    assert (trial.recipe.select, trial.id) == ("score", STORED["toys"]["nothing"])
    stored = trial.model_dump(mode="json")
    assert stored["recipe"]["select"] == "validation"
    assert Trial.model_validate(stored).recipe.select == "score"


@pytest.mark.parametrize(
    ("decay", "as_then"),
    [
        ({}, False),
        ({"adapter_weight_decay": 0.5}, False),
        ({"adapter_weight_decay": 0.01}, True),
        ({"weight_decay": 0.5, "adapter_weight_decay": 0.01}, False),
    ],
)
def test_only_the_earlier_version_s_decay_of_adapters_gives_its_trials(
    decay: dict[str, Any], as_then: bool
) -> None:
    (trial,) = plan(VISION, training=TRAINING | {"select": "score"} | decay).trials
    (then,) = plan(VISION, training=TRAINING | decay | THEN).trials
    assert (trial.id == then.id) == as_then


def test_a_stored_trial_of_the_earlier_version_is_read_with_its_decay() -> None:
    (trial,) = plan(VISION, training=TRAINING | THEN).trials
    stored = trial.model_dump(mode="json")
    del stored["recipe"]["adapter_weight_decay"]
    read = Trial.model_validate(stored)
    assert (read.recipe, read.id) == (trial.recipe, STORED["toys"]["nothing"])
    assert read.recipe.adapter_decay == 0.01
