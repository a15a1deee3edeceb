"""Tests of the one rule for ids: an id hashes the versions, and the fields that differ from their defaults.

`defaults.json` pins the defaults of every version. If the test of it fails:

- A new field that has a default changes no id. Add it to the entry of the current version.
- A changed default would give stored trials another meaning. Increase the version in the entry's name
  (`PROTOCOL`, `PREPARATION_VERSION`, `READING_VERSION` or the method's `version`), and add an entry. Old
  entries stay.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from tensorbench.backbones import BackboneSpec
from tensorbench.backbones.registered_backbones import TINY_RANDOM_BERT
from tensorbench.baselines.peft_types import OWN_CLASSES
from tensorbench.methods import METHODS, Method, UserError, create
from tensorbench.methods.catalog import identity_of, load_methods
from tensorbench.methods.registry import PythonFile
from tensorbench.methods.validation import Frozen, _leaves, plain
from tensorbench.plan.make import make_plan
from tensorbench.plan.recipe import OF_FORWARD, Recipe
from tensorbench.plan.suite import load_suite
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.plan.trial import PROTOCOL, SIZES, Trial
from tensorbench.records.stored_plan import StoredPlan
from tensorbench.tasks.data_tasks import READING_VERSION
from tensorbench.tasks.description import Description
from tensorbench.tasks.task import PREPARATION_VERSION, Task

from ...messages import naming
from ..toy_suites import DIGITS, MOVIES, TEXT, VISION, plan

ROOT = Path(__file__).parents[3]
SUITES = ROOT / "suites"
DEFAULTS: dict[str, Any] = json.loads((Path(__file__).parent / "defaults.json").read_text())

VERBALIZER = {"prompt": "{text} It is", "words": [" bad", " good"]}
WORDS = {**TEXT, "backbones": ["tiny-random-llama"], "tasks": [{**MOVIES, "verbalizer": VERBALIZER}]}

#: The presets of every built-in class.
PRESETS: dict[str, Sequence[Method]] = {
    **{name: METHODS.get(name).presets() for name in METHODS if METHODS.is_built_in(name)},
    **{f"peft {kind}": [create("peft", type=kind)] for kind in OWN_CLASSES},
}


def trial(base: dict[str, Any] = VISION, device: str = "cpu", **changes: Any) -> Trial:
    (made,) = plan(base, device, **changes).trials
    return made


# --- defaults ---


def defaults(*models: type[Frozen]) -> dict[str, Any]:
    """The default of every field, and of the fields of configurations inside, as plain JSON."""
    values: dict[str, Any] = {}
    for model in models:
        for name, field in model.model_fields.items():
            if not field.is_required():
                values[name] = plain(field.get_default(call_default_factory=True))
            for leaf in _leaves(field.annotation):
                if isinstance(leaf, type) and issubclass(leaf, Frozen):
                    values |= {f"{name}.{inner}": value for inner, value in defaults(leaf).items()}
    return values


def test_the_defaults_of_every_version_are_pinned() -> None:
    of_task = ("metric", "target", "redealt", "rules", "loss_on", "new_tokens", "answer_after")
    row = defaults(TaskRow)
    now = {
        f"protocol {PROTOCOL}": defaults(Recipe) | {name: row[name] for name in SIZES},
        f"preparation {PREPARATION_VERSION}": {
            **{name: plain(getattr(Task, name)) for name in of_task},
            "padding": row["padding"],
        },
        f"reading {READING_VERSION}": defaults(Description),
        **{f"{name} {preset.version}": defaults(type(preset)) for name, (preset, *_) in PRESETS.items()},
    }
    assert {version: DEFAULTS.get(version) for version in now} == now, __doc__


def test_a_new_field_changes_no_identity_and_a_changed_one_does() -> None:
    class Old(Frozen):
        rate: float
        clip: float | None = None

    class New(Old):
        crops: tuple[str, ...] = ()

    from tensorbench.methods.validation import identity

    assert identity(Old(rate=0.1)) == identity(New(rate=0.1)) == {"rate": 0.1}
    assert identity(New(rate=1.0, clip=2.0, crops=("left",))) == {"rate": 1, "clip": 2, "crops": ["left"]}
    assert identity(New(rate=0.1, clip=2.0), include={"clip", "crops"}) == {"clip": 2}


# --- one training, one id ---


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {**VISION["training"], "lr": "5e-3"}},
        {"training": {**VISION["training"], "head_lr": 0.005}},
        {"training": {**VISION["training"], "lr_floor": 0.000001, "warmup": 0.1, "select": "loss"}},
        {"training": {**VISION["training"], "weight_decay": 0.01, "adapter_weight_decay": -0.0}},
        {"training": {**VISION["training"], "core_lr": 0.5}},
        {"methods": [{"method": "lora", "rank": 2}], "budgets": []},
        {"methods": [{"method": "lora", "scale": 1, "dropout": "0", "targets": "qkv"}]},
        {"methods": [{"method": "lora", "label": "mine", "training": {"epochs": 2}}]},
        {"budgets": [{"isorank": 2}]},
        {"budgets": [{"isoparameters": 2, "tolerance": 0.5}]},
        {"name": "another", "description": "other", "closing": "words", "forgetting": "none"},
        {"backbones": [{"name": "tiny-random-vit", "label": "mine", "dtype": "float32", "image_size": 32}]},
        {
            "training": {"lr": 1, "epochs": 2},
            "tasks": [{**DIGITS, "label": "numbers", "training": {"lr": 5e-3, "batch_size": 16}}],
        },
        {"methods": ["lora", "head_only", "converged_head"], "seeds": [1, 0]},
    ],
    ids=str,
)
def test_spellings_of_one_training_have_one_id(changes: dict[str, Any]) -> None:
    assert trial().id in {other.id for other in plan(**changes).trials}


def test_lengths_by_default_have_the_id_of_those_that_are_given() -> None:
    rates = {"lr": 1, "batch_size": 16}
    assert trial(training=rates).id == trial(training={**rates, "lr": 1.0, "epochs": 10}).id


def test_texts_and_configurations_of_peft_have_one_id_in_every_spelling() -> None:
    options = {"type": "lora", "config": {"lora_dropout": 0, "lora_bias": False}}
    other = {"type": "LORA", "config": {"lora_bias": False, "lora_dropout": 0.0}}
    assert (
        trial(methods=[{"method": "peft", **options}]).id == trial(methods=[{"method": "peft", **other}]).id
    )


def test_options_and_recipes_without_effect_enter_no_id() -> None:
    def ids(name: str, options: dict[str, Any], **changes: Any) -> str:
        return trial(methods=[{"method": name, **options}], **changes).id

    plain_id = ids("tenslora", {"variant": "qkv_depth"})
    assert (
        ids("tenslora", {"variant": "qkv_depth", "starts": "identical", "heads": "interleaved"}) == plain_id
    )
    on = {"backbones": ["random-vit-small"], "budgets": []}
    still = {"rank": 2, "dropout": 0}
    assert ids("cara", {**still, "dropout_on": "update"}, **on) == ids("cara", still, **on)


@pytest.mark.parametrize("name", PRESETS)
def test_a_size_by_a_budget_and_one_that_is_given_are_one(name: str) -> None:
    for preset in PRESETS[name]:
        if preset.sizeable:
            sized = preset.isorank(2)
            assert sized.size is not None
            assert preset.with_size(sized.size).identity() == sized.identity()
            stored = json.loads(json.dumps(sized.stored()))
            assert identity_of(stored) == identity_of(sized.identity()) == sized.identity()


def test_a_stored_option_that_is_gone_changes_no_id_where_it_did_nothing() -> None:
    stored = create("tenslora", variant="qkv", ranks=(4, 4, 2)).stored()
    assert identity_of({**stored, "cuts": None}) == identity_of(stored)
    with pytest.raises(UserError, match=naming("unknown field 'cuts'")):
        identity_of({**stored, "cuts": {"times": 1}})


# --- different results, different ids ---

#: A change of every field of a recipe.
RECIPE: dict[str, Any] = {
    "lr": 1e-3,
    "head_lr": 1e-3,
    "core_lr": 0.5,
    "weight_decay": 0.5,
    "adapter_weight_decay": 0.01,
    "batch_size": 8,
    "epochs": 3,
    "steps": 5,
    "warmup": 0.0,
    "lr_floor": 0.0,
    "epsilon": 1e-12,
    "clip": 1.0,
    "select": "last",
    "precision": "bf16",
    "augmentation": ["flip"],
    "compile": True,
    "deterministic": True,
}

#: What is trained, and the fields of a recipe that cannot change its result.
TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "adapter, core and head": (VISION, {"method": "tenslora", "variant": "qkv_depth"}, set()),
    # It has no core.
    "adapter and head": (VISION, {"method": "lora"}, {"core_lr"}),
    # It has no adapter.
    "head": (VISION, {"method": "head_only"}, {"lr", "core_lr", "adapter_weight_decay"}),
    # A language model that answers in words has no head.
    "adapter": (WORDS, {"method": "lora"}, {"core_lr", "head_lr", "weight_decay"}),
    # Nothing is trained by steps.
    "nothing": (WORDS, {"method": "head_only"}, set(RECIPE) - OF_FORWARD),
    "fitted head": (VISION, {"method": "converged_head"}, set(RECIPE) - OF_FORWARD),
}


def test_every_field_of_a_recipe_has_a_change() -> None:
    assert RECIPE.keys() == Recipe.model_fields.keys()


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("field", RECIPE)
def test_a_field_of_a_recipe_changes_the_id_if_it_can_change_the_result(trained: str, field: str) -> None:
    base, row, idle = TRAINED[trained]
    if field == "augmentation" and base is WORDS:
        pytest.skip("augmentation is refused for texts")
    # With a head's rate of its own, the adapter's rate is not the head's.
    training = {**VISION["training"], "head_lr": 2e-3}
    if field == "steps":
        del training["epochs"]
    before = trial(base, methods=[row], training={**VISION["training"], "head_lr": 2e-3})
    after = trial(base, methods=[row], training={**training, field: RECIPE[field]})
    assert getattr(after.recipe, field) != getattr(before.recipe, field) or field in idle
    assert (after.id == before.id) == (field in idle)


#: A change of every field of a task's row that enters ids, as a suite and a change of its task.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "task": (TEXT, {"task": "tweet-sentiment"}),
    "train_size": (VISION, {"train_size": 61}),
    "validation_size": (VISION, {"validation_size": 31}),
    "test_size": (VISION, {"test_size": 41}),
    "fractions": (VISION, {"fractions": [60, 20, 20]}),
    "metric": (VISION, {"metric": "f1_macro"}),
    "max_tokens": (TEXT, {"max_tokens": 31}),
    "padding": (TEXT, {"padding": "max_tokens"}),
    "resize": (VISION, {"resize": 40}),
    "normalise": (VISION, {"normalise": False}),
    "split": (VISION, {"split": "per_seed"}),
    "verbalizer": (WORDS, {"verbalizer": {**VERBALIZER, "words": [" awful", " good"]}}),
}


@pytest.mark.parametrize("field", ROWS)
def test_a_field_of_a_task_s_row_changes_the_id_if_it_can_change_the_result(field: str) -> None:
    base, fields = ROWS[field]
    assert trial(base, tasks=[{**base["tasks"][0], **fields}]).id != trial(base).id


#: A change of every field of a backbone that enters ids.
SPECS = {"name": "random-vit-small", "image_size": 16, "dtype": "bfloat16", "quantise": "int8"}


@pytest.mark.parametrize("field", SPECS)
def test_a_field_of_a_backbone_changes_the_id_if_it_can_change_the_result(field: str) -> None:
    row = {"methods": [{"method": "lora", "rank": 2}], "budgets": []}
    assert trial(**row, backbones=[{"name": "tiny-random-vit", field: SPECS[field]}]).id != trial(**row).id


def test_every_field_of_a_row_and_a_backbone_has_a_change_or_enters_no_id() -> None:
    # The hash of the data, or of the weights, identifies them wherever they are. The recipe has the training.
    assert TaskRow.model_fields.keys() - ROWS == {"data", "source", "training", "label"}
    assert BackboneSpec.model_fields.keys() - SPECS == {"hub", "revision", "local", "timm", "label"}
    task, backbone = {**VISION["tasks"][0], "label": "a"}, {"name": "tiny-random-vit", "label": "b"}
    assert trial(tasks=[task], backbones=[backbone]).id == trial().id


def test_the_order_of_augmentations_matters() -> None:
    orders = (["crop", "flip"], ["flip", "crop"])
    first, second = (trial(training={**VISION["training"], "augmentation": order}) for order in orders)
    assert first.id != second.id


def test_an_id_depends_on_the_other_fields_of_a_trial() -> None:
    made = trial(TEXT)
    ids = {made.id, trial(TEXT, seeds=[1]).id, trial(TEXT, evaluate="validation").id}
    for change in ({"weights_hash": "other"}, {"data": {**made.data, "task_identity": "x"}}):
        ids.add(Trial.model_validate({**made.model_dump(), **change}).id)
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol": 1}, "protocol 1, and this version has 2"),
        ({"method": {"version": 9}}, "is at version 1"),
    ],
)
def test_defaults_of_other_versions_are_not_known_and_so_are_their_ids(
    change: dict[str, Any], named: str
) -> None:
    stored = trial().model_dump()
    changed = {key: {**stored[key], **value} if key == "method" else value for key, value in change.items()}
    with pytest.raises(UserError, match=named):
        _ = Trial.model_validate({**stored, **changed}).id


def _others(method: Method) -> Iterator[tuple[str, Method]]:
    """Yields each option with the method that has another value of it."""
    for name, field in type(method).model_fields.items():
        now = getattr(method, name)
        values: list[Any] = [True, False, 0.25, 0.5, 2.0, 3, 6, (2, 2, 2), (4, 8), "LOHA"]
        values += [{"lora_dropout": 0.5}, {"num_B": 3}, {"times": 2}]
        values += [value for leaf in _leaves(field.annotation) for value in get_args(leaf) or (leaf,)]
        for value in values:
            if type(value) is type or value == now:
                continue
            try:
                other = type(method).model_validate({**method.model_dump(), name: value})
            except ValueError:
                continue
            if getattr(other, name) != now:
                yield name, other


#: Options of which only one value is accepted.
SINGLE = {("peft ADALORA", "type"), ("peft LILY", "type")}


@pytest.mark.parametrize("name", PRESETS)
def test_an_option_of_a_method_changes_its_identity_unless_it_has_no_effect(name: str) -> None:
    changed = set()
    for preset in PRESETS[name]:
        met = {json.dumps(preset.identity(), sort_keys=True): dict(preset)}
        for option, other in _others(preset):
            changed.add(option)
            key = json.dumps(other.identity(), sort_keys=True)
            if option in other.idle:
                assert other.identity() == preset.identity()
            else:
                assert met.setdefault(key, dict(other)) == dict(other)
    assert changed == type(preset).model_fields.keys() - {option for owner, option in SINGLE if owner == name}


def test_presets_of_all_methods_have_different_identities() -> None:
    presets = [preset for of_class in PRESETS.values() for preset in of_class]
    assert len({json.dumps(preset.identity(), sort_keys=True) for preset in presets}) == len(presets)


def test_a_rate_of_a_core_counts_only_where_there_is_one() -> None:
    tucker, cp = (
        [{"method": "tenslora", "variant": "att", "factorization": kind}] for kind in ("tucker", "cp")
    )

    def planned(methods: list[dict[str, Any]], **training: float) -> str:
        return trial(methods=methods, training={"batch_size": 16, **training}).id

    assert planned(tucker, core_lr=4) != planned(tucker)
    assert planned(cp, core_lr=4) == planned(cp)
    with pytest.raises(UserError, match=naming("core_lr", "LoRA")):
        planned([{"method": "lora", "training": {"core_lr": 4}}])
    with pytest.raises(UserError, match=naming("core_lr", "1e-08", "lr_floor")):
        planned(tucker, lr=1e-4, core_lr=1e-4)


def test_an_id_depends_on_the_precision_not_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # This machine's GPU may be too old for bf16.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    training = VISION["training"]
    assert trial(device="cuda", training={**training, "precision": "fp32"}).id == trial().id
    assert trial(device="cuda").id == trial(training={**training, "precision": "bf16"}).id != trial().id


def test_without_max_tokens_texts_are_as_long_as_the_model_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(TINY_RANDOM_BERT, max_tokens=40)
    monkeypatch.setattr("tensorbench.backbones.registered_backbones.TINY_RANDOM_BERT", short)
    unasked = {key: value for key, value in MOVIES.items() if key != "max_tokens"}
    ids = [trial(TEXT, tasks=[row]).id for row in (unasked, {**MOVIES, "max_tokens": 40}, MOVIES)]
    assert ids[0] == ids[1] != ids[2]


# --- methods of others ---

OWN = """
from tensorbench.baselines.lora import LoRA

