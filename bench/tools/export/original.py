"""The original model of an export: the trial's frozen model in the layout of transformers.

The backbone is the same model in this harness's layout. There, layers that transformers fuses are split, and
weights that it stores transposed are transposed back.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.backbones import BackboneSpec, LoadedBackbone, entry_of, pooling
from tensorbench.backbones.answers import unembedding_of
from tensorbench.backbones.backbone import FittedHead
from tensorbench.backbones.fused import Split, SplitHeads
from tensorbench.backbones.huggingface import FolderBackbone, HubBackbone, quiet
from tensorbench.backbones.inputs import ImageInput, ModelInput
from tensorbench.backbones.kinds import KINDS, TIMM
from tensorbench.methods import Site, UserError

#: The file with the state of a head that fits no module of the model.
HEAD = "head.safetensors"

#: The folder of the original model, if the export contains it.
ORIGINAL = "original"


@dataclass(frozen=True)
class Target:
    """The transformers class of an export."""

    class_name: str
    #: peft's name of the task. None for images, for which peft has no name.
    task: str | None
    #: Maps each module of the backbone's head to its path in the class. The key "" is the whole head. Empty
    #: if the head is in a file beside the model, or if there is no head.
    head: Mapping[str, str]

    @property
    def loader(self) -> str:
        """The peft class that loads a checkpoint together with its original model."""
        suffixes = {
            "SEQ_CLS": "ForSequenceClassification",
            "CAUSAL_LM": "ForCausalLM",
            "FEATURE_EXTRACTION": "ForFeatureExtraction",
        }
        return f"AutoPeftModel{suffixes[self.task] if self.task else ''}"


def target_of(kind: str, answers: bool = False) -> Target:
    """Returns the target for a backbone of a kind.

    With `answers`, the backbone is a language model that answers in words. Otherwise it has a head.
    """
    row = KINDS[kind]
    if answers:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return Target(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], "CAUSAL_LM", {})
    texts = row.reads == "texts"
    if row.classifier is None:
        return Target(row.model_class, "FEATURE_EXTRACTION" if texts else None, {})
    return Target(row.classifier.class_name, "SEQ_CLS" if texts else None, row.classifier.head)


@dataclass(frozen=True)
class Update:
    """The low-rank update of one linear layer: ΔW = up @ down. down (r, in), up (out, r), bias (out,)."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


