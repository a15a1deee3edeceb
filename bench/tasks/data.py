"""From a task's raw examples to the tensors that a backbone trains on: prepared once, then read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from bench.assets import prepared
from bench.tasks.base import SPLITS, Examples, Metric, Task, deal, normalise_text
from bench.tasks.inputs import ImageInput, ModelInput, TextInput
from methods.errors import UserError

#: Texts that are tokenised in one call.
_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class TextSplit:
    """N tokenised texts, end to end in one buffer.

    `tokens`: int32 (total tokens,). `starts`: int64 (N,), where each text begins. `lengths`: int64 (N,),
    always on the CPU, where batches are planned. `labels`: int64 (N,). `ids`: int64 (N,), the examples'
    names in their source, always on the CPU. `pad_id` fills a batch up.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    ids: Tensor
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> TextSplit:
        """The same split with what `batch` and the loss read on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            starts=self.starts.to(device),
            labels=self.labels.to(device),
        )

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, int64 (B, longest of the batch), padded on the right.

        `indices`: int64 (B,), best on the CPU: then no accelerator need be waited for.
        """
        device = self.tokens.device
        lengths = self.lengths[indices.cpu()]
        position = torch.arange(int(lengths.max()), device=device)
        mask = position < lengths.to(device, non_blocking=True)[:, None]
        starts = self.starts[indices.to(device, non_blocking=True)]
        # Past a text's end the position is another text's, or beyond the buffer: clamped, then masked.
        flat = (starts[:, None] + position).clamp_(max=len(self.tokens) - 1)
        return {
            "input_ids": self.tokens[flat].long().masked_fill_(~mask, self.pad_id),
            "attention_mask": mask.long(),
        }


@dataclass(frozen=True)
class ImageSplit:
    """N square images.

    `pixels`: uint8 (N, 3, size, size). `labels`: int64 (N,). `ids`: int64 (N,), the examples' names in
    their source, always on the CPU. `mean` and `std`: float32 (1, 3, 1, 1), of pixels between 0 and 1.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor
    mean: Tensor
    std: Tensor

    #: Images are all of one size.
    lengths = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSplit:
        """The same split with what `batch` and the loss read on `device`."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`pixel_values`, float32 (B, 3, size, size), normalised. `indices`: int64 (B,)."""
        pixels = self.pixels[indices.to(self.pixels.device)].float().div_(255)
        return {"pixel_values": pixels.sub_(self.mean).div_(self.std)}


Split = TextSplit | ImageSplit


@dataclass(frozen=True)
class PreparedData:
    """A task's splits for one kind of model input, and its number of classes."""

    train: Split
    validation: Split
    test: Split
    classes: int

    def to(self, device: torch.device | str) -> PreparedData:
        """The same data with every tensor on `device`."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return PreparedData(train, validation, test, self.classes)


def data_key(task: Task, model_input: ModelInput, max_tokens: int = 128) -> dict[str, Any]:
    """All that the prepared examples depend on, as JSON, known without having the data.

    A trial's id must also cover the sizes of the subsets and, for images, `mean` and `std`.
    Raises UserError if the backbone can't read this modality or `max_tokens` is below 1.
    """
    if task.modality != model_input.modality:
        raise UserError(
            f"task '{task.name}' is of modality {task.modality}, the backbone reads {model_input.modality}"
        )
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, got {max_tokens}")
    key: dict[str, Any] = {"task": task.name, "task_identity": task.identity_hash()}
    if isinstance(model_input, TextInput):
        key["tokenizer_hash"] = model_input.tokenizer_hash
        key["max_tokens"] = min(max_tokens, model_input.max_tokens)
    else:
        key["image_size"] = model_input.size
    return key


def prepare(
    task: Task,
    model_input: ModelInput,
    max_tokens: int = 128,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
) -> PreparedData:
    """The splits of a task as a backbone reads them; the work is done once and kept in the cache.

    Texts are cut to `max_tokens` tokens or the model's own limit, whichever is less. Images are cropped
    to their central square and resized with antialiasing. A size takes the first so many examples of
    its split, which are a fair sample; None takes all. Raises UserError for a size that the split does
    not have, for a modality that the backbone does not read, and when the data can't be had or stored.
    """
    check_sizes(task, train_size, validation_size, test_size)
    sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
    key = data_key(task, model_input, max_tokens)
    if isinstance(model_input, TextInput):
        build = partial(_build_text, task, model_input, key["max_tokens"])
    else:
        build = partial(_build_images, task, model_input.size)
    folder = prepared(task.name, key, build)
    train, validation, test = (_load(task, folder, split, sizes[split], model_input) for split in SPLITS)
    return PreparedData(train, validation, test, classes=len(task.classes))


def check_sizes(
    task: Task, train_size: int | None, validation_size: int | None, test_size: int | None
) -> None:
    """Raises UserError for a subset larger than its split, as far as the task states its splits' sizes."""
    asked = (train_size, validation_size, test_size)
    for split, wanted, available in zip(SPLITS, asked, task.sizes or (), strict=False):
        _check_size(task, split, wanted, available)


