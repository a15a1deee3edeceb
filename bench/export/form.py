"""What every library of models is to an export: how it names layers, holds a head and loads a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.backbones import LoadedBackbone
from bench.backbones.timm_vit import Blueprint
from bench.export.updates import Update
from bench.inputs import ImageInput
from methods import Site, UserError

#: Where the frozen model lies in an export that has to bring it.
ORIGINAL = "original"


@dataclass(frozen=True)
class Origin:
    """Where the frozen model is found: a folder, a file or a hub id; None where the export brings it."""

    reference: str | None
    revision: str | None = None
    #: How timm builds the model, if it is one of timm's.
    blueprint: Blueprint | None = None


class Form(ABC):
    """How a library names the layers of the model, holds its head and loads it."""

    def __init__(self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str]) -> None:
        self.backbone, self.origin, self.classes = backbone, origin, classes
        self.encoder: Any = backbone.module.encoder

    @abstractmethod
    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        """The updates by the dotted paths of the original model's linear layers."""

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
    def code(self, folder: Path, merged: bool) -> str:
        """Python that loads the export in `folder` and defines `logits(**batch)`."""

    def input(self) -> str:
        """How the model wants its input, in words."""
        wanted = self.backbone.info.input
        if isinstance(wanted, ImageInput):
            return f"{wanted.size}×{wanted.size} pixels in [0, 1], mean {wanted.mean}, std {wanted.std}"
        return f"token ids of the backbone's own tokenizer, at most {wanted.max_tokens}"

    def notes(self, merged: bool) -> list[str]:
        """What a user of the export has to know."""
        name = self.backbone.info.name
        if merged:
            return ["The update is added to the backbone's weights: peft is not needed."]
        if self.origin.reference is None:
            found = (
                f"`{ORIGINAL}/` holds the frozen model: '{name}' is made by tensorpeft-bench, not published."
            )
        elif self.origin.revision is not None:
            found = f"The frozen model is {self.origin.reference} of the Hugging Face hub, at that commit."
        else:
            found = (
                f"The frozen model, '{name}', is in `{self.origin.reference}`; copy it to use it elsewhere."
            )
        return [found, "`model.merge_and_unload()` adds the update to the backbone's weights."]


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


def lines(*lines: str | None) -> str:
    """The lines that are not empty; None stands for an empty one."""
    return "".join(f"{line or ''}\n" for line in lines if line != "")
