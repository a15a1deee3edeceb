"""Prepares and caches a task's splits for a backbone: token ids of texts, or pixels of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import load_file, save
from torch import Tensor

from tensorbench.backbones.answers import text_of
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.machine.cache import is_prepared, prepared
from tensorbench.machine.memory import MIB, available_mib
from tensorbench.methods.errors import UserError, shown
from tensorbench.tasks.objective import check_answers, objective
from tensorbench.tasks.pool import CONTENT, ExampleSource, Sizes, check_scored, check_size
from tensorbench.tasks.reading import identity_of, image_content, read_images, read_texts
from tensorbench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit, WrittenSplit, answers_of
from tensorbench.tasks.task import SPLITS, Task
from tensorbench.tasks.tokens import END_TO_END, Arrays, encoded, flat, joined, prompted, taken, written

#: The version of the arrays in which texts are cached.
_FORM = 2

#: The number of texts tokenised in one call.
_TEXTS_AT_ONCE = 1000


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
    key: dict[str, Any] = {"task": task.name, "task_identity": identity_of(task)}
    if per_seed:
        key["split"] = "per_seed"
    if isinstance(model_input, TextInput):
        key["tokenizer_hash"] = model_input.tokenizer_hash
        key["max_tokens"] = min(max_tokens, model_input.max_tokens)
        if (prompt := model_input.prompt) is not None:
            key["prompt"] = [prompt.template, *prompt.words]
        return key
    if model_input.resize is not None:
        if model_input.resize < model_input.size:
            raise UserError(
                f"task '{task.name}': resize must be at least {model_input.size}, as the backbone reads, "
                f"got {model_input.resize}"
            )
        key["resize"] = model_input.resize
    return key | {"image_size": model_input.size}


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
    not available or cannot be stored, for labels for which the metric is undefined or from which nothing can
    be learned, and for answers that the backbone cannot write.
    """
    sizes = (train_size, validation_size, test_size)
    for split, size, available in zip(SPLITS, sizes, task.sizes or (), strict=False):
        check_size(task, split, size, available)
    task_objective = objective(task)
    per_seed = split_seed is not None
    key = data_key(task, model_input, max_tokens, per_seed=per_seed)
    source = ExampleSource(task)
    folder = _folder(source, model_input, key, sizes, per_seed)
    positions = source.parts(sizes, split_seed)
    if per_seed:
        arrays = load_file(folder / "pool.safetensors")
        parts = [
            {name: torch.from_numpy(values) for name, values in taken(arrays, part).items()}
            for part in positions.values()
        ]
    else:
        parts = [_first(folder / f"{split}.safetensors", len(part)) for split, part in positions.items()]
    train, validation, test = (_split(task, part, model_input, key) for part in parts)
    for name, scored in zip(SPLITS[1:], (validation, test), strict=True):
        check_scored(task, name, scored.labels)
        if isinstance(scored, WrittenSplit):
            check_answers(task, name, scored.answers, scored.ids.tolist())
    unwritable = 0
    if task_objective.metric.reads == "answers" and isinstance(model_input, TextInput):
        written_splits = [split for split in (validation, test) if isinstance(split, WrittenSplit)]
        unwritable = _unwritable(task, written_splits, model_input) if written_splits else 0
    if isinstance(train, WrittenSplit):
        # Evaluation scores the answer only.
        train = replace(train, trains_prompts=task.loss_on == "all")
    learned = task_objective.standardised(task.name, train.labels)
    return PreparedData(train, validation, test, learned, source.split_sizes(positions), unwritable)


def _unwritable(task: Task, splits: Sequence[WrittenSplit], model_input: TextInput) -> int:
    """Returns how many correct answers of these splits count as wrong if a model writes them as they are.

    Raises UserError if these are all, unless phrases mark what counts: shorter texts might then be correct.
    """
    wrong, total = 0, sum(map(len, splits))
    with model_input.blaming():
        tokenizer = model_input.load_tokenizer()
        for split in splits:
            room = (model_input.max_tokens - split.prompts).clamp(max=task.new_tokens).tolist()
            tokens = (tokenizer(text, add_special_tokens=False, verbose=False) for text in split.answers)
            texts = [
                text_of(tokenizer, row["input_ids"][:count]) for row, count in zip(tokens, room, strict=True)
            ]
            wrong += split.correct(torch.arange(len(split)), texts).count(False)
    if wrong == total and not task.answer_after:
        raise UserError(
            f"task '{task.name}': none of {total:,} right answers can be written in {task.new_tokens} tokens "
            f"by this tokenizer: of {shown(split.answers[-1])}, it leaves {shown(texts[-1])}; "
            "raise new_tokens, shorten the prompts, or leave out what it changes (such as accents) or drops"
        )
    return wrong


