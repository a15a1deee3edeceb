"""Tests that errors in a plug-in name its package and leave other plug-ins working."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

from tensorbench.backbones import BACKBONES, load
from tensorbench.methods import METHODS, UserError
from tensorbench.records.metrics import METRICS
from tensorbench.tasks import TASKS, Objective
from tensorbench.tools.perf import contenders

from .bench.toy_suites import write
from .fixtures import Call
from .messages import naming

Install = Callable[[str, str], None]

TASK = """
from tensorbench.tasks import Examples, Task

class Mine(Task):
    name = "mine"
    modality = "text"
    classes = ("no", "yes")
    data_hash = "1"
    description = "numbers, even or odd"
    license = "CC0-1.0"

    def examples(self):
        return Examples([f"number {i}" for i in range(40)], [i % 2 for i in range(40)], range(40))

MINE = Mine()
"""

BACKBONE = """
import dataclasses

from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.methods import Geometry

class Mine:
    made = RandomBackbone("mine", "bert", Geometry(32, 4, 2, 64), max_tokens=64)

    def describe(self, image_size):
        return self.made.describe(image_size)

    def load(self, image_size):
        return self.made.load(image_size)

MINE = Mine()
"""

METHOD = """
from tensorbench.baselines.lora import LoRA

class MINE(LoRA):
    name = "mine"
