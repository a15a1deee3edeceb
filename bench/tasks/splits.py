"""The examples of a split as tensors, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bench.tasks.objective import Objective, extracted, same


@dataclass(frozen=True)
class TextSplit:
    """N tokenised texts, end to end in one buffer.

    `tokens`: int32 (total tokens,). `starts`: int64 (N,), the beginning of each text. `lengths`: int64 (N,),
    always on the CPU, where batches are planned. `labels` (N, …), in the form of `Objective`. `ids`: int64
    (N,), always on the CPU. `pad_id`: the padding token. `seconds`: int64 (N,), the beginning of a pair's
    second text; None if the tokenizer does not distinguish the two. `width`: the width of every batch; None:
    that of its longest text.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    ids: Tensor
    pad_id: int
    seconds: Tensor | None = None
    width: int | None = None
    #: The number of prompts, or of prompts with their answers, that were cut to the largest length.
    cut: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def uneven(self) -> Tensor | None:
        """The lengths by which batches are formed. None if all batches have the same width."""
        return self.lengths if self.width is None else None

    def to(self, device: torch.device | str) -> TextSplit:
        """The same split with the tensors read by `batch` and `targets` on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            starts=self.starts.to(device),
            labels=self.labels.to(device),
            seconds=None if self.seconds is None else self.seconds.to(device),
        )

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Returns `input_ids` and `attention_mask`, int64 (B, tokens), padded on the right.

        Pairs also have `token_type_ids` if the tokenizer distinguishes the two texts. `indices`: int64 (B,),
        best on the CPU, which avoids waiting for an accelerator.
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

    def targets(self, indices: Tensor) -> Tensor:
        """Returns labels (B, …)."""
        return self.labels[send(indices, self.labels.device)]


@dataclass(frozen=True)
class ImageSplit:
    """N square images.

    `pixels`: uint8 (N, 3, size, size). `labels` (N, …), in the form of `Objective`. `ids`: int64 (N,), always
    on the CPU. `mean` and `std`: float32 (1, 3, 1, 1), of pixels between 0 and 1.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor
    mean: Tensor
    std: Tensor

    #: All images have the same size, so batches are not formed by length.
    uneven = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSplit:
        """The same split with the tensors read by `batch` and `targets` on `device`."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def batch(self, indices: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Returns `pixel_values`, float32 (B, 3, size, size), normalised. `indices`: int64 (B,).

        `augment` changes the uint8 images (B, 3, size, size) on their device.
        """
        pixels = self.pixels[send(indices, self.pixels.device)]
        if augment is not None:
            pixels = augment(pixels)
        return {"pixel_values": pixels.float().div_(255).sub_(self.mean).div_(self.std)}

    def targets(self, indices: Tensor) -> Tensor:
        """Returns labels (B, …)."""
        return self.labels[send(indices, self.labels.device)]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a small CPU tensor to `device` without waiting for an accelerator."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def answers_of(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """The correct answers, decoded from the arrays of `bench.tasks.tokens.written`."""
    content, sizes = bytes(tensors["answer_bytes"].tolist()), tensors["answer_sizes"]
    ends = sizes.cumsum(0).tolist()
    return tuple(content[end - size : end].decode() for end, size in zip(ends, sizes.tolist(), strict=True))


@dataclass(frozen=True)
class WrittenSplit(TextSplit):
    """N prompts, each followed by its answer.

    `prompts`: int64 (N,), on the CPU, the number of tokens in each prompt. `answers`: the correct answers.
    `phrases`: texts that precede the relevant part of an answer. `trains_prompts`: whether the loss includes
    the prompt's tokens.
    """

    prompts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    answers: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    trains_prompts: bool = False

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Returns the batch of the texts with `scored` (B, tokens), which marks the tokens to predict."""
        batch = super().batch(indices)
        mask = batch["attention_mask"]
        places = torch.arange(mask.shape[1], device=mask.device)
        first = torch.ones(len(indices)) if self.trains_prompts else self.prompts[indices.cpu()]
        return {**batch, "scored": mask * (places >= send(first, mask.device)[:, None])}

    def prompt_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `input_ids` and `attention_mask` (B, tokens) of the prompts only, padded on the left."""
        device = self.tokens.device
        lengths = self.prompts[indices.cpu()]
        width = int(lengths.max())
        place = torch.arange(width, device=device) - (width - send(lengths, device))[:, None]
        tokens = self.tokens[self.starts[send(indices, device), None] + place.clamp(min=0)].long()
        return tokens.masked_fill_(place < 0, self.pad_id), (place >= 0).long()

    def correct(self, indices: Tensor, texts: Sequence[str]) -> list[bool]:
        """Whether each written text is a correct answer to its example."""
        return [
            same(extracted(text, self.phrases), extracted(self.answers[index], self.phrases))
            for index, text in zip(indices.tolist(), texts, strict=True)
        ]


Split = TextSplit | ImageSplit


@dataclass(frozen=True)
class PreparedData:
    """A task's splits for one kind of model input, and their objective."""

    train: Split
    validation: Split
    test: Split
    objective: Objective
    #: The number of test examples that also occur in train. None if unknown.
    repeated: int | None = None

    @property
    def classes(self) -> int:
        """The number of outputs of a head for these data."""
        return self.objective.outputs

    def to(self, device: torch.device | str) -> PreparedData:
        """The same data with each split on `device` (see `TextSplit.to`)."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)