def _folder(
    source: ExampleSource, model_input: ModelInput, key: dict[str, Any], sizes: Sizes, per_seed: bool
) -> Path:
    """Returns the folder of the prepared splits or, if `per_seed`, of the pool.

    Only the texts of shared splits within `sizes` are tokenised, since a million rows may be far more than
    needed. All images are prepared, since all must be decoded to find duplicates.
    """
    name, whole = source.task.name, (None, None, None)
    if isinstance(model_input, ImageInput):
        sizes = whole
    else:
        # Two backbones with the same tokenizer files may read other tokens. A trial's id names the backbone,
        # so that only the cache needs this.
        key = {**key, "model_type": model_input.model_type, "form": _FORM}
        if per_seed or not any(sizes) or is_prepared(name, key):
            sizes = whole
        else:
            key = {**key, "sizes": sizes}

    def build(folder: Path) -> None:
        file = folder / ".pixels"
        pixels = _resized(source, model_input, file) if isinstance(model_input, ImageInput) else None
        pool = source.pool
        if per_seed:
            parts: dict[str, NDArray[np.int64]] = {"pool": np.arange(len(pool.ids))}
        else:
            parts = {str(split): part for split, part in source.parts(sizes, None).items()}
        if isinstance(model_input, TextInput):
            read = np.unique(np.concatenate(list(parts.values())))
            arrays = _tokenised(source, model_input, key["max_tokens"], read)
        for name, part in parts.items():
            if pixels is None:
                chosen = taken(arrays, np.searchsorted(read, part))
            else:
                chosen = {"pixels": pixels[pool.kept[part]]}
            chosen |= {"labels": pool.labels[part], "ids": pool.ids[part]}
            # save_file would hide the system's error number, which identifies a full disk.
            (folder / f"{name}.safetensors").write_bytes(save(chosen))
        file.unlink(missing_ok=True)

    return prepared(name, key, build)


def _first(file: Path, size: int) -> dict[str, Tensor]:
    """Reads the first `size` examples of a prepared split."""
    with safe_open(file, framework="pt") as arrays:
        names = set(arrays.keys()) - {*END_TO_END, "pad_id"}
        tensors = {name: arrays.get_slice(name)[:size] for name in names}
        for name, sizes in END_TO_END.items():
            if sizes in tensors:
                tensors[name] = arrays.get_slice(name)[: int(tensors[sizes].sum())]
        if "lengths" in tensors:
            tensors["pad_id"] = arrays.get_tensor("pad_id")
    return tensors


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
        cut=int(tensors["cut"].sum()),
    )
    if task.target != "generation":
        return made
    return WrittenSplit(
        **vars(made), prompts=tensors["prompts"], answers=answers_of(tensors), phrases=task.answer_after
    )


def _tokenised(
    source: ExampleSource, model_input: TextInput, max_tokens: int, positions: NDArray[np.int64]
) -> Arrays:
    """Returns the arrays of the texts at these positions in the pool, which must be in ascending order."""
    task, kept, batches = source.task, source.pool.kept[positions], list[Arrays]()
    used = np.zeros(len(source.examples.labels), dtype=bool)
    used[kept] = True
    texts = compress(read_texts(task, source.examples), used)
    answers = (str(source.examples.labels[i]) for i in kept)
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
    return joined(batches) | {"pad_id": np.array(tokenizer.pad_token_id)}


def _resized(source: ExampleSource, model_input: ImageInput, file: Path) -> NDArray[np.uint8]:
    """Decodes and resizes all N images. Returns their pixels, uint8 (N, 3, size, size).

    The returned array is mapped to `file`. Decoding also sets the source's `contents`. Raises UserError for
    images that cannot be read, or need more memory than is free.
    """
    task, size, count = source.task, model_input.size, len(source.examples.inputs)
    # Memory for the pixels in the page cache, and for two copies of those being written.
    required, free = 3 * count * 3 * size**2 / MIB, available_mib()
    if required > free:
        raise UserError(
            f"task '{task.name}': {count:,} images of {size} pixels need {required:,.0f} MiB of memory to "
            f"prepare, and {free:,.0f} MiB are free; take a smaller image_size"
        )
    pixels = np.memmap(file, np.uint8, "w+", shape=(count, 3, size, size))

    def contents() -> Iterator[bytes]:
        for i, image in enumerate(read_images(task, source.examples)):
            pixels[i] = np.asarray(_fitted(Image.fromarray(image), model_input)).transpose(2, 0, 1)
            yield image_content(image)

    source.contents = np.fromiter(contents(), CONTENT)
    return pixels


def _fitted(image: Image.Image, model_input: ImageInput) -> Image.Image:
    size = model_input.size
    if model_input.resize is None:
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    side, edge = model_input.resize, (model_input.resize - size) // 2
    squashed = image.resize((side, side), Image.Resampling.BILINEAR)
    return squashed.crop((edge, edge, edge + size, edge + size))
