"""Exports for transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.backbones import BackboneKind, LoadedBackbone
from bench.backbones.huggingface import quiet
from bench.export.form import ORIGINAL, Form, Origin, copies, lines, load_state
from bench.export.preprocessing import PROCESSOR_FILE, differences, processor
from bench.export.updates import Update
from bench.inputs import ImageInput, ModelInput
from methods import Site

#: Checkpoints of half precision are computed in single here.
FLOAT32 = "dtype=torch.float32"


class TransformersForm(Form):
    """A model of transformers that ends in our head: `classifier` on the class token, or RoBERTa's own."""

    CLASSES: ClassVar[dict[BackboneKind, str]] = {
        "vit": "ViTForImageClassification",
        "dinov2": "Dinov2ForImageClassification",
        "roberta": "RobertaForSequenceClassification",
        "bert": "BertModel",
    }

    #: What the class takes besides its configuration.
    ARGUMENTS: ClassVar[dict[str, Any]] = {}

    #: What peft calls the task of these kinds. It has no name for the classification of images.
    TASKS: ClassVar[dict[BackboneKind, str]] = {"roberta": "SEQ_CLS", "bert": "FEATURE_EXTRACTION"}

    #: The classes of peft that load a checkpoint with its original, by the name of the task.
    LOADERS: ClassVar[dict[str | None, str]] = {
        "SEQ_CLS": "AutoPeftModelForSequenceClassification",
        "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
        None: "AutoPeftModel",
    }

    def __init__(
        self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str], wanted: ModelInput
    ) -> None:
        super().__init__(backbone, origin, classes, wanted)
        self.class_name = self.CLASSES[backbone.info.kind]
        self.task_type = self.TASKS.get(backbone.info.kind)
        self.prefix = f"{self.encoder.base_model_prefix}."

    def base(self) -> dict[str, Any]:
        if self.task_type is not None:
            return {**super().base(), "task_type": self.task_type}
        mapping = {"base_model_class": self.class_name, "parent_library": "transformers"}
        return {**super().base(), "auto_mapping": mapping}

    def notes(self, merged: bool) -> list[str]:
        notes = super().notes(merged)
        if not merged:
            notes.append(self._loader())
        elif isinstance(self.wanted, ImageInput):
            notes.append('`transformers.pipeline("image-classification", model=FOLDER)` takes images.')
            notes += differences(self.wanted, "transformers")
        return notes

    def _loader(self) -> str:
        arguments = "FOLDER" if self.origin.reference is None else f"FOLDER, {self._labels}"
        where = "" if self.origin.told == self.origin.reference else ", run in this folder"
        return f"`peft.{self.LOADERS[self.task_type]}.from_pretrained({arguments})` loads it too{where}."

    @property
    def _labels(self) -> str:
        """The arguments that give an original, which may end in a head for other classes, as many as ours."""
        return f"num_labels={len(self.classes)}, ignore_mismatched_sizes=True"

    def layers(self, updates: Mapping[Site, Update]) -> dict[str, Update]:
        return {self.path(site): update for site, update in updates.items()}

    def heads(self) -> dict[str, dict[str, Tensor]]:
        state = copies(self.backbone.head.state_dict())
        if self.backbone.info.kind == "dinov2":
            # transformers' classifier also reads the mean of the patches; ours does not.
            state["weight"] = torch.cat((state["weight"], torch.zeros_like(state["weight"])), dim=1)
        return {"classifier": state}

    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        with quiet():
            self.encoder.save_pretrained(folder, state_dict=dict(state))
            self._config().save_pretrained(folder)

    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        model: Any = self.bare()
        load_state(model.base_model, state)
        for path, head in self.heads().items():
            load_state(model.get_submodule(path), head)
        with quiet():
            model.save_pretrained(folder)
        if isinstance(self.wanted, ImageInput):
            text = json.dumps(processor(self.wanted), indent=1)
            (folder / PROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")

    def code(self, folder: str, merged: bool, original: str) -> str:
        return lines(
            "import torch",
            "" if merged else "from peft import PeftModel",
            "from safetensors.torch import load_file" if self.loose_head() else "",
            f"from transformers import {self.class_name}",
            None,
            *self.places(folder, merged, original),
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

    def bare(self) -> nn.Module:
        import transformers

        with torch.random.fork_rng(devices=[]):
            model: nn.Module = getattr(transformers, self.class_name)(self._config(), **self.ARGUMENTS)
        return model

    def _config(self) -> Any:
        """The encoder's, with our classes."""
        config = copy.deepcopy(self.encoder.config)
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: index for index, name in enumerate(self.classes)}
        return config

    def _source(self) -> str:
        if self.origin.reference is None:
            return f'FOLDER + "/{ORIGINAL}"'
        if self.origin.own:
            return "ORIGINAL"
        return f"{self.origin.reference!r}, revision={self.origin.revision!r}"

    def _create(self, source: str) -> list[str]:
        return [
            f"model = {self.class_name}.from_pretrained(",
            f"    {source}, {self._labels}, {FLOAT32}",
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

    ARGUMENTS = {"add_pooling_layer": False}

    def __init__(
        self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str], wanted: ModelInput
    ) -> None:
        super().__init__(backbone, origin, classes, wanted)
        self.prefix = ""

    def heads(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def loose_head(self) -> dict[str, Tensor]:
        return copies(self.backbone.head.state_dict())

    def notes(self, merged: bool) -> list[str]:
        pooling = "The head reads the mean over the tokens, which no class of transformers does."
        return [*super().notes(merged), pooling]

    def _create(self, source: str) -> list[str]:
        return [f"model = BertModel.from_pretrained({source}, add_pooling_layer=False, {FLOAT32})"]

    def _logits(self) -> list[str]:
        return [
            "def logits(input_ids, attention_mask, token_type_ids=None):",
            '    texts = {"input_ids": input_ids, "token_type_ids": token_type_ids}',
            "    states = model(attention_mask=attention_mask, **texts).last_hidden_state",
            "    mask = attention_mask.unsqueeze(-1).to(states.dtype)",
            "    mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)",
            '    return torch.nn.functional.linear(mean, head["weight"], head["bias"])',
        ]
