"""From a task's raw examples to the tensors that a backbone trains on: prepared once, then read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor

from bench.inputs import ImageInput, ModelInput, TextInput
from bench.sources.assets import is_prepared, prepared
from bench.tasks.base import SPLITS, SplitName, Task
from bench.tasks.building import (
    build_image_pool,
    build_images,
    build_text_pool,
    build_texts,
)
from bench.tasks.catalog import TASKS
from bench.tasks.objective import check_labels, objective
from bench.tasks.overlap import repeated_tests
from bench.tasks.pool import Pool, Sizes, Source, check_size
from bench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit
from bench.tasks.storing import END_TO_END, taken
from bench.tasks.written import WrittenSplit, answers_of, check_answers
from methods.errors import UserError
from methods.validation import Frozen, Later, identity


class _Key(Frozen):
    """What the prepared examples of a task depend on, whether they are texts or images."""

    task: str
    task_identity: str
    split: Annotated[Literal["fixed", "per_seed"], Later()] = "fixed"


class _TextKey(_Key):
    tokenizer_hash: str
    max_tokens: int
    #: A prompt's template, and then its words.
    prompt: Annotated[tuple[str, ...] | None, Later()] = None


class _ImageKey(_Key):
    image_size: int
    resize: Annotated[int | None, Later()] = None


def data_key(
    task: Task, model_input: ModelInput, max_tokens: int = 128, *, per_seed: bool = False
) -> dict[str, Any]:
    """All that the prepared examples depend on, as JSON, known without having the data.

    `per_seed`: the split is another one for each seed. A trial's id must also cover the seed, the sizes of
    the subsets, the padding of texts and, for images, `mean` and `std`. Raises UserError if the backbone
    can't read this modality, `max_tokens` is below 1, or images are resized to less than is cut out.
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
        asked, tokenizer = model_input.prompt, model_input.tokenizer_hash
        prompt = None if asked is None else (asked.template, *asked.words)
        return identity(_TextKey(**common, tokenizer_hash=tokenizer, max_tokens=limit, prompt=prompt))
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
    """The splits of a task as a backbone reads them; the work is done once and kept in the cache.

    Texts are cut to `max_tokens` tokens or the model's own limit, whichever is less. Images are resized as
    `ImageInput` says, with antialiasing. A size takes the first so many examples of its split, which are a
    fair sample; None takes all. With a `split_seed` the examples are dealt by that seed. Raises UserError
    for a size that the split does not have, for a modality that the backbone does not read, and when the
    data can't be had or stored.
    """
    sizes = (train_size, validation_size, test_size)
    for split, wanted, available in zip(SPLITS, sizes, task.sizes or (), strict=False):
        check_size(task, split, wanted, available)
    asked = objective(task)
    per_seed = split_seed is not None
    key = data_key(task, model_input, max_tokens, per_seed=per_seed)
    folder = _folder(task, model_input, key, sizes, per_seed)
    if split_seed is None:
        parts = [_read(task, folder, *wanted) for wanted in zip(SPLITS, sizes, strict=True)]
    else:
        parts = _deal_pool(task, folder, split_seed, sizes)
    train, validation, test = (_split(task, part, model_input, key) for part in parts)
    for name, scored in (("validation", validation), ("test", test)):
        check_labels(task, name, scored.labels)
        if isinstance(scored, WrittenSplit):
            check_answers(task, name, scored.answers, scored.ids.tolist())
    if isinstance(train, WrittenSplit):
        # What is evaluated is the answer in any case.
        train = replace(train, whole=task.loss_on == "all")
    repeated = repeated_tests(task, train.ids.numpy(), test.ids.numpy())
    return PreparedData(train, validation, test, asked.standardised(task.name, train.labels), repeated)


def _folder(task: Task, wanted: ModelInput, key: dict[str, Any], sizes: Sizes, per_seed: bool) -> Path:
    """The prepared splits, or the pool from which seeds deal.

    Of texts that nothing has prepared yet only those are prepared which the sizes ask for: a few hundred of
    a million rows. Of images all are looked at in any case, to find those that are the same.
    """
    source = Source(task)
    if isinstance(wanted, ImageInput):
        build = build_image_pool if per_seed else build_images
        return prepared(task.name, key, partial(build, source, wanted))
    limit = key["max_tokens"]
    if per_seed:
        return prepared(task.name, key, partial(build_text_pool, source, wanted, limit))
    if any(sizes) and not is_prepared(task.name, key):
        key = {**key, "sizes": sizes}
    else:
        sizes = (None, None, None)
    return prepared(task.name, key, partial(build_texts, source, wanted, limit, sizes))


def _read(task: Task, folder: Path, split: SplitName, size: int | None) -> dict[str, Tensor]:
    """The first `size` examples of a prepared split; no more of them is read."""
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
    """The splits that a seed deals from a prepared pool, each cut to its size."""
    arrays = load_file(folder / "pool.safetensors")
    numbers, splits = arrays.pop("blocks"), arrays.pop("splits", None)
    pool = Pool(np.arange(len(numbers)), numbers, arrays["labels"], arrays["ids"], splits)
    parts = []
    for (split, chosen), size in zip(pool.deal(task, seed).items(), sizes, strict=True):
        check_size(task, split, size, len(chosen), seed)
        some = taken(arrays, chosen[:size])
        parts.append({name: torch.from_numpy(values) for name, values in some.items()})
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
