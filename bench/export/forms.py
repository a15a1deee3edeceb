"""The models that an export is for: how a library names their layers, holds a head and loads them."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.backbones import BackboneSpec, Kind, LoadedBackbone, entry_of
from bench.backbones.huggingface import FolderBackbone, HubBackbone
from bench.backbones.huggingface import quiet as quiet
from bench.backbones.indexed import AssetBackbone
from bench.backbones.random_weights import RandomBackbone
from bench.backbones.timm_vit import Recipe, TimmBackbone, recipe_of
from bench.inputs import ImageInput
from methods import Site, UserError
from methods.backbone import SHARED_INPUT

#: Where the frozen model lies in an export that has to bring it.
ORIGINAL = "original"

#: Checkpoints of half precision are computed in single here.
FLOAT32 = "dtype=torch.float32"


@dataclass(frozen=True)
class Update:
    """The low-rank update of one linear layer: down (r, in), up (out, r), bias (out,)."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


def fuse(updates: Sequence[Update | None], width: int) -> Update:
    """One update of layers that read one input and whose outputs, `width` each, lie side by side.

    Its rank is that of the distinct downs together. Layers without an update have None.
    """
    downs: list[Tensor] = []
    places: dict[int, int] = {}
    for index, update in enumerate(updates):
        if update is not None:
            same = [i for i, down in enumerate(downs) if _same(down, update.down)]
            places[index] = same[0] if same else len(downs)
            if not same:
                downs.append(update.down)
    starts = [sum(down.shape[0] for down in downs[:i]) for i in range(len(downs) + 1)]
    up = downs[0].new_zeros(len(updates) * width, starts[-1])
    bias = downs[0].new_zeros(len(updates) * width)
    for index, place in places.items():
        update, rows = updates[index], slice(index * width, (index + 1) * width)
        assert update is not None
        up[rows, starts[place] : starts[place + 1]] = update.up
        if update.bias is not None:
            bias[rows] = update.bias
    biased = any(update is not None and update.bias is not None for update in updates)
    return Update(torch.cat(downs), up, bias if biased else None)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@dataclass(frozen=True)
class Origin:
    """Where the frozen model is found: a folder, a file or a hub id; None where the export brings it."""

    reference: str | None
    revision: str | None = None
    #: How timm builds it, for timm models.
    recipe: Recipe | None = None


