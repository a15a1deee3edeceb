"""Describes the input of a backbone. Tasks prepare their examples according to this description."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from tensorbench.methods.errors import UserError, shown

Modality = Literal["text", "vision"]

#: The largest accepted side of an image in pixels. With patches of 16 pixels the image has 65,536 tokens.
MAX_PIXELS = 4096

#: Matches the placeholders for texts in a prompt.
_PLACE = r"\{(?:text|first|second)\}"

#: The length to which the texts of a batch are padded: that of the batch's longest text, or the largest
#: number of tokens that the backbone accepts.
Padding = Literal["longest", "max_tokens"]


@dataclass(frozen=True)
class Prompt:
    """A question about a text for a language model, and the answer that stands for each class.

    `template` contains `{text}`, or `{first}` and `{second}` for pairs of texts. `words` has the answer of
    each class. The answer follows the filled template directly: no space is added.
    """

    template: str
    words: tuple[str, ...]

    def check(self, *, paired: bool, where: str = "") -> None:
        """Raises UserError unless the template has the placeholder `{text}`, or the two for pairs of texts.

        `paired` says whether the texts are pairs. The message begins with `where`.
        """
        needs = ("{first}", "{second}") if paired else ("{text}",)
        if set(re.findall(_PLACE, self.template)) != set(needs):
            raise UserError(
                f"{where}verbalizer.prompt should have {' and '.join(needs)} in it, since the inputs are "
                f"{'pairs of texts' if paired else 'single texts'}, got {shown(self.template)}"
            )
        # Earlier versions filled only the first of several, and trial ids do not tell versions apart.
        if self.template.count("{first}") > 1:
            raise UserError(
                f"{where}verbalizer.prompt may have {{first}} in it only once, got {shown(self.template)}"
            )

    def filled(self, text: str | tuple[str, str]) -> str:
        """Returns the template with its placeholders replaced by a text or by a pair of texts."""
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
        """Returns the token ids of the words of each class.

        Words are tokenised together with the end of the prompt, since many tokenizers add a space at the
        beginning of a text. If a token would contain characters of prompt and words, the words are tokenised
        alone. Raises UserError if the words of a class have no tokens, an unknown token, or the same tokens
        as the words of another class.
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
class TextInput:
    """The input of a backbone that reads texts as token ids."""

    #: Identifies the files of the tokenizer. Empty without a tokenizer.
    tokenizer_hash: str
    #: The largest number of tokens of a text.
    max_tokens: int
    load_tokenizer: Callable[[], Any] = field(compare=False)
    padding: Padding = "longest"
    modality: Modality = "text"
    #: Makes a context in which errors of the tokenizer also name its source, such as a folder or a plug-in.
    blaming: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, compare=False)
    #: Whether the backbone is a language model.
    decodes: bool = False
    #: The model type, such as "roberta", if the tokenizer's class depends on it as well as on its files.
    model_type: str = ""
    #: The prompt that a language model answers with the words of a class. None if it does not answer so.
    prompt: Prompt | None = None
    #: The largest number of tokens of a language model's free-text answer. None if it writes no free text.
    new_tokens: int | None = None

    @property
    def answers_by_words(self) -> bool:
        """Whether a language model answers in words (of a class, or free text) and so has no head."""
        return self.prompt is not None or self.new_tokens is not None


@dataclass(frozen=True)
class ImageInput:
    """The input of a backbone that reads square RGB images of `size` × `size` pixels.

    Each channel is normalised with its `mean` and `std`. By default the central square of an image is resized
    with bicubic interpolation. If `resize` is given, the whole image is resized to `resize` × `resize` pixels
    with bilinear interpolation, whatever its aspect ratio, and its central `size` × `size` pixels are used.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    modality: Modality = "vision"


ModelInput = TextInput | ImageInput
