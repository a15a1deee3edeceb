"""What every library of models is to an export: how it names layers, holds a head and loads a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.backbones import LoadedBackbone
from bench.backbones.timm_vit import Blueprint
from bench.export.loading import ORIGINAL
from bench.export.preprocessing import in_words
from bench.export.updates import Update, fused_layers
from bench.inputs import ImageInput, ModelInput
from bench.process.visible import markdown_text
from methods import Site, UserError


@dataclass(frozen=True)
class Origin:
    """Where the frozen model is found: a folder, a file or a hub id; None where the export brings it."""

    reference: str | None
    revision: str | None = None
    #: How timm builds the model, if it is one of timm's.
    blueprint: Blueprint | None = None

    @property
    def own(self) -> bool:
        """Whether it is a folder or a file of the user's, which nobody else can find."""
        return self.reference is not None and self.revision is None

    @property
    def told(self) -> str:
        """How an export names it: without this machine's paths, which mean nothing elsewhere.

        What begins with `./` lies in the export's folder, or has to be put there.
        """
        if self.reference is None:
            return f"./{ORIGINAL}"
        return f"./{Path(self.reference).name}" if self.own else self.reference


class Form(ABC):
    """How a library names the layers of the model, holds its head and loads it."""

    #: Where the encoder's modules are in the original model.
    prefix = ""

    #: Whether weights of the adapted layers are (in, out).
    transposed = False

    def __init__(
        self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str], wanted: ModelInput
    ) -> None:
        self.backbone, self.origin, self.classes, self.wanted = backbone, origin, classes, wanted
        self.encoder: Any = backbone.module.encoder
        self.fused = fused_layers(self.encoder)

    def path(self, site: Site) -> str:
        """The dotted path of a site's layer in the original model."""
        return f"{self.prefix}{self.backbone.path(site).removeprefix('encoder.')}"

    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        """The updates by the dotted paths of the original model's linear layers."""
        layers: dict[str, Update] = {}
        parts: dict[str, dict[str, Update]] = {}
        for site, update in updates.items():
            inside = self.backbone.path(site).removeprefix("encoder.")
            layer, _, part = inside.rpartition(".")
            if layer in self.fused:
                parts.setdefault(layer, {})[part] = update
            else:
                layers[self.path(site)] = update
        for layer, found in parts.items():
            fused = self.fused[layer]
            widths = [self.backbone.geometry.shape(part)[0] for part in fused.parts]
            layers[f"{self.prefix}{layer}"] = fused.update([found.get(part) for part in fused.parts], widths)
        return layers

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's state, with what was split in one layer again.

        Raises UserError where only some parts of a layer got a bias.
        """
        whole: dict[str, Tensor] = {}
        for name, tensor in state.items():
            path, _, kind = name.rpartition(".")
            layer, _, part = path.rpartition(".")
            fused = self.fused.get(layer)
            if fused is None or part not in fused.parts:
                whole[name] = tensor
                continue
            names = [f"{layer}.{each}.{kind}" for each in fused.parts]
            if not all(each in state for each in names):
                raise no_place([name])
            whole[f"{layer}.{kind}"] = fused.ordered(torch.cat([state[each] for each in names]))
        return whole

    def refuse_fused(self) -> None:
        """Raises UserError where a layer of the original model is several sites here."""
        if self.fused:
            raise UserError(
                f"{self.backbone.info.kind} holds {_listed(next(iter(self.fused.values())).parts)} in one "
                "layer, on which peft would put another adapter; --merged writes a plain model"
            )

    @abstractmethod
    def bare(self) -> nn.Module:
        """The original model's class with our classes, not loaded yet."""

    @abstractmethod
    def heads(self) -> dict[str, dict[str, Tensor]]:
        """The state of the head by the path of each module that it becomes."""

    def loose_head(self) -> dict[str, Tensor]:
        """The state of a head that no module of the model can be."""
        return {}

    @abstractmethod
    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the frozen encoder, whose tensors are in `state`, as a model of its own."""

    @abstractmethod
    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the encoder, whose tensors are in `state`, with its head.

        Raises UserError where no class of the library can hold them.
        """

    @abstractmethod
    def settings(self, merged: bool) -> dict[str, Any]:
        """What `bench.export.loading` builds the model with, as JSON holds it."""

    def source(self, merged: bool) -> dict[str, Any]:
        """The part of the settings that says where the weights are."""
        return {
            "merged": merged,
            "original": self.origin.told,
            "repository": self.origin.reference if self.origin.revision else None,
            "revision": self.origin.revision,
        }

    def base(self) -> dict[str, Any]:
        """What a PEFT configuration says of the original model, by its fields."""
        return {"base_model_name_or_path": self.origin.told, "revision": self.origin.revision}

    def facts(self) -> dict[str, str]:
        """What goes in and what comes out, in words."""
        return {"classes": ", ".join(f"{index} {name}" for index, name in enumerate(self.classes))} | {
            "input": self.input()
        }

    def input(self) -> str:
        """How the model wants its input, in words."""
        if isinstance(self.wanted, ImageInput):
            return in_words(self.wanted)
        return f"token ids of the backbone's own tokenizer, at most {self.wanted.max_tokens}"

    def write_tokenizer(self, folder: Path) -> bool:
        """Whether there is one to write, for a model that reads texts."""
        wanted = self.backbone.info.input
        if isinstance(wanted, ImageInput):
            return False
        try:
            wanted.load_tokenizer().save_pretrained(folder)
        except UserError:
            return False
        return True

    def judged(self, outputs: Tensor) -> Tensor:
        """Of the harness's outputs (batch, outputs), those that `logits` of the code gives too."""
        return outputs

    def notes(self, merged: bool) -> list[str]:
        """What a user of the export has to know."""
        if merged:
            return ["The update is added to the backbone's weights: peft is not needed."]
        return [self._found()]

    def _found(self) -> str:
        name, origin = markdown_text(self.backbone.info.name), self.origin
        if origin.reference is None:
            return f"`{ORIGINAL}/` holds the frozen model, '{name}'."
        if not origin.own:
            repository = markdown_text(origin.reference)
            return f"The frozen model is {repository} of the Hugging Face hub, at that commit."
        weights, place = markdown_text(self.backbone.info.weights_hash), markdown_text(origin.told)
        return (
            f"The frozen model is not here: it is a checkpoint of your own, '{name}', with the weights "
            f"{weights}. Put it at {place}, or name where it lies: as `load(FOLDER, original)` "
            "and, for peft, as `base_model_name_or_path` in adapter_config.json."
        )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, sharing no memory with anything, as safetensors wants them."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    found = module.load_state_dict(dict(state), strict=False)
    if wrong := [*found.missing_keys, *found.unexpected_keys]:
        raise no_place(wrong)


def no_place(names: list[str]) -> UserError:
    return UserError(
        f"the original model's class and the trained one differ in {', '.join(names[:4])}, so they cannot be "
        "merged (a trained bias needs a layer that has one); export without --merged"
    )
