"""A trial, and the id that says what it is."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Literal

from bench.backbones import BackboneSpec
from bench.suite.recipe import Recipe
from bench.suite.rows import TaskRow
from methods.validation import Frozen

#: Raised whenever the same trial would come out differently, whatever the reason in this harness.
PROTOCOL = 1

#: Fields of the recipe that are younger than PROTOCOL 1: an id counts them only where they say something
#: else than what was always done, so that older trials keep theirs.
YOUNGER = ("augmentation", "compile", "deterministic")


class Trial(Frozen):
    """One method with resolved ranks, one backbone, one task, one recipe, one seed."""

    #: `Method.identity`, all ranks resolved.
    method: dict[str, Any]
    backbone: BackboneSpec
    weights_hash: str
    task: TaskRow
    #: What the examples are made from: data, label rule, split, preparation and normalisation.
    data: dict[str, Any]
    recipe: Recipe
    seed: int
    evaluate: Literal["test", "validation"]
    protocol: int = PROTOCOL

    @cached_property
    def id(self) -> str:
        """A hash of everything that can change the result, and of nothing else."""
        content = self.model_dump(mode="json")
        # The weights' hash says which backbone it is, however it was named; `data` says which task, from
        # where, and how it is fed; the recipe holds what the task's overrides led to.
        del content["backbone"]
        content["task"] = {
            size: content["task"][size] for size in ("train_size", "validation_size", "test_size")
        }
        for name in YOUNGER:
            if getattr(self.recipe, name) == Recipe.model_fields[name].default:
                del content["recipe"][name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