class Own(LoRA):
    name = "own_rates"
    scale: float = {scale}
"""


def test_a_default_of_a_file_s_method_may_change_since_all_its_options_enter(tmp_path: Path) -> None:
    ids = []
    for scale in (1.0, 2.0):
        load_methods(PythonFile(tmp_path / "own.py", OWN.format(scale=scale).encode()))
        made = trial(methods=["own_rates"])
        ids.append(made.id)
        assert made.method["scale"] == scale
    stored = made.model_dump(mode="json")
    METHODS._files.pop("own_rates")
    assert ids[0] != ids[1] == Trial.model_validate(stored).id


# --- published trials ---


@pytest.mark.parametrize(
    "pack",
    [*ROOT.joinpath("results").glob("study*.zip"), *ROOT.joinpath("docs/results").glob("*.zip")],
    ids=lambda pack: pack.name,
)
def test_published_suites_plan_the_trials_of_their_packs(pack: Path) -> None:
    with zipfile.ZipFile(pack) as file:
        (name,) = (name for name in file.namelist() if name.endswith("plan.json"))
        stored = StoredPlan.model_validate_json(file.read(name))
    if any((trial.task.get("source") or {}).get("local") for trial in stored.trials):
        pytest.skip("the suite's data are not in the repository")
    planned = make_plan(load_suite(SUITES / f"{stored.suite}.yaml")).stored()
    assert [(row.method, row.task, row.trials) for row in planned.rows] == [
        (row.method, row.task, row.trials) for row in stored.rows
    ]
