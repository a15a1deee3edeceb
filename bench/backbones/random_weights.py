"""Backbones with random weights: for counting, speed and tests. No download, and no results worth telling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.backbones.base import BackboneInfo, BackboneKind, LoadedBackbone, pixel_size, refuse_image_size
from bench.backbones.counting import with_encoder
from bench.backbones.families import FAMILIES, HALF
from bench.inputs import ImageInput, ModelInput, TextInput
from methods.backbone import PROJECTIONS, Geometry

SEED = 0

#: The name by which plans know what `byte_tokenizer` does. It changes whenever that does.
BYTE_TOKENIZER = "byte-tokenizer-260-v1"

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_VISION: tuple[BackboneKind, ...] = ("vit", "dinov2", "timm")


def byte_tokenizer(max_tokens: int) -> Any:
    """A tokenizer that needs no download: one token a UTF-8 byte between `<s>` and `</s>`, padding id 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_tokens,
    )


@dataclass(frozen=True)
class RandomBackbone:
    """A model of some kind and shape with random weights, the same at every load.

    Vision has `image_size` and `patch` in pixels, text `vocabulary` and `max_tokens`.
    """

    name: str
    kind: BackboneKind
    geometry: Geometry
    image_size: int = 224
    patch: int = 16
    vocabulary: int = 260
    max_tokens: int = 512

    def describe(self, image_size: int | None) -> BackboneInfo:
        """See `BackboneEntry`."""
        return BackboneInfo(
            name=self.name,
            kind=self.kind,
            geometry=self._counted(image_size),
            projections=PROJECTIONS,
            input=self._input(image_size),
            weights_hash=f"random:{self.kind}:{self.geometry}, {self._rest()}, seed={SEED}",
            description=f"random weights in the shape of a {self.kind} ({self.geometry}), no training",
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """See `BackboneEntry`. The global random state is left as it was."""
        info = self.describe(image_size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            return self._timm(info) if self.kind == "timm" else self._transformers(info)

    def _transformers(self, info: BackboneInfo) -> LoadedBackbone:
        import transformers

        from bench.backbones.huggingface import as_backbone

        geometry, family = self.geometry, FAMILIES[self.kind]
        shape: dict[str, Any] = {
            "hidden_size": geometry.hidden,
            "num_attention_heads": geometry.heads,
            "num_hidden_layers": geometry.layers,
            "intermediate_size": geometry.mlp,
        }
        if self.kind == "dinov2":
            shape |= {"mlp_ratio": geometry.mlp // geometry.hidden, "use_mask_token": False}
            del shape["intermediate_size"]
        if self.kind in _VISION:
            shape |= {"image_size": self.image_size, "patch_size": self.patch}
        else:
            positions = self.max_tokens + (2 if self.kind == "roberta" else 0)
            shape |= {
                "vocab_size": self.vocabulary,
                "max_position_embeddings": positions,
                "pad_token_id": _SPECIALS.index("<pad>"),
            }
        model_class = getattr(transformers, family.model_class)
        config = model_class.config_class(attn_implementation="sdpa", **shape)
        return as_backbone(info, model_class(config, **family.arguments))

    def _timm(self, info: BackboneInfo) -> LoadedBackbone:
        from bench.backbones.timm_vit import plain_vit

        return plain_vit(info, self.image_size, self.patch)

    def _input(self, image_size: int | None) -> ModelInput:
        if self.kind in _VISION:
            return ImageInput(pixel_size(self.name, self.image_size, image_size, self.patch), HALF, HALF)
        refuse_image_size(self.name, image_size)
        return TextInput(BYTE_TOKENIZER, self.max_tokens, partial(byte_tokenizer, self.max_tokens))

    def _counted(self, image_size: int | None) -> Geometry:
        wanted = self._input(image_size)
        if isinstance(wanted, ImageInput):
            return with_encoder(
                self.geometry,
                patches=(wanted.size // self.patch) ** 2,
                patch=self.patch,
                layer_scale=self.kind == "dinov2",
            )
        positions = self.max_tokens + (2 if self.kind == "roberta" else 0)
        return with_encoder(self.geometry, vocabulary=self.vocabulary, positions=positions)

    def _rest(self) -> str:
        if self.kind in _VISION:
            return f"image={self.image_size}, patch={self.patch}"
        return f"vocabulary={self.vocabulary}, tokens={self.max_tokens}"