def _origin(backbone: LoadedBackbone, spec: BackboneSpec) -> Origin:
    entry = entry_of(spec)
    commit = backbone.info.weights_hash.rpartition("@")[2]
    if isinstance(entry, FolderBackbone):
        return Origin(str(entry.path.expanduser().resolve()))
    if isinstance(entry, AssetBackbone):
        return Origin(str(entry.folder().resolve()))
    if isinstance(entry, HubBackbone):
        return Origin(entry.repository, commit)
    if isinstance(entry, TimmBackbone):
        recipe = recipe_of(entry.model, entry.revision)
        if entry.weights is not None:
            return Origin(str(entry.weights.expanduser().resolve()), recipe=recipe)
        return Origin(recipe.hub(entry.model)[0], commit, recipe)
    if backbone.info.kind != "timm":
        return Origin(None)
    if not isinstance(entry, RandomBackbone):
        raise UserError(
            f"backbone '{backbone.info.name}' of a plug-in is a timm model, but by which name timm makes it "
            "is not known, so no checkpoint could be loaded on it"
        )
    assert isinstance(backbone.info.input, ImageInput)
    geometry = backbone.geometry
    shape = {
        # Not the entry's own: what the export brings is resized already.
        "img_size": backbone.info.input.size,
        "patch_size": entry.patch,
        "embed_dim": geometry.hidden,
        "depth": geometry.layers,
        "num_heads": geometry.heads,
        "mlp_ratio": geometry.mlp / geometry.hidden,
    }
    return Origin(None, recipe=Recipe("vit_base_patch16_224", shape, {}))


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
        """Writes the frozen encoder, of that state, as a model of its own."""

    @abstractmethod
    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the encoder, of that state, with its head. Raises UserError where no class holds it."""

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


class TransformersForm(Form):
    """A model of transformers that ends in our head: `classifier` on the class token, or RoBERTa's own."""

    CLASSES: ClassVar[dict[Kind, str]] = {
        "vit": "ViTForImageClassification",
        "dinov2": "Dinov2ForImageClassification",
        "roberta": "RobertaForSequenceClassification",
        "bert": "BertModel",
    }

    def __init__(self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str]) -> None:
        super().__init__(backbone, origin, classes)
        self.class_name = self.CLASSES[backbone.info.kind]
        #: Where the encoder's modules are in the original model.
        self.prefix = f"{self.encoder.base_model_prefix}."

    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        paths = {site: self.backbone.path(site).removeprefix("encoder.") for site in updates}
        return {f"{self.prefix}{paths[site]}": update for site, update in updates.items()}

    def heads(self) -> dict[str, dict[str, Tensor]]:
        state = copies(self.backbone.head.state_dict())
        if self.backbone.info.kind == "dinov2":
            # transformers' classifier also reads the mean of the patches; ours does not.
            state["weight"] = torch.cat((state["weight"], torch.zeros_like(state["weight"])), dim=1)
        return {"classifier": state}

    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        with quiet():
            self.encoder.save_pretrained(folder, state_dict=dict(state))

    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        model = self._bare()
        _load(model.base_model, state)
        for path, head in self.heads().items():
            _load(model.get_submodule(path), head)
        with quiet():
            model.save_pretrained(folder)

    def code(self, folder: Path, merged: bool) -> str:
        return _lines(
            "import torch",
            "" if merged else "from peft import PeftModel",
            "from safetensors.torch import load_file" if self.loose_head() else "",
            f"from transformers import {self.class_name}",
            None,
            f"FOLDER = {str(folder)!r}  # this one",
            None,
            *self._create("FOLDER" if merged else self._source()),
            "" if merged else "model = PeftModel.from_pretrained(model, FOLDER)",
            "model.eval()",
            'head = load_file(FOLDER + "/head.safetensors")' if self.loose_head() else "",
            None,
            None,
            "@torch.no_grad()",
            *self._logits(),
        )

    def _bare(self) -> Any:
        """The original model's class with our classes, not loaded yet."""
        import transformers

        config = copy.deepcopy(self.encoder.config)
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: index for index, name in enumerate(self.classes)}
        with torch.random.fork_rng(devices=[]):
            return getattr(transformers, self.class_name)(config)

    def _source(self) -> str:
        if self.origin.reference is None:
            return f'FOLDER + "/{ORIGINAL}"'
        revision = f", revision={self.origin.revision!r}" if self.origin.revision else ""
        return f"{self.origin.reference!r}{revision}"

    def _create(self, source: str) -> list[str]:
        # The original may end in a head of its own, for other classes.
        return [
            f"model = {self.class_name}.from_pretrained(",
            f"    {source}, num_labels={len(self.classes)}, ignore_mismatched_sizes=True, {FLOAT32}",
            ")",
        ]

    def _logits(self) -> list[str]:
        if self.backbone.info.kind == "roberta":
            return [
                "def logits(input_ids, attention_mask):",
                "    return model(input_ids=input_ids, attention_mask=attention_mask).logits",
            ]
        # DINOv2 resizes its position embeddings unasked.
        resize = ", interpolate_pos_encoding=True" if self.backbone.info.kind == "vit" else ""
        return [
            "def logits(pixel_values):",
            f"    return model(pixel_values=pixel_values{resize}).logits",
        ]


