"""The suite: a YAML file that spans trials. Everything is validated before any work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from bench.backbones import BackboneSpec
from bench.backbones.base import refuse_unknown_home
from bench.lock import lock_path, read_lock
from bench.tasks import Source
from bench.tasks.inputs import ImageInput, ModelInput, Padding
from methods import METHODS, Method, UnknownNameError, UserError, create
from methods.validation import Frozen, validate

#: Of Optuna's samplers, which take 32 bits; each point adds one.
MAX_SEED = 2**31

Augmentation = Literal["colour_jitter", "flip", "crop"]


class Recipe(Frozen):
    """How a trial is trained. AdamW, cosine schedule; the same for all methods unless overridden."""

    #: Peak learning rate of the adapter.
    lr: PositiveFloat = 5e-4
    #: Peak learning rate of the head; None: as `lr`.
    head_lr: PositiveFloat | None = None
    weight_decay: float = Field(0.01, ge=0)
    batch_size: PositiveInt = 64
    #: Passes over the training split. Give this or `steps`.
    epochs: PositiveInt | None = None
    #: Optimizer steps.
    steps: PositiveInt | None = None
    #: Share of the steps in which the rate rises linearly from zero.
    warmup: float = Field(0.1, ge=0, lt=1)
    #: What the cosine ends at.
    lr_floor: float = Field(1e-6, ge=0)
    #: Largest gradient norm over adapter and head; None: no clipping.
    clip: PositiveFloat | None = None
    #: Which state is tested: the one with the best validation metric (the earliest of equals), or the last.
    select: Literal["validation", "last"] = "validation"
    #: `auto` is bf16 autocast on a GPU and fp32 on a CPU.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: What happens to training images, in this order: see `bench.augmentation`.
    augmentation: tuple[Augmentation, ...] = ()
    #: The encoder goes through `torch.compile`, in training and evaluation.
    compile: bool = False
    #: Only algorithms of torch that give the same bits every time; an operation without one is an error.
    deterministic: bool = False

    @model_validator(mode="after")
    def _length_and_floor(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        for name, peak in (("lr", self.lr), ("head_lr", self.head_lr)):
            if peak is not None and peak < self.lr_floor:
                raise ValueError(f"{name} {peak:g} is below lr_floor {self.lr_floor:g}")
        return self

    def check_batch(self, task: str, available: int) -> None:
        """Raises UserError for a batch that is larger than the train split."""
        if self.batch_size > available:
            raise UserError(
                f"training of task '{task}': batch_size {self.batch_size} is larger than the train split, "
                f"which has {available} examples"
            )

    def resolved(self, device: str) -> Recipe:
        """Without defaults that depend on anything: what a trial's id can hash."""
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "fp32"
        return self.model_copy(
            update={
                "head_lr": self.head_lr or self.lr,
                "epochs": self.epochs or (None if self.steps else 10),
                "precision": precision,
            }
        )


