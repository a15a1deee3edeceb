"""Everything in an export that depends on the library that loads it: layer names, the head, and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from tensorbench.backbones import LoadedBackbone
from tensorbench.backbones.timm_vit import Blueprint
from tensorbench.export.loading import ORIGINAL
from tensorbench.export.updates import Update, fused_layers
from tensorbench.inputs import ImageInput, ModelInput
from tensorbench.machine.visible import markdown_text
from tensorbench.methods import Site, UserError
from tensorbench.methods.quantised import Quantisation

#: The file read by AutoImageProcessor and pipelines.
PROCESSOR_FILE = "preprocessor_config.json"

#: For each quantisation, a note that says with which weights an adapter trained on it can be used.
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
    """Where the frozen model comes from.

    `reference` is a folder, a file or a hub id. It is None if the export contains the model. `revision` is
    the commit of a model from the hub, and None for other models.
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
        """The name of the frozen model in an export, without paths of this machine.

        A name that begins with `./` is relative to the export's folder. The model is there if the export
        contains it. If it is a checkpoint of the user's own, the user copies it there.
        """
        if self.reference is None:
            return f"./{ORIGINAL}"
        return f"./{Path(self.reference).name}" if self.own else self.reference


class Form(ABC):
    """Base class of all that depends on the library that loads an export: layer names, head, loading.

    The original model is the frozen model as that library has it. The backbone is the same model in the
    harness, where some layers have other names or are split.
    """

    #: The prefix of the encoder's modules in the original model, including the dot.
    prefix = ""

    #: Whether the original model holds the weights of the adapted layers as (in, out), not as (out, in).
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
        """Returns one update for each adapted layer of the original model, by the layer's dotted path.

        If several sites are a single layer of the original model, their updates are joined.
        """
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
        """Returns the encoder's state with the original model's layers: split layers are joined again.

        Raises UserError if some parts of a split layer have a bias and others have none.
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
        """Returns an untrained model of the class that loads the export, with an output for each class.

        Two calls may return the same instance.
        """

    @abstractmethod
    def heads(self) -> dict[str, dict[str, Tensor]]:
        """Returns the head's tensors for the modules of the exported model: {path: {name: tensor}}.

        Empty if the head fits no module, or if there is no head.
        """

    def loose_head(self) -> dict[str, Tensor]:
        """Returns the tensors of a head that fits no module of the exported model. Empty for other heads."""
        return {}

    @abstractmethod
    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the frozen model as a model of its own. `state` holds the encoder's tensors."""

    @abstractmethod
    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the merged model with its head. `state` holds the encoder's tensors after the merge.

        Raises UserError if no class of the library can hold these tensors.
        """

    @abstractmethod
    def settings(self, merged: bool) -> dict[str, Any]:
        """The JSON from which `tensorbench.export.loading` builds the model."""

    def source(self, merged: bool) -> dict[str, Any]:
        """The fields of `settings` about the weights: their origin, and whether merged or quantised.

        `merged` says whether the exported weights contain the update.
        """
        return {
            "merged": merged,
            "original": self.origin.label,
            "repository": self.origin.reference if self.origin.revision else None,
            "revision": self.origin.revision,
        } | self._quantised()

    def _quantised(self) -> dict[str, Any]:
        if self.origin.quantise is None:
            return {}
        sites = self.backbone.geometry.sites(self.backbone.projections)
        return {"quantise": {"form": self.origin.quantise, "layers": list(map(self.path, sites))}}

    def base(self) -> dict[str, Any]:
        """The fields of a PEFT configuration that name the original model."""
        return {"base_model_name_or_path": self.origin.label, "revision": self.origin.revision}

    def facts(self) -> dict[str, str]:
        """Facts for the export's README.md: the classes, and how inputs are prepared."""
        return {"classes": ", ".join(f"{index} {name}" for index, name in enumerate(self.classes))} | {
            "input": self.input()
        }

    def input(self) -> str:
        """Describes in words how inputs are prepared."""
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
        """Selects the columns of the harness's outputs (batch, outputs) that an export also computes.

        The export is checked by comparing its `logits` with these columns.
        """
        return outputs

    def notes(self, merged: bool) -> list[str]:
        """Returns notes for the export's README.md. `merged` says whether it is a merged model."""
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
    """Copies the tensors to the CPU. The copies share no memory, as safetensors requires."""
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
    """The content of `preprocessor_config.json`, which prepares images as they were prepared in training.

    It configures the `BitImageProcessor` of transformers. This processor resizes either the shortest edge or
    the whole image to a square, and then crops the centre.
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
    """The `pretrained_cfg` in timm's `config.json`: how images are prepared."""
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
    """Returns notes on how the pixels that a library prepares differ from those in training."""
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