class Original:
    """The original model of transformers: a classifier, an encoder or a language model.

    Raises UserError for a timm model and any other that transformers cannot load again, for a converged head
    that the model's classifier cannot hold, for frozen weights in bfloat16, and for quantised layers that are
    fused or transposed in transformers.
    """

    def __init__(
        self, backbone: LoadedBackbone, spec: BackboneSpec, classes: Sequence[str], model_input: ModelInput
    ) -> None:
        self.backbone, self.spec, self.classes, self.model_input = backbone, spec, classes, model_input
        self.encoder: Any = backbone.module.encoder
        #: The layers that were split on loading, by their paths in the encoder.
        self.fused = {
            path: module
            for path, module in self.encoder.named_modules()
            if isinstance(module, Split | SplitHeads)
        }
        self._name, self._cannot = f"backbone '{backbone.info.name}'", "cannot be exported"
        if spec.dtype != "float32":
            raise UserError(
                f"{self._name} {self._cannot}: what an export computes is compared in float32, and the "
                f"adapter was trained on weights in {spec.dtype}"
            )
        if backbone.info.kind == TIMM:
            raise UserError(
                f"{self._name} {self._cannot}: it is a timm model, and exports are for transformers and peft"
            )
        if spec.quantise and (self.fused or KINDS[backbone.info.kind].transposed):
            raise UserError(
                f"{self._name} {self._cannot}: what is one layer in the original model, or transposed there, "
                "was quantised in another layout"
            )
        self._check()

    def _check(self) -> None:
        import transformers

        backbone, head, kind = self.backbone, self.backbone.head, self.backbone.info.kind
        self.kind = KINDS[kind]
        #: The `Answers` or `Writer` by which a language model without a head answers. None for other models.
        self.answers: Any = backbone.module.answers
        self.target = target_of(kind, self.answers is not None)
        head_class: type[nn.Module] = nn.Identity
        if self.answers is None:
            linear = self.kind.make_head is pooling.linear_head
            head_class = nn.Linear if linear else pooling.DenseHead
        if isinstance(head, FittedHead) and head_class is not nn.Linear:
            raise UserError(
                f"{self._name} with a converged head {self._cannot}: transformers' classifier of kind "
                f"'{kind}' has a dense layer before the last"
            )
        encoder_class = getattr(transformers, self.kind.model_class)
        for what, module, needed in (("encoder", self.encoder, encoder_class), ("head", head, head_class)):
            if not isinstance(module, needed):
                raise UserError(
                    f"{self._name} of a plug-in {self._cannot}: a backbone of kind '{kind}' is exported for "
                    f"transformers, but its {what} is a {type(module).__name__}, not a {needed.__name__}"
                )
        #: The hub id of the model, or its folder on this machine. None if the model is in neither place, so
        #: that a checkpoint has to contain it. `revision` is the commit of a model from the hub.
        self.reference: str | None = None
        self.revision: str | None = None
        entry = entry_of(self.spec)
        if isinstance(entry, HubBackbone):
            self.reference, self.revision = entry.repository, backbone.info.weights_hash.rpartition("@")[2]
        elif isinstance(entry, FolderBackbone):
            self.reference = str(entry.path.expanduser().resolve())
        inside = self.answers is not None or self.target.head
        #: The prefix of the encoder's modules in the original model, including the dot.
        self.prefix = f"{self.encoder.base_model_prefix}." if inside else ""

    @property
    def place(self) -> str:
        """The name of the original model in an export, without folders of this machine.

        A name that begins with `./` is relative to the export's folder.
        """
        if self.reference is None:
            return f"./{ORIGINAL}"
        return self.reference if self.revision else f"./{Path(self.reference).name}"

    def path(self, site: Site) -> str:
        """The dotted path of a site's layer in the original model."""
        return f"{self.prefix}{self.backbone.path(site).removeprefix('encoder.')}"

    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        """Returns one update for each adapted layer of the original model, by the layer's dotted path.

        The updates of sites whose layers are fused in the original model are joined.
        """
        layers: dict[str, Update] = {}
        parts: dict[str, dict[str, Update]] = {}
        for site, update in updates.items():
            layer, _, part = self.backbone.path(site).removeprefix("encoder.").rpartition(".")
            if layer in self.fused:
                parts.setdefault(layer, {})[part] = update
            else:
                layers[self.path(site)] = update
        for layer, of_parts in parts.items():
            fused = self.fused[layer]
            names = [name for name, _ in fused.named_children()]
            joint = fuse(
                [of_parts.get(name) for name in names],
                [self.backbone.geometry.shape(name)[0] for name in names],
            )
            bias = None if joint.bias is None else fused.ordered(joint.bias)
            layers[f"{self.prefix}{layer}"] = Update(joint.down, fused.ordered(joint.up), bias)
        return layers

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Converts the encoder's state to that of the original model: split layers are joined again.

        Raises UserError if some parts of a split layer have a bias and others have none.
        """
        original: dict[str, Tensor] = {}
        for name, tensor in state.items():
            path, _, weight = name.rpartition(".")
            layer = path.rpartition(".")[0]
            if layer not in self.fused:
                original[name] = tensor
                continue
            names = [f"{layer}.{each}.{weight}" for each, _ in self.fused[layer].named_children()]
            if not all(each in state for each in names):
                raise _no_place([name])
            original[f"{layer}.{weight}"] = self.fused[layer].ordered(torch.cat([state[n] for n in names]))
        return original

    def heads(self) -> dict[str, dict[str, Tensor]]:
        """Returns the head's tensors for the modules of the original model: {path: {name: tensor}}."""
        head = self.backbone.head
        heads = {
            path: copies(head.get_submodule(part).state_dict()) for part, path in self.target.head.items()
        }
        if self.kind.classifier is not None and self.kind.classifier.reads_patches:
            for state in heads.values():
                state["weight"] = torch.cat((state["weight"], torch.zeros_like(state["weight"])), dim=1)
        return heads

    @property
    def head_is_beside(self) -> bool:
        """Whether the head fits no module of the original model, and is therefore in a file beside it."""
        return self.answers is None and not self.target.head

    def save_head(self, folder: Path) -> None:
        """Writes a head that is beside the original model to a file in `folder`. Skips any other head."""
        if self.head_is_beside:
            save_file(copies(self.backbone.head.state_dict()), folder / HEAD, metadata={"format": "pt"})

    def bare(self) -> Any:
        """Returns an untrained model of the target's class, with the classes of the trial."""
        import transformers

        model_class: Any = getattr(transformers, self.target.class_name)
        config = copy.deepcopy(self.encoder.config)
        if not isinstance(config, model_class.config_class):
            settings = {**config.to_dict(), "model_type": model_class.config_class.model_type}
            config = model_class.config_class(**settings)
        if self.answers is None:
            config.id2label = dict(enumerate(self.classes))
            config.label2id = {name: index for index, name in enumerate(self.classes)}
        with torch.random.fork_rng(devices=[]):
            return model_class(config, **self._arguments)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Writes the model with its head, and its tokenizer or the preparation of its images.

        `state` holds the encoder's tensors. Raises UserError if the class has no place for one of them.
        """
        model, encoder = self.bare(), self.state(state)
        for path in self.kind.transposed:
            for layer in range(self.backbone.geometry.layers):
                name = f"{path.format(layer=layer)}.weight"
                encoder[name] = encoder[name].T.contiguous()
        _load_state(model.get_submodule(self.prefix.removesuffix(".")), encoder)
        if self.answers is not None and (table := unembedding_of(self.backbone)) is not None:
            _load_state(model.get_output_embeddings(), {"weight": table})
        for path, head in self.heads().items():
            _load_state(model.get_submodule(path), head)
        with quiet():
            model.save_pretrained(folder)
        if isinstance(self.model_input, ImageInput):
            write_json(folder / "preprocessor_config.json", processor(self.model_input))
            return
        try:
            self.model_input.load_tokenizer().save_pretrained(folder)
        except UserError:  # the backbone has no tokenizer that loads
            return

    def options(self, place: str | Path) -> dict[str, Any]:
        """The arguments of `from_pretrained` for the model in a folder or a repository of the hub."""
        options = {**self._arguments, "dtype": torch.float32, "use_safetensors": True}
        # Else the configuration chooses, maybe a kernel that is not installed, and transformers downloads
        # kernels that replace layers.
        options |= {"attn_implementation": self.kind.attention, "use_kernels": False}
        if self.revision and place == self.reference:
            options["revision"] = self.revision
        if self.target.head and self.reference and place in (self.reference, self.place):
            # Its own head may have another number of classes.
            options |= {"num_labels": len(self.classes), "ignore_mismatched_sizes": True}
        return options

    @property
    def _arguments(self) -> Mapping[str, Any]:
        return self.kind.arguments if self.target.class_name == self.kind.model_class else {}

    @property
    def call_options(self) -> dict[str, Any]:
        """The arguments of the model's forward pass besides a batch."""
        import transformers

        takes = inspect.signature(getattr(transformers, self.target.class_name).forward).parameters
        resizes = self.kind.resize is not None and "interpolate_pos_encoding" in takes
        return {"interpolate_pos_encoding": True} if resizes else {}

    def load(self, place: str | Path) -> Any:
        """Loads the model by transformers, in float32, from a folder or the hub."""
        import transformers

        model_class = getattr(transformers, self.target.class_name)
        return model_class.from_pretrained(place, **self.options(place))

    def logits(self, model: Any, folder: Path, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the outputs of a model that was loaded from an export. Their shape is the backbone's.

        `folder` is the export, from which a head beside the model is read.
        """
        if self.target.head:
            logits: Tensor = model(**batch, **self.call_options).logits
            return logits
        if self.answers is None:
            forward = partial(model, **self.call_options) if self.call_options else model
            return F.linear(self.kind.pool(forward, **batch), **load_file(folder / HEAD))
        answers, language_model = copy.copy(self.answers), getattr(model, "get_base_model", lambda: model)()
        answers.unembedding = language_model.get_output_embeddings().weight
        return answers(language_model.get_submodule(self.prefix.removesuffix(".")), **batch)


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


def fuse(updates: Sequence[Update | None], widths: Sequence[int]) -> Update:
    """Joins the updates of layers with the same input to the update of one layer with all their outputs.

    `widths` are the layers' output sizes. None stands for a layer without an update. The result is exact.
    Its down factor stacks the layers' down factors, without duplicates. Its up factor contains each layer's
    up factor in the rows of the layer's outputs and the columns of its down factor, and zeros elsewhere.
    """
    downs: list[Tensor] = []
    for update in updates:
        if update is not None and not any(_same(down, update.down) for down in downs):
            downs.append(update.down)
    starts = [sum(down.shape[0] for down in downs[:i]) for i in range(len(downs) + 1)]
    up, bias, row = downs[0].new_zeros(sum(widths), starts[-1]), downs[0].new_zeros(sum(widths)), 0
    for update, width in zip(updates, widths, strict=True):
        if update is not None:
            place = next(index for index, down in enumerate(downs) if _same(down, update.down))
            up[row : row + width, starts[place] : starts[place + 1]] = update.up
            if update.bias is not None:
                bias[row : row + width] = update.bias
        row += width
    biased = any(update is not None and update.bias is not None for update in updates)
    return Update(torch.cat(downs), up, bias if biased else None)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies the tensors to the CPU. The copies share no memory, as safetensors requires."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    keys = module.load_state_dict(dict(state), strict=False)
    if wrong := [*keys.missing_keys, *keys.unexpected_keys]:
        raise _no_place(wrong)


def _no_place(names: list[str]) -> UserError:
    return UserError(
        f"the original model's class and the trained one differ in {', '.join(names[:4])}, so they cannot be "
        "merged (a trained bias needs a layer that has one); export without --merged"
    )
