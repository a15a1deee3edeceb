"""Errors whose message is meant for the user: the command line shows them without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Input or surroundings that the user can mend; the message says what and how."""


class UnknownNameError(UserError):
    """A name that is not registered, with the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = get_close_matches(name, self.known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        super().__init__(f"unknown {kind} '{name}': {hint}known are {', '.join(self.known)}")


class NotLowRank(UserError):  # noqa: N818 - the contract's name
    """Raised by `factors` of an adapter whose update has no low-rank form."""
