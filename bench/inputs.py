"""How a backbone wants its examples: the seam between backbones and tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "vision"]

#: The largest side of an image. At patches of 16 pixels such an image is 65,536 tokens.
MAX_PIXELS = 4096

#: What a batch of texts is padded to: its longest, or as many tokens as a text may have at most.
Padding = Literal["longest", "max_tokens"]


@dataclass(frozen=True)
class TextInput:
    """Text as token ids.

    `tokenizer_hash` names the tokenizer's files, so that a plan can key on it; without any it is empty.
    Whatever `load_tokenizer` and its tokenizer raise is raised inside of `blaming`.
    """

    tokenizer_hash: str
    max_tokens: int
    load_tokenizer: Callable[[], Any] = field(compare=False)
    padding: Padding = "longest"
    modality: Modality = "text"
    blaming: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False)


@dataclass(frozen=True)
class ImageInput:
    """Square RGB images of `size` pixels, later normalised per channel with `mean` and `std`.

    An image's central square is resized (bicubic). With `resize` the whole image is instead squashed to a
    square of so many pixels (bilinear), of which the centre is cut out.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    modality: Modality = "vision"


ModelInput = TextInput | ImageInput