"""


class Site:
    """A folder with an installed plug-in, from which this process can import."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, name: str, points: str, sources: dict[str, str]
    ) -> None:
        self.folder, self._patch = folder, patch
        self.package = folder / f"{name}-1.0.dist-info"
        self.package.mkdir(parents=True)
        (self.package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (self.package / "entry_points.txt").write_text(points)
        (self.package / "RECORD").write_text("".join(f"{file},,\n" for file in sources))
        for file, source in sources.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(source)
        patch.syspath_prepend(folder)
        self.look_again()

    def look_again(self) -> None:
        """Makes this process find the plug-in's current code, as a new process would."""
        for registry in (METHODS, TASKS, BACKBONES, METRICS):
            self._patch.setattr(registry, "_plugins", None)
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith("mine_p")]:
            del sys.modules[name]

    def change(self, name: str = "mine_parts/things.py") -> None:
        with (self.folder / name).open("a") as file:
            file.write("# another line\n")
        self.look_again()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Gives tests a function that installs a plug-in 'mistaken' with a given source for this process.

    The plug-in's entry point is `mine_plugin:MINE`.
    """

    def put(group: str, source: str) -> None:
        points = f"[tensorbench.{group}]\nmine = mine_plugin:MINE\n"
        Site(tmp_path / "site", monkeypatch, "mistaken", points, {"mine_plugin.py": dedent(source)})

    yield put
    sys.modules.pop("mine_plugin", None)


#: Every message about the plug-in contains these texts.
MISTAKEN = ("'mine'", "plug-in 'mistaken'")


def replaced(source: str, old: str, new: str) -> str:
    assert old in source
    return source.replace(old, new)


SOURCES = {"tasks": TASK, "backbones": BACKBONE, "methods": METHOD}
DESCRIBE = "return self.made.describe(image_size)"
RAISING = 'name = "mine"\n    @classmethod\n    def listed(cls): raise KeyError("x")'

#: Maps kinds of plug-ins to mistakes: a text in a correct plug-in, the text that replaces it, and the pattern
#: of the message.
MISTAKES = {
    "tasks": [
        ("MINE = Mine()", "MINE = Mine", naming("class", "`Mine()`")),
        ("MINE = Mine()", "MINE = 3", naming("tensorbench.tasks.Task")),
        ('data_hash = "1"', "", naming("'data_hash'", "required")),
        ('data_hash = "1"', "data_hash = 5", naming("'data_hash'", "required")),
        ('description = "numbers, even or odd"', "", naming("'description'", "required")),
        ('license = "CC0-1.0"', 'license = "-"; metric = "acuracy"', naming("'acuracy'", "'accuracy'")),
        ('license = "CC0-1.0"', 'license = "-"; target = "regression"', naming("classes", "regression")),
        ('("no", "yes")', '"ny"', naming("classes", "list")),
        ('("no", "yes")', '("no",)', naming("classes", "at least 2")),
        ('("no", "yes")', '("no", "no")', naming("classes", "different")),
        ('modality = "text"', 'modality = "sound"', naming("modality", "'text' or 'vision'")),
        ('name = "mine"', 'name = "yours"', naming("`name`", "'yours'")),
    ],
    "backbones": [
        ("MINE = Mine()", "MINE = Mine", naming("Mine", "class")),
        ("MINE = Mine()", "MINE = 3", naming("describe or load")),
        (DESCRIBE, "raise KeyError('x')", naming("KeyError: 'x'")),
        (DESCRIBE, "return {}", naming("BackboneInfo")),
        (
            DESCRIBE,
            "return dataclasses.replace(self.made.describe(image_size), kind='gpt')",
            naming("kind", "bert, roberta, xlm-roberta, "),
        ),
    ],
    "methods": [
        ('name = "mine"', "pass", naming("MINE", "name")),
        ("class MINE", "class Other", naming("import", "AttributeError")),
        ('name = "mine"', 'name = "mine"\nMINE = MINE()', naming("subclass")),
        ('name = "mine"', RAISING, naming("KeyError: 'x'")),
    ],
}


def rows(mistakes: dict[str, list[tuple[str, str, str]]]) -> list[tuple[str, str, str, str]]:
    return [(group, *mistake) for group, of_group in mistakes.items() for mistake in of_group]


@pytest.mark.parametrize(("group", "old", "new", "message"), rows(MISTAKES))
def test_lists_name_the_package_and_go_on(
    call: Call, install: Install, group: str, old: str, new: str, message: str
) -> None:
    install(group, replaced(SOURCES[group], old, new))
    listed = call("list", group)
    assert listed.code == 0
    assert {"tasks": "digits", "backbones": "minilm-l6", "methods": "tenslora"}[group] in listed.out
    warnings = " ".join(listed.err.split())
    assert "plug-in 'mistaken'" in warnings
    assert re.search(message, warnings)


def test_a_method_that_is_not_whole_is_refused(install: Install) -> None:
    install(
        "methods", "from tensorbench.methods.base import Method\nclass MINE(Method):\n    name = 'mine'\n"
    )
    with pytest.raises(UserError, match=naming(*MISTAKEN, "MINE", "count, fit")):
        METHODS.get("mine")


#: Like `MISTAKES`, for mistakes that show only when the plug-in is used.
LATE_MISTAKES = {
    "tasks": [
        ("return Examples(", "raise KeyError('x')\n        (", naming("KeyError: 'x'")),
        ("[i % 2 for", "[i % 2 / 1 for", naming("row 0", "0.0 (float)")),
        ("range(40))", "[1] * 40)", naming("ids", "unique")),
        (
            'data_hash = "1"',
            "data_hash = property(lambda self: open('/no/such/file').read())",
            naming("FileNotFoundError"),
        ),
        ('data_hash = "1"', "data_hash = property(lambda self: 5)", naming("text", 5)),
    ],
    "backbones": [
        ("return self.made.load(image_size)", "raise KeyError('x')", naming("KeyError: 'x'")),
        ("return self.made.load(image_size)", "pass", naming("LoadedBackbone")),
    ],
    "methods": [
        (
            'name = "mine"',
            'name = "mine"\n    def count(self, geometry): raise KeyError("x")',
            naming("KeyError: 'x'"),
        )
    ],
}


@pytest.mark.parametrize(("group", "old", "new", "message"), rows(LATE_MISTAKES))
def test_a_run_ends_before_any_trial_and_names_the_package(
    *,
    call: Call,
    install: Install,
    tmp_path: Path,
    new_store: Callable[[Path], str],
    group: str,
    old: str,
    new: str,
    message: str,
) -> None:
    install(group, replaced(SOURCES[group], old, new))
    install_rest = {
        "tasks": {"tasks": ["mine"], "backbones": ["tiny-random-bert"]},
        "backbones": {"tasks": ["movie-sentiment"], "backbones": ["mine"]},
        "methods": {"methods": ["mine"]},
    }[group]
    ended = call("run", write(tmp_path, **install_rest), "--store", new_store(tmp_path))
    assert ended.code == 2
    assert re.search(naming(group[:-1], *MISTAKEN), ended.err)
    assert "to run" not in ended.out
    assert re.search(message, ended.err)


TOKENIZER = """
    def describe(self, image_size):
        return self.with_tokenizer(self.made.describe(image_size))

    def load(self, image_size):
        loaded = self.made.load(image_size)
        loaded.info = self.with_tokenizer(loaded.info)
        return loaded

    def with_tokenizer(self, info):
        own = dataclasses.replace(info.input, tokenizer_hash="mine", load_tokenizer=Tokenizer)
        return dataclasses.replace(info, input=own)

class Tokenizer:
    pad_token_id = 0

    def num_special_tokens_to_add(self, pair):
        return 0

    def __call__(self, *texts, **options):
        raise KeyError("no such word")

