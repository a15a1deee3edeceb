"""Warns of installed libraries whose version is outside the range that this package's tests ran with.

The range is that of the package's metadata, where libraries that may break it have an upper bound.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

#: The distribution of this package.
PACKAGE = "tensorpeft-bench"


class UntestedVersionWarning(UserWarning):
    """Warns that installed libraries have versions which the tests did not run with."""


@cache
def warn_of_untested_versions() -> None:
    """Gives one warning that names each library outside its range, the first time it is called."""
    if found := [*untested_versions(requires(PACKAGE) or ())]:
        tested = "pip install -c constraints.txt '.[run]' installs tested versions"
        warnings.warn(f"not tested with {', '.join(found)}: {tested}", UntestedVersionWarning, stacklevel=3)


def untested_versions(requirements: Iterable[str]) -> Iterator[str]:
    """Yields each installed library outside its range as text, with its version and the range.

    `requirements` are those of a distribution's metadata, such as "peft<0.22,>=0.19; extra == 'run'".
    """
    seen = set()
    for requirement in map(Requirement, requirements):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            # Of an extra that is not installed.
            continue
        if requirement.name not in seen and not requirement.specifier.contains(installed, prereleases=True):
            seen.add(requirement.name)
            yield f"{requirement.name} {installed} (tested: {requirement.specifier})"
