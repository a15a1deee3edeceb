"""A trial and its id."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import PrivateAttr

from tensorbench.backbones import BackboneSpec
from tensorbench.methods import METHODS, Method, UserError, from_identity, load_methods
from tensorbench.methods.catalog import identity_of
from tensorbench.methods.registry import PythonFile
from tensorbench.methods.validation import Frozen, hashed, identity
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks.plain_text import TextName

#: The protocol version, increased whenever a change of this harness would change a trial's result, such as a
#: new default of a recipe. It enters every trial's id.
PROTOCOL = 2

#: The fields of a task's row that enter a trial's id. `Trial.data` has everything else that defines examples.
SIZES = {"train_size", "validation_size", "test_size"}


class Trial(Frozen):
    """One method with resolved ranks, one backbone, one task, one recipe, one seed."""

    #: `Method.stored` with all ranks resolved.
    method: dict[str, Any]
    backbone: BackboneSpec
    weights_hash: str
    task: TaskRow
    #: Everything that defines the examples: data, label rule, split, preparation and normalisation.
    data: dict[str, Any]
    recipe: Recipe
    #: The fields of the recipe that cannot change this trial's result, such as the rates of a fitted head.
    idle: tuple[str, ...] = ()
    seed: int
    evaluate: Literal["test", "validation"]
    protocol: int = PROTOCOL
    #: The text on which forgetting is measured. It does not enter the id, since no result depends on it.
    forgetting: TextName | None = None
    #: The Python file that defines the method. None for a registered method. The process that runs the trial
    #: receives the file with it.
    _file: PythonFile | None = PrivateAttr(None)

    def model_post_init(self, context: Any) -> None:
        self._file = METHODS.file(str(self.method.get("method")))

    def build_method(self) -> Method:
        """Builds the trial's method, from its file if a file defines it. Raises UserError if that fails."""
        if self._file is not None:
            load_methods(self._file)
        return from_identity(self.method)

    @cached_property
    def id(self) -> str:
        """A hash of everything that can change the result, and of nothing else.

        The versions enter the hash, and each field that differs from its default (see
        `tensorbench.methods.validation.identity`). The id does not depend on the suite, row, budget or study
        of the trial, on the name of its backbone, or on labels. Raises UserError if the trial has another
        protocol or method version than this package, because the defaults of that version are unknown here.
        """
        if self.protocol != PROTOCOL:
            raise UserError(f"the trial has protocol {self.protocol}, and this version has {PROTOCOL}")
        # The weights' hash identifies the backbone under any name.
        content = {
            "protocol": self.protocol,
            "method": identity_of(self.method),
            "weights_hash": self.weights_hash,
            "data": self.data,
            "task": identity(self.task, include=SIZES),
            "recipe": identity(self.recipe, include=Recipe.model_fields.keys() - self.idle),
            "seed": self.seed,
            "evaluate": self.evaluate,
        }
        return hashed(content)[:16]
