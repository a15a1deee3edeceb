"""The examples of a split as tensors, and the batches that a backbone reads from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.tasks.objective import Objective


@dataclass(frozen=True)
class TextSplit:
    """N tokenised texts, end to end in one buffer.

    `tokens`: int32 (total tokens,). `starts`: int64 (N,), where each text begins. `lengths`: int64 (N,),
    always on the CPU, where batches are planned. `labels` (N, …), as `Objective` has them. `ids`: int64 (N,),
    the examples' names in their source, always on the CPU. `pad_id` fills a batch up. `seconds`: int64 (N,),
    where in its text the second one of a pair begins; None where the tokenizer does not tell the two apart.
    `width`: what every batch is padded to; None: its longest text.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    ids: Tensor
    pad_id: int
    seconds: Tensor | None = None
    width: int | None = None
    #: How many of the texts are prompts that were cut from the left.
    cut: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def uneven(self) -> Tensor | None:
        """Lengths by which batches are put together; None where all batches are equally wide."""
        return self.lengths if self.width is None else None

    def to(self, device: torch.device | str) -> TextSplit:
        """The same split with what `batch` and `targets` read on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            starts=self.starts.to(device),
            labels=self.labels.to(device),
            seconds=None if self.seconds is None else self.seconds.to(device),
        )

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, int64 (B, tokens), padded on the right.

        Pairs have `token_type_ids` too, where the tokenizer tells the two texts apart. `indices`: int64
        (B,), best on the CPU: then no accelerator need be waited for.
        """
        device = self.tokens.device
        lengths = self.lengths[indices.cpu()]
        position = torch.arange(self.width or int(lengths.max()), device=device)
        mask = position < send(lengths, device)[:, None]
        rows = send(indices, device)
        # Past a text's end the position is another text's, or beyond the buffer: clamped, then masked.
        flat = (self.starts[rows, None] + position).clamp_(max=len(self.tokens) - 1)
        batch = {
            "input_ids": self.tokens[flat].long().masked_fill_(~mask, self.pad_id),
            "attention_mask": mask.long(),
        }
        if self.seconds is not None:
            batch["token_type_ids"] = ((position >= self.seconds[rows, None]) & mask).long()
        return batch

    def targets(self, indices: Tensor) -> Tensor:
        """Labels, (B, …)."""
        return self.labels[send(indices, self.labels.device)]


@dataclass(frozen=True)
class ImageSplit:
    """N square images.

    `pixels`: uint8 (N, 3, size, size). `labels` (N, …), as `Objective` has them. `ids`: int64 (N,), the
    examples' names in their source, always on the CPU. `mean` and `std`: float32 (1, 3, 1, 1), of pixels
    between 0 and 1.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor
    mean: Tensor
    std: Tensor

    #: All images are of one size, so that no batch is put together by length.
    uneven = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSplit:
        """The same split with what `batch` and `targets` read on `device`."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def batch(self, indices: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """`pixel_values`, float32 (B, 3, size, size), normalised. `indices`: int64 (B,).

        `augment` changes the uint8 images (B, 3, size, size) on the device where they are.
        """
        pixels = self.pixels[send(indices, self.pixels.device)]
        if augment is not None:
            pixels = augment(pixels)
        return {"pixel_values": pixels.float().div_(255).sub_(self.mean).div_(self.std)}

    def targets(self, indices: Tensor) -> Tensor:
        """Labels, (B, …)."""
        return self.labels[send(indices, self.labels.device)]


Split = TextSplit | ImageSplit


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on `device`; an accelerator that is still busy is not waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class PreparedData:
    """A task's splits for one kind of model input, and what is trained for on them."""

    train: Split
    validation: Split
    test: Split
    objective: Objective
    #: How many test examples are also in train; None where the cache does not tell.
    repeated: int | None = None

    @property
    def classes(self) -> int:
        """How many outputs a head for them has."""
        return self.objective.outputs

    def to(self, device: torch.device | str) -> PreparedData:
        """The same data with every tensor on `device`."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)
