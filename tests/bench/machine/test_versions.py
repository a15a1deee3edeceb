"""Versions of libraries that the tests did not run with are warned of, once and in one line."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import pytest

from tensorbench.machine import versions
from tensorbench.machine.versions import UntestedVersionWarning, untested_versions, warn_of_untested_versions

PEFT = version("peft")


@pytest.mark.parametrize(
    ("requirement", "named"),
    [
        (f"peft<={PEFT}", False),
        (f'peft<{PEFT}; extra == "run"', True),
        (f"peft>{PEFT}", True),
        ("peft", False),
        # Of an extra that nobody installed.
        ("no-such-library<1", False),
    ],
)
def test_a_library_outside_its_range_is_named_with_both_versions(requirement: str, named: bool) -> None:
    found = [*untested_versions([requirement, requirement])]
    assert len(found) == named
    assert all(PEFT in each and requirement.partition(";")[0].removeprefix("peft") in each for each in found)


def test_one_warning_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "requires", lambda _: ["peft<0.1", "torch<1"])
    warn_of_untested_versions.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_untested_versions()
        warn_of_untested_versions()
    warn_of_untested_versions.cache_clear()
    (only,) = caught
    assert only.category is UntestedVersionWarning
    assert "\n" not in str(only.message)
    assert all(name in str(only.message) for name in ("peft", "torch"))


def test_the_tests_run_with_tested_versions() -> None:
    assert [*untested_versions(versions.requires(versions.PACKAGE) or ())] == []
