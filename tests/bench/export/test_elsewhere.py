"""Tests that other programs can use exports: peft, pipelines of transformers, Python without the harness."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, pipeline

from tensorbench.backbones import BACKBONES, BackboneInfo, LoadedBackbone, registered_backbones
from tensorbench.backbones.inputs import ImageInput, Prompt
from tensorbench.backbones.kinds import KINDS
from tensorbench.baselines.peft_types import Peft
from tensorbench.methods import Geometry, UserError
from tensorbench.methods.backbone import PROJECTIONS
from tensorbench.tasks import Examples, Task, prepare
from tensorbench.tools.export import write_export
from tensorbench.tools.export.original import target_of

from ..local_checkpoints import encoder
from .cases import CLASSES, METHODS, Case, assert_same_logits, close, loaded


@pytest.mark.parametrize("method", ["lora", "IA3"])
@pytest.mark.parametrize("source", ["vit", "dinov2", "roberta", "bert", "tiny-random-vit"])
def test_pefts_loader_finds_the_original(case: Callable[..., Case], source: str, method: str) -> None:
    made = case(source)
    made.export(made.attach(METHODS.get(method) or Peft(type=method)))
    labels = {} if source == "bert" else {"num_labels": 3, "ignore_mismatched_sizes": True}
    with made.beside():
        model = getattr(peft, target_of(made.kind).loader).from_pretrained(".", **labels).eval()
    with torch.no_grad():
        outputs = model(**made.inputs())
        if source == "bert":
            own = made.backbone.module.encoder(**made.inputs()).last_hidden_state
            close(outputs.last_hidden_state, own)
        else:
            close(outputs.logits, made.logits())


def test_pefts_loader_finds_a_language_model(case: Callable[..., Case]) -> None:
    made = case("llama", prompt=Prompt("{text}", ("no", "yes", "nay")))
    made.export(made.attach(METHODS["qkv_depth"]))
    model = assert_same_logits(made)
    with made.beside(), torch.no_grad():
        by_peft = peft.AutoPeftModelForCausalLM.from_pretrained(".").eval()
        close(by_peft(**made.inputs()).logits, model(**made.inputs()).logits)


@pytest.mark.parametrize("source", ["roberta", "bert", "vit"])
def test_a_checkpoint_of_half_precision_computes_in_float32(case: Callable[..., Case], source: str) -> None:
    spec = case(source).spec
    assert spec.local is not None
    weights, config = spec.local / "model.safetensors", spec.local / "config.json"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    made = loaded(spec, spec.local.parent)
    made.export(made.attach(METHODS["lora"]))
    assert {parameter.dtype for parameter in assert_same_logits(made).parameters()} == {torch.float32}


def test_the_page_is_a_model_card_and_says_how_large_the_factors_are(case: Callable[..., Case]) -> None:
    made = case("bert")
    adapter = made.attach(METHODS["lora on all"])
    score = EvalResult("text-classification", "birds: <b>", "birds", "accuracy", 0.75)
    exported = made.export(adapter, score=score)
    card = ModelCard.load(made.folder / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    assert "lora" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_value) == ("birds: <b>", 0.75)
    state = load_file(made.folder / "adapter_model.safetensors")
    numbers = sum(tensor.numel() for name, tensor in state.items() if ".lora_" in name)
    grown = f"{adapter.parameter_count:,} parameters become {numbers:,} numbers"
    assert exported.size == f"{grown} ({4 * numbers / 1e6:.1f} MB) at r 2"
    assert exported.size in card.text
    made.export(adapter, merged=True, force=True)
    assert ModelCard.load(made.folder / "README.md").data.library_name == "transformers"


def test_names_of_others_are_text_on_an_export_s_page(case: Callable[..., Case]) -> None:
    made = case("tiny-random-vit")
    wild = "a|b\n```python\nimport os\n```\n<script>\u202e`x`"
    exported = write_export(
        *(made.backbone, made.attach(METHODS["lora"]), made.spec, made.folder),
        (wild, "ibis", "stork"),
        {wild: wild, "task": wild},
    )
    page = (exported.folder / "README.md").read_text()
    assert re.findall("^```.*$", page, re.MULTILINE) == ["```python", "```"]
    assert "<script>" not in page
    assert "\u202e" not in page
    table = page[page.index("|---|---|") : page.index("Run in this folder.")].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("source", ["vit", "roberta", "tiny-random-bert"])
def test_no_file_names_a_folder_of_this_machine(
    case: Callable[..., Case], tmp_path: Path, source: str, merged: bool
) -> None:
    made = case(source)
    made.export(made.attach(METHODS["lora"]), merged=merged)
    texts = [file for file in made.folder.rglob("*") if file.suffix in (".json", ".md")]
    assert len(texts) >= 3
    here = str(tmp_path.parent)
    assert [file.name for file in texts if here in file.read_text(encoding="utf-8")] == []
    if made.spec.local and not merged:
        readme = (made.folder / "README.md").read_text(encoding="utf-8")
        assert f"'{made.backbone.info.name}'" in readme
        assert readme.count(made.backbone.info.weights_hash) == 2


#: A program that cannot import the harness. It runs the code of each export's README.md and saves outputs.
ALONE = """
import os, pathlib, re, sys
sys.modules["tensorbench"] = None
from safetensors.torch import load_file, save_file
for folder in sys.argv[1:]:
    os.chdir(folder)
    (code,) = re.findall("```python\\n(.*?)```", pathlib.Path("README.md").read_text(), re.DOTALL)
    names = {"batch": load_file("batch.safetensors")}
    exec(code, names)
    save_file({"logits": names["logits"].contiguous()}, "batch.safetensors")
