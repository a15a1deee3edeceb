"""Reads and writes the YAML of suites. Limits of size and depth keep out hostile files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from tensorbench.methods.errors import cut

#: The deepest nesting. A suite needs a few levels; without a limit, a file of brackets exhausts the stack.
MAX_DEPTH = 50

#: The largest file in bytes. A suite has some thousand.
MAX_BYTES = 2**20

#: The largest number of keys and values with every alias expanded. Nested aliases can mean billions.
MAX_VALUES = 20_000


class _Resolver(VersionedResolver):
    """Resolves plain words by YAML 1.1, even if a file has a `%YAML` line.

    So `no` is always false, and `010` is always eight. In YAML 1.2 `no` is a string, which is true in Python,
    and `010` is ten.
    """

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 1)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Any:
        # Single letters are not booleans: an option may be named `n`, and hardly any YAML 1.1 reader does so.
        if kind is ScalarNode and value in ("y", "Y", "n", "N"):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _Composer(Composer):
    """Counts the values with every alias expanded, and raises ComposerError above `MAX_VALUES`."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = 0
        #: The number of values below each node, including the node, by the node's id().
        self._sizes: dict[int, int] = {}

    def return_alias(self, node: Node) -> Node:
        # A node that is still being composed contains itself.
        self._values += self._sizes.get(id(node), MAX_VALUES + 1)
        return node

    def compose_node(self, parent: Any, index: Any) -> Node:
        before = self._values
        node: Node = super().compose_node(parent, index)
        if id(node) not in self._sizes:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, with its aliases expanded"
            raise ComposerError(None, None, problem, node.start_mark)
        return node


class _Constructor(SafeConstructor):
    """Constructs plain values only, and names the position of an invalid value.

    Duplicate keys are refused, while other readers take the last value. Merge keys are refused as well, since
    the keys beside them may repeat merged ones.
    """

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # e.g. the date 2025-02-30, or a number with thousands of digits
            raise ConstructorError(None, None, str(error), node.start_mark) from error

    def flatten_mapping(self, node: MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(
                    None, None, "merge keys (<<) are not accepted; repeat the fields", key.start_mark
                )


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Resolver, yaml.Constructor = _Composer, _Resolver, _Constructor
    yaml.max_depth = MAX_DEPTH
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None alone
    yaml.width = 200
    return yaml


def read_text(path: Path) -> str:
    """Reads the text of a YAML file.

    Raises OSError, and ValueError for a file longer than `MAX_BYTES` or not in UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error


def parse(text: str) -> Any:
    """Parses a YAML text. Raises ValueError with the problem and its line and column."""
    try:
        with warnings.catch_warnings():
            # YAML 1.1 requires a dot in floats; here 1e-3 is a number as well.
            warnings.simplefilter("ignore", YAMLWarning)
            return _yaml().load(text)
    except MaxDepthExceededError as error:
        raise ValueError(f"nested too deep, more than {MAX_DEPTH} levels{_place(error)}") from error
    except MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{cut(problem, 300)}{_place(error)}") from error
    except YAMLError as error:
        raise ValueError(cut(str(error), 300)) from error


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f" (line {mark.line + 1}, column {mark.column + 1})"


def written(values: Any) -> str:
    """Writes plain values as YAML, which `parse` reads back."""
    text = io.StringIO()
    _yaml().dump(values, text)
    return text.getvalue()
