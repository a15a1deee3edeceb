"""Exports for transformers."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.backbones import LoadedBackbone, pooling
from bench.backbones.answers import Answers, Writer, unembedding_of
from bench.backbones.huggingface import quiet
from bench.backbones.kinds import KINDS
from bench.backbones.untrusted import ATTENTION
from bench.export.form import Form, Origin, copies, load_state
from bench.export.preprocessing import PROCESSOR_FILE, differences, processor
from bench.export.targets import REASONS, target_of
from bench.inputs import ImageInput, ModelInput

#: The poolings of kinds that know segments of a text.
SEGMENTED = (pooling.mean_of_tokens, pooling.first_token, pooling.first_token_as_masked)


class TransformersForm(Form):
    """A model of transformers: its classifier with our head in it, its encoder with the head beside it, or a
    language model without any.
    """

    def __init__(
        self, backbone: LoadedBackbone, origin: Origin, classes: Sequence[str], wanted: ModelInput
    ) -> None:
        super().__init__(backbone, origin, classes, wanted)
        self.kind, self.target = KINDS[backbone.info.kind], target_of(backbone)
        self.answers = backbone.module.answers
        self.prefix = f"{self.encoder.base_model_prefix}." if self.target.whole else ""
        self.transposed = bool(self.kind.transposed)

    @property
    def _beside(self) -> bool:
        """Whether the head is beside the model."""
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
        prompt = getattr(self.wanted, "prompt", None)
        asked = json.dumps(prompt.template, ensure_ascii=False) if prompt else ""
        return super().input() + (f", of the prompt {asked}" if asked else "")

    def judged(self, outputs: Tensor) -> Tensor:
        return outputs[:, 1:2] if isinstance(self.answers, Writer) else outputs

    def notes(self, merged: bool) -> list[str]:
        notes = super().notes(merged)
        if self._beside:
            notes.append(f"{REASONS[self.kind.pool]} So it is in `head.safetensors`, beside the model.")
        if not merged:
            notes.append(self._loader())
        elif isinstance(self.wanted, ImageInput) and not self._beside:
            notes.append('`transformers.pipeline("image-classification", model=FOLDER)` takes images.')
        if merged and isinstance(self.wanted, ImageInput):
            notes += differences(self.wanted, "transformers")
        return notes

    def _loader(self) -> str:
        options = self._attention if self.origin.reference is None else self._options
        arguments = ["FOLDER", *(f"{name}={value!r}" for name, value in options.items())]
        # An original that is brought along is in single already.
        arguments += [] if self.origin.reference is None else ["dtype=torch.float32"]
        where = "" if self.origin.told == self.origin.reference else ", run in this folder"
        return f"`peft.{self.target.loader}.from_pretrained({', '.join(arguments)})` loads it too{where}."

    @property
    def _options(self) -> dict[str, Any]:
        """The arguments beside an original, which may end in a head for other classes, as many as ours."""
        labels = {"num_labels": len(self.classes), "ignore_mismatched_sizes": True}
        return {**(labels if self.target.head else {}), **self._attention}

    @property
    def _attention(self) -> dict[str, str]:
        """Where the kind has another attention than transformers would take."""
        kind = self.kind.attention
        return {} if kind == ATTENTION else {"attn_implementation": kind}

    def heads(self) -> dict[str, dict[str, Tensor]]:
        head = self.backbone.head
        heads = {
            path: copies(head.get_submodule(part).state_dict()) for part, path in self.target.head.items()
        }
        if self.target.doubled:
            for state in heads.values():
                # transformers' classifier also reads the mean of the patches; ours does not.
                state["weight"] = torch.cat((state["weight"], torch.zeros_like(state["weight"])), dim=1)
        return heads

    def loose_head(self) -> dict[str, Tensor]:
        return copies(self.backbone.head.state_dict()) if self._beside else {}

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        turned = {
            f"{path.format(layer=layer)}.weight"
            for path in self.kind.transposed
            for layer in range(self.backbone.geometry.layers)
        }
        return {
            name: tensor.T.contiguous() if name in turned else tensor
            for name, tensor in super().whole(state).items()
        }

    def write_original(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        import transformers

        if self.answers is not None:
            model = self._filled(state)
        else:
            model_class = getattr(transformers, self.kind.model_class)
            with torch.random.fork_rng(devices=[]):
                model = model_class(copy.deepcopy(self.encoder.config), **self.kind.arguments)
            load_state(model, self.whole(state))
        with quiet():
            model.save_pretrained(folder)
            self._config().save_pretrained(folder)

    def write_merged(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        model = self._filled(state)
        for path, head in self.heads().items():
            load_state(model.get_submodule(path), head)
        with quiet():
            model.save_pretrained(folder)
        if isinstance(self.wanted, ImageInput):
            text = json.dumps(processor(self.wanted), indent=1)
            (folder / PROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")

    def _filled(self, state: Mapping[str, Tensor]) -> Any:
        """The original model's class with the encoder's tensors, and with a language model's output layer."""
        model: Any = self.bare()
        load_state(model.get_submodule(self.prefix.removesuffix(".")), self.whole(state))
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
            # DINOv2 resizes its position embeddings unasked.
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
        """The arguments of a batch that the model is given."""
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
        """The encoder's, as the class wants it, with our classes where it has them."""
        import transformers

        config = copy.deepcopy(self.encoder.config)
        wanted: Any = getattr(transformers, self.target.class_name).config_class
        if not isinstance(config, wanted):
            config = wanted(**{**config.to_dict(), "model_type": wanted.model_type})
        if self.answers is None:
            config.id2label = dict(enumerate(self.classes))
            config.label2id = {name: index for index, name in enumerate(self.classes)}
        return config
