"""Tests suites: an invalid one is refused with a helpful message, a valid one has the trials it states."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from tensorbench.methods import UserError
from tensorbench.methods.tenslora import VARIANTS
from tensorbench.methods.validation import validate
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite import Suite, load_suite
from tensorbench.plan.yaml_text import parse, written

from ...messages import naming
from ..toy_suites import DIGITS, VISION, suite, write


def test_a_wrong_item_is_reported_once_and_not_as_an_empty_list() -> None:
    with pytest.raises(UserError) as refused:
        suite(tasks=[{**DIGITS, "max_tokens": 0}])
    assert len(str(refused.value).splitlines()) == 1


def test_all_wrong_fields_are_reported_at_once() -> None:
    with pytest.raises(UserError) as refused:
        suite(sedes=[0], training={"lr": 0}, seeds=[])
    assert [line.split(": ")[1].split(";")[0] for line in str(refused.value).splitlines()] == [
        "seeds",
        "training.lr",
        "unknown field 'sedes'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [toy", "not valid YAML.*line 1"),
        (b"name: caf\xe9", "not UTF-8"),
        (b"name: toy\nclosing: 2025-02-30\n", naming("YAML", 2)),
        (b"seeds: [!!int x]\n", naming("YAML", 1, 9)),
        (b"name: toy\nseeds: [0]\nname: [1]\n", naming("YAML", '"name"', 3)),
        (b"tasks:\n- {task: a, 'task': b}\n", naming('"task"', 2, 13)),
        (b"name: a\n---\nname: b\n", r"single document.* \(line 2"),
        (b"name: \x07\n", "not valid YAML: .*#x0007"),
        (b"name: a\nseeds: &a [*a]\n", naming("20,000", "aliases", 2)),
        (b"a: *nowhere\n", naming("'nowhere'", 1)),
        (b"a: !!python/object/apply:os.getcwd []\n", "for the tag"),
        (b"- digits\n", "mapping.* name,"),
        (b"", "mapping"),
        (b"yes: 1\n", naming("'tasks'", 1)),
        (b"a: &a {b: 1}\nc:\n  <<: *a\n", naming("<<", 3)),
        (b"[" * 3000 + b"]" * 3000, r"nested too deep, more than 50 levels \(line 1, column 51\)"),
        (None, "suite .*No such file"),
    ],
)
def test_a_file_that_is_no_suite_is_refused_by_name(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "broken.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){message}") as refused:
        load_suite(file)
    assert str(file) in str(refused.value)


def test_a_folder_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read suite"):
        load_suite(tmp_path)


def test_plain_words_of_yaml_keep_their_types() -> None:
    said = {
        "5e-4": 5e-4,
        "1E3": 1e3,
        "1.5e3": 1.5e3,
        "-1e-3": -1e-3,
        "no": False,
        "On": True,
        "n": "n",
        "Y": "Y",
        "none": "none",
        "~": None,
        "010": 8,
        "08": "08",
        "0x1F": 31,
        "30_000": 30_000,
        "1:30": 90,
        "2025-01-02": date(2025, 1, 2),
        ".inf": float("inf"),
        "'no'": "no",
    }
    for header in ("", "%YAML 1.2\n---\n"):
        assert {word: parse(f"{header}a: {word}")["a"] for word in said} == said


def test_what_is_written_is_read_back_the_same() -> None:
    values = {
        "b": ["n", "no", "1e5", "010", "1:30", "2025-01-02", "~", "", "é", "a: b", "<<"],
        "a": {},
        "c": None,
    }
    assert parse(written(values)) == values
    assert list(parse(written(values))) == ["b", "a", "c"]
    assert yaml.safe_load(written(values)) == values


def test_each_spans_all_combinations_in_order() -> None:
    rows = [
        {
            "method": "tenslora",
            "scale": 2,
            "each": {"variant": list(VARIANTS), "heads": ["aligned", "interleaved"]},
        }
    ]
    methods = [method for _, method in suite(methods=rows).methods[0].variants()]
    assert [(m.variant, m.heads) for m in methods] == [  # type: ignore[attr-defined]
        (variant, heads) for variant in VARIANTS for heads in ("aligned", "interleaved")
    ]
    assert {m.scale for m in methods} == {2.0}  # type: ignore[attr-defined]


def test_options_written_out_are_the_options() -> None:
    beside = suite(methods=[{"method": "lora", "rank": 4}])
    written = suite(methods=[{"method": "lora", "options": {"rank": 4}}])
    assert list(beside.methods[0].variants()) == list(written.methods[0].variants())
    assert validate(Suite, beside.model_dump(), "round trip") == beside


def recipe(training: Any = None, task: Any = None, method: Any = None, device: str = "cpu") -> Recipe:
    made = suite(
        training=training or {},
        tasks=[{**DIGITS, "training": task or {}}],
        methods=[{"method": "lora", "training": method or {}}],
    )
    return made.recipe(made.tasks[0], made.methods[0]).resolved(device)


def test_the_method_overrides_the_task_and_the_task_the_suite() -> None:
    made = recipe(
        {"lr": 1e-3, "weight_decay": 0.1, "clip": 3.0}, {"lr": 2e-3, "weight_decay": 0.2}, {"lr": 3e-3}
    )
    assert (made.lr, made.weight_decay, made.clip) == (3e-3, 0.2, 3.0)


def test_the_head_follows_the_rate_that_won_unless_it_has_its_own() -> None:
    assert recipe({"lr": 1e-3}, None, {"lr": 3e-3}).head_lr == 3e-3
    assert recipe({"lr": 1e-3, "head_lr": 7e-3}, None, {"lr": 3e-3}).head_lr == 7e-3


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (({"epochs": 3}, {"steps": 7}, {}), (None, 7)),
        (({"steps": 7}, {}, {"epochs": 3}), (3, None)),
        (({"epochs": 3}, {"steps": 7}, {"epochs": 4}), (4, None)),
        (({}, {"steps": 7}, {"steps": 9}), (None, 9)),
        (({"epochs": 3}, {}, {"steps": None}), (3, None)),
        (({"epochs": 3}, {}, {"epochs": None}), (3, None)),
        (({"steps": 7}, {"epochs": None}, {}), (None, 7)),
        (({}, {}, {}), (10, None)),
    ],
)
def test_a_length_replaces_the_other_kind_of_length(layers: Any, expected: tuple[Any, Any]) -> None:
    made = recipe(*layers)
    assert (made.epochs, made.steps) == expected


def test_an_override_may_not_give_both_lengths() -> None:
    with pytest.raises(UserError, match=naming("training", "lora", "epochs", "steps")):
        recipe({}, {}, {"epochs": 1, "steps": 1})


@pytest.mark.parametrize(
    ("requested", "device", "precision"),
    [("auto", "cpu", "fp32"), ("fp32", "cuda", "fp32"), ("bf16", "cpu", "bf16")],
)
def test_precision_is_resolved_by_the_device(requested: str, device: str, precision: str) -> None:
    assert recipe({"precision": requested}, device=device).precision == precision


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[3] / "suites").glob("*.yaml")), ids=lambda f: f.stem
)
def test_the_suites_that_we_ship_are_valid(file: Path) -> None:
    assert load_suite(file).name == file.stem


def test_a_suite_knows_the_text_that_it_was_read_from(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(f"# Two seeds are enough.\n{file.read_text()}")
    assert load_suite(file).file.text == file.read_text()
    fields = {**VISION, "backbones": [{"local": "folder"}]}
    source = load_suite(fields).file
    assert source.name == ""
    # As given: the absolute path would be specific to one machine.
    assert parse(source.text)["backbones"] == [{"local": "folder"}]


@pytest.mark.parametrize("replaced", [{"data": "~no-such-user/x"}, {"backbones": ["~no-such-user/x"]}])
def test_folders_of_unknown_users_are_refused(replaced: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="~no-such-user is no user's home"):
        load_suite(VISION, **replaced)
