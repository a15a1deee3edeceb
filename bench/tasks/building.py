"""From a task's raw examples to the arrays that a backbone's input is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bench.inputs import ImageInput, TextInput
from bench.process.memory import MIB, available_mib
from bench.tasks.base import SPLITS, Task
from bench.tasks.objective import as_tensor
from bench.tasks.pool import Pool, Sizes, Source, as_contents, check_size, dealt, pool_of
from bench.tasks.prompts import prompted
from bench.tasks.reading import image_content, read_images, read_texts
from bench.tasks.storing import Arrays, Collected, save
from bench.tasks.written import written
from methods.errors import UserError

#: How many texts are tokenised in one call.
_TEXTS_AT_ONCE = 1000


def build_texts(source: Source, wanted: TextInput, max_tokens: int, sizes: Sizes, folder: Path) -> None:
    """Writes one file for each split, with the first so many of its texts. Raises UserError."""
    parts = dealt(source)
    for split, size in zip(SPLITS, sizes, strict=True):
        check_size(source.task, split, size, len(parts[split]))
        parts[split] = parts[split][:size]
    needed = np.unique(np.concatenate(list(parts.values())))
    collected, arrays = _tokenised(source, wanted, max_tokens, needed, folder)
    for split, chosen in parts.items():
        save(arrays, np.searchsorted(needed, chosen), folder / f"{split}.safetensors")
    collected.remove()


def build_text_pool(source: Source, wanted: TextInput, max_tokens: int, folder: Path) -> None:
    """Writes one file with all texts, from which seeds deal. Raises UserError."""
    pool = pool_of(source)
    collected, arrays = _tokenised(source, wanted, max_tokens, pool.kept, folder)
    _save_pool(arrays, pool, folder)
    collected.remove()


def build_images(source: Source, wanted: ImageInput, folder: Path) -> None:
    """Writes one file for each split. Raises UserError."""
    arrays = _resized(source, wanted)
    for split, chosen in dealt(source).items():
        save(arrays, chosen, folder / f"{split}.safetensors")


def build_image_pool(source: Source, wanted: ImageInput, folder: Path) -> None:
    """Writes one file with all images, from which seeds deal. Raises UserError."""
    arrays = _resized(source, wanted)
    pool = pool_of(source)
    _save_pool({name: values[pool.kept] for name, values in arrays.items()}, pool, folder)


def _save_pool(arrays: Arrays, pool: Pool, folder: Path) -> None:
    whole = arrays | {"blocks": pool.numbers}
    if pool.splits is not None:
        whole["splits"] = pool.splits
    save(whole, np.arange(len(pool.kept)), folder / "pool.safetensors")


def _told(source: Source, needed: NDArray[np.int64]) -> Arrays:
    """Labels and ids of the examples at these positions."""
    labels, ids = source.examples.labels, source.examples.ids
    return {
        "labels": as_tensor(source.task, [labels[i] for i in needed]).numpy(),
        "ids": np.array([ids[i] for i in needed], dtype=np.int64),
    }


def _tokenised(
    source: Source, wanted: TextInput, max_tokens: int, needed: NDArray[np.int64], folder: Path
) -> tuple[Collected, Arrays]:
    """The texts at these positions, which rise, with all that is known of them."""
    task, collected = source.task, Collected(folder)
    asked = np.zeros(len(source.examples.labels), dtype=bool)
    asked[needed] = True
    texts = compress(read_texts(task, source.examples), asked)
    answers = (str(source.examples.labels[i]) for i in needed)
    with wanted.blaming():
        tokenizer = wanted.load_tokenizer()
        if tokenizer.pad_token_id is None:
            raise UserError(
                "the backbone's tokenizer has no padding token, so that its texts cannot be batched; "
                "set pad_token in its tokenizer_config.json"
            )
        while some := list(islice(texts, _TEXTS_AT_ONCE)):
            if task.target == "generation":
                collected.add(written(tokenizer, max_tokens, some, list(islice(answers, len(some)))))
            elif wanted.prompt is None:
                collected.add(_encoded(task, tokenizer, max_tokens, some))
            else:
                rows, cut = prompted(tokenizer, wanted.prompt, max_tokens, some)
                collected.add({**_flat(rows), "cut": np.array(cut)})
        pad = np.array(tokenizer.pad_token_id)
    return collected, collected.arrays() | _told(source, needed) | {"pad_id": pad}


def _encoded(task: Task, tokenizer: Any, max_tokens: int, texts: Sequence[Any]) -> Arrays:
    paired = isinstance(texts[0], tuple)
    if max_tokens <= (special := tokenizer.num_special_tokens_to_add(pair=paired)):
        raise UserError(
            f"task '{task.name}': max_tokens must exceed the tokenizer's {special} special tokens, "
            f"got {max_tokens}"
        )
    given = tuple(map(list, zip(*texts, strict=True))) if paired else (texts,)
    encoded = tokenizer(*given, truncation=True, max_length=max_tokens)
    found = _flat(encoded["input_ids"])
    if paired:
        # Without types a tokenizer does not tell the two apart, in any pair.
        seconds = [row.index(1) for row in encoded.get("token_type_ids", []) if any(row)]
        found |= {"seconds": np.array(seconds)} if seconds else {}
    return found


def _flat(rows: Sequence[Sequence[int]]) -> Arrays:
    """The tokens of some texts, one behind the other, and how many each has."""
    return {
        "tokens": np.fromiter(chain.from_iterable(rows), dtype=np.int32),
        "lengths": np.array([len(row) for row in rows]),
    }


def _resized(source: Source, wanted: ImageInput) -> Arrays:
    """All images, with all that is known of them; on the way the source learns their contents."""
    task, size, count = source.task, wanted.size, len(source.examples.inputs)
    # All of them at once, and parts of them once more when they are dealt to the splits.
    needed, free = 2 * count * 3 * size**2 / MIB, available_mib()
    if needed > free:
        raise UserError(
            f"task '{task.name}': {count:,} images of {size} pixels need {needed:,.0f} MiB of memory to "
            f"prepare, and {free:,.0f} MiB are free; take a smaller image_size"
        )
    resized = np.empty((count, 3, size, size), dtype=np.uint8)

    def contents() -> Iterator[bytes]:
        for i, array in enumerate(read_images(task, source.examples)):
            resized[i] = np.asarray(_fitted(Image.fromarray(array), wanted)).transpose(2, 0, 1)
            yield image_content(array)

    source.contents = as_contents(contents())
    return {"pixels": resized, **_told(source, np.arange(count))}


def _fitted(image: Image.Image, wanted: ImageInput) -> Image.Image:
    size = wanted.size
    if wanted.resize is None:
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    side, edge = wanted.resize, (wanted.resize - size) // 2
    squashed = image.resize((side, side), Image.Resampling.BILINEAR)
    return squashed.crop((edge, edge, edge + size, edge + size))
