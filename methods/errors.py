"""Errors with messages for the user, which the command line shows without a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from reprlib import Repr
from typing import Any

#: The largest number of characters of a value that a message shows.
SHOWN = 80

#: The largest number of edits between an unknown name and the name that a message suggests.
MOST_EDITS = 2


class UserError(Exception):
    """An error in input or environment that the user can fix. The message says what is wrong and how."""


def shown(value: Any) -> str:
    """Returns a value's repr for a message, shortened to `SHOWN` characters."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python converts
        text = f"<{type(value).__name__}>"
    return cut(text)


def cut(text: str, most: int = SHOWN) -> str:
    """Shortens a text to at most `most` characters. A shortened text ends with "…".

    Afterwards, lone surrogates are escaped, because no terminal or file can encode them. This may make the
    text longer than `most`.
    """
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


def first_few(items: Sequence[str], most: int) -> str:
    """Joins the first `most` items with commas. If there are more, adds " and N more"."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


#: A repr that reads no more of a value than a message can show.
_REPR = Repr()
_REPR.maxlevel = 3
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = SHOWN // 4
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 4 * SHOWN


def near_names(name: str, names: Iterable[str], at_most: int = 1) -> list[str]:
    """Returns up to `at_most` names that are similar to `name`, the most similar first.

    Similar names differ by at most `MOST_EDITS` edits, and by no more edits than half the length of `name`.
    Case is ignored.
    """
    limit = min(MOST_EDITS, len(name) // 2)
    candidates = [candidate for candidate in names if abs(len(candidate) - len(name)) <= limit]
    edits = {candidate: _edits(name.casefold(), candidate.casefold()) for candidate in candidates}
    return [near for near in sorted(edits, key=edits.__getitem__) if edits[near] <= limit][:at_most]


def _edits(first: str, second: str) -> int:
    """Returns the number of insertions, deletions, replacements and swaps that turn one text into another."""
    above: list[int] = []
    row = list(range(len(second) + 1))
    for i, here in enumerate(first, 1):
        two_above, above, row = above, row, [i]
        for j, there in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (here != there)))
            if i > 1 and j > 1 and first[i - 2 : i] == second[j - 1] + second[j - 2]:
                row[-1] = min(row[-1], two_above[j - 2] + 1)
    return row[-1]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns the question "did you mean …?" with the most similar name. Empty if no name is similar."""
    return "".join(f"did you mean '{near}'?" for near in near_names(name, names))


class UnknownNameError(UserError):
    """Raised for an unknown name. Its message lists the known names and suggests the most similar name.

    If `hint` is given, it takes the place of this suggestion.
    """

    def __init__(self, kind: str, name: str, names: Iterable[str], hint: str = "") -> None:
        known = sorted(names)
        hint = hint or did_you_mean(name, known)
        prefix = f"{hint} known" if hint else "known"
        super().__init__(f"unknown {kind} '{cut(str(name))}': {prefix} are {', '.join(known)}")

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        # Processes pass errors on, and this class is not made from a message.
        return UserError, self.args


def too_small(label: str, budget: int, smallest: int, when: str = " with every rank 1") -> UserError:
    """Returns the error for a budget below the smallest possible number of parameters, `smallest`.

    `when` says in which case the method has this number.
    """
    return UserError(
        f"{label}: a budget of {budget:,} parameters is below the smallest possible, {smallest:,}{when}"
    )


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], accepted: str) -> None:
    """Raises UserError unless an argument is of one of these types, which `accepted` describes in words."""
    if not isinstance(value, kinds):
        raise UserError(f"{name}: should be {accepted} (got {shown(value)})")


def not_begun() -> UserError:
    """Returns the error for a step of a training that was not begun, so that no pruning is planned."""
    return UserError(
        "after_step: this adapter's ranks are pruned on a schedule, which is not planned yet; call "
        "begin_training(steps) with the number of optimizer steps before the first step"
    )


class WrongCountError(RuntimeError):
    """Raised if an adapter's number of parameters differs from the number that its method counts."""


class RoundedMerge(UserWarning):
    """Warns that merging rounded the update, because the weights have a lower precision than float32."""


class NotLowRank(UserError):  # noqa: N818 - the contract's name
    """Raised by `factors` if updates have no low-rank form, and by `delta` if no weight equals the update."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Returns how to install the packages that run trials. None if they are installed."""
    if find_spec("torch") is not None and find_spec("mlflow") is not None:
        return None
    return f"{error.name} is not installed, and this needs it: pip install 'tensorpeft-bench[run]'"


@contextmanager
def naming_extra() -> Iterator[None]:
    """A context for imports of packages that run trials.

    If these packages are not installed, the ModuleNotFoundError says how to install them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (why := missing_extra(error)) is None:
            raise
        raise ModuleNotFoundError(why, name=error.name) from None