class BertForm(TransformersForm):
    """BERT with mean pooling, which no class of transformers does: the encoder, and the head beside it."""

    def __init__(self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str]) -> None:
        super().__init__(backbone, origin, classes)
        self.prefix = ""

    def heads(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def loose_head(self) -> dict[str, Tensor]:
        return copies(self.backbone.head.state_dict())

    def notes(self, merged: bool) -> list[str]:
        pooling = "The head reads the mean over the tokens, which no class of transformers does."
        return [*super().notes(merged), pooling]

    def _bare(self) -> Any:
        from transformers import BertModel

        with torch.random.fork_rng(devices=[]):
            return BertModel(copy.deepcopy(self.encoder.config), add_pooling_layer=False)

    def _create(self, source: str) -> list[str]:
        return [f"model = BertModel.from_pretrained({source}, add_pooling_layer=False, {FLOAT32})"]

    def _logits(self) -> list[str]:
        return [
            "def logits(input_ids, attention_mask):",
            "    states = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state",
            "    mask = attention_mask.unsqueeze(-1).to(states.dtype)",
            "    mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)",
            '    return torch.nn.functional.linear(mean, head["weight"], head["bias"])',
        ]


class TimmForm(Form):
    """A model of timm, whose query, key and value are one layer, and which ends in its own classifier."""

    def __init__(self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str]) -> None:
        import timm

        super().__init__(backbone, origin, classes)
        assert origin.recipe is not None
        assert isinstance(backbone.info.input, ImageInput)
        self.recipe, self.size = origin.recipe, backbone.info.input.size
        arguments = {**self.recipe.arguments, "num_classes": len(classes)}
        with torch.device("meta"):
            model = timm.create_model(self.recipe.architecture, pretrained=False, **arguments)
        self.bare: nn.Module = model
        native = getattr(model.patch_embed, "img_size", None)
        self.resized = native is not None and native[0] != self.size
        found = model.get_classifier()
        # Distilled ones have two classifiers, whose logits they average.
        classifiers = found if isinstance(found, tuple) else (found,)
        self.head_paths = [name for name, module in model.named_modules() if module in classifiers]
        for module in classifiers:
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"timm's {self.recipe.architecture} ends in a {type(module).__name__}, "
                    "not in a linear layer that could be the trained head"
                )

    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        fused: dict[str, list[Update | None]] = {}
        layers = {}
        for site, update in updates.items():
            path = self.backbone.path(site).removeprefix("encoder.")
            if site.projection in SHARED_INPUT:
                of_layer = fused.setdefault(path.rpartition(".")[0], [None] * len(SHARED_INPUT))
                of_layer[SHARED_INPUT.index(site.projection)] = update
            else:
                layers[path] = update
        return layers | {path: fuse(parts, self.backbone.geometry.hidden) for path, parts in fused.items()}

    def heads(self) -> dict[str, dict[str, Tensor]]:
        return {path: copies(self.backbone.head.state_dict()) for path in self.head_paths}

    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        folder.mkdir()
        save_file(self._fused(state), folder / "model.safetensors", metadata={"format": "pt"})

    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        whole = self._fused(state)
        for path, head in self.heads().items():
            whole |= {f"{path}.{name}": tensor for name, tensor in head.items()}
        expected = set(self.bare.state_dict())
        if wrong := sorted(expected ^ set(whole)):
            raise _no_place(wrong)
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architecture": self.recipe.architecture,
            "num_classes": len(self.classes),
            "model_args": self.recipe.arguments,
            "image_size": self.size,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    def code(self, folder: Path, merged: bool) -> str:
        return _lines(
            *(["import json", "from pathlib import Path", None] if merged else []),
            "import timm",
            "import torch",
            "" if merged or not self.origin.revision else "from huggingface_hub import hf_hub_download",
            "" if merged else "from peft import PeftModel",
            "from safetensors.torch import load_file" if merged else "",
            None,
            f"FOLDER = {str(folder)!r}  # this one",
            None,
            *(self._create_merged() if merged else self._create_original()),
            "model.eval()",
            None,
            None,
            "@torch.no_grad()",
            "def logits(pixel_values):",
            "    return model(pixel_values)",
        )

    def _create_merged(self) -> list[str]:
        return [
            'config = json.loads(Path(FOLDER, "config.json").read_text())',
            'name, arguments = config["architecture"], config["model_args"]',
            'model = timm.create_model(name, num_classes=config["num_classes"], **arguments)',
            *self._resize('config["image_size"]'),
            'model.load_state_dict(load_file(FOLDER + "/model.safetensors"))',
        ]

    def _create_original(self) -> list[str]:
        reference, revision = self.origin.reference, self.origin.revision
        weights = f'FOLDER + "/{ORIGINAL}/model.safetensors"' if reference is None else repr(reference)
        if revision:
            weights = f'hf_hub_download({reference!r}, "model.safetensors", revision={revision!r})'
        arguments = "".join(f", {key}={value!r}" for key, value in self.recipe.arguments.items())
        return [
            f"weights = {weights}",
            "model = timm.create_model(",
            f"    {self.recipe.architecture!r}, pretrained=True, num_classes={len(self.classes)}{arguments},",
            '    pretrained_cfg_overlay={"file": weights, "custom_load": False},',
            ").float()",
            *self._resize(str(self.size)),
            "model = PeftModel.from_pretrained(model, FOLDER)",
        ]

    def _resize(self, size: str) -> list[str]:
        return [f"model.set_input_size(img_size=({size}, {size}))"] if self.resized else []

    def _fused(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with query, key and value in one layer again."""
        whole: dict[str, Tensor] = {}
        for name, tensor in state.items():
            layer, _, kind = name.rpartition(".")
            fused, _, projection = layer.rpartition(".")
            if not fused.endswith(".qkv") or projection not in SHARED_INPUT:
                whole[name] = tensor
                continue
            parts = [f"{fused}.{each}.{kind}" for each in SHARED_INPUT]
            if not all(part in state for part in parts):
                # A bias that only one of the three got.
                raise _no_place([name])
            whole[f"{fused}.{kind}"] = torch.cat([state[part] for part in parts])
        return whole


def form_of(backbone: LoadedBackbone, spec: BackboneSpec, classes: Sequence[str]) -> Form:
    forms: dict[Kind, type[Form]] = {"timm": TimmForm, "bert": BertForm}
    return forms.get(backbone.info.kind, TransformersForm)(backbone, _origin(backbone, spec), classes)


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, sharing no memory with anything, as safetensors wants them."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    found = module.load_state_dict(dict(state), strict=False)
    if wrong := [*found.missing_keys, *found.unexpected_keys]:
        raise _no_place(wrong)


def _no_place(names: list[str]) -> UserError:
    return UserError(
        f"the original model's class and the trained one differ in {', '.join(names[:4])}, so they cannot be "
        "merged (a trained bias needs a layer that has one); export without --merged"
    )


def _lines(*lines: str | None) -> str:
    """The lines that are not empty; None stands for an empty one."""
    return "".join(f"{line or ''}\n" for line in lines if line != "")
