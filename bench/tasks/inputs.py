"""How a backbone wants its examples: the seam between backbones and tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "vision"]


@dataclass(frozen=True)
class TextInput:
    """Text as token ids. `tokenizer_hash` names the tokenizer's files, so that a plan can key on it."""

    tokenizer_hash: str
    max_tokens: int
    load_tokenizer: Callable[[], Any] = field(compare=False)
    modality: Modality = "text"


@dataclass(frozen=True)
class ImageInput:
    """Square RGB images of `size` pixels, later normalised per channel with `mean` and `std`."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    modality: Modality = "vision"


ModelInput = TextInput | ImageInput
