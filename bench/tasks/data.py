"""From a task's raw examples to the tensors that a backbone trains on: prepared once, then read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from bench.inputs import ImageInput, ModelInput, TextInput
from bench.process.memory import MIB, available_mib
from bench.sources.assets import prepared
from bench.tasks.base import SPLITS, Examples, SplitName, Task
from bench.tasks.catalog import TASKS
from bench.tasks.dealing import blocks, deal
from bench.tasks.objective import as_labels, as_tensor, objective
from bench.tasks.prompts import prompted
from bench.tasks.reading import image_content, read_examples, read_images, text_content
from bench.tasks.splits import ImageSplit, PreparedData, Split, TextSplit
from bench.tasks.written import WrittenSplit, answers_of, written
from methods.errors import UserError
from methods.validation import Frozen, Later, identity

#: How many texts are tokenised in one call.
_TEXTS_AT_ONCE = 1000


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
    check_sizes(task, train_size, validation_size, test_size)
    asked = objective(task)
    sizes = (train_size, validation_size, test_size)
    per_seed = split_seed is not None
    key = data_key(task, model_input, max_tokens, per_seed=per_seed)
    if isinstance(model_input, TextInput):
        build = partial(_build_text, task, model_input, key["max_tokens"])
    else:
        build = partial(_build_images, task, model_input)
    folder = prepared(task.name, key, partial(_build, task, build, per_seed))
    if split_seed is None:
        parts = [_read(task, folder, *wanted) for wanted in zip(SPLITS, sizes, strict=True)]
    else:
        parts = _deal_pool(task, folder, split_seed, sizes)
    train, validation, test = (_split(task, part, model_input, key) for part in parts)
    if isinstance(train, WrittenSplit):
        # What is evaluated is the answer in any case.
        train = replace(train, whole=task.loss_on == "all")
    return PreparedData(train, validation, test, asked.standardised(task.name, train.labels))


def check_sizes(
    task: Task, train_size: int | None, validation_size: int | None, test_size: int | None
) -> None:
    """Raises UserError for a subset larger than its split, as far as the task states its splits' sizes."""
    asked = (train_size, validation_size, test_size)
    for split, wanted, available in zip(SPLITS, asked, task.sizes or (), strict=False):
        _check_size(task, split, wanted, available)


def _check_size(task: Task, split: str, wanted: int | None, available: int, dealt: str = "") -> None:
    if wanted is not None and not 1 <= wanted <= available:
        raise UserError(
            f"{split}_size must be from 1 to {available}, "
            f"the size of the {split} split of task '{task.name}'{dealt}, got {wanted}"
        )


#: What is stored of all examples end to end, and what says how much of it each has.
_END_TO_END = {"tokens": "lengths", "answer_bytes": "answer_sizes"}

#: What is known of N examples: tensors (N, ...), but for those of `_END_TO_END`, and `pad_id`.
_Tensors = dict[str, Tensor]

#: The model's view of all examples, and what makes two of them duplicates.
_Built = tuple[_Tensors, list[str]]


def _build(task: Task, build: Callable[[Examples], _Built], per_seed: bool, folder: Path) -> None:
    """Writes one file for each split, or one pool from which seeds deal."""
    examples = read_examples(task)
    labels, ids = list(examples.labels), list(examples.ids)
    tensors, contents = build(examples)
    tensors |= {"labels": as_tensor(task, labels), "ids": torch.tensor(ids)}
    if not per_seed:
        for split, chosen in deal(task, labels, ids, contents, examples.groups, examples.splits).items():
            _save(_take(tensors, torch.from_numpy(chosen)), folder, split)
        return
    kept, numbers = blocks(labels, contents, examples.groups, examples.splits)
    pool = _take(tensors, torch.tensor(kept)) | {"blocks": torch.tensor(numbers)}
    if examples.splits is not None:
        pool["splits"] = torch.tensor([SPLITS.index(examples.splits[i]) for i in kept])
    _save(pool, folder, "pool")


def _build_text(task: Task, model_input: TextInput, max_tokens: int, examples: Examples) -> _Built:
    inputs: list[Any] = list(examples.inputs)
    paired = isinstance(inputs[0], tuple)
    with model_input.blaming():
        tokenizer = model_input.load_tokenizer()
        if task.target == "generation":
            _check_padding(tokenizer)
            tensors = written(tokenizer, max_tokens, inputs, [str(label) for label in examples.labels])
        elif model_input.prompt is None:
            tensors = _tokenise(task, tokenizer, max_tokens, inputs, paired)
        else:
            _check_padding(tokenizer)
            asked, cut = prompted(tokenizer, model_input.prompt, max_tokens, inputs)
            lengths = [len(row) for row in asked]
            tensors = {**_texts(_flat(asked), lengths, tokenizer), "cut": torch.tensor(cut)}
    return tensors, [text_content(text) for text in inputs]


