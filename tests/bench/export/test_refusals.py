"""Tests that what cannot be exported is refused, and that existing files in the folder survive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError
from torch import nn

import tensorbench.tools.export.write
from tensorbench.backbones import BackboneInfo, BackboneSpec, LoadedBackbone
from tensorbench.backbones.inputs import ImageInput
from tensorbench.baselines.full import FullFineTuning
from tensorbench.baselines.peft_types import Peft
from tensorbench.machine.outputs import output_folder
from tensorbench.methods import Geometry, Method, NotLowRank, UserError, create
from tensorbench.methods.quantised import Quantisation
from tensorbench.tools.export.original import Original
from tensorbench.tools.export.write import beside

from ...messages import naming
from .cases import METHODS, Case, assert_same_logits

LOKR = Peft(type="LOKR", rank=2)

# --- what cannot be exported ---


#: The backbone, the quantisation of its weights, the method, whether the export is merged, and what the
#: refusal names.
REFUSED: list[tuple[str, Quantisation | None, Method, bool, tuple[str, ...]]] = [
    ("gpt_neox", None, LOKR, False, ("gpt_neox", "query, key and value", "--merged")),
    ("modernbert", None, LOKR, False, ("modernbert", "query, key and value", "--merged")),
    ("vit", None, FullFineTuning(), False, ("full fine-tuning", "--merged")),
    ("vit", None, create("head_only"), False, ("no adapter", "--merged")),
    ("vit", None, create("quanta", axes=(4, 4)), False, ("QuanTA", "--merged")),
    ("vit", None, create("loretta_adp", rank=2), False, ("LoRETTA-adp",)),
    ("vit", None, create("loretta_adp", rank=2), True, ("bottleneck",)),
    ("timm", None, METHODS["lora"], True, ("timm", "exports are for transformers and peft")),
    # What is one layer in the original was quantised in another layout.
    ("gpt2", "int8", METHODS["lora"], False, ("exported", "layer")),
    ("llama", "nf4", METHODS["lora"], True, ("--merged", "nf4", "checkpoint")),
]


@pytest.mark.parametrize(("source", "quantise", "method", "merged", "names"), REFUSED)
def test_what_cannot_be_exported_is_refused(
    case: Callable[..., Case],
    source: str,
    quantise: Quantisation | None,
    method: Method,
    merged: bool,
    names: tuple[str, ...],
) -> None:
    made = case(source)
    made.spec = made.spec.model_copy(update={"quantise": quantise})
    with pytest.raises((UserError, NotLowRank), match=naming(*names)):
        made.export(made.attach(method), merged=merged)
    assert not made.folder.exists()


def test_the_attention_of_a_configuration_is_passed_over(case: Callable[..., Case]) -> None:
    made = case("vit")
    file = (made.spec.local or made.folder) / "config.json"
    config = {**json.loads(file.read_text()), "_attn_implementation": "flash_attention_2"}
    file.write_text(json.dumps(config))
    made.export(made.attach(METHODS["lora"]))
    assert_same_logits(made)


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_an_export_that_computes_something_else_is_not_written(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    writing = tensorbench.tools.export.write
    honest = writing._logits
    monkeypatch.setattr(writing, "_logits", lambda *arguments: honest(*arguments) + off)
    with pytest.raises(UserError, match="logits"):
        made.export(adapter)
    assert [path.name for path in made.folder.parent.iterdir()] == ["model"]


def test_an_original_that_is_gone(case: Callable[..., Case]) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    shutil.rmtree(made.spec.local or "")
    with pytest.raises(UserError, match="fails"):
        made.export(adapter)
    assert not made.folder.exists()


# --- the folder ---


def test_existing_files_are_kept_unless_an_export_wrote_them(case: Callable[..., Case]) -> None:
    made = case("tiny-random-vit")
    adapter = made.attach(METHODS["lora"])
    made.folder.mkdir()
    made.export(adapter)  # an empty folder is accepted
    notes = made.folder / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        made.export(adapter)
    exported = made.export(adapter, merged=True, force=True)
    assert {path.name for path in made.folder.iterdir()} == {*exported.files, "notes.txt"}
    assert exported.files == (
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
        "preprocessor_config.json",
    )
    assert notes.read_text() == "mine"
    assert [path.name for path in made.folder.parent.iterdir()] == ["export"]


def test_folders_in_the_way(case: Callable[..., Case], tmp_path: Path) -> None:
    made = case("vit")
    adapter = made.attach(METHODS["lora"])
    made.folder.write_text("")
    with pytest.raises(UserError, match="is a file"):
        made.export(adapter, force=True)
    made.folder.unlink()
    (made.folder / "README.md").mkdir(parents=True)
    kept = made.folder / "adapter_config.json"
    kept.write_text("mine")
    with pytest.raises(UserError, match="folder"):
        made.export(adapter, force=True)
    assert kept.read_text() == "mine"
    kept.unlink()
    with pytest.raises(UserError, match=naming("--out", "~nobody-has-this-name/x")):
        output_folder(Path("~nobody-has-this-name/x"), "export", force=False)
    made.folder = made.folder / "README.md" / "a" / "b"
    made.export(adapter)
    assert (made.folder / "adapter_config.json").is_file()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No space left"), beside(tmp_path / "out"):
        raise SafetensorError("No space left on device")
    assert not list(tmp_path.iterdir())


class Straight(nn.Module):
    """A plug-in's own encoder with one site per layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8)])


def test_a_plug_ins_own_model_is_said_to_be_no_librarys() -> None:
    half = (0.5, 0.5, 0.5)
    info = BackboneInfo("mine", "vit", Geometry(8, 2, 1, 8), ("query",), ImageInput(4, half, half), "1", "-")
    backbone = LoadedBackbone(
        info,
        Straight(),
        lambda encoder, pixel_values: encoder.layers[0](pixel_values.flatten(1)[:, :8]),
        lambda classes: nn.Linear(8, classes),
        [{"query": "layers.{layer}"}],
    )
    with pytest.raises(UserError, match=naming("'mine'", "Straight", "ViTModel")):
        Original(backbone, BackboneSpec(name="mine"), ("a", "b"), info.input)
