"""The YAML of suites and locks, read and written within bounds far beyond any honest file."""

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

from methods.errors import cut

#: A suite needs a few levels. Without a limit, a file of brackets would exhaust the stack.
MAX_DEPTH = 50

#: A lock with the hashes of thousands of files has some hundred thousand bytes.
MAX_BYTES = 2**20

#: Keys and values with every alias expanded: a few aliases of aliases can stand for billions.
MAX_VALUES = 20_000


class _Resolver(VersionedResolver):
    """Resolves plain words by YAML 1.1, even if a file has a `%YAML` line.

    So `no` is false and `010` is eight, as they always were in a suite. By YAML 1.2 `no` would be a text,
    which Python takes for true, and `010` would be ten.
    """

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 1)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Any:
        # An option may be named `n`, and hardly any reader of YAML 1.1 takes a letter for true or false.
        if kind is ScalarNode and value in ("y", "Y", "n", "N"):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _Composer(Composer):
    """Counts the values with every alias expanded, and stops at the limit."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = 0
        #: The number of values of a node, including itself, by its id.
        self._sizes: dict[int, int] = {}

    def return_alias(self, node: Node) -> Node:
        # An incomplete node contains itself, and has no end.
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
    """Makes plain values only, and names the place of an invalid one.

    Duplicate keys are refused; other readers take the last value. So are merge keys, since the keys beside
    them may repeat the merged ones.
    """

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # the date 2025-02-30, say, or a number of thousands of digits
            raise ConstructorError(None, None, str(error), node.start_mark) from error

    def check_mapping_key(
        self, node: Node, key_node: Node, mapping: dict[Any, Any], key: Any, value: Any
    ) -> bool:
        if key in mapping:
            raise ConstructorError(None, None, f"'{key}' is duplicated", key_node.start_mark)
        return True

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


def read(path: Path) -> Any:
    """The values of a YAML file. Raises OSError, and ValueError like `parse`."""
    return parse(read_text(path))


def read_text(path: Path) -> str:
    """The text of a YAML file. Raises OSError, and ValueError for a long file or one that is not UTF-8."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error


def parse(text: str) -> Any:
    """The values of a YAML text. Raises ValueError with the problem and its place."""
    try:
        with warnings.catch_warnings():
            # By YAML 1.1 a number needs a dot; here 1e-3 is a number, too.
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
    """The YAML text of plain values; `parse` reads it back."""
    text = io.StringIO()
    _yaml().dump(values, text)
    return text.getvalue()
