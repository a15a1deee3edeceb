"""Prepares a task's splits for a backbone: token ids of texts, or pixels of images. They are cached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor

from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.machine.cache import is_prepared, prepared
from tensorbench.machine.memory import MIB, available_mib
from tensorbench.methods.errors import UserError
from tensorbench.methods.validation import Frozen, identity
from tensorbench.tasks.objective import as_tensor, check_answers, check_labels, objective
from tensorbench.tasks.pool import (
    ExampleSource,
    Pool,
    Sizes,
    as_contents,
    check_size,
    dealt,
    pool_of,
    repeated_tests,
)
from tensorbench.tasks.reading import image_content, read_images, read_texts
from tensorbench.tasks.registered_tasks import TASKS
from tensorbench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit, WrittenSplit, answers_of
from tensorbench.tasks.storing import END_TO_END, Arrays, joined, taken, write
from tensorbench.tasks.task import SPLITS, SplitName, Task
from tensorbench.tasks.tokens import encoded, flat, prompted, written

#: The number of texts tokenised in one call.
_TEXTS_AT_ONCE = 1000

#: The name of the file with the pool: all examples from which each seed deals its own splits.
POOL_FILE = "pool.safetensors"


class _Key(Frozen):
    task: str
    task_identity: str
    split: Literal["fixed", "per_seed"] = "fixed"


class _TextKey(_Key):
    tokenizer_hash: str
    max_tokens: int
    #: The template of a prompt, followed by the words that it accepts as answers.
    prompt: tuple[str, ...] | None = None


class _ImageKey(_Key):
    image_size: int
    resize: int | None = None


def data_key(
    task: Task, model_input: ModelInput, max_tokens: int = 128, *, per_seed: bool = False
) -> dict[str, Any]:
    """Returns the identity of prepared examples as JSON, without reading the data.

    `per_seed` means that each seed has its own splits. The seed, the sizes of subsets, the padding of texts,
    and `mean` and `std` of images are not included, so a trial's id must add them. Raises UserError for a
    backbone of another modality, `max_tokens` below 1, and a `resize` below the image size.
    """
    if task.modality != model_input.modality:
        raise UserError(
            f"task '{task.name}' is of modality {task.modality}, the backbone reads {model_input.modality}"
        )
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, got {max_tokens}")
    with TASKS.blaming(task.name):
        task_identity = task.identity_hash()
    common: dict[str, Any] = {
        "task": task.name,
        "task_identity": task_identity,
        "split": "per_seed" if per_seed else "fixed",
    }
    if isinstance(model_input, TextInput):
        limit = min(max_tokens, model_input.max_tokens)
        prompt, tokenizer = model_input.prompt, model_input.tokenizer_hash
        parts = None if prompt is None else (prompt.template, *prompt.words)
        return identity(_TextKey(**common, tokenizer_hash=tokenizer, max_tokens=limit, prompt=parts))
    if model_input.resize is not None and model_input.resize < model_input.size:
        raise UserError(
            f"task '{task.name}': resize must be at least {model_input.size}, as the backbone reads, "
            f"got {model_input.resize}"
        )
    return identity(_ImageKey(**common, image_size=model_input.size, resize=model_input.resize))


def prepare(
    task: Task,
    model_input: ModelInput,
    max_tokens: int = 128,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    split_seed: int | None = None,
) -> PreparedData:
    """Returns the splits of a task, prepared for a backbone's input. They are cached.

    Texts are cut to `max_tokens` or the model's limit, whichever is less. Images are resized with
    antialiasing, as `ImageInput` states. A size selects the first examples of its split, which are a fair
    sample, and None selects all. If `split_seed` is given, this seed deals the examples into splits of its
    own. Raises UserError for a size beyond the split, for a backbone of another modality, for data that are
    not available or cannot be stored, and for labels for which the metric is undefined or from which nothing
    can be learned.
    """
    sizes = (train_size, validation_size, test_size)
    for split, size, available in zip(SPLITS, sizes, task.sizes or (), strict=False):
        check_size(task, split, size, available)
    task_objective = objective(task)
    per_seed = split_seed is not None
    key = data_key(task, model_input, max_tokens, per_seed=per_seed)
    folder = _folder(task, model_input, key, sizes, per_seed)
    if split_seed is None:
        parts = [_read(task, folder, split, size) for split, size in zip(SPLITS, sizes, strict=True)]
    else:
        parts = _deal_pool(task, folder, split_seed, sizes)
    train, validation, test = (_split(task, part, model_input, key) for part in parts)
    for name, scored in (("validation", validation), ("test", test)):
        check_labels(task, name, scored.labels)
        if isinstance(scored, WrittenSplit):
            check_answers(task, name, scored.answers, scored.ids.tolist())
    if isinstance(train, WrittenSplit):
        # Evaluation scores the answer only.
        train = replace(train, trains_prompts=task.loss_on == "all")
    repeated = repeated_tests(task, train.ids.numpy(), test.ids.numpy())
    return PreparedData(
        train, validation, test, task_objective.standardised(task.name, train.labels), repeated
    )


def _folder(task: Task, model_input: ModelInput, key: dict[str, Any], sizes: Sizes, per_seed: bool) -> Path:
    """Returns the folder of the prepared splits or, if `per_seed`, of the pool.

    Of shared splits, only the texts within `sizes` are tokenised, perhaps a few hundred of a million rows.
    All images are prepared, since all must be decoded to find duplicates.
    """
    source = ExampleSource(task)
    if isinstance(model_input, ImageInput):
        build = build_image_pool if per_seed else build_images
        return prepared(task.name, key, partial(build, source, model_input))
    limit = key["max_tokens"]
    # Two backbones with the same tokenizer files may read other tokens. A trial's id names the backbone, so
    # that only the cache needs this.
    key = {**key, "model_type": model_input.model_type}
    if per_seed:
        return prepared(task.name, key, partial(build_text_pool, source, model_input, limit))
    if any(sizes) and not is_prepared(task.name, key):
        key = {**key, "sizes": sizes}
    else:
        sizes = (None, None, None)
    return prepared(task.name, key, partial(build_texts, source, model_input, limit, sizes))


def _read(task: Task, folder: Path, split: SplitName, size: int | None) -> dict[str, Tensor]:
    """Reads the first `size` examples of a prepared split, or all if `size` is None.

    Raises UserError as `check_size` does.
    """
    with safe_open(folder / f"{split}.safetensors", framework="pt") as file:
        available = file.get_slice("labels").get_shape()[0]
        check_size(task, split, size, available)
        names = set(file.keys()) - {*END_TO_END, "pad_id"}
        tensors = {name: file.get_slice(name)[: size or available] for name in names}
        for name, sizes in END_TO_END.items():
            if sizes in tensors:
                tensors[name] = file.get_slice(name)[: int(tensors[sizes].sum())]
        if "lengths" in tensors:
            tensors["pad_id"] = file.get_tensor("pad_id")
    return tensors


def _deal_pool(task: Task, folder: Path, seed: int, sizes: tuple[int | None, ...]) -> list[dict[str, Tensor]]:
    """Deals the splits of a seed from the prepared pool. Keeps the first examples of each, by `sizes`."""
    arrays = load_file(folder / POOL_FILE)
    numbers, splits = arrays.pop("blocks"), arrays.pop("splits", None)
    pool = Pool(np.arange(len(numbers)), numbers, arrays["labels"], arrays["ids"], splits)
    parts = []
    for (split, chosen), size in zip(pool.deal(task, seed).items(), sizes, strict=True):
        check_size(task, split, size, len(chosen), seed)
        part = taken(arrays, chosen[:size])
        parts.append({name: torch.from_numpy(values) for name, values in part.items()})
    return parts


def _split(task: Task, tensors: dict[str, Tensor], model_input: ModelInput, key: dict[str, Any]) -> Split:
    labels, ids = tensors["labels"], tensors["ids"]
    if isinstance(model_input, ImageInput):
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model_input.mean, model_input.std))
        return ImageSplit(tensors["pixels"], labels, ids, mean, std)
    made = TextSplit(
        tensors["tokens"],
        tensors["lengths"].cumsum(0) - tensors["lengths"],
        tensors["lengths"],
        labels,
        ids,
        int(tensors["pad_id"]),
        tensors.get("seconds"),
        key["max_tokens"] if model_input.padding == "max_tokens" else None,
        cut=int(tensors["cut"].sum()) if "cut" in tensors else 0,
    )
    if task.target != "generation":
        return made
    return WrittenSplit(
        **vars(made),
        prompts=tensors["prompts"],
        answers=answers_of(tensors),
        phrases=task.answer_after,
    )


def build_texts(
    source: ExampleSource, model_input: TextInput, max_tokens: int, sizes: Sizes, folder: Path
) -> None:
    """Tokenises the first texts of each split, by `sizes`, and writes one file per split to `folder`.

    Raises UserError for a size beyond the split, and for texts that cannot be read, dealt or tokenised.
    """
    parts = dealt(source)
    for split, size in zip(SPLITS, sizes, strict=True):
        check_size(source.task, split, size, len(parts[split]))
        parts[split] = parts[split][:size]
    used = np.unique(np.concatenate(list(parts.values())))
    arrays = _tokenised(source, model_input, max_tokens, used)
    for split, positions in parts.items():
        write(taken(arrays, np.searchsorted(used, positions)), folder / f"{split}.safetensors")


def build_text_pool(source: ExampleSource, model_input: TextInput, max_tokens: int, folder: Path) -> None:
    """Tokenises the texts of the pool, from which each seed deals its splits, and writes them to one file.

    Raises UserError for texts that cannot be read or tokenised.
    """
    pool = pool_of(source)
    write(_tokenised(source, model_input, max_tokens, pool.kept) | _blocks(pool), folder / POOL_FILE)


def build_images(source: ExampleSource, model_input: ImageInput, folder: Path) -> None:
    """Resizes all images, deals them into splits, and writes one file per split to `folder`.

    Raises UserError for images that cannot be read or dealt, or need more memory than is free.
    """
    with _resized(source, model_input, folder) as arrays:
        for split, positions in dealt(source).items():
            write(taken(arrays, positions), folder / f"{split}.safetensors")


def build_image_pool(source: ExampleSource, model_input: ImageInput, folder: Path) -> None:
    """Resizes the images of the pool, from which each seed deals its splits, and writes them to one file.

    Raises UserError for images that cannot be read, or need more memory than is free.
    """
    with _resized(source, model_input, folder) as arrays:
        pool = pool_of(source)
        write(taken(arrays, pool.kept) | _blocks(pool), folder / POOL_FILE)


def _blocks(pool: Pool) -> Arrays:
    return {"blocks": pool.numbers} | ({} if pool.splits is None else {"splits": pool.splits})


def _labels_and_ids(source: ExampleSource, positions: NDArray[np.int64]) -> Arrays:
    labels, ids = source.examples.labels, source.examples.ids
    return {
        "labels": as_tensor(source.task, [labels[i] for i in positions]).numpy(),
        "ids": np.array([ids[i] for i in positions], dtype=np.int64),
    }


def _tokenised(
    source: ExampleSource, model_input: TextInput, max_tokens: int, positions: NDArray[np.int64]
) -> Arrays:
    """Returns the arrays of the texts at these positions, which must be in ascending order."""
    task, batches = source.task, list[Arrays]()
    used = np.zeros(len(source.examples.labels), dtype=bool)
    used[positions] = True
    texts = compress(read_texts(task, source.examples), used)
    answers = (str(source.examples.labels[i]) for i in positions)
    with model_input.blaming():
        tokenizer = model_input.load_tokenizer()
        if tokenizer.pad_token_id is None:
            raise UserError(
                "the backbone's tokenizer has no padding token, so that its texts cannot be batched; "
                "set pad_token in its tokenizer_config.json"
            )
        while batch := list(islice(texts, _TEXTS_AT_ONCE)):
            if task.target == "generation":
                batches.append(written(tokenizer, max_tokens, batch, list(islice(answers, len(batch)))))
            elif model_input.prompt is None:
                batches.append(encoded(task, tokenizer, max_tokens, batch))
            else:
                rows, cut = prompted(tokenizer, model_input.prompt, max_tokens, batch)
                batches.append({**flat(rows), "cut": np.array(cut)})
    return joined(batches) | _labels_and_ids(source, positions) | {"pad_id": np.array(tokenizer.pad_token_id)}


@contextmanager
def _resized(source: ExampleSource, model_input: ImageInput, folder: Path) -> Iterator[Arrays]:
    """A context that decodes and resizes all images, and yields their arrays.

    The pixels lie in a file in `folder`, which is removed when the context ends. Decoding also sets the
    source's `contents`. Raises UserError for images that cannot be read, or need more memory than is free.
    """
    task, size, count = source.task, model_input.size, len(source.examples.inputs)
    # Memory for the pixels in the page cache, and for two copies of those being written.
    required, free = 3 * count * 3 * size**2 / MIB, available_mib()
    if required > free:
        raise UserError(
            f"task '{task.name}': {count:,} images of {size} pixels need {required:,.0f} MiB of memory to "
            f"prepare, and {free:,.0f} MiB are free; take a smaller image_size"
        )
    file = folder / ".pixels"
    pixels = np.memmap(file, np.uint8, "w+", shape=(count, 3, size, size))

    def contents() -> Iterator[bytes]:
        for i, image in enumerate(read_images(task, source.examples)):
            pixels[i] = np.asarray(_fitted(Image.fromarray(image), model_input)).transpose(2, 0, 1)
            yield image_content(image)

    source.contents = as_contents(contents())
    yield {"pixels": pixels, **_labels_and_ids(source, np.arange(count))}
    file.unlink()


def _fitted(image: Image.Image, model_input: ImageInput) -> Image.Image:
    size = model_input.size
    if model_input.resize is None:
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    side, edge = model_input.resize, (model_input.resize - size) // 2
    squashed = image.resize((side, side), Image.Resampling.BILINEAR)
    return squashed.crop((edge, edge, edge + size, edge + size))
