"""Exports for transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.backbones import BackboneKind, LoadedBackbone
from bench.backbones.huggingface import quiet
from bench.export.form import ORIGINAL, Form, Origin, copies, lines, load_state
from bench.export.updates import Update
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
        load_state(model.base_model, state)
        for path, head in self.heads().items():
            load_state(model.get_submodule(path), head)
        with quiet():
            model.save_pretrained(folder)

    def code(self, folder: Path, merged: bool) -> str:
        return lines(
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
