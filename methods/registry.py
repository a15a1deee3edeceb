"""Registries of built-in objects and plug-ins by name. Each object is imported when it is first used."""

from __future__ import annotations

import hashlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import SourceLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from tensorbench.methods.errors import UnknownNameError, UserError, check_kind, naming_extra

#: The prefix of the Python files that an editable install records in place of the package's modules.
FINDER = "__editable__"


@dataclass(frozen=True)
class PythonFile:
    """A Python file that a user names. Its content is kept, so that an edit does not change a run."""

    path: Path
    content: bytes

    @property
    def module(self) -> str:
        """The name of the file's module. It depends on path and content."""
        digest = hashlib.sha256(f"{self.path}\n".encode() + self.content).hexdigest()
        return f"_tensorbench_{digest[:16]}"

    @property
    def source_hash(self) -> str:
        """The hex SHA-256 of the file's name and content, computed as for a plug-in with a single file."""
        return _hashed({self.path.name: self.content})

    def run(self) -> ModuleType:
        """Runs the file, unless it ran in this process before, and returns its module.

        Raises UserError if the file fails.
        """
        if (there := sys.modules.get(self.module)) is not None:
            return there
        spec = spec_from_loader(self.module, _Loader(self), origin=str(self.path))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[self.module] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[self.module]
            # A file that is meant as a program may exit.
            if isinstance(error, Exception | SystemExit):
                raise UserError(f"{self.path} fails to import: {type(error).__name__}: {error}") from error
            raise
        return module


class _Loader(SourceLoader):
    """Loads a module from the content of a `PythonFile`, without a cache of its bytecode."""

    def __init__(self, file: PythonFile) -> None:
        self._file = file

    def get_filename(self, fullname: str) -> str:
        return str(self._file.path)

    def get_data(self, path: str) -> bytes:
        return self._file.content


