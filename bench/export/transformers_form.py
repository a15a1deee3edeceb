"""Exports for transformers: the class that loads each kind of backbone, and where it has the head."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.backbones import BackboneKind, LoadedBackbone, pooling
from tensorbench.backbones.answers import Answers, Writer, unembedding_of
from tensorbench.backbones.huggingface import quiet
from tensorbench.backbones.kinds import KINDS, Kind
from tensorbench.backbones.untrusted import ATTENTION
from tensorbench.export.form import (
    PROCESSOR_FILE,
    BaseOrigin,
    Form,
    copies,
    differences,
    load_state,
    processor,
)
from tensorbench.export.loading import ORIGINAL
from tensorbench.inputs import ImageInput, ModelInput

#: The paths of a linear head: the whole head is the module named classifier.
LINEAR: Mapping[str, str] = {"": "classifier"}


@dataclass(frozen=True)
class TransformersClass:
    """A transformers class that computes the same logits as the harness's encoder, pooling and head."""

    class_name: str
    #: The path in this class of each module of the harness's head. The key "" is the whole head.
    head: Mapping[str, str] = field(default_factory=lambda: LINEAR)
    #: Whether the class's classifier also reads the mean of the patches. The harness's head never does.
    doubled: bool = False


#: The classes with a classifier, by kind of backbone. For other kinds, the pooling or head of transformers
#: differs from the harness's. Their encoder is exported with the head in a file beside it.
CLASSIFIERS: dict[BackboneKind, TransformersClass] = {
    "roberta": TransformersClass("RobertaForSequenceClassification"),
    "xlm-roberta": TransformersClass("XLMRobertaForSequenceClassification"),
    "distilbert": TransformersClass(
        "DistilBertForSequenceClassification", {"dense": "pre_classifier", "out_proj": "classifier"}
    ),
    "electra": TransformersClass("ElectraForSequenceClassification"),
    "deberta-v2": TransformersClass(
        "DebertaV2ForSequenceClassification", {"dense": "pooler.dense", "out_proj": "classifier"}
    ),
    "vit": TransformersClass("ViTForImageClassification"),
    "deit": TransformersClass("DeiTForImageClassification"),
    "dinov2": TransformersClass("Dinov2ForImageClassification", doubled=True),
    "dinov2_with_registers": TransformersClass("Dinov2WithRegistersForImageClassification", doubled=True),
    "beit": TransformersClass("BeitForImageClassification"),
    # Without masked patches, a masked autoencoder's encoder is a ViT with the same weights.
    "vit_mae": TransformersClass("ViTForImageClassification"),
}


@dataclass(frozen=True)
class Target:
    """The transformers class that loads an export, and peft's name for its task."""

    class_name: str
    #: peft's name of the task. None for image classification, which has none.
    task: str | None
    #: Paths as in `TransformersClass`. Empty if the head is in a file beside the model or there is no head.
    head: Mapping[str, str]
    doubled: bool = False
    #: Whether the encoder is a submodule of the class. Its name is then the encoder's `base_model_prefix`.
    below_prefix: bool = True
    #: Arguments of the class besides its configuration.
    arguments: Mapping[str, Any] = field(default_factory=dict)

    #: The peft class that loads a checkpoint together with its original model.
    @property
    def loader(self) -> str:
        return LOADERS[self.task]


LOADERS: dict[str | None, str] = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    None: "AutoPeftModel",
}


def classifier(kind: BackboneKind) -> Target:
    """Returns the target for a backbone of this kind with a trained head."""
    row = KINDS[kind]
    if classifier_class := CLASSIFIERS.get(kind):
        task = "SEQ_CLS" if row.reads == "texts" else None
        return Target(classifier_class.class_name, task, classifier_class.head, classifier_class.doubled)
    task = "FEATURE_EXTRACTION" if row.reads == "texts" else None
    return Target(row.model_class, task, {}, below_prefix=False, arguments=row.arguments)


