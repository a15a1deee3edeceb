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
import transformers
from huggingface_hub import EvalResult, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, pipeline

from tensorbench.backbones import (
    BACKBONES,
    BackboneInfo,
    BackboneSpec,
    LoadedBackbone,
    describe,
    load,
    registered_backbones,
)
from tensorbench.backbones.kinds import KINDS
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.baselines.peft_types import Peft
from tensorbench.export import loading, write_export
from tensorbench.inputs import ImageInput
from tensorbench.methods import Geometry, UserError
from tensorbench.methods.backbone import PROJECTIONS
from tensorbench.tasks import Examples, Task, prepare

from ..local_checkpoints import encoder
from .cases import CLASSES, METHODS, Case, close, save_timm

# --- peft's own types ---

TYPES = [("DORA", 2), ("LOKR", 2), ("LOHA", 2), ("VERA", 4), ("IA3", None), ("HRA", 2)]
# Missing from the oldest supported peft.
TYPES += [("GLORA", 2)] * hasattr(peft.PeftType, "GLORA")


@pytest.mark.parametrize(("type_", "rank"), TYPES)
@pytest.mark.parametrize("source", ["vit", "tiny-random-bert"])
def test_an_own_type_of_peft_is_its_own_checkpoint(
    case: Callable[..., Case], source: str, type_: str, rank: int | None
) -> None:
    made = case(source)
    adapter = made.attach(Peft(type=type_, rank=rank, targets="qkvo+mlp"), 0.05)
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    made.export(adapter)
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert config["peft_type"] == ("LORA" if type_ == "DORA" else type_)
    loaded = made.loaded()
    assert isinstance(loaded.model, peft.PeftModel)
    assert sum(p.numel() for p in adapter.named_parameters().values()) == sum(
        p.numel() for name, p in loaded.model.named_parameters() if loaded.model.prefix in name
    )
    close(loaded.logits(**made.inputs()), before)
    loaded.model = loaded.model.merge_and_unload()
    close(loaded.logits(**made.inputs()), before)


# --- peft's loaders ---

LOADERS = ("vit", "dinov2", "roberta", "bert")


def by_peft(made: Case) -> Any:
    """Loads an export with peft as its README.md states, from a working folder that has nothing of it."""
    page = (made.folder / "README.md").read_text()
    (code,) = re.findall(r"`(peft\.PeftModel\..*?)` loads it too", page)
    names = {"peft": peft, "transformers": transformers, "torch": torch, "FOLDER": made.folder}
    names["ORIGINAL"] = made.spec.local or made.folder / "original"
    return eval(code, names).eval()


@pytest.mark.parametrize("method", ["lora", "IA3"])
@pytest.mark.parametrize("source", LOADERS)
def test_pefts_loader_finds_the_original(case: Callable[..., Case], source: str, method: str) -> None:
    made = case(source)
    made.export(made.attach(METHODS.get(method) or Peft(type=method)))
    model = by_peft(made)
    with torch.no_grad():
        outputs = model(**made.inputs())
    if source != "bert":
        close(outputs.logits, made.logits())
    else:
        with torch.no_grad():
            own = made.backbone.module.encoder(**made.inputs()).last_hidden_state
        close(outputs.last_hidden_state, own)


@pytest.mark.parametrize("source", ["roberta", "bert", "vit"])
def test_pefts_loader_computes_a_checkpoint_of_half_precision_as_training_did(
    case: Callable[..., Case], source: str
) -> None:
    made = case(source)
    assert made.spec.local is not None
    halved(made.spec.local)
    made.backbone = load(made.spec)
    made.backbone.reset(len(CLASSES), torch.Generator().manual_seed(0))
    made.export(made.attach(METHODS["lora"]))
    model = by_peft(made)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    if source != "bert":
        close(model(**made.inputs()).logits, made.logits())


def halved(folder: Path) -> None:
    """Converts a checkpoint to bfloat16: its weights, and the dtype in its configuration."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    fields = {**json.loads(config.read_text()), "dtype": "bfloat16"}
    config.write_text(json.dumps(fields))


@pytest.mark.parametrize("name", ["tiny-random-vit", "tiny-random-bert"])
def test_an_original_that_is_brought_along_is_loaded_from_any_folder(
    case: Callable[..., Case], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = case(name)
    made.export(made.attach(METHODS["lora"]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = by_peft(made)
    assert model.config.id2label == dict(enumerate(CLASSES))
    if made.kind == "vit":
        close(model(**made.inputs()).logits, made.logits())
    close(made.loaded().logits(**made.inputs()), made.logits())


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
    state = load_file(made.folder / loading.ADAPTER)
    numbers = sum(tensor.numel() for name, tensor in state.items() if ".lora_" in name)
    grown = f"{adapter.parameter_count:,} parameters become {numbers:,} numbers"
    assert exported.size == f"{grown} ({4 * numbers / 1e6:.1f} MB) at r 2"
    assert exported.size in card.text
    made.export(adapter, merged=True, force=True)
    assert ModelCard.load(made.folder / "README.md").data.library_name == "transformers"


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


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("resize", [None, 6])
@pytest.mark.parametrize(
    ("source", "size"), [("vit", 96), ("dinov2", None), ("timm", 96), ("timm-random", None)]
)
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
    # timm resizes with PIL, as training did; transformers offers both.
    exact = AutoImageProcessor.from_pretrained(
        made.folder, **({} if "timm" in source else {"backend": "pil"})
    )
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
    assert re.search(r"40×40 pixels \(bilinear\).* 32×32", readme)
    assert "shifted by up to a pixel" not in readme


# --- pairs of texts ---


@pytest.mark.parametrize("merged", [False, True])
def test_berts_code_takes_the_types_of_tokens(case: Callable[..., Case], merged: bool) -> None:
    made = case("bert")
    made.export(made.attach(METHODS["lora"]), merged=merged)
    inputs = made.inputs()
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    inputs["token_type_ids"][:, 2:] = 1
    with torch.no_grad():
        close(made.loaded().logits(**inputs), made.backbone.module.eval()(**inputs))


# --- another machine ---

#: A program that cannot import the harness. It runs the code of each export's README.md and saves outputs.
ALONE = """
import os, pathlib, re, sys
sys.modules["tensorbench"] = None
from safetensors.torch import load_file, save_file
for folder in sys.argv[1:]:
    os.chdir(folder)
    sys.modules.pop("load_export", None)
    (page,) = re.findall("```python\\n(.*?)```", pathlib.Path("README.md").read_text(), re.DOTALL)
    exec(page)
    logits = export.logits(**load_file("batch.safetensors"))
    save_file({"logits": logits.detach().contiguous()}, "batch.safetensors")
