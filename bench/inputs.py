"""The input of a backbone, the interface between backbones and tasks."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from methods.errors import UserError, shown

Modality = Literal["text", "vision"]

#: The largest side of an image in pixels. With patches of 16 pixels it has 65,536 tokens.
MAX_PIXELS = 4096

#: The placeholders for texts in a prompt.
_PLACE = r"\{(?:text|first|second)\}"

#: The width of a batch of texts: that of its longest text, or the largest allowed width.
Padding = Literal["longest", "max_tokens"]


@dataclass(frozen=True)
class Prompt:
    """A prompt about a text, and the words that stand for each class as its answer.

    `template` contains `{text}`, or `{first}` and `{second}` for pairs. Words follow the filled template
    as they are written: no space is added.
    """

    template: str
    words: tuple[str, ...]

    def check(self, *, paired: bool, where: str = "") -> None:
        """Raises UserError unless the template has exactly the placeholders of a single text, or of a pair.

        The message begins with `where`.
        """
        needs = ("{first}", "{second}") if paired else ("{text}",)
        if set(re.findall(_PLACE, self.template)) != set(needs):
            raise UserError(
                f"{where}verbalizer.prompt should have {' and '.join(needs)} in it, since the inputs are "
                f"{'pairs of texts' if paired else 'single texts'}, got {shown(self.template)}"
            )

    def filled(self, text: str | tuple[str, str]) -> str:
        """The prompt with a text or a pair filled in."""
        if isinstance(text, str):
            return self.template.replace("{text}", text)
        before, _, after = self.template.partition("{first}")
        first, second = text
        return before.replace("{second}", second) + first + after.replace("{second}", second)

    @property
    def end(self) -> str:
        """The template after its last placeholder."""
        return re.split(_PLACE, self.template)[-1]

    def word_tokens(self, tokenizer: Any) -> list[tuple[int, ...]]:
        """The token ids of each class's words.

        Words are tokenised after the prompt's end, since many tokenizers begin a text with a space. If prompt
        and words would share a token, the words are tokenised alone. Raises UserError for words without
        tokens, with unknown tokens, and with equal tokens.
        """
        # A letter replaces the text, since nothing else may precede the words.
        before = "a" + self.end
        tokens_before, *tokens_with = (
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (before, *(before + word for word in self.words))
        )
        word_tokens = [
            tokens[len(tokens_before) :]
            if tokens[: len(tokens_before)] == tokens_before
            else tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
            for word, tokens in zip(self.words, tokens_with, strict=True)
        ]
        for index, (word, tokens) in enumerate(zip(self.words, word_tokens, strict=True)):
            if not tokens or tokenizer.unk_token_id in tokens:
                raise UserError(f"verbalizer: the words {shown(word)} have no tokens in this tokenizer")
            if tokens in word_tokens[:index]:
                raise UserError(
                    f"verbalizer: {shown(word)} and {shown(self.words[word_tokens.index(tokens)])} are the "
                    "same tokens to this tokenizer, so that they cannot tell two classes apart"
                )
        return word_tokens


@dataclass(frozen=True)
class Writing:
    """The mode in which a language model writes its answers, of at most `new_tokens` tokens."""

    new_tokens: int


@dataclass(frozen=True)
class TextInput:
    """Text as token ids.

    `tokenizer_hash` identifies the tokenizer's files and is empty without a tokenizer. `blaming` makes a
    context in which errors of loading or using the tokenizer name their source. `decodes`: whether the
    backbone is a language model. With a `prompt` the model answers by class words, with `writing` in
    free text.
    """

    tokenizer_hash: str
    max_tokens: int
    load_tokenizer: Callable[[], Any] = field(compare=False)
    padding: Padding = "longest"
    modality: Modality = "text"
    blaming: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False)
    decodes: bool = False
    prompt: Prompt | None = None
    writing: Writing | None = None

    @property
    def answers_by_words(self) -> bool:
        """Whether a language model answers in words, without a head."""
        return self.prompt is not None or self.writing is not None


@dataclass(frozen=True)
class ImageInput:
    """Square RGB images of `size` pixels, normalised per channel with `mean` and `std`.

    The central square of an image is resized (bicubic). With `resize`, the image is resized to a square of
    `resize` pixels regardless of its aspect ratio (bilinear), and the centre is cropped.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    modality: Modality = "vision"


ModelInput = TextInput | ImageInput
