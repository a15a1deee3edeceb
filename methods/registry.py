"""Names of targets that are imported only when asked for: ours, and those that plug-ins bring."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from methods.errors import UnknownNameError, UserError


class Registry:
    """Maps a name to `module:attribute`, imported only when asked for.

    Plug-ins register in the entry-point group `tensorbench.<kind>s`. One that clashes with a name
    of ours, or with another plug-in's, is refused when it is asked for, never picked silently.
    """

    def __init__(self, kind: str, targets: dict[str, str]) -> None:
        self.kind = kind
        self._targets = dict(targets)
        self._plugins: dict[str, list[EntryPoint]] | None = None

    def _plugin_points(self) -> dict[str, list[EntryPoint]]:
        if self._plugins is None:
            self._plugins = {}
            for point in entry_points(group=f"tensorbench.{self.kind}s"):
                self._plugins.setdefault(point.name, []).append(point)
        return self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._targets, *self._plugin_points()}))

    def __contains__(self, name: str) -> bool:
        return name in self._targets or name in self._plugin_points()

    def get(self, name: str) -> Any:
        """The target behind a name. Raises UnknownNameError, or UserError for a broken plug-in."""
        points = self._plugin_points().get(name, [])
        if len(points) + (name in self._targets) > 1:
            owners = [point.value for point in points]
            owners += [self._targets[name]] if name in self._targets else []
            raise UserError(f"{self.kind} '{name}' is registered more than once: {', '.join(owners)}")
        if name in self._targets:
            module, attribute = self._targets[name].split(":")
            return getattr(importlib.import_module(module), attribute)
        if not points:
            raise UnknownNameError(self.kind, name, self)
        try:
            return points[0].load()
        except Exception as error:
            package = points[0].dist.name if points[0].dist else points[0].value
            raise UserError(
                f"the plug-in '{package}' that brings {self.kind} '{name}' fails to import: "
                f"{type(error).__name__}: {error}"
            ) from error

    def available(self) -> Iterator[tuple[str, Any]]:
        """Every (name, target) that can be imported. A warning names a broken plug-in, which is left out."""
        for name in self:
            try:
                yield name, self.get(name)
            except UserError as error:
                warnings.warn(str(error), stacklevel=2)