def _tokenise(task: Task, tokenizer: Any, max_tokens: int, inputs: list[Any], paired: bool) -> _Tensors:
    _check_padding(tokenizer)
    if max_tokens <= (special := tokenizer.num_special_tokens_to_add(pair=paired)):
        raise UserError(
            f"task '{task.name}': max_tokens must exceed the tokenizer's {special} special tokens, "
            f"got {max_tokens}"
        )
    # Arrays, since a million texts as lists of Python's numbers would fill the memory of a laptop.
    tokens: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    seconds: list[int] = []
    for start in range(0, len(inputs), _TEXTS_AT_ONCE):
        part = inputs[start : start + _TEXTS_AT_ONCE]
        texts = tuple(map(list, zip(*part, strict=True))) if paired else (part,)
        encoded = tokenizer(*texts, truncation=True, max_length=max_tokens)
        tokens.append(_flat(encoded["input_ids"]))
        lengths += map(len, encoded["input_ids"])
        if paired:
            # Without types a tokenizer does not tell the two apart, in any pair.
            seconds += [row.index(1) for row in encoded.get("token_type_ids", []) if any(row)]
    tensors = _texts(np.concatenate(tokens), lengths, tokenizer)
    if seconds:
        tensors["seconds"] = torch.tensor(seconds)
    return tensors


def _check_padding(tokenizer: Any) -> None:
    if tokenizer.pad_token_id is None:
        raise UserError(
            "the backbone's tokenizer has no padding token, so that its texts cannot be batched; "
            "set pad_token in its tokenizer_config.json"
        )


def _flat(rows: list[list[int]]) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)


def _texts(tokens: NDArray[np.int32], lengths: list[int], tokenizer: Any) -> _Tensors:
    """The tokens of all texts, one behind the other."""
    return {
        "tokens": torch.from_numpy(tokens),
        "lengths": torch.tensor(lengths),
        "pad_id": torch.tensor(tokenizer.pad_token_id),
    }


def _build_images(task: Task, model_input: ImageInput, examples: Examples) -> _Built:
    size = model_input.size
    contents: list[str] = []
    # All of them, and once more when they are dealt to the splits.
    needed, free = 2 * len(examples.inputs) * 3 * size**2 / MIB, available_mib()
    if needed > free:
        raise UserError(
            f"task '{task.name}': {len(examples.inputs):,} images of {size} pixels need {needed:,.0f} MiB of "
            f"memory to prepare, and {free:,.0f} MiB are free; take a smaller image_size"
        )
    resized = np.empty((len(examples.inputs), 3, size, size), dtype=np.uint8)
    for i, array in enumerate(read_images(task, examples)):
        contents.append(image_content(array))
        image = Image.fromarray(array)
        if model_input.resize is None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        else:
            side, edge = model_input.resize, (model_input.resize - size) // 2
            image = image.resize((side, side), Image.Resampling.BILINEAR)
            image = image.crop((edge, edge, edge + size, edge + size))
        resized[i] = np.asarray(image).transpose(2, 0, 1)
    return {"pixels": torch.from_numpy(resized)}, contents


def _take(tensors: _Tensors, chosen: Tensor) -> _Tensors:
    """The tensors of the chosen examples, in their order."""
    whole = (*_END_TO_END, "pad_id")
    taken = {name: tensor[chosen] for name, tensor in tensors.items() if name not in whole}
    for name, sizes in _END_TO_END.items():
        if name in tensors:
            parts = tensors[name].split(tensors[sizes].tolist())
            taken[name] = torch.cat([parts[i] for i in chosen.tolist()])
    if "pad_id" in tensors:
        taken["pad_id"] = tensors["pad_id"]
    return taken


def _save(tensors: _Tensors, folder: Path, name: str) -> None:
    # Written by Python, since safetensors hides a full disk behind an error of its own.
    (folder / f"{name}.safetensors").write_bytes(save(tensors))


def _read(task: Task, folder: Path, split: SplitName, size: int | None) -> _Tensors:
    """The first `size` examples of a prepared split; no more of them is read."""
    with safe_open(folder / f"{split}.safetensors", framework="pt") as file:
        available = file.get_slice("labels").get_shape()[0]
        _check_size(task, split, size, available)
        names = set(file.keys()) - {*_END_TO_END, "pad_id"}
        tensors = {name: file.get_slice(name)[: size or available] for name in names}
        for name, sizes in _END_TO_END.items():
            if sizes in tensors:
                tensors[name] = file.get_slice(name)[: int(tensors[sizes].sum())]
        if "lengths" in tensors:
            tensors["pad_id"] = file.get_tensor("pad_id")
    return tensors


def _deal_pool(task: Task, folder: Path, seed: int, sizes: tuple[int | None, ...]) -> list[_Tensors]:
    """The splits that a seed deals from a prepared pool, each cut to its size."""
    pool = load_file(folder / "pool.safetensors")
    ids, numbers = pool["ids"].tolist(), pool.pop("blocks").tolist()
    splits = [SPLITS[code] for code in pool.pop("splits").tolist()] if "splits" in pool else None
    dealt = deal(task, as_labels(task, pool["labels"]), ids, ids, numbers, splits, seed)
    parts = []
    for (split, chosen), size in zip(dealt.items(), sizes, strict=True):
        _check_size(task, split, size, len(chosen), f" as seed {seed} deals it")
        parts.append(_take(pool, torch.from_numpy(chosen[:size])))
    return parts


def _split(task: Task, tensors: _Tensors, model_input: ModelInput, key: dict[str, Any]) -> Split:
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
