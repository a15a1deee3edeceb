"""Vision transformers by timm. Fused qkv layers are split on loading, so that every site is a Linear."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from tensorbench.backbones.backbone import (
    MOST_KEYS,
    BackboneInfo,
    LoadedBackbone,
    channels,
    check_safetensors,
    check_shape,
    locate,
    pixel_size,
    read_object,
)
from tensorbench.backbones.fused import Split
from tensorbench.backbones.inputs import ImageInput
from tensorbench.backbones.timm_internals import in_timms_layout
from tensorbench.backbones.untrusted import refuse_timm_choices
from tensorbench.machine.files import sha256_of_all
from tensorbench.machine.hub import SMALL_FILES, WEIGHT_FILES, snapshot
from tensorbench.methods.backbone import PROJECTIONS, Geometry
from tensorbench.methods.errors import UserError, first_few, near_names, shown
from tensorbench.methods.validation import explained

_BLOCK = "blocks.{layer}"
PATHS = {
    "query": f"{_BLOCK}.attn.qkv.query",
    "key": f"{_BLOCK}.attn.qkv.key",
    "value": f"{_BLOCK}.attn.qkv.value",
    "output": f"{_BLOCK}.attn.proj",
    "fc1": f"{_BLOCK}.mlp.fc1",
    "fc2": f"{_BLOCK}.mlp.fc2",
}


def own_pooling(encoder: Any, *, pixel_values: Tensor) -> Tensor:
    """Computes features (batch, hidden): the model's outputs after its own pooling and norm."""
    return encoder.forward_head(encoder.forward_features(pixel_values), pre_logits=True)


def plain_vit(info: BackboneInfo, size: int, patch: int) -> LoadedBackbone:
    """Makes timm's plain vision transformer of the described geometry, with random weights.

    It is built for images and patches with sides of `size` and `patch` pixels, and then fitted to the image
    size in `info`.
    """
    from timm.models.vision_transformer import VisionTransformer

    geometry = info.geometry
    encoder = VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=geometry.hidden,
        depth=geometry.layers,
        num_heads=geometry.heads,
        mlp_ratio=geometry.mlp / geometry.hidden,
        num_classes=0,
    )
    assert isinstance(info.input, ImageInput)
    _fit(encoder, info.name, info.input.size)
    return LoadedBackbone(info, encoder, own_pooling, partial(nn.Linear, geometry.hidden), [PATHS])


