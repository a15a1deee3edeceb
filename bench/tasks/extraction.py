"""What a written text answers: the rule by which it is compared with the right answer.

It is the rule of peft's comparison of methods on MetaMathQA.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

#: What is cut off at both ends of an answer.
MARGIN = " .!?$%"


def extracted(text: str, phrases: Sequence[str]) -> str | None:
    """The answer in a text: what follows the last occurrence of the first phrase that stands in it.

    It ends with its line, and empty lines before it do not count. Without any `phrases` all of the text is
    the answer; None where none stands in it.
    """
    if not phrases:
        return text.strip()
    text = text.strip().rstrip(".!?")
    phrase = next((one for one in phrases if one in text), None)
    if phrase is None:
        return None
    return text.rpartition(phrase)[2].strip().partition("\n")[0].strip(MARGIN)


def same(answer: str | None, right: str | None) -> bool:
    """Whether an answer is the right one: as numbers where both are numbers or fractions, else as texts.

    No answer is wrong. Equal texts are the same, also where peft takes them for numbers that are none (nan).
    """
    if answer is None or right is None:
        return False
    one, other = _number(answer), _number(right)
    return answer == right or (one is not None and one == other)


def _number(text: str) -> float | None:
    try:
        over, *under = (Decimal(part.strip()) for part in text.split("/"))
        if len(under) > 1:
            return None
        return float(over / under[0] if under else over)
    except (ArithmeticError, ValueError):
        return None
