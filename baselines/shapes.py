"""The modes into which methods split sizes: tables from reference codes, and our rules for other sizes."""

from __future__ import annotations

from itertools import count
from typing import Annotated, NamedTuple

from pydantic import Field

from tensorbench.methods.errors import UserError
from tensorbench.methods.trains import balanced, factorisations

#: LoRETTA's modes of a (width, size) matrix, by width and size, from its reference code. Entries of the code
#: whose product is wrong are left out.
LORETTA: dict[int, dict[int, tuple[int, ...]]] = {
    5: {768: (5, 8, 12, 8), 1024: (4, 8, 5, 8, 4), 4096: (16, 16, 5, 4, 4)},
    8: {768: (8, 8, 12, 8), 1024: (4, 8, 8, 8, 4), 4096: (16, 16, 8, 4, 4)},
    16: {768: (8, 16, 12, 8), 1024: (4, 8, 16, 8, 4), 4096: (16, 16, 16, 4, 4)},
    32: {768: (4, 8, 12, 8, 8)},
    64: {768: (8, 8, 12, 8, 8), 1024: (4, 8, 8, 8, 8, 4), 4096: (16, 16, 16, 4, 4, 4)},
    128: {768: (8, 16, 12, 8, 8), 1024: (4, 8, 16, 8, 8, 4), 4096: (16, 16, 16, 8, 4, 4)},
}
#: The width of a bottleneck. It is factorised, which takes long for large numbers.
Width = Annotated[int, Field(gt=0, le=100_000)]

#: The largest number of modes for sizes that are not in the table.
LORETTA_MODES = 4


def loretta_modes(size: int, width: int) -> tuple[int, ...]:
    """Returns the modes of a (width, size) matrix, from the table of LoRETTA's reference code.

    For other sizes our rule is: at most four factors of the number of entries, with the smallest sum.
    """
    return LORETTA.get(width, {}).get(size) or balanced(size * width, LORETTA_MODES)


#: The modes of the input and of the output.
Modes = tuple[tuple[int, ...], tuple[int, ...]]

#: TT-LoRA's modes by (in, out), from its reference code.
TT_LORA: dict[tuple[int, int], Modes] = {
    (768, 768): ((64, 4, 3), (3, 4, 64)),
    (2048, 2048): ((16, 8, 4, 4), (4, 4, 8, 16)),
    (2048, 512): ((16, 16, 4, 2), (2, 16, 16)),
    (3072, 3072): ((16, 4, 4, 3, 2, 2), (2, 2, 3, 4, 4, 16)),
    (3072, 1024): ((16, 4, 4, 3, 2, 2), (2, 2, 4, 4, 16)),
    (4096, 4096): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)),
    (4096, 1024): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 16)),
}
#: The largest number of modes per side for sizes that are not in the table, and the size from which there may
#: be one more.
TT_LORA_MODES, TT_LORA_LARGE = 3, 2048


def tt_lora_modes(in_: int, out: int) -> Modes:
    """Returns the modes of input and output, from the table of TT-LoRA's reference code.

    For other sizes our rule is: at most three factors per side with the smallest sum, and at most four for
    sizes from 2,048 on. The largest factors are outermost. A prime size is a single mode.
    """
    sides = [balanced(size, TT_LORA_MODES + (size >= TT_LORA_LARGE)) for size in (in_, out)]
    return TT_LORA.get((in_, out)) or (sides[0][::-1], sides[1])


#: TRAC's modes (of A and B) and inner ranks (of A) by size, from its reference code. The inner ranks of B are
#: three times those of A.
TRAC = {
    768: ((8, 8, 12), (8, 12)),
    1024: ((8, 8, 16), (8, 12)),
    1280: ((8, 8, 20), (12, 24)),
    4096: ((16, 16, 16), (12, 24)),
    5120: ((16, 16, 20), (15, 30)),
}
TRAC_MODES, TRAC_WIDER = 3, 3


class TRACCores(NamedTuple):
    """The sizes of the cores (1, n₁, ρ₁), (ρ₁, n₂, ρ₂) and (ρ₂, n₃, r) of A or B for one projection.

    `modes` are n₁, n₂ and n₃. `inner` are ρ₁ and ρ₂.
    """

    modes: tuple[int, ...]
    inner: tuple[int, ...]

    @property
    def own(self) -> int:
        """The number of parameters that each layer has: the first core, and the third core's controllers."""
        return self.modes[0] * self.inner[0] + self.inner[1] + self.modes[2]

    @property
    def frozen(self) -> int:
        """The number of entries of the second core, which all layers share."""
        return self.inner[0] * self.modes[1] * self.inner[1]


def trac_cores(size: int, *, output: bool) -> TRACCores:
    """Returns the cores of A (or, with `output`, of B) for a size, from TRAC's reference code.

    For other sizes our rule is: the modes are three factors with the smallest sum, and the inner ranks are
    those of the next smaller size in the table or, if there is none, of the table's smallest size. If a size
    has fewer than three factors, the first modes are 1.
    """
    _, inner = TRAC[max([entry for entry in TRAC if entry <= size], default=min(TRAC))]
    factors = balanced(size, TRAC_MODES)
    modes = TRAC[size][0] if size in TRAC else (1,) * (TRAC_MODES - len(factors)) + factors
    return TRACCores(modes, tuple(TRAC_WIDER * rank for rank in inner) if output else inner)


#: The largest number of axes, and the largest prime factor of their product.
QUANTA_AXES, QUANTA_PRIME = 8, 7


def quanta_axes(size: int) -> list[tuple[int, ...]]:
    """Returns every way to write `size` as a product of two to `QUANTA_AXES` axes, the largest axis first.

    If `size` has a prime factor above 7, the product is the next larger number without such a factor (our
    rule).
    """
    padded = next(number for number in count(size) if _largest_prime(number) <= QUANTA_PRIME)
    return [axes[::-1] for axes in factorisations(padded, QUANTA_AXES) if len(axes) > 1]


def equal_axes(label: str, axis: int, size: int) -> tuple[int, ...]:
    """Returns the fewest axes of size `axis` whose product is at least `size`.

    Raises UserError, with a message that begins with `label`, unless `axis` is above 1 and below `size`.
    """
    if not 1 < axis < size:
        raise UserError(f"{label}: axes of {axis} cannot make up {size}; accepted is 2 to {size - 1}")
    return (axis,) * next(number for number in count(2) if axis**number >= size)


def _largest_prime(size: int) -> int:
    return max(factorisations(size, size.bit_length()), key=len)[-1]