class Budget(Frozen):
    """How large the adapters are. Exactly one of the three ways."""

    #: Every rank equals this.
    isorank: PositiveInt | None = None
    #: As near as the paper's heuristic comes to LoRA of this rank on query, key and value.
    isoparameters: PositiveInt | None = None
    #: As near as possible to this many adapter parameters.
    parameters: PositiveInt | None = None
    #: How far, relative to the budget, a count may be before it is flagged.
    tolerance: float = Field(0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [n for n in ("isorank", "isoparameters", "parameters") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"a budget is one of isorank, isoparameters, parameters; got {given or 'none'}")
        return self

    @property
    def label(self) -> str:
        if self.isorank:
            return f"isorank {self.isorank}"
        if self.isoparameters:
            return f"isoparameters {self.isoparameters}"
        return f"{self.parameters:,} parameters"


class TaskRow(Frozen):
    """A task, how much of it, and what its trials train differently."""

    task: str
    train_size: PositiveInt | None = None
    validation_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    #: Texts are cut to this many tokens.
    max_tokens: PositiveInt = 128
    #: What a batch of texts is padded to. With `max_tokens` batches are not put together by length either.
    padding: Padding = "longest"
    #: Images are squashed to squares of so many pixels, of which the centre is cut out; None: their central
    #: square is resized to what the backbone reads.
    resize: PositiveInt | None = None
    #: Images are normalised as the backbone wants them; else pixels are between 0 and 1.
    normalise: bool = True
    #: One split for all seeds, or another for each, where the task has no official one.
    split: Literal["fixed", "per_seed"] = "fixed"
    #: Where the data of a hub task come from, if not from the task's own repository.
    source: Source | None = None
    training: dict[str, Any] = {}

    @field_validator("source")
    @classmethod
    def _home(cls, source: Source | None) -> Source | None:
        if source is not None and source.local is not None:
            refuse_unknown_home(source.local)
        return source

    def input(self, wanted: ModelInput) -> ModelInput:
        """How a backbone that by itself wants its examples so gets them here.

        Raises UserError for a switch of the other modality.
        """
        if isinstance(wanted, ImageInput):
            self._refuse(("padding",), "images")
            if not self.normalise:
                wanted = replace(wanted, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            return replace(wanted, resize=self.resize)
        self._refuse(("resize", "normalise"), "texts")
        return replace(wanted, padding=self.padding)

    def split_seed(self, seed: int) -> int | None:
        """The seed that the split depends on; None: on none."""
        return seed if self.split == "per_seed" else None

    def _refuse(self, names: tuple[str, ...], what: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"task '{self.task}': {name} does not apply to {what}")


class MethodRow(Frozen):
    """A method with its options, for every combination of the option values in `each`."""

    method: str
    options: dict[str, Any] = {}
    each: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    #: Replaces the suite's budgets for this row.
    budgets: tuple[Budget, ...] | None = None
    training: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, row: Any) -> Any:
        """Options stand beside `method` in the YAML."""
        if isinstance(row, str):
            return {"method": row}
        if not isinstance(row, dict):
            raise ValueError("a method is a name or a mapping with the field 'method'")
        options = {key: value for key, value in row.items() if key not in cls.model_fields}
        if not options:
            return row
        if "options" in row:
            raise ValueError(f"write {', '.join(map(str, options))} into 'options', or all beside 'method'")
        return {key: value for key, value in row.items() if key in cls.model_fields} | {"options": options}

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if twice := sorted(set(self.options) & set(self.each)):
            raise ValueError(f"{', '.join(twice)}: give one value, or several in 'each', not both")
        return self

    def methods(self) -> Iterator[Method]:
        """One method for every combination. Raises UserError for a field that neither it nor a row has."""
        options = METHODS.get(self.method).model_fields
        for key in (*self.options, *self.each):
            if key not in options:
                own = [field for field in type(self).model_fields if field != "options"]
                raise UnknownNameError(f"field of method '{self.method}':", key, (*options, *own))
        for values in product(*self.each.values()):
            yield create(self.method, **self.options, **dict(zip(self.each, values, strict=True)))


#: Adapter learning rates that equal tuning tries: two to a decade.
LR_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: Relative to the scale that the method has in the suite, by default the published one.
SCALE_GRID = (0.1, 1.0, 10.0)
HEAD_LR_GRID = (1e-3, 3e-3, 1e-2, 3e-2)

Grid = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
SelectionSeeds = Annotated[tuple[int, ...], Field(min_length=1)]
Modes = Annotated[tuple[str, ...], Field(min_length=1)]


class Selection(Frozen):
    """How something is chosen by validation, before the final runs: what every way of choosing has."""

    #: Their own: none may be a seed of the final runs.
    seeds: SelectionSeeds = (1000,)
    #: Of each of its trials; None: as many as the final runs have.
    epochs: PositiveInt | None = None

    @field_validator("seeds", "lr", "scale", "head_lr", "modes", check_fields=False)
    @classmethod
    def _different(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        repeated = [value for i, value in enumerate(values or ()) if value in (values or ())[:i]]
        if repeated:
            raise ValueError(f"{repeated[0]} stands there twice")
        return values

    @field_validator("lr", "scale", "head_lr", check_fields=False)
    @classmethod
    def _ascending(cls, grid: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return tuple(sorted(grid)) if grid else grid


class Tuning(Selection):
    """What every method may spend on its learning rate, scale and head rate. A grid of null is not tuned."""

    #: Points of the grids for each method, task, backbone and budget; each is trained on every seed.
    trials: PositiveInt = 8
    lr: Grid | None = LR_GRID
    scale: Grid | None = SCALE_GRID
    head_lr: Grid | None = HEAD_LR_GRID

    @property
    def grids(self) -> dict[str, tuple[float, ...] | None]:
        return {"lr": self.lr, "scale": self.scale, "head_lr": self.head_lr}

    @model_validator(mode="after")
    def _something_to_tune(self) -> Self:
        if not any(self.grids.values()):
            raise ValueError("lr, scale and head_lr are all null: write 'tuning: none'")
        return self


class Search(Selection):
    """A search over the ranks of each mode that never exceeds the budget."""

    #: In the end exactly so many points were tried, or all there are.
    trials: PositiveInt
    #: The modes whose ranks are searched, the others at the heuristic's; None: all.
    modes: Modes | None = None
    #: Searched too where given.
    lr: Grid | None = None
    scale: Grid | None = None
    head_lr: Grid | None = None
    #: The validation metric, or the metric and the number of parameters: then the result is a front.
    objectives: Literal["metric", "metric and parameters"] = "metric"
    #: What ends a weak trial after an epoch. `auto`: the median rule where it can work, that is for one
    #: objective and at least two epochs.
    pruner: Literal["auto", "median", "halving", "none"] = "auto"
    #: Of the sampler.
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @property
    def grids(self) -> dict[str, tuple[float, ...] | None]:
        return {"lr": self.lr, "scale": self.scale, "head_lr": self.head_lr}

    @model_validator(mode="after")
    def _pruner_fits(self) -> Self:
        if self.pruner in ("median", "halving") and self.objectives != "metric":
            raise ValueError(f"pruner '{self.pruner}' stops by one objective: it cannot weigh the parameters")
        return self


class Allocation(Selection):
    """A sweep of how one budget is shared among the modes, and of the way from isorank to isoparameters."""

    seeds: SelectionSeeds = (1000, 1001, 1002)
    #: The modes that are swept; None: all.
    modes: Modes | None = None
    #: Log-spaced ranks for each mode.
    ranks: int = Field(6, ge=2, le=6)
    #: Rank vectors from isorank to the heuristic's, both included; 0: none.
    path: int = Field(5, ge=0, le=12)
    #: Where the path begins: every rank equals this.
    isorank: PositiveInt = 4


class Suite(Frozen):
    """Tasks × backbones × methods × budgets × seeds."""

    #: Also the name of the MLflow experiment.
    name: str
    description: str = ""
    tasks: tuple[TaskRow, ...] = Field(min_length=1)
    backbones: tuple[BackboneSpec, ...] = Field(min_length=1)
    methods: tuple[MethodRow, ...] = Field(min_length=1)
    #: For every method whose ranks the row leaves free.
    budgets: tuple[Budget, ...] = ()
    seeds: tuple[int, ...] = Field(min_length=1)
    training: Recipe = Field(default_factory=lambda: Recipe.model_validate({}))
    #: The split that the selected state is scored on, once.
    evaluate: Literal["test", "validation"] = "test"
    #: Printed under the results.
    closing: str = ""
    #: How learning rate and scale are chosen: None (`none`) is as written in the suite, for all methods.
    tuning: Tuning | None = None
    #: What `tensorbench search` does for each method, task, backbone and budget.
    search: Search | None = None
    allocation: Allocation | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
            raise ValueError("at most 128 letters, digits, '_', '.' and '-', a letter or digit first")
        return name

    @field_validator("tuning", mode="before")
    @classmethod
    def _tuning_by_name(cls, value: Any) -> Any:
        named: dict[str, dict[str, Any] | None] = {"none": None, "equal": {}}
        if isinstance(value, str):
            if value not in named:
                raise ValueError("tuning is none, equal, or equal with its allowance: {trials: 8, …}")
            return named[value]
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def _task_names(cls, tasks: Any) -> Any:
        return [{"task": t} if isinstance(t, str) else t for t in tasks] if isinstance(tasks, list) else tasks

    @field_validator("tasks", "seeds", "backbones", "budgets")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        keys = [
            value.task if isinstance(value, TaskRow) else value.label if isinstance(value, Budget) else value
            for value in values
        ]
        repeated = [key for i, key in enumerate(keys) if key in keys[:i]]
        if repeated:
            raise ValueError(f"{repeated[0]} stands there twice")
        return values

    @model_validator(mode="after")
    def _chosen_apart(self) -> Self:
        """What chooses and what is chosen for share no seed, and nothing is set that is to be chosen."""
        sections = {"tuning": self.tuning, "search": self.search, "allocation": self.allocation}
        for name, section in sections.items():
            if section and (shared := sorted(set(section.seeds) & set(self.seeds))):
                raise ValueError(f"{name}.seeds: {shared[0]} is a seed of the final runs too; take others")
        # What chooses would train and validate on what is test for a final seed.
        dealt = next((row.task for row in self.tasks if row.split == "per_seed"), None)
        if dealt and any(sections.values()):
            raise ValueError(
                f"task '{dealt}' has split: per_seed; whatever chooses needs one split for all seeds"
            )
        if self.tuning and (self.search or self.allocation):
            raise ValueError("tuning chooses rates for given ranks; give it, or a search or an allocation")
        rows = [(row.task, row.training) for row in self.tasks]
        rows += [(row.method, row.training) for row in self.methods]
        for where, section in (("tuning", self.tuning), ("search", self.search)):
            chosen = {axis for axis in ("lr", "head_lr") if section and section.grids[axis]}
            for name, training in rows:
                for axis in chosen & set(training):
                    raise ValueError(
                        f"'{name}' sets {axis}, which {where} chooses: "
                        f"leave it out, or give {where} {axis}: null"
                    )
        return self

    def recipe(self, task: TaskRow, method: MethodRow) -> Recipe:
        """The suite's training, then the task's overrides, then the method's; not resolved yet."""
        merged = self.training.model_dump(exclude_unset=True)
        for where, override in ((f"task '{task.task}'", task.training), (method.method, method.training)):
            if "steps" in override:
                merged.pop("epochs", None)
            if "epochs" in override:
                merged.pop("steps", None)
            merged |= override
            validate(Recipe, merged, f"training of {where}")
        return validate(Recipe, merged, "training")


class _NoRepeats(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice in a mapping is an error, not the last one's value.

    Merge keys are refused: whatever stands beside one may repeat what it merges.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (<<) are not taken; repeat the fields", key.start_mark
                )
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"'{twice[0]}' stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_suite(path: Path, *, locked: bool = True) -> Suite:
    """Reads and validates a suite, and obeys the lock file beside it unless told otherwise.

    Raises UserError naming file, field, value and what is accepted.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read suite {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    try:
        values = _NoRepeats(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        # A ValueError is of a value that cannot be: the date 2025-02-30, a number of thousands of digits.
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep to be read; a suite takes a few levels") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a suite is a mapping with the fields {', '.join(Suite.model_fields)}")
    suite = validate(Suite, values, str(path))
    lock = lock_path(path)
    return read_lock(lock).apply(suite, lock) if locked and lock.exists() else suite