def language_model(kind: BackboneKind) -> Target:
    """Returns the target for a language model of this kind, which answers prompts without a head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return Target(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], "CAUSAL_LM", {})


def target_of(backbone: LoadedBackbone) -> Target:
    kind = backbone.info.kind
    return classifier(kind) if backbone.module.answers is None else language_model(kind)


def head_class(backbone: LoadedBackbone) -> type[nn.Module]:
    """The class of head that backbones of this kind have. A plug-in's backbone may have another."""
    kind: Kind = KINDS[backbone.info.kind]
    if backbone.module.answers is not None:
        return nn.Identity
    return nn.Linear if kind.make_head is pooling.linear_head else pooling.DenseHead


#: The poolings of backbones whose models accept `token_type_ids`.
SEGMENTED = (pooling.mean_of_tokens, pooling.first_token, pooling.first_token_as_masked)


def _shown(path: str, options: Mapping[str, Any], *more: str) -> str:
    return ", ".join([path, *(f"{name}={value!r}" for name, value in options.items()), *more])


class TransformersForm(Form):
    """The form of an export for transformers.

    The model is a classifier that contains the trained head, an encoder with the head in a file beside it,
    or a language model without a head.
    """

    def __init__(
        self, backbone: LoadedBackbone, origin: BaseOrigin, classes: Sequence[str], model_input: ModelInput
    ) -> None:
        super().__init__(backbone, origin, classes, model_input)
        self.kind, self.target = KINDS[backbone.info.kind], target_of(backbone)
        self.answers = backbone.module.answers
        self.prefix = f"{self.encoder.base_model_prefix}." if self.target.below_prefix else ""
        self.transposed = bool(self.kind.transposed)

    @property
    def _beside(self) -> bool:
        """Whether the head is in a file of its own beside the model."""
        return self.answers is None and not self.target.head

    def base(self) -> dict[str, Any]:
        if self.target.task is not None:
            return {**super().base(), "task_type": self.target.task}
        mapping = {"base_model_class": self.target.class_name, "parent_library": "transformers"}
        return {**super().base(), "auto_mapping": mapping}

    def facts(self) -> dict[str, str]:
        facts = super().facts()
        if isinstance(self.answers, Writer):
            del facts["classes"]
        return facts

    def input(self) -> str:
        prompt = getattr(self.model_input, "prompt", None)
        template = json.dumps(prompt.template, ensure_ascii=False) if prompt else ""
        return super().input() + (f", of the prompt {template}" if template else "")

    def judged(self, outputs: Tensor) -> Tensor:
        return outputs[:, 1:2] if isinstance(self.answers, Writer) else outputs

    def notes(self, merged: bool) -> list[str]:
        notes = super().notes(merged)
        if self._beside:
            notes.append(
                "No class of transformers has the pooling and the head of training: the head is in "
                "`head.safetensors`, beside the model."
            )
        if not merged:
            notes.append(self._loader())
        elif isinstance(self.model_input, ImageInput) and not self._beside:
            notes.append('`transformers.pipeline("image-classification", model=FOLDER)` takes images.')
        if merged and isinstance(self.model_input, ImageInput):
            notes += differences(self.model_input, "transformers")
        return notes

    def _loader(self) -> str:
        """Says how peft alone loads the export, from any working folder."""
        if self.origin.revision is not None:
            shown = _shown("FOLDER", self._options, "dtype=torch.float32")
            return f"`peft.{self.target.loader}.from_pretrained({shown})` loads it too."
        # The classes of an included original are those of the head.
        options = self._attention if self.origin.reference is None else self._options
        shown = _shown("ORIGINAL", {**options, **self.target.arguments}, "dtype=torch.float32")
        where = "the path of the frozen model" if self.origin.own else f"the folder `{ORIGINAL}` in FOLDER"
        model = f"transformers.{self.target.class_name}.from_pretrained({shown})"
        return f"`peft.PeftModel.from_pretrained({model}, FOLDER)` loads it too; ORIGINAL is {where}."

    @property
    def _options(self) -> dict[str, Any]:
        """The arguments that load the original model, even if its own head has another number of classes."""
        labels = {"num_labels": len(self.classes), "ignore_mismatched_sizes": True}
        return {**(labels if self.target.head else {}), **self._attention}

    @property
    def _attention(self) -> dict[str, str]:
        """The argument for the attention implementation. Empty if it is the default of transformers."""
        kind = self.kind.attention
        return {} if kind == ATTENTION else {"attn_implementation": kind}

    def heads(self) -> dict[str, dict[str, Tensor]]:
        head = self.backbone.head
        heads = {
            path: copies(head.get_submodule(part).state_dict()) for part, path in self.target.head.items()
        }
        if self.target.doubled:
            for state in heads.values():
                # transformers' classifier also reads the mean of the patches, unlike ours.
                state["weight"] = torch.cat((state["weight"], torch.zeros_like(state["weight"])), dim=1)
        return heads

    def loose_head(self) -> dict[str, Tensor]:
        return copies(self.backbone.head.state_dict()) if self._beside else {}

    def original_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        turned = {
            f"{path.format(layer=layer)}.weight"
            for path in self.kind.transposed
            for layer in range(self.backbone.geometry.layers)
        }
        return {
            name: tensor.T.contiguous() if name in turned else tensor
            for name, tensor in super().original_state(state).items()
        }

    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        import transformers

        if self.answers is not None:
            model = self._filled(state)
        else:
            model_class = getattr(transformers, self.kind.model_class)
            with torch.random.fork_rng(devices=[]):
                model = model_class(copy.deepcopy(self.encoder.config), **self.kind.arguments)
            load_state(model, self.original_state(state))
        with quiet():
            model.save_pretrained(folder)
            self._config().save_pretrained(folder)

    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        model = self._filled(state)
        for path, head in self.heads().items():
            load_state(model.get_submodule(path), head)
        with quiet():
            model.save_pretrained(folder)
        if isinstance(self.model_input, ImageInput):
            text = json.dumps(processor(self.model_input), indent=1)
            (folder / PROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")

    def _filled(self, state: Mapping[str, Tensor]) -> Any:
        """Returns a model of the target's class with the encoder's tensors.

        A language model also gets its frozen output layer.
        """
        model: Any = self.bare()
        load_state(model.get_submodule(self.prefix.removesuffix(".")), self.original_state(state))
        if self.answers is not None and (table := unembedding_of(self.backbone)) is not None:
            load_state(model.get_output_embeddings(), {"weight": table})
        return model

    def settings(self, merged: bool) -> dict[str, Any]:
        import transformers

        takes = inspect.signature(getattr(transformers, self.target.class_name).forward).parameters
        resized = self.kind.resize is not None and "interpolate_pos_encoding" in takes
        settings = {
            "library": "transformers",
            **self.source(merged),
            "model_class": self.target.class_name,
            "arguments": {**self._options, **self.target.arguments},
            "inputs": self._inputs(),
            "counts_positions": self.kind.decodes,
            # DINOv2 resizes its position embeddings by itself.
            "interpolates": self.kind.reads == "images" and resized,
        }
        if self._beside:
            settings["features"] = self.kind.pool.__name__
        if isinstance(self.answers, Answers):
            settings["words"] = [list(word) for word in self.answers.words]
        if isinstance(self.answers, Writer):
            settings["new_tokens"] = self.answers.new_tokens
            settings["end"] = self.answers.tokenizer.eos_token_id
        return settings

    def _inputs(self) -> list[str]:
        """The names of a batch's tensors that the model accepts."""
        if self.kind.reads == "images":
            return ["pixel_values"]
        return ["input_ids", "attention_mask", *["token_type_ids"] * (self.kind.pool in SEGMENTED)]

    def bare(self) -> nn.Module:
        import transformers

        with torch.random.fork_rng(devices=[]):
            model_class = getattr(transformers, self.target.class_name)
            model: nn.Module = model_class(self._config(), **self.target.arguments)
        return model

    def _config(self) -> Any:
        """The encoder's configuration for the target class, with class names if the model has a head."""
        import transformers

        config = copy.deepcopy(self.encoder.config)
        config_class: Any = getattr(transformers, self.target.class_name).config_class
        if not isinstance(config, config_class):
            config = config_class(**{**config.to_dict(), "model_type": config_class.model_type})
        if self.answers is None:
            config.id2label = dict(enumerate(self.classes))
            config.label2id = {name: index for index, name in enumerate(self.classes)}
        return config
