"""A trial and its id."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator

from tensorbench.backbones import BackboneSpec
from tensorbench.methods import METHODS, Method, from_identity, load_methods
from tensorbench.methods.registry import PythonFile
from tensorbench.methods.validation import Frozen, earlier, identity
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks.plain_text import TextName

#: The protocol version, increased whenever a change of this harness would change a trial's result.
PROTOCOL = 1


class Trial(Frozen):
    """One method with resolved ranks, one backbone, one task, one recipe, one seed."""

    #: `Method.identity` with all ranks resolved.
    method: dict[str, Any]
    backbone: BackboneSpec
    weights_hash: str
    task: TaskRow
    #: Everything that defines the examples: data, label rule, split, preparation and normalisation.
    data: dict[str, Any]
    recipe: Recipe
    seed: int
    evaluate: Literal["test", "validation"]
    protocol: int = PROTOCOL
    #: The text on which forgetting is measured. It does not enter the id, since no result depends on it.
    forgetting: TextName | None = None
    #: The file that defines the method, if one does. It goes with the trial to the process that runs it.
    _file: PythonFile | None = PrivateAttr(None)

    def model_post_init(self, context: Any) -> None:
        self._file = METHODS.file(str(self.method.get("method")))

    def build_method(self) -> Method:
        """Builds the trial's method, from its file if a file defines it. Raises UserError if that fails."""
        if self._file is not None:
            load_methods(self._file)
        return from_identity(self.method)

    @field_validator("recipe", mode="before")
    @classmethod
    def _of_an_earlier_version(cls, recipe: Any) -> Any:
        """Adds the fields that did not exist yet when the recipe was stored."""
        return earlier(Recipe) | recipe if isinstance(recipe, dict) else recipe

    @cached_property
    def id(self) -> str:
        """A hash of everything that can change the result, and of nothing else."""
        # The weights' hash identifies the backbone under any name. `data` identifies the task and the
        # preparation of its examples, so only the sizes from the task's row are added.
        content = {
            **self.model_dump(mode="json", exclude={"backbone", "task", "recipe", "forgetting"}),
            "task": identity(self.task, include={"train_size", "validation_size", "test_size"}),
            "recipe": identity(self.recipe),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
