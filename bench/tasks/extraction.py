"""What a written text answers: the rule by which it is compared with the right answer.

It is the rule of peft's comparison of methods on MetaMathQA.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

#: What is cut off at both ends of an answer.
MARGIN = " .!?$%"


def extracted(text: str, phrases: Sequence[str]) -> str | None:
    """The answer in a text: what follows the last occurrence of the first phrase that stands in it.

    It ends with its line. Without any `phrases` all of the text is the answer; None where none stands in it.
    """
    if not phrases:
        return text.strip()
    phrase = next((one for one in phrases if one in text), None)
    if phrase is None:
        return None
    return text.rpartition(phrase)[2].partition("\n")[0].strip(MARGIN)


def same(answer: str | None, right: str | None) -> bool:
    """Whether an answer is the right one: as numbers where both are numbers or fractions, else as texts.

    No answer is wrong.
    """
    if answer is None or right is None:
        return False
    one, other = _number(answer), _number(right)
    return answer == right if one is None or other is None else one == other


def _number(text: str) -> float | None:
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