@dataclass(frozen=True)
class TimmBackbone:
    """A timm model with weights from the safetensors file `weights`, or else from its hub repository."""

    model: str
    weights: Path | None = None
    #: A branch, tag or commit of the hub repository. None: the revision in the model's name, or the main
    #: branch.
    revision: str | None = None

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Builds the model without weights and describes it (see `BackboneEntry`).

        Raises UserError for an unknown model (with the nearest names), for a model that is no plain vision
        transformer, for a missing file, and for an unreachable hub.
        """
        return self._describe(self.blueprint(), image_size)

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Loads the model with its weights (see `BackboneEntry`).

        Raises UserError as `describe` does, and for weights that are missing, incomplete or do not fit.
        """
        blueprint = self.blueprint()
        info = self._describe(blueprint, image_size)
        with torch.random.fork_rng(devices=[]):
            encoder = blueprint.build()
        _load_weights(encoder, blueprint, self._weights_file(blueprint), info.name)
        assert isinstance(info.input, ImageInput)
        _fit(encoder, info.name, info.input.size)
        features = getattr(encoder, "head_hidden_size", None) or encoder.num_features
        return LoadedBackbone(info, encoder, own_pooling, partial(nn.Linear, features), [PATHS])

    def blueprint(self) -> Blueprint:
        """Finds the model's blueprint, in timm or in the config of its hub repository.

        Raises UserError for a model that timm does not know (with the nearest names), for a hub config that
        is not timm's or has invalid fields, and as `snapshot` does.
        """
        import timm

        if named := _hub_name(self.model):
            repository, revision = named
            folder = snapshot(repository, self.revision or revision, SMALL_FILES)
            file = folder / "config.json"
            config = read_object(file)
            if "architecture" not in config:
                raise UserError(
                    f"hub model {repository} is not a timm model: its config names no architecture"
                )
            architecture, arguments = config["architecture"], config.get("model_args") or {}
            refuse_timm_choices(file, architecture, arguments)
            check_shape(file, arguments)
            inner = config.get("pretrained_cfg") or {}
            if not isinstance(inner, dict):
                raise UserError(f"{file}: pretrained_cfg should be an object, got {shown(inner)}")
            # Older timm configs have the settings at the top level.
            settings = config | inner
            try:
                _Settings.model_validate(settings)
            except ValidationError as error:
                raise UserError(f"{file}: {explained(error, _Settings)[0]}") from error
            return Blueprint(architecture, arguments, settings)
        try:
            settings = timm.get_pretrained_cfg(self.model, allow_unregistered=False).to_dict()
        except RuntimeError as error:
            tagged = timm.list_models(f"{self.model.partition('.')[0]}.*", include_tags=True)
            near = tagged or near_names(self.model, timm.list_models(), at_most=3)
            hint = f"near are {', '.join(near)}" if near else "timm.list_models() has their names"
            raise UserError(f"timm has no model '{self.model}'; {hint}") from error
        # Keep the tag in the name, so that timm applies its settings, such as the image size.
        return Blueprint(self.model, {}, settings)

    def _describe(self, blueprint: Blueprint, image_size: int | None) -> BackboneInfo:
        name = f"timm:{self.model}"
        try:
            with torch.device("meta"):
                encoder = blueprint.build()
        except Exception as error:  # timm may raise anything for the arguments of a config
            raise UserError(f"backbone '{name}': timm cannot build it: {error}") from error
        if image_size is None:
            sides = getattr(getattr(encoder, "patch_embed", None), "img_size", None)
            if not (sides := sides or (blueprint.settings.get("input_size") or ())[-1:]):
                raise UserError(f"{blueprint.architecture}: neither config nor model has an image size")
            image_size = int(sides[0])
        geometry, projections = _fit(encoder, name, image_size)
        geometry = replace(geometry, encoder=sum(parameter.numel() for parameter in encoder.parameters()))
        settings = blueprint.settings
        licence = settings.get("license") or "licence not stated by timm"
        info = BackboneInfo(
            name=name,
            kind="timm",
            geometry=geometry,
            projections=projections,
            input=ImageInput(image_size, channels(settings["mean"]), channels(settings["std"])),
            weights_hash=self._weights_hash(blueprint),
            description=f"timm {blueprint.architecture}, {licence}"
            + ("" if self.weights is None else "; weights from a file of your own"),
        )
        locate(info.name, info.geometry, info.projections, encoder, [PATHS])
        try:
            with torch.no_grad():
                own_pooling(encoder, pixel_values=torch.empty(1, 3, image_size, image_size, device="meta"))
        except Exception as error:
            # BEiT and EVA, for example, read the fused layer's weight instead of calling the layer.
            raise UserError(
                f"backbone '{name}' does not run at {image_size} pixels with its qkv split: {error}"
            ) from error
        return info

    def _weights_hash(self, blueprint: Blueprint) -> str:
        if self.weights is not None:
            return f"timm:{self.model}:sha256:{sha256_of_all(self._weights_file(blueprint))}"
        repository, revision = blueprint.hub(self.model)
        folder = snapshot(repository, self.revision or revision, SMALL_FILES)
        weights_hash = f"hub:{repository}@{folder.name}"
        # Several architectures may share a repository, whose config names only one.
        architecture, file = blueprint.architecture.partition(".")[0], folder / "config.json"
        named = str(read_object(file).get("architecture", "")) if file.is_file() else ""
        shared = architecture != named.partition(".")[0]
        return f"timm:{architecture}:{weights_hash}" if shared else weights_hash

    def _weights_file(self, blueprint: Blueprint) -> Path:
        if self.weights is None:
            repository, revision = blueprint.hub(self.model)
            commit = snapshot(repository, self.revision or revision, SMALL_FILES).name
            file = snapshot(repository, commit, SMALL_FILES + WEIGHT_FILES) / "model.safetensors"
        else:
            file = self.weights.expanduser()
        if not file.is_file() or file.suffix != ".safetensors":
            raise UserError(f"timm model '{self.model}': {file} is not a safetensors file that exists")
        return file