class Registry:
    """Maps names to objects, for example `lora` to the class `LoRA`.

    `targets` has the `module:attribute` of every built-in name. The object is imported when its name is first
    used. Plug-ins register further names in the entry-point group `tensorbench.<kind>s`. The method `add`
    registers the names of a file. The use of a name that is registered twice raises UserError. `check` is
    called with a name and its object. It raises UserError if the object is not of the registry's kind, such
    as a method that is no `Method`. `hint` says what to write in place of an unknown name, if it knows that.
    """

    def __init__(
        self,
        kind: str,
        targets: dict[str, str],
        check: Callable[[str, Any], None],
        hint: Callable[[str], str] | None = None,
    ) -> None:
        self.kind = kind
        self._targets = dict(targets)
        self._check = check
        self._hint = hint
        self._plugins: dict[str, list[EntryPoint]] | None = None
        self._sources: dict[str, str] = {}
        #: The file and the entry point of each object that a file defines, by the object's name.
        self._files: dict[str, tuple[PythonFile, EntryPoint]] = {}
        #: The objects that passed the check, by name.
        self._checked: dict[str, Any] = {}

    def _plugin_points(self) -> dict[str, list[EntryPoint]]:
        if self._plugins is None:
            self._plugins, self._sources = {}, {}
            for point in entry_points(group=f"tensorbench.{self.kind}s"):
                self._plugins.setdefault(point.name, []).append(point)
        return self._plugins

    def _points(self, name: str) -> list[EntryPoint]:
        """Returns the entry points that plug-ins and a file register for a name. Empty if none does so."""
        own = [self._files[name][1]] if name in self._files else []
        return [*self._plugin_points().get(name, []), *own]

    def add(self, file: PythonFile, names: dict[str, str]) -> None:
        """Registers objects of a file. `names` maps each name to the object's attribute in the file's module.

        An object of an earlier version of the file is replaced if it has the same name. Raises UserError for
        a name that is already registered by something else, and for an object that does not pass the check.
        Nothing of the file is registered then, and what was registered before still is.
        """
        before = dict(self._files)
        try:
            for name, attribute in names.items():
                point = EntryPoint(name, f"{file.module}:{attribute}", f"tensorbench.{self.kind}s")
                earlier = self._files.get(name)
                self._files[name] = file, point
                if earlier and earlier[0].path != file.path and earlier[0].content != file.content:
                    raise UserError(
                        f"{self.kind} '{name}' is defined by {earlier[0].path} and by {file.path}: give one "
                        "another name"
                    )
                self.get(name)
        except UserError:
            self._files = before
            raise

    def file(self, name: str) -> PythonFile | None:
        """Returns the file that registered a name. None if no file did."""
        return self._files[name][0] if name in self._files else None

    def is_built_in(self, name: str) -> bool:
        """Whether the harness itself provides the object of this name."""
        return name in self._targets

    def source_hash(self, name: str) -> str:
        """Returns the hex SHA-256 of the source of a name's plug-in or file.

        Empty for names that no plug-in or file registers, and for plug-ins without Python files. A plug-in's
        hash is computed once per process, because the process keeps the code that it imported.
        """
        if (file := self.file(name)) is not None:
            return file.source_hash
        points = self._plugin_points().get(name)
        if points and name not in self._sources:
            self._sources[name] = source_hash(points[0])
        return self._sources.get(name, "")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._targets, *self._plugin_points(), *self._files}))

    def __contains__(self, name: str) -> bool:
        return name in self._targets or bool(self._points(name))

    def get(self, name: str) -> Any:
        """Imports and returns the object of a name.

        Raises UnknownNameError for an unregistered name. Raises UserError for a name that is no text, if the
        name is registered twice, if its plug-in fails to import, or if the object does not pass the check.
        """
        check_kind(self.kind, name, str, "a name")
        points = self._points(name)
        if len(points) + (name in self._targets) > 1:
            owners = [str(file.path)] if (file := self.file(name)) else []
            owners += [point.value for point in self._plugin_points().get(name, [])]
            owners += [self._targets[name]] if name in self._targets else []
            raise UserError(f"{self.kind} '{name}' is registered more than once: {', '.join(owners)}")
        if name not in self:
            raise UnknownNameError(self.kind, name, self, self._hint(str(name)) if self._hint else "")
        if not points:
            module, attribute = self._targets[name].split(":")
            with naming_extra():
                target = getattr(importlib.import_module(module), attribute)
        else:
            try:
                target = points[0].load()
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"the plug-in '{_package(points[0])}' with {self.kind} '{name}' fails to import: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if name not in self._checked or self._checked[name] is not target:
            with self.blaming(name):
                self._check(name, target)
            self._checked[name] = target
        return target

    def available(self) -> Iterator[tuple[str, Any]]:
        """Yields every name with its object. Skips broken plug-ins with a warning."""
        for name in self:
            try:
                yield name, self.get(name)
            except UserError as error:
                warnings.warn(str(error), stacklevel=2)

    @contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """Context in which any error becomes a UserError that names the plug-in or file of `name`.

        For built-in names, errors pass unchanged.
        """
        try:
            yield
        except Exception as error:
            if not (points := self._points(name)):
                raise
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            file = self.file(name)
            owner = f"the plug-in '{_package(points[0])}'" if file is None else str(file.path)
            blamed = f"{self.kind} '{name}' of {owner}: "
            if message.startswith(blamed):
                raise
            raise UserError(blamed + message.removeprefix(f"{self.kind} '{name}': ")) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def source_hash(point: EntryPoint) -> str:
    """Returns the hex SHA-256 over names and contents of a plug-in's Python files. Empty if it has none.

    All Python files of the distribution count, since results may depend on any of them.
    """
    recorded = (point.dist.files if point.dist else None) or ()
    files = {
        file.as_posix(): Path(str(file.locate()))
        for file in recorded
        if file.suffix == ".py" and not file.name.startswith(FINDER)
    }
    # The record of an editable install lists no Python files: take those of the module or package.
    spec = None if files else find_spec(point.module.partition(".")[0])
    if spec is not None and spec.submodule_search_locations is not None:
        for folder in map(Path, spec.submodule_search_locations):
            files |= {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.py")}
    elif spec is not None and spec.origin:
        files = {Path(spec.origin).name: Path(spec.origin)}
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    return _hashed(contents) if contents else ""


def _hashed(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