"""


def test_the_page_s_code_needs_no_harness(case: Callable[..., Case], tmp_path: Path) -> None:
    """One new interpreter runs the code of all exports, because importing the libraries takes seconds."""
    expected: dict[Path, torch.Tensor] = {}
    for source in ("vit", "bert", "timm-random"):
        for merged in (False, True):
            made = case(source)
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


def test_every_export_holds_the_same_python_and_the_same_code(case: Callable[..., Case]) -> None:
    made, texts = case("vit"), set()
    adapter = made.attach(METHODS["lora"])
    for merged in (False, True):
        made.export(adapter, merged=merged, force=True)
        page = (made.folder / "README.md").read_text()
        (code,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
        texts.add((code, (made.folder / "load_export.py").read_text()))
    assert texts == {(code, Path(loading.__file__).read_text())}


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
    assert page.index("|---|---|") < page.index("Run in this folder:")
    table = page[page.index("|---|---|") : page.index("Run in this folder:")].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}


@pytest.mark.parametrize("merged", [False, True])
def test_no_text_of_a_hub_s_config_is_run_or_written(hub_folder: Path, tmp_path: Path, merged: bool) -> None:
    """The malicious key has no value, so timm drops it before it makes the model."""
    ran = tmp_path / "ran"
    hub_folder.mkdir(parents=True)
    save_timm(hub_folder / "model.safetensors", "test_vit")
    key = f"**(__import__('pathlib').Path({str(ran)!r}).touch() or {{}}), y"
    config = {"architecture": "test_vit", "num_classes": 1000, "model_args": {key: None}}
    config["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "head"}
    (hub_folder / "config.json").write_text(json.dumps(config))
    spec = BackboneSpec(timm="hf-hub:me/tiny")
    with pytest.raises(UserError, match="model_args"):
        describe(spec)
    # An earlier version, which did not refuse it, may have stored such a trial.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorbench.backbones.timm_vit.refuse_timm_choices", lambda *_: None)
        backbone = load(spec)
        backbone.reset(3, torch.Generator().manual_seed(0))
        made = Case(spec, backbone, tmp_path / "export")
        with pytest.raises(UserError, match="arguments of test_vit"):
            made.export(made.attach(METHODS["lora"]), merged=merged)
    assert not ran.exists()
    assert not made.folder.exists()


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("source", ["vit", "roberta", "timm", "tiny-random-bert", "timm-random"])
def test_no_file_names_a_folder_of_this_machine(
    case: Callable[..., Case], tmp_path: Path, source: str, merged: bool
) -> None:
    made = case(source)
    if source == "roberta":
        byte_tokenizer(32).save_pretrained(tmp_path / "model")
    exported = made.export(made.attach(METHODS["lora"]), merged=merged)
    assert ("tokenizer.json" in exported.files) is (merged and made.kind in ("bert", "roberta"))
    texts = [file for file in made.folder.rglob("*") if file.suffix in (".json", ".md")]
    assert len(texts) >= 3
    here = str(tmp_path.parent)
    assert [file.name for file in texts if here in file.read_text(encoding="utf-8")] == []
    if made.spec.local and not merged:
        readme = (made.folder / "README.md").read_text(encoding="utf-8").replace("\\_", "_")
        assert f"'{made.backbone.info.name}'" in readme
        assert readme.count(made.backbone.info.weights_hash) == 2


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
    close(made.loaded().logits(**made.inputs()), made.logits())


def test_a_plug_in_with_its_own_pooling_is_refused(plug_in: Callable[[Wrapping], Case]) -> None:
    made = plug_in(Wrapping(lambda model, pixel_values: model(pixel_values).last_hidden_state.mean(1)))
    with pytest.raises(UserError, match=r"another pooling"):
        made.export(made.attach(METHODS["lora"]), merged=True)
    assert not made.folder.exists()