class _Settings(BaseModel):
    """The settings in a timm config that we read."""

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    input_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    classifier: str | tuple[str, ...] | None = None
    license: str | None = None


@dataclass(frozen=True)
class Blueprint:
    """The architecture, its arguments, and the pretraining settings of a timm model."""

    architecture: str
    arguments: dict[str, Any]
    settings: dict[str, Any]

    def build(self) -> Any:
        """Builds the model at its native size, without classifier and pretrained weights."""
        import timm

        return timm.create_model(
            self.architecture, pretrained=False, **{**self.arguments, "num_classes": 0}
        ).eval()

    def hub(self, model: str) -> tuple[str, str | None]:
        """Returns the hub repository of the weights, and the revision in the model's name.

        The revision is None if the name has none. Raises UserError if timm knows no repository.
        """
        named = _hub_name(model)
        repository = named[0] if named else self.settings.get("hf_hub_id")
        if not repository:
            raise UserError(
                f"timm has no hub repository for '{model}': name a tag with weights, or a safetensors "
                f"file as `local:`"
            )
        return repository, named[1] if named else None


def _hub_name(model: str) -> tuple[str, str | None] | None:
    match = re.fullmatch(r"hf[_-]hub:([^@]+)(?:@(.+))?", model)
    return (match[1], match[2]) if match else None


def _load_weights(encoder: Any, blueprint: Blueprint, file: Path, name: str) -> None:
    from safetensors.torch import load_file

    check_safetensors(name, file)
    state: dict[str, Tensor] = load_file(file)
    try:
        state = in_timms_layout(encoder, state)
    except Exception as error:  # tensors of another model may raise anything
        raise UserError(f"backbone '{name}': {file} does not fit: {error}") from error
    heads = blueprint.settings.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{h}." for h in heads))}
    expected = encoder.state_dict()
    faults = [f"missing {key}" for key in expected if key not in state]
    faults += [f"unexpected {key}" for key in state if key not in expected]
    faults += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if faults:
        raise UserError(f"backbone '{name}': {file} does not fit: {first_few(faults, MOST_KEYS)}")
    encoder.load_state_dict(state)
    encoder.float()


def _fit(encoder: Any, name: str, size: int) -> tuple[Geometry, tuple[str, ...]]:
    """Splits every qkv, sets the image size, and returns the geometry and the adapted projections.

    Raises UserError for a model that is no plain vision transformer, and for an image size that the model
    does not accept.
    """
    blocks = list(getattr(encoder, "blocks", None) or ())
    if not blocks or not all(_has_fused_attention(block) for block in blocks):
        raise UserError(
            f"backbone '{name}' ({type(encoder).__name__}) is no plain vision transformer: its layers "
            "need attention with a fused `attn.qkv` to split, and one width, since methods here adapt "
            "attention and MLP of equal layers"
        )
    mlps = [(getattr(block.mlp, "fc1", None), getattr(block.mlp, "fc2", None)) for block in blocks]
    # In a gated MLP (SwiGLU), fc2 does not read fc1 alone, so only attention has sites.
    plain = all(
        isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear) and fc1.out_features == fc2.in_features
        for fc1, fc2 in mlps
    )
    attention = blocks[0].attn
    hidden = attention.qkv.in_features
    width = getattr(mlps[0][1], "in_features", hidden)
    geometry = Geometry(hidden, attention.num_heads, len(blocks), width)
    for block in blocks:
        block.attn.qkv = Split(block.attn.qkv)
    try:
        if size != getattr(encoder.patch_embed, "img_size", (None,))[0]:
            pixel_size(name, size, size, encoder.patch_embed.feat_ratio())
            encoder.set_input_size(img_size=(size, size))
    except (AttributeError, AssertionError, ValueError) as error:
        raise UserError(f"backbone '{name}' does not take images of {size} pixels: {error}") from error
    return geometry, PROJECTIONS if plain else PROJECTIONS[:4]


def _has_fused_attention(block: Any) -> bool:
    attention = getattr(block, "attn", None)
    fused = isinstance(getattr(attention, "qkv", None), nn.Linear)
    return fused and hasattr(attention, "num_heads") and hasattr(block, "mlp")
