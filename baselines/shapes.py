"""The modes into which references cut weights: their tables, and our rules for every other size."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

from methods.errors import UserError
from methods.trains import balanced, factorisations

#: The reference's modes of a matrix of (width, size), by width and size, where they multiply to that.
LORETTA: dict[int, dict[int, tuple[int, ...]]] = {
    5: {768: (5, 8, 12, 8), 1024: (4, 8, 5, 8, 4), 4096: (16, 16, 5, 4, 4)},
    8: {768: (8, 8, 12, 8), 1024: (4, 8, 8, 8, 4), 4096: (16, 16, 8, 4, 4)},
    16: {768: (8, 16, 12, 8), 1024: (4, 8, 16, 8, 4), 4096: (16, 16, 16, 4, 4)},
    32: {768: (4, 8, 12, 8, 8)},
    64: {768: (8, 8, 12, 8, 8), 1024: (4, 8, 8, 8, 8, 4), 4096: (16, 16, 16, 4, 4, 4)},
    128: {768: (8, 16, 12, 8, 8), 1024: (4, 8, 16, 8, 8, 4), 4096: (16, 16, 16, 8, 4, 4)},
}
#: The number of modes where the table has none.
LORETTA_MODES = 4


def loretta_modes(size: int, width: int) -> tuple[int, ...]:
    """The modes of a matrix between `size` and `width` channels: the reference's table, elsewhere four of the
    smallest sum (our rule). A prime size is a mode of its own.
    """
    return LORETTA.get(width, {}).get(size) or balanced(size * width, LORETTA_MODES)


#: The modes of input and output.
Modes = tuple[tuple[int, ...], tuple[int, ...]]

#: The reference's, by (in, out).
TT_LORA: dict[tuple[int, int], Modes] = {
    (768, 768): ((64, 4, 3), (3, 4, 64)),
    (2048, 2048): ((16, 8, 4, 4), (4, 4, 8, 16)),
    (2048, 512): ((16, 16, 4, 2), (2, 16, 16)),
    (3072, 3072): ((16, 4, 4, 3, 2, 2), (2, 2, 3, 4, 4, 16)),
    (3072, 1024): ((16, 4, 4, 3, 2, 2), (2, 2, 4, 4, 16)),
    (4096, 4096): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)),
    (4096, 1024): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 16)),
}
#: The most modes of a side where the table has none, and from where on it is one more.
TT_LORA_MODES, TT_LORA_LARGE = 3, 2048


def tt_lora_modes(in_: int, out: int) -> Modes:
    """The modes of input and output: the reference's table, elsewhere at most three of the smallest sum on
    each side, four from 2,048 on, the largest outermost (our rule). A prime size is a mode of its own.
    """
    sides = [balanced(size, TT_LORA_MODES + (size >= TT_LORA_LARGE)) for size in (in_, out)]
    return TT_LORA.get((in_, out)) or (sides[0][::-1], sides[1])


#: The reference's modes of A and B, and the inner ranks of A, by size. B's inner ranks are three times A's.
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
        """Parameters per layer: the first core and the controllers of the last."""
        return self.modes[0] * self.inner[0] + self.inner[1] + self.modes[2]

    @property
    def frozen(self) -> int:
        """The second core, which all layers share."""
        return self.inner[0] * self.modes[1] * self.inner[1]


def trac_cores(size: int, *, output: bool) -> TRACCores:
    """The reference's table; elsewhere modes of the smallest sum and the inner ranks of the largest entry
    that is not above (our rule; below all of them the smallest entry's). A prime size is all in the last
    mode.
    """
    _, inner = TRAC[max([entry for entry in TRAC if entry <= size], default=min(TRAC))]
    factors = balanced(size, TRAC_MODES)
    modes = TRAC[size][0] if size in TRAC else (1,) * (TRAC_MODES - len(factors)) + factors
    return TRACCores(modes, tuple(TRAC_WIDER * rank for rank in inner) if output else inner)


#: The most axes, and the largest prime factor of what they multiply to.
QUANTA_AXES, QUANTA_PRIME = 8, 7


def quanta_axes(size: int) -> list[tuple[int, ...]]:
    """Descending axes that multiply to `size`, or to the next larger number without a prime factor above 7
    (our rule).
    """
    padded = next(number for number in count(size) if _largest_prime(number) <= QUANTA_PRIME)
    return [axes[::-1] for axes in factorisations(padded, QUANTA_AXES) if len(axes) > 1]


def equal_axes(label: str, axis: int, size: int) -> tuple[int, ...]:
    """Equal axes of size `axis`, as few as hold `size`.

    Raises UserError, about the method of this label, where no number of them does.
    """
    if not 1 < axis < size:
        raise UserError(f"{label}: axes of {axis} cannot make up {size}; accepted is 2 to {size - 1}")
    return (axis,) * next(number for number in count(2) if axis**number >= size)


def _largest_prime(size: int) -> int:
    return max(factorisations(size, size.bit_length()), key=len)[-1]
