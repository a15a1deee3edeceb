"""Reads a suite from its YAML file, and obeys the lock file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.suite.lock import lock_path, read_lock
from bench.suite.suite import Suite
from methods import UserError
from methods.validation import validate


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


def load_suite(source: Path | str | Mapping[str, Any], *, locked: bool = True) -> Suite:
    """Reads and validates a suite, and obeys the lock file beside it unless told otherwise.

    `source` is a suite's file, or its fields as a dictionary, which has no lock. Raises UserError naming
    file, field, value and what is accepted.
    """
    if isinstance(source, Mapping):
        return validate(Suite, dict(source), "suite")
    path = Path(source)
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


def experiment_of(name: str) -> str:
    """The name of an experiment, or of the one that a suite's file is run as."""
    return load_suite(Path(name), locked=False).name if name.endswith((".yaml", ".yml")) else name
