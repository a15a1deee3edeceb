"""Splits: their examples as tensors, and the batches that a backbone reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tensorbench.machine.cards import send
from tensorbench.records.measures import SplitSizes
from tensorbench.tasks.objective import Objective, extracted, same


class _Labelled:
    """N examples with labels, the base class of splits."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self, indices: Tensor) -> Tensor:
        """Returns the labels (B, …) of these examples."""
        return self.labels[send(indices, self.labels.device)]


@dataclass(frozen=True)
class TextSplit(_Labelled):
    """N tokenised texts, end to end in one buffer.

    - `tokens`: int32 (total tokens,), the token ids of all texts.
    - `starts`: int64 (N,), the position in `tokens` at which each text begins.
    - `lengths`: int64 (N,), the number of tokens in each text. Always on the CPU, where batches are planned.
    - `labels`: (N, …), in the form that `Objective` describes.
    - `ids`: int64 (N,). Always on the CPU.
    - `pad_id`: the id of the padding token.
    - `seconds`: int64 (N,), the position in each text at which the second text of a pair begins. None if the
      texts are no pairs, or if the tokenizer does not distinguish the two texts.
    - `width`: the width of every batch, in tokens. None if each batch is as wide as its longest text.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    ids: Tensor
    pad_id: int
    seconds: Tensor | None = None
    width: int | None = None
    #: The number of texts that were too long and were cut, counted with their prompts and, for generation,
    #: with their answers.
    cut: int = 0

    @property
    def uneven(self) -> Tensor | None:
        """The number of tokens in each text, int64 (N,). None if all batches have the same width."""
        return self.lengths if self.width is None else None

    def to(self, device: torch.device | str) -> TextSplit:
        """Returns the same split on `device`. Tensors that are always on the CPU stay there."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            starts=self.starts.to(device),
            labels=self.labels.to(device),
            seconds=None if self.seconds is None else self.seconds.to(device),
        )

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Returns `input_ids` and `attention_mask`, int64 (B, tokens), padded on the right.

        Pairs of texts also get `token_type_ids` if the tokenizer distinguishes the two texts. `indices` are
        int64 (B,). They should be on the CPU, since reading them from an accelerator would wait for it.
        """
        device = self.tokens.device
        lengths = self.lengths[indices.cpu()]
        position = torch.arange(self.width or int(lengths.max()), device=device)
        mask = position < send(lengths, device)[:, None]
        rows = send(indices, device)
        # Positions past a text's end belong to another text or to none, so clamp and mask them.
        flat = (self.starts[rows, None] + position).clamp_(max=len(self.tokens) - 1)
        batch = {
            "input_ids": self.tokens[flat].long().masked_fill_(~mask, self.pad_id),
            "attention_mask": mask.long(),
        }
        if self.seconds is not None:
            batch["token_type_ids"] = ((position >= self.seconds[rows, None]) & mask).long()
        return batch


@dataclass(frozen=True)
class ImageSplit(_Labelled):
    """N square images.

    - `pixels`: uint8 (N, 3, size, size).
    - `labels`: (N, …), in the form that `Objective` describes.
    - `ids`: int64 (N,). Always on the CPU.
    - `mean` and `std`: float32 (1, 3, 1, 1), by which batches are normalised, for pixels between 0 and 1.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor
    mean: Tensor
    std: Tensor

    #: None means that all examples have the same size, as in `TextSplit.uneven`.
    uneven = None

    def to(self, device: torch.device | str) -> ImageSplit:
        """Returns the same split on `device`. The ids stay on the CPU."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def batch(self, indices: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Returns `pixel_values`, float32 (B, 3, size, size), normalised. `indices` are int64 (B,).

        `augment` is applied first, to uint8 images (B, 3, size, size) on the split's device.
        """
        pixels = self.pixels[send(indices, self.pixels.device)]
        if augment is not None:
            pixels = augment(pixels)
        return {"pixel_values": pixels.float().div_(255).sub_(self.mean).div_(self.std)}


def answers_of(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Returns the correct answers, decoded from the arrays that `tensorbench.tasks.tokens.written` made."""
    content, sizes = bytes(tensors["answer_bytes"].tolist()), tensors["answer_sizes"]
    ends = sizes.cumsum(0).tolist()
    return tuple(content[end - size : end].decode() for end, size in zip(ends, sizes.tolist(), strict=True))


@dataclass(frozen=True)
class WrittenSplit(TextSplit):
    """N tokenised texts for generation. Each is a prompt followed by its correct answer.

    The fields in addition to those of `TextSplit` are:

    - `prompts`: int64 (N,), the number of tokens in each prompt. Always on the CPU.
    - `answers`: the correct answers as texts.
    - `phrases`: phrases that precede the final part of an answer (see `objective.extracted`).
    - `trains_prompts`: whether the loss includes the prompt's tokens.
    """

    prompts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    answers: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    trains_prompts: bool = False

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Returns the batch of `TextSplit.batch` and `scored`, int64 (B, tokens): 1 for tokens to predict.

        `scored` is on the CPU, where a backbone finds the tokens without waiting for an accelerator.
        """
        batch, index = super().batch(indices), indices.cpu()
        places = torch.arange(batch["input_ids"].shape[1])
        first = torch.ones(len(index)) if self.trains_prompts else self.prompts[index]
        scored = (places >= first[:, None]) & (places < self.lengths[index, None])
        return {**batch, "scored": scored.long()}

    def prompt_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `input_ids` and `attention_mask` (B, tokens) of the prompts only, padded on the left."""
        device = self.tokens.device
        lengths = self.prompts[indices.cpu()]
        width = int(lengths.max())
        place = torch.arange(width, device=device) - (width - send(lengths, device))[:, None]
        tokens = self.tokens[self.starts[send(indices, device), None] + place.clamp(min=0)].long()
        return tokens.masked_fill_(place < 0, self.pad_id), (place >= 0).long()

    def correct(self, indices: Tensor, texts: Sequence[str]) -> list[bool]:
        """Returns for each written text whether it is a correct answer to its example."""
        return [
            same(extracted(text, self.phrases), extracted(self.answers[index], self.phrases))
            for index, text in zip(indices.tolist(), texts, strict=True)
        ]


Split = TextSplit | ImageSplit


@dataclass(frozen=True)
class PreparedData:
    """A task's splits, prepared for a backbone's input, and their objective."""

    train: Split
    validation: Split
    test: Split
    objective: Objective
    sizes: SplitSizes
    #: The number of correct answers, of validation and test, that the backbone cannot write as they are.
    unwritable: int = 0

    @property
    def classes(self) -> int:
        """The number of outputs of the backbone per example for these data."""
        return self.objective.outputs

    @property
    def cut(self) -> int | None:
        """The number of texts in all splits that were cut. None for images."""
        counts = [
            split.cut for split in (self.train, self.validation, self.test) if isinstance(split, TextSplit)
        ]
        return sum(counts) if counts else None

    def to(self, device: torch.device | str) -> PreparedData:
        """Returns the same data with each split on `device` (see `TextSplit.to`)."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)