"""


def test_the_page_s_code_needs_no_harness(case: Callable[..., Case], tmp_path: Path) -> None:
    """One new interpreter runs the code of all exports, because importing the libraries takes seconds."""
    expected: dict[Path, Tensor] = {}
    for source in ("vit", "bert", "llama"):
        for merged in (False, True):
            made = case(
                source, **({"prompt": Prompt("{text}", ("no", "yes", "nay"))} if source == "llama" else {})
            )
            made.export(made.attach(METHODS["qkv_depth"]), merged=merged)
            if made.spec.local and not merged:
                made.spec.local.rename(made.folder / made.spec.local.name)
            folder = made.folder.rename(tmp_path / f"{source}-{merged}")
            batch = {name: tensor.contiguous() for name, tensor in made.inputs().items()}
            save_file(batch, folder / "batch.safetensors")
            expected[folder] = made.logits()
    subprocess.run([sys.executable, "-c", ALONE, *map(str, expected)], check=True)
    for folder, logits in expected.items():
        close(load_file(folder / "batch.safetensors")["logits"], logits)


# --- pictures ---


class Pictures(Task):
    """A task of noise images in several shapes."""

    name = "pictures"
    modality = "vision"
    classes = CLASSES
    data_hash = "noise"
    description = "Noise"
    license = "none"

    def __init__(self, *shapes: tuple[int, int]) -> None:
        draw = np.random.default_rng(0)
        self.images = [draw.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes * 20]

    def examples(self) -> Examples:
        numbers = range(len(self.images))
        return Examples(self.images, [number % 3 for number in numbers], numbers)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("resize", [None, 6])
@pytest.mark.parametrize(("source", "size"), [("vit", 96), ("dinov2", None)])
def test_a_pipeline_prepares_images_as_training_did(
    case: Callable[..., Case], source: str, size: int | None, resize: int | None
) -> None:
    made = case(source, image_size=size)
    plain = made.backbone.info.input
    assert isinstance(plain, ImageInput)
    model_input = replace(
        plain, mean=(0.1, 0.2, 0.3), std=(0.3, 0.4, 0.5), resize=resize and plain.size + resize
    )
    task = Pictures((50, 50), (20, 20), (50, 70) if resize else (96, 96))
    split = prepare(task, model_input).test
    batch = split.batch(torch.arange(len(split)))
    adapter = made.attach(METHODS["lora"], 0.1)
    with torch.no_grad():
        expected = made.backbone.module.eval()(**batch)
    made.export(adapter, merged=True, model_input=model_input)
    images = [Image.fromarray(task.images[i]) for i in split.ids.tolist()]
    exact = AutoImageProcessor.from_pretrained(made.folder, backend="pil")
    close(_answers(made.folder, images, image_processor=exact), expected)
    by_default = _answers(made.folder, images)
    torch.testing.assert_close(by_default, expected, atol=0.02, rtol=0)


def _answers(folder: Path, images: list[Image.Image], **options: Any) -> Tensor:
    """The logits (images, classes) of a transformers pipeline."""
    classify = pipeline("image-classification", model=str(folder), **options)
    answers = classify(images, function_to_apply="none")
    scores = [{answer["label"]: answer["score"] for answer in each} for each in answers]
    return torch.tensor([[each[name] for name in CLASSES] for each in scores])


def test_unsupported_preprocessing_is_reported(case: Callable[..., Case]) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    made.export(adapter, merged=True)
    assert "shifted by up to a pixel" in (made.folder / "README.md").read_text()
    plain = made.backbone.info.input
    assert isinstance(plain, ImageInput)
    made.export(adapter, merged=True, force=True, model_input=replace(plain, resize=40))
    readme = (made.folder / "README.md").read_text()
    assert re.search(rf"40×40 pixels \(bilinear\).* {plain.size}×{plain.size}", readme)
    assert "shifted by up to a pixel" not in readme


# --- plug-ins ---


class Wrapping:
    """A plug-in that wraps a transformers model and may pool its features in its own way."""

    def __init__(self, pool: Callable[..., Tensor] = KINDS["vit"].pool) -> None:
        self.pool = pool

    def describe(self, image_size: int | None) -> BackboneInfo:
        half, shape = (0.5, 0.5, 0.5), Geometry(16, 2, 2, 24)
        return BackboneInfo("mine", "vit", shape, PROJECTIONS, ImageInput(32, half, half), "mine-1", "mine")

    def load(self, image_size: int | None) -> LoadedBackbone:
        make_head, layouts = partial(torch.nn.Linear, 16), KINDS["vit"].layouts
        return LoadedBackbone(self.describe(None), encoder("vit"), self.pool, make_head, layouts)


@pytest.fixture
def plug_in(case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> Callable[[Wrapping], Case]:
    def make(entry: Wrapping) -> Case:
        monkeypatch.setattr(registered_backbones, "mine", entry, raising=False)
        monkeypatch.setitem(BACKBONES._targets, "mine", f"{registered_backbones.__name__}:mine")
        return case("mine")

    return make


@pytest.mark.parametrize("merged", [False, True])
def test_a_plug_in_that_wraps_a_model_of_transformers(
    plug_in: Callable[[Wrapping], Case], merged: bool
) -> None:
    made = plug_in(Wrapping())
    exported = made.export(made.attach(METHODS["qkv_depth"]), merged=merged)
    assert ("original" in exported.files) is not merged
    assert_same_logits(made)


def test_a_plug_in_with_its_own_pooling_is_refused(plug_in: Callable[[Wrapping], Case]) -> None:
    made = plug_in(Wrapping(lambda model, pixel_values: model(pixel_values).last_hidden_state.mean(1)))
    with pytest.raises(UserError, match=r"another pooling"):
        made.export(made.attach(METHODS["lora"]), merged=True)
    assert not made.folder.exists()
