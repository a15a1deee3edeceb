"""Exports for timm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tensorbench.backbones import LoadedBackbone
from tensorbench.export.form import BaseOrigin, Form, copies, differences, no_place, timm_settings
from tensorbench.inputs import ImageInput, ModelInput
from tensorbench.methods import UserError


class TimmForm(Form):
    """The form of an export for timm.

    A timm model computes query, key and value in one layer, and ends in a classifier of its own, which
    becomes the trained head. Raises UserError if this classifier is not a linear layer.
    """

    def __init__(
        self, backbone: LoadedBackbone, origin: BaseOrigin, classes: Sequence[str], model_input: ModelInput
    ) -> None:
        import timm

        super().__init__(backbone, origin, classes, model_input)
        assert origin.blueprint is not None
        assert isinstance(model_input, ImageInput)
        self.blueprint, self.images = origin.blueprint, model_input
        arguments = {**self.blueprint.arguments, "num_classes": len(classes)}
        with torch.device("meta"):
            model = timm.create_model(self.blueprint.architecture, pretrained=False, **arguments)
        self._empty: nn.Module = model
        native = getattr(model.patch_embed, "img_size", None)
        self.resized = native is not None and native[0] != model_input.size
        classifier = model.get_classifier()
        # Distilled models have two classifiers and average their logits.
        classifiers = classifier if isinstance(classifier, tuple) else (classifier,)
        self.head_paths = [name for name, module in model.named_modules() if module in classifiers]
        for module in classifiers:
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"timm's {self.blueprint.architecture} ends in a {type(module).__name__}, "
                    "not in a linear layer that could be the trained head"
                )

    def bare(self) -> nn.Module:
        return self._empty

    def heads(self) -> dict[str, dict[str, Tensor]]:
        return {path: copies(self.backbone.head.state_dict()) for path in self.head_paths}

    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        folder.mkdir()
        save_file(self.original_state(state), folder / "model.safetensors", metadata={"format": "pt"})

    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        tensors = self.original_state(state)
        for path, head in self.heads().items():
            tensors |= {f"{path}.{name}": tensor for name, tensor in head.items()}
        expected = set(self._empty.state_dict())
        if wrong := sorted(expected ^ set(tensors)):
            raise no_place(wrong)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        size = {"img_size": self.images.size} if self.resized else {}
        # Written like timm's own models on the hub, so that timm and transformers load it the same way.
        config = {
            "architecture": self.blueprint.architecture,
            "num_classes": len(self.classes),
            "label_names": list(self.classes),
            "model_args": {**self.blueprint.arguments, **size},
            "pretrained_cfg": timm_settings(self.images),
        }
        text = json.dumps(config, indent=1, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    def notes(self, merged: bool) -> list[str]:
        notes = super().notes(merged)
        if merged:
            notes.append('`transformers.pipeline("image-classification", model=FOLDER)` takes images.')
            return notes + differences(self.images, "timm")
        return notes

    def settings(self, merged: bool) -> dict[str, Any]:
        size = {"img_size": self.images.size} if merged and self.resized else {}
        return {
            "library": "timm",
            **self.source(merged),
            "architecture": self.blueprint.architecture,
            "arguments": {**self.blueprint.arguments, **size, "num_classes": len(self.classes)},
            # A checkpoint's position embeddings are resized after loading.
            "resized": self.images.size if self.resized else None,
        }
