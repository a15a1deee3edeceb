"""Small copies of the paper's hub repositories, and suites and plans that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import yaml

from tensorbench.backbones.inputs import ImageInput, TextInput
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks import TASKS, DataSource, Examples, PreparedData, Task, prepare

from ..hub_stand_in import write_glue

GLUE, EUROSAT = "datasets/nyu-mll/glue", "datasets/timm/eurosat-rgb"
DTD_PARTS, DTD_WHOLE = "datasets/HuggingFaceM4/DTD_Describable-Textures-Dataset", "datasets/tanganke/dtd"
VIT, ROBERTA = "models/google/tiny-vit", "models/me/tiny-roberta"
SIZES = {"train": 80, "validation": 20, "test": 10}
TEXTURES = TASKS.get("dtd").classes
LAND = TASKS.get("eurosat").classes

SUITE: dict[str, Any] = {
    "name": "hub",
    "backbones": [{"hub": "google/tiny-vit"}, {"hub": "me/tiny-roberta"}],
    "tasks": [{"task": "eurosat", "train_size": 40}, {"task": "mrpc", "max_tokens": 64}],
    "methods": [{"method": "lora", "rank": 2}],
    "seeds": [0],
    "training": {"lr": 5e-3, "batch_size": 16, "epochs": 1},
    "floor": "none",
}
IMAGES = ImageInput(16, (0.5,) * 3, (0.5,) * 3)


def save_vit(folder: Path) -> Path:
    """Writes a checkpoint like google/vit-base-patch16-224: a classifier with image preprocessing."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = ViTConfig(**shape, image_size=32, patch_size=8, num_labels=5)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_roberta(folder: Path) -> Path:
    """Writes a checkpoint like roberta-base: a masked language model and its tokenizer."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    from tensorbench.backbones.random_weights import byte_tokenizer

    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = RobertaConfig(**shape, vocab_size=260, max_position_embeddings=130, type_vocab_size=1)
    RobertaForMaskedLM(config).save_pretrained(folder)
    byte_tokenizer(128).save_pretrained(folder)
    return folder


def suite_file(folder: Path, **changes: Any) -> Path:
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({**SUITE, **changes}))
    return file


def plan(**changes: Any) -> Plan:
    return make_plan(validate(Suite, {**SUITE, **changes}, "hub suite"))


def task_of(name: str, source: DataSource | None = None) -> Task:
    return TaskRow(task=name, source=source).lookup()


def ids(made: Plan) -> list[str]:
    return [trial.id for trial in made.trials]


def byte_text(max_tokens: int = 128) -> TextInput:
    from functools import partial

    from tensorbench.backbones.random_weights import byte_tokenizer

    return TextInput("bytes", max_tokens, partial(byte_tokenizer, max_tokens))


def prepared(
    name: str, seed: int | None = None, source: DataSource | None = None
) -> tuple[Examples, PreparedData]:
    task = task_of(name, source)
    model_input = byte_text() if task.modality == "text" else IMAGES
    return task.examples(), prepare(task, model_input, split_seed=seed)


def parts(data: PreparedData) -> dict[str, list[int]]:
    return {name: getattr(data, name).ids.tolist() for name in ("train", "validation", "test")}


def local_cola(folder: Path, rows: list[tuple[str, int]], held: list[tuple[str, int]]) -> DataSource:
    write_glue(folder, "cola", {"validation": 4})
    for split, examples in (("train", rows), ("validation", held)):
        texts, labels = zip(*examples, strict=True)
        table = {"sentence": list(texts), "label": list(labels), "idx": list(range(len(texts)))}
        datasets.Dataset.from_dict(table).to_parquet(folder / "cola" / f"{split}-00000-of-00001.parquet")
    return DataSource(local=folder)