MINE = Mine()
"""


def test_a_tokenizer_that_raises_names_its_backbone_s_package(
    call: Call, install: Install, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    install("backbones", BACKBONE.partition("    def describe")[0] + TOKENIZER)
    suite = write(tmp_path, tasks=["movie-sentiment"], backbones=["mine"])
    ended = call("run", suite, "--store", new_store(tmp_path))
    assert ended.code == 2
    assert re.fullmatch(naming("error: backbone", *MISTAKEN, "KeyError: 'no such word'\n"), ended.err)
    assert "to run" not in ended.out


def test_timing_all_methods_leaves_out_one_that_raises(install: Install) -> None:
    install("methods", replaced(METHOD, 'name = "mine"', RAISING))
    backbone = load("tiny-random-vit")
    with pytest.warns(UserWarning, match=naming("left out", "method", *MISTAKEN, "KeyError: 'x'")):
        chosen = contenders(["all"], ["isorank"], backbone)
    assert {"LoRA", "LoTR"} <= {contender.label for contender in chosen}
    with pytest.raises(UserError, match=naming("method", *MISTAKEN, "KeyError: 'x'")):
        contenders(["mine"], ["isorank"], backbone)


@pytest.mark.parametrize(("group", "source"), [("tasks", TASK), ("backbones", BACKBONE)])
def test_without_a_mistake_every_check_passes(call: Call, install: Install, group: str, source: str) -> None:
    install(group, source)
    checked = call("check", "mine")
    assert checked.code == 0, checked.out
    assert "0 failed, 0 not applicable" in checked.out


def test_check_reports_failures(call: Call, install: Install) -> None:
    install("tasks", replaced(TASK, "[i % 2 for", "[i % 2 / 1 for"))
    checked = call("check", "mine")
    assert checked.code == 1
    assert re.search(naming("✗ examples ", "task", *MISTAKEN, "row 0", "0.0", "– splits "), checked.out)


def test_check_of_a_method_without_presets_names_the_package(call: Call, install: Install) -> None:
    broken = 'name = "mine"\n    @classmethod\n    def presets(cls): raise KeyError("x")'
    install("methods", replaced(METHOD, 'name = "mine"', broken))
    ended = call("check", "mine")
    assert ended.code == 2
    assert re.search(naming("method", *MISTAKEN, "KeyError: 'x'"), ended.err)


def test_check_of_nothing_known_suggests_the_nearest(call: Call) -> None:
    ended = call("check", "digitz")
    assert ended.code == 2
    assert re.search(naming("'digitz'", "'digits'"), ended.err)


METRIC = """
from tensorbench.records.metrics import Metric

class Mine(Metric):
    name = "mine"
    kinds = ("regression",)
    higher = False
    in_units = True
    description = "mean absolute error"

    def score(self, targets, predictions):
        return float(abs(targets - predictions).mean())

MINE = Mine()
"""


def test_a_plugins_metric_gives_scores_and_contributions(install: Install) -> None:
    install("metrics", METRIC)
    metric, targets, predictions = METRICS.get("mine"), np.arange(6.0), np.zeros(6)
    objective = Objective(metric, "regression", 1)
    assert objective.score(torch.zeros(6, 1), torch.arange(6.0)) == 2.5
    # A mean over examples equals its jackknife.
    assert metric.contributions(targets, predictions) == pytest.approx(np.arange(6.0))
    assert metric.better(1, 2)
    assert "mine" in METRICS


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("MINE = Mine()", "MINE = Mine", naming("tensorbench.records.metrics.Metric")),
        ('("regression",)', '("ranking",)', naming("kinds", "single label, multi-label, regression")),
        ('name = "mine"', 'name = "yours"', naming("`name`", "'mine'", "'yours'")),
        ('name = "mine"', 'name = "mine"\n    bounds = (1.0, 0.0)', naming("bounds", "numbers")),
        ("higher = False", 'higher = "no"', naming("higher", "True or False", "'no'")),
        ("higher = False", 'varied = "no"', naming("varied", "True or False", "'no'")),
        ("higher = False", 'reads = "logit"', naming("reads", "'answers' or 'outputs'", "'logit'")),
        ("higher = False", 'reads = "outputs"', naming("reads", "'answers' for regression", "'outputs'")),
        ("higher = False", "point = 0", naming("point", "above 0", 0)),
        ("higher = False", "classes = 1", naming("classes", "at least 2", 1)),
        ('description = "mean absolute error"', "", naming("description", "text", None)),
        ("float(abs", "flaot(abs", naming("NameError", "'flaot'")),
    ],
)
def test_a_mistake_in_a_metric_names_its_package(install: Install, old: str, new: str, message: str) -> None:
    install("metrics", replaced(METRIC, old, new))
    with pytest.raises(UserError, match=naming("metric", *MISTAKEN) + f".*{message}"):
        Objective(METRICS.get("mine"), "regression", 1).score(torch.zeros(2, 1), torch.zeros(2))
