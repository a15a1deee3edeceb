"""The form of an export in a library: names of layers, the head's place, and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from bench.backbones import LoadedBackbone
from bench.backbones.timm_vit import Blueprint
from bench.export.loading import ORIGINAL
from bench.export.updates import Update, fused_layers
from bench.inputs import ImageInput, ModelInput
from bench.machine.visible import markdown_text
from methods import Site, UserError
from methods.quantised import Quantisation

#: The file read by AutoImageProcessor and pipelines.
PROCESSOR_FILE = "preprocessor_config.json"

#: Notes on the base of an adapter that was trained on quantised weights.
QUANTISED: dict[Quantisation, str] = {
    "nf4": "The adapter belongs to the frozen model with all of its projections in nf4 (bitsandbytes, blocks "
    "of 64); on other weights its outputs are others. `load` rounds the weights so, in float32. To "
    'hold them in four bits: `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")` of '
    "transformers.",
    "int8": "The adapter belongs to the frozen model with all of its projections in int8 (bitsandbytes, a "
    "scale per row); on other weights its outputs are others. `load` rounds the weights so, in "
    "float32. `BitsAndBytesConfig(load_in_8bit=True)` of transformers has the same weights; on a GPU "
    "it also rounds what enters a layer.",
}


@dataclass(frozen=True)
class BaseOrigin:
    """The origin of the frozen model.

    `reference` is a folder, a file or a hub id, or None if the export contains the model.
    """

    reference: str | None
    revision: str | None = None
    #: The blueprint of a timm model. None for other models.
    blueprint: Blueprint | None = None
    #: The quantisation of all sites in training. None if they were not quantised.
    quantise: Quantisation | None = None

    @property
    def own(self) -> bool:
        """Whether the origin is a folder or a file on this machine."""
        return self.reference is not None and self.revision is None

    @property
    def label(self) -> str:
        """The origin's name in an export, without this machine's paths.

        A name with `./` is in the export's folder: written there, or for the user to copy there (a model of
        their own).
        """
        if self.reference is None:
            return f"./{ORIGINAL}"
        return f"./{Path(self.reference).name}" if self.own else self.reference


class Form(ABC):
    """The parts of an export that depend on the library: names of layers, the head, and loading."""

    #: The prefix of the encoder's modules in the original model, including the dot.
    prefix = ""

    #: Whether weights of the adapted layers are (in, out).
    transposed = False

    def __init__(
        self, backbone: LoadedBackbone, origin: BaseOrigin, classes: Sequence[str], model_input: ModelInput
    ) -> None:
        self.backbone, self.origin, self.classes, self.model_input = backbone, origin, classes, model_input
        self.encoder: Any = backbone.module.encoder
        self.fused = fused_layers(self.encoder)

    def path(self, site: Site) -> str:
        """The dotted path of a site's layer in the original model."""
        return f"{self.prefix}{self.backbone.path(site).removeprefix('encoder.')}"

    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        """The updates by dotted path of the original model's linear layers, joined where those are fused."""
        layers: dict[str, Update] = {}
        parts: dict[str, dict[str, Update]] = {}
        for site, update in updates.items():
            inside = self.backbone.path(site).removeprefix("encoder.")
            layer, _, part = inside.rpartition(".")
            if layer in self.fused:
                parts.setdefault(layer, {})[part] = update
            else:
                layers[self.path(site)] = update
        for layer, fused_updates in parts.items():
            fused = self.fused[layer]
            widths = [self.backbone.geometry.shape(part)[0] for part in fused.parts]
            ordered = [fused_updates.get(part) for part in fused.parts]
            layers[f"{self.prefix}{layer}"] = fused.update(ordered, widths)
        return layers

    def original_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's state, with split layers joined again as in the original model.

        Raises UserError if only some parts of a layer have a bias.
        """
        original: dict[str, Tensor] = {}
        for name, tensor in state.items():
            path, _, kind = name.rpartition(".")
            layer, _, part = path.rpartition(".")
            fused = self.fused.get(layer)
            if fused is None or part not in fused.parts:
                original[name] = tensor
                continue
            names = [f"{layer}.{each}.{kind}" for each in fused.parts]
            if not all(each in state for each in names):
                raise no_place([name])
            original[f"{layer}.{kind}"] = fused.ordered(torch.cat([state[each] for each in names]))
        return original

    def refuse_fused(self) -> None:
        """Raises UserError if a layer of the original model corresponds to several sites."""
        if self.fused:
            raise UserError(
                f"{self.backbone.info.kind} holds {_listed(next(iter(self.fused.values())).parts)} in one "
                "layer, on which peft would put another adapter; --merged writes a plain model"
            )

    @abstractmethod
    def bare(self) -> nn.Module:
        """An untrained model of the original's class for the task's classes; may be a shared instance."""

    @abstractmethod
    def heads(self) -> dict[str, dict[str, Tensor]]:
        """The head's state, by the path of each module of the exported model that it fills.

        Empty if the head fits no module, or if there is no head.
        """

    def loose_head(self) -> dict[str, Tensor]:
        """The state of a head that fits no module of the model. Empty for other heads."""
        return {}

    @abstractmethod
    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the frozen encoder with these tensors as its own model."""

    @abstractmethod
    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the encoder with these tensors and with its head.

        Raises UserError if no class of the library can hold them.
        """

    @abstractmethod
    def settings(self, merged: bool) -> dict[str, Any]:
        """The JSON from which `bench.export.loading` builds the model."""

    def source(self, merged: bool) -> dict[str, Any]:
        """The fields of `settings` about the weights: their origin, and whether merged or quantised."""
        return {
            "merged": merged,
            "original": self.origin.label,
            "repository": self.origin.reference if self.origin.revision else None,
            "revision": self.origin.revision,
        } | self._quantised()

    def _quantised(self) -> dict[str, Any]:
        """The layers that were quantised in training. Empty if there were none."""
        if self.origin.quantise is None:
            return {}
        sites = self.backbone.geometry.sites(self.backbone.projections)
        return {"quantise": {"form": self.origin.quantise, "layers": list(map(self.path, sites))}}

    def base(self) -> dict[str, Any]:
        """The fields of a PEFT configuration about the original model."""
        return {"base_model_name_or_path": self.origin.label, "revision": self.origin.revision}

    def facts(self) -> dict[str, str]:
        """The classes and the input, as text."""
        return {"classes": ", ".join(f"{index} {name}" for index, name in enumerate(self.classes))} | {
            "input": self.input()
        }

    def input(self) -> str:
        """The preparation of inputs, as text."""
        if isinstance(self.model_input, ImageInput):
            return in_words(self.model_input)
        return f"token ids of the backbone's own tokenizer, at most {self.model_input.max_tokens}"

    def write_tokenizer(self, folder: Path) -> bool:
        """Writes the tokenizer of a text model. Returns False if there is none or it does not load."""
        model_input = self.backbone.info.input
        if isinstance(model_input, ImageInput):
            return False
        try:
            model_input.load_tokenizer().save_pretrained(folder)
        except UserError:
            return False
        return True

    def judged(self, outputs: Tensor) -> Tensor:
        """The columns of the harness's outputs (batch, outputs) that an export's `logits` also has."""
        return outputs

    def notes(self, merged: bool) -> list[str]:
        """Notes for users of the export."""
        if merged:
            return ["The update is added to the backbone's weights: peft is not needed."]
        return (
            [self._origin_note()]
            if self.origin.quantise is None
            else [self._origin_note(), QUANTISED[self.origin.quantise]]
        )

    def _origin_note(self) -> str:
        name, origin = markdown_text(self.backbone.info.name), self.origin
        if origin.reference is None:
            return f"`{ORIGINAL}/` holds the frozen model, '{name}'."
        if not origin.own:
            repository = markdown_text(origin.reference)
            return f"The frozen model is {repository} of the Hugging Face hub, at that commit."
        weights, place = markdown_text(self.backbone.info.weights_hash), markdown_text(origin.label)
        return (
            f"The frozen model is not here: it is a checkpoint of your own, '{name}', with the weights "
            f"{weights}. Put it at {place}, or name where it lies: as `load(FOLDER, original)` "
            "and, for peft, as `base_model_name_or_path` in adapter_config.json."
        )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors on the CPU that share no memory, as safetensors requires."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    keys = module.load_state_dict(dict(state), strict=False)
    if wrong := [*keys.missing_keys, *keys.unexpected_keys]:
        raise no_place(wrong)


def no_place(names: list[str]) -> UserError:
    return UserError(
        f"the original model's class and the trained one differ in {', '.join(names[:4])}, so they cannot be "
        "merged (a trained bias needs a layer that has one); export without --merged"
    )


# --- the preparation of images ---


def processor(images: ImageInput) -> dict[str, Any]:
    """The content of `preprocessor_config.json`, for the processor of BiT.

    That processor can resize the shortest edge or to a square, and then crops the centre.
    """
    squashed = images.resize is not None
    side = {"height": images.resize, "width": images.resize} if squashed else {"shortest_edge": images.size}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": int(Image.Resampling.BILINEAR if squashed else Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": images.size, "width": images.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }


def timm_settings(images: ImageInput) -> dict[str, Any]:
    """The `pretrained_cfg` in timm's `config.json`."""
    squashed = images.resize is not None
    # timm resizes to ⌊size / crop_pct⌋: adding a half makes this exactly the intended integer.
    share = images.size / (images.resize + 0.5) if images.resize is not None else 1.0
    return {
        "input_size": [3, images.size, images.size],
        "interpolation": "bilinear" if squashed else "bicubic",
        "crop_mode": "squash" if squashed else "center",
        "crop_pct": share,
        "mean": list(images.mean),
        "std": list(images.std),
    }


def in_words(images: ImageInput) -> str:
    if images.resize is None:
        resized = f"the central square, resized to {images.size}×{images.size} pixels (bicubic)"
    else:
        resized = (
            f"squashed to {images.resize}×{images.resize} pixels (bilinear), of which the central "
            f"{images.size}×{images.size} are cut out"
        )
    return f"RGB, {resized}; pixels in [0, 1], mean {images.mean}, std {images.std}"


def differences(images: ImageInput, library: Literal["timm", "transformers"]) -> list[str]:
    """Notes on differences between a library's pixels and those in training."""
    notes = []
    if library == "transformers":
        notes.append(
            'Training resized images with PIL, as transformers does with `backend="pil"`. With its default, '
            "torchvision, a pixel is off by at most one of 255 levels."
        )
    if images.resize is None:
        notes.append(
            "Training cut the central square out of an image and then resized it; the preprocessor resizes "
            "first. Square images come out the same, others shifted by up to a pixel: where that matters, "
            "cut the square out yourself."
        )
    elif library == "timm" and (images.resize - images.size) % 4 == 3:
        notes.append("timm cuts the centre out one pixel lower and further right than training did.")
    return notes