def score(metric: Metric, logits: Tensor, labels: Tensor, classes: int) -> float:
    """The metric of logits (N, classes) against labels (N,): accuracy in [0, 1] or Matthews in [-1, 1]."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_matthews_corrcoef

    if metric == "accuracy":
        return float(multiclass_accuracy(logits, labels, num_classes=classes, average="micro"))
    return float(multiclass_matthews_corrcoef(logits, labels, num_classes=classes))


def _check_size(task: Task, split: str, wanted: int | None, available: int) -> None:
    if wanted is not None and not 1 <= wanted <= available:
        raise UserError(
            f"{split}_size must be from 1 to {available}, "
            f"the size of the {split} split of task '{task.name}', got {wanted}"
        )


def _splits(
    task: Task, examples: Examples, contents: Sequence[str]
) -> Iterator[tuple[str, Tensor, Tensor, Any]]:
    """Name, labels, ids and positions of each split."""
    labels = [int(label) for label in examples.labels]
    if unknown := {label for label in labels if not 0 <= label < len(task.classes)}:
        raise UserError(
            f"task '{task.name}': labels {sorted(unknown)} are none of its {len(task.classes)} classes"
        )
    for split, chosen in deal(task, labels, examples.ids, contents, examples.groups).items():
        yield (
            split,
            torch.tensor([labels[i] for i in chosen]),
            torch.tensor([int(examples.ids[i]) for i in chosen]),
            chosen,
        )


def _build_text(task: Task, model_input: TextInput, max_tokens: int, folder: Path) -> None:
    examples = task.examples()
    texts = [str(text) for text in examples.inputs]
    tokenizer = model_input.load_tokenizer()
    if tokenizer.pad_token_id is None:
        raise UserError("the backbone's tokenizer has no padding token, so that its texts cannot be batched")
    if max_tokens <= (special := tokenizer.num_special_tokens_to_add()):
        raise UserError(f"max_tokens must exceed the tokenizer's {special} special tokens, got {max_tokens}")
    tokens: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer(texts[start : start + _TEXTS_AT_ONCE], truncation=True, max_length=max_tokens)
        tokens += encoded["input_ids"]
    for split, labels, ids, chosen in _splits(task, examples, [normalise_text(text) for text in texts]):
        flat = np.concatenate([np.asarray(tokens[i], dtype=np.int32) for i in chosen])
        tensors = {
            "tokens": torch.from_numpy(flat),
            "lengths": torch.tensor([len(tokens[i]) for i in chosen]),
            "pad_id": torch.tensor(tokenizer.pad_token_id),
            "labels": labels,
            "ids": ids,
        }
        _save(tensors, folder, split)


def _build_images(task: Task, size: int, folder: Path) -> None:
    examples = task.examples()
    contents: list[str] = []
    resized = np.empty((len(examples.inputs), 3, size, size), dtype=np.uint8)
    for i, pixels in enumerate(examples.inputs):
        array = np.asarray(pixels)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise UserError(
                f"task '{task.name}': images must be uint8 (height, width, 3), "
                f"example {examples.ids[i]} is {array.dtype} {array.shape}"
            )
        contents.append(hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest())
        image = ImageOps.fit(Image.fromarray(array), (size, size), Image.Resampling.BICUBIC)
        resized[i] = np.asarray(image).transpose(2, 0, 1)
    for split, labels, ids, chosen in _splits(task, examples, contents):
        tensors = {"pixels": torch.from_numpy(resized[chosen]), "labels": labels, "ids": ids}
        _save(tensors, folder, split)


def _save(tensors: dict[str, Tensor], folder: Path, split: str) -> None:
    # Written by Python, since safetensors hides a full disk behind an error of its own.
    (folder / f"{split}.safetensors").write_bytes(save(tensors))


def _load(task: Task, folder: Path, split: str, size: int | None, model_input: ModelInput) -> Split:
    """The first `size` examples of a prepared split; no more of them is read."""
    with safe_open(folder / f"{split}.safetensors", framework="pt") as file:
        available = file.get_slice("labels").get_shape()[0]
        _check_size(task, split, size, available)
        n = size or available
        labels, ids = file.get_slice("labels")[:n], file.get_slice("ids")[:n]
        if isinstance(model_input, ImageInput):
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model_input.mean, model_input.std))
            return ImageSplit(file.get_slice("pixels")[:n], labels, ids, mean, std)
        lengths = file.get_slice("lengths")[:n]
        ends = lengths.cumsum(0)
        tokens = file.get_slice("tokens")[: int(ends[-1])]
        return TextSplit(tokens, ends - lengths, lengths, labels, ids, int(file.get_tensor("pad_id")))
