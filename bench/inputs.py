"""How a backbone wants its examples: the seam between backbones and tasks."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from methods.errors import UserError, shown

Modality = Literal["text", "vision"]

#: The largest side of an image. At patches of 16 pixels such an image is 65,536 tokens.
MAX_PIXELS = 4096

#: Where a prompt has a text.
_PLACE = r"\{(?:text|first|second)\}"

#: What a batch of texts is padded to: its longest, or as many tokens as a text may have at most.
Padding = Literal["longest", "max_tokens"]


@dataclass(frozen=True)
class Prompt:
    """What a language model is asked of a text, and the words that stand for each class as its answer.

    `template` has `{text}` in it, or `{first}` and `{second}` for pairs. Words follow it as they are written.
    """

    template: str
    words: tuple[str, ...]

    def check(self, *, paired: bool, where: str = "") -> None:
        """Raises UserError where the template has no place for the texts, or one for texts of another kind.

        `where` begins the message.
        """
        needs = ("{first}", "{second}") if paired else ("{text}",)
        if set(re.findall(_PLACE, self.template)) != set(needs):
            raise UserError(
                f"{where}verbalizer.prompt should have {' and '.join(needs)} in it, since the inputs are "
                f"{'pairs of texts' if paired else 'single texts'}, got {shown(self.template)}"
            )

    def asked(self, text: str | tuple[str, str]) -> str:
        """The prompt of a text, or of a pair."""
        if isinstance(text, str):
            return self.template.replace("{text}", text)
        before, _, after = self.template.partition("{first}")
        first, second = text
        return before.replace("{second}", second) + first + after.replace("{second}", second)

    @property
    def end(self) -> str:
        """What stands behind the text, or behind the second one of a pair."""
        return re.split(_PLACE, self.template)[-1]

    def word_tokens(self, tokenizer: Any) -> list[tuple[int, ...]]:
        """The token ids of each class's words. Raises UserError for words that have none, or equal ones.

        They are those that follow the prompt's end, since many a tokenizer begins a text with a space of its
        own; words that would share a token with that end have those of a text of their own. A tokenizer's
        token for what it does not know stands for no words.
        """
        # A letter stands for the text, which may be all that is before the words.
        before = "a" + self.end
        known, *whole = (
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (before, *(before + word for word in self.words))
        )
        found = [
            tokens[len(known) :]
            if tokens[: len(known)] == known
            else tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
            for word, tokens in zip(self.words, whole, strict=True)
        ]
        for index, (word, tokens) in enumerate(zip(self.words, found, strict=True)):
            if not tokens or tokenizer.unk_token_id in tokens:
                raise UserError(f"verbalizer: the words {shown(word)} have no tokens in this tokenizer")
            if tokens in found[:index]:
                raise UserError(
                    f"verbalizer: {shown(word)} and {shown(self.words[found.index(tokens)])} are the same "
                    "tokens to this tokenizer, so that they cannot tell two classes apart"
                )
        return found


@dataclass(frozen=True)
class Writing:
    """That a language model is to write its answers, of at most so many tokens."""

    new_tokens: int


@dataclass(frozen=True)
class TextInput:
    """Text as token ids.

    `tokenizer_hash` names the tokenizer's files, so that a plan can key on it; without any it is empty.
    Whatever `load_tokenizer` and its tokenizer raise is raised inside of `blaming`. `decodes` says whether
    the backbone is a language model that can answer a `prompt`; with one the answer's words are the classes.
    With `writing` it writes its answers instead.
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
        """Whether a language model answers by the words it finds likeliest, without any head."""
        return self.prompt is not None or self.writing is not None


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
