"""The modes into which references cut weights: their tables, and our rules for all other sizes."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

from methods.errors import UserError
from methods.trains import balanced, factorisations

#: The reference's modes of a (width, size) matrix, by width and size. Its entries with a wrong product are
#: left out.
LORETTA: dict[int, dict[int, tuple[int, ...]]] = {
    5: {768: (5, 8, 12, 8), 1024: (4, 8, 5, 8, 4), 4096: (16, 16, 5, 4, 4)},
    8: {768: (8, 8, 12, 8), 1024: (4, 8, 8, 8, 4), 4096: (16, 16, 8, 4, 4)},
    16: {768: (8, 16, 12, 8), 1024: (4, 8, 16, 8, 4), 4096: (16, 16, 16, 4, 4)},
    32: {768: (4, 8, 12, 8, 8)},
    64: {768: (8, 8, 12, 8, 8), 1024: (4, 8, 8, 8, 8, 4), 4096: (16, 16, 16, 4, 4, 4)},
    128: {768: (8, 16, 12, 8, 8), 1024: (4, 8, 16, 8, 8, 4), 4096: (16, 16, 16, 8, 4, 4)},
}
#: The number of modes for sizes that are not in the table.
LORETTA_MODES = 4


def loretta_modes(size: int, width: int) -> tuple[int, ...]:
    """The modes of a (width, size) matrix: the reference's table, otherwise four with the smallest sum.

    The rule for other sizes is ours. A prime size is a single mode.
    """
    return LORETTA.get(width, {}).get(size) or balanced(size * width, LORETTA_MODES)


#: The modes of the input and of the output.
Modes = tuple[tuple[int, ...], tuple[int, ...]]

#: The reference's modes by (in, out).
TT_LORA: dict[tuple[int, int], Modes] = {
    (768, 768): ((64, 4, 3), (3, 4, 64)),
    (2048, 2048): ((16, 8, 4, 4), (4, 4, 8, 16)),
    (2048, 512): ((16, 16, 4, 2), (2, 16, 16)),
    (3072, 3072): ((16, 4, 4, 3, 2, 2), (2, 2, 3, 4, 4, 16)),
    (3072, 1024): ((16, 4, 4, 3, 2, 2), (2, 2, 4, 4, 16)),
    (4096, 4096): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)),
    (4096, 1024): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 16)),
}
#: The largest number of modes per side for sizes not in the table, and the size from which it is one larger.
TT_LORA_MODES, TT_LORA_LARGE = 3, 2048


def tt_lora_modes(in_: int, out: int) -> Modes:
    """The modes of input and output: the reference's table, otherwise a rule of ours.

    The rule: at most three modes per side with the smallest sum, four from 2,048 on, the largest outermost. A
    prime size is a single mode.
    """
    sides = [balanced(size, TT_LORA_MODES + (size >= TT_LORA_LARGE)) for size in (in_, out)]
    return TT_LORA.get((in_, out)) or (sides[0][::-1], sides[1])


#: The reference's modes (of A and B) and inner ranks (of A) by size. B's inner ranks are three times A's.
TRAC = {
    768: ((8, 8, 12), (8, 12)),
    1024: ((8, 8, 16), (8, 12)),
    1280: ((8, 8, 20), (12, 24)),
    4096: ((16, 16, 16), (12, 24)),
    5120: ((16, 16, 20), (15, 30)),
}
TRAC_MODES, TRAC_WIDER = 3, 3


class TRACCores(NamedTuple):
    """Sizes of the cores (1, n₁, ρ₁), (ρ₁, n₂, ρ₂) and (ρ₂, n₃, r) of one side of a projection."""

    modes: tuple[int, ...]
    inner: tuple[int, ...]

    @property
    def own(self) -> int:
        """The number of parameters per layer: the first core and the controllers of the last."""
        return self.modes[0] * self.inner[0] + self.inner[1] + self.modes[2]

    @property
    def frozen(self) -> int:
        """The number of entries of the second core, which all layers share."""
        return self.inner[0] * self.modes[1] * self.inner[1]


def trac_cores(size: int, *, output: bool) -> TRACCores:
    """The cores for a size: the reference's table, otherwise a rule of ours.

    The rule: the modes with the smallest sum, and the inner ranks of the largest table entry not above
    `size`, or of the smallest entry. A prime size is the last mode.
    """
    _, inner = TRAC[max([entry for entry in TRAC if entry <= size], default=min(TRAC))]
    factors = balanced(size, TRAC_MODES)
    modes = TRAC[size][0] if size in TRAC else (1,) * (TRAC_MODES - len(factors)) + factors
    return TRACCores(modes, tuple(TRAC_WIDER * rank for rank in inner) if output else inner)


#: The largest number of axes, and the largest prime factor of their product.
QUANTA_AXES, QUANTA_PRIME = 8, 7


def quanta_axes(size: int) -> list[tuple[int, ...]]:
    """All lists of descending axes whose product is `size`.

    If `size` has a prime factor above 7, the product is the next larger number without such a factor (our
    rule).
    """
    padded = next(number for number in count(size) if _largest_prime(number) <= QUANTA_PRIME)
    return [axes[::-1] for axes in factorisations(padded, QUANTA_AXES) if len(axes) > 1]


def equal_axes(label: str, axis: int, size: int) -> tuple[int, ...]:
    """The fewest equal axes of size `axis` whose product is at least `size`.

    Raises UserError, beginning with `label`, if no number of such axes fits.
    """
    if not 1 < axis < size:
        raise UserError(f"{label}: axes of {axis} cannot make up {size}; accepted is 2 to {size - 1}")
    return (axis,) * next(number for number in count(2) if axis**number >= size)


def _largest_prime(size: int) -> int:
    return max(factorisations(size, size.bit_length()), key=len)[-1]
