"""Backbones with random weights, for counting, timing and tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tensorbench.backbones.backbone import (
    BackboneInfo,
    BackboneKind,
    LoadedBackbone,
    pixel_size,
    refuse_image_size,
)
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.backbones.kinds import HALF, KINDS, TIMM
from tensorbench.backbones.shapes import with_encoder
from tensorbench.methods.backbone import Geometry

SEED = 0

#: The hash of `byte_tokenizer` in plans. It must be changed whenever the tokenizer's tokens change.
BYTE_TOKENIZER = "byte-tokenizer-260-v1"

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")

#: The kinds whose parameters `with_encoder` counts, so that a plan needs no transformers.
_COUNTED = ("vit", "dinov2", "bert", "roberta", TIMM)


def byte_tokenizer(max_tokens: int) -> Any:
    """Makes a tokenizer that needs no download. A text becomes its UTF-8 bytes between `<s>` and `</s>`."""
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
    """A backbone of any kind and geometry with random weights, which are the same at every load.

    Vision kinds use `image_size` and `patch`, both in pixels. Text kinds use `vocabulary` and `max_tokens`.
    """

    name: str
    kind: BackboneKind
    geometry: Geometry
    image_size: int = 224
    patch: int = 16
    vocabulary: int = 260
    max_tokens: int = 512

    def describe(self, image_size: int | None) -> BackboneInfo:
        """Describes the backbone (see `BackboneEntry`)."""
        model_input: ModelInput
        if self._reads_images:
            size = pixel_size(self.name, self.image_size, image_size, self.patch)
            model_input = ImageInput(size, HALF, HALF)
            counted = {"patches": (size // self.patch) ** 2, "patch": self.patch}
            rest = f"image={self.image_size}, patch={self.patch}"
        else:
            refuse_image_size(self.name, image_size)
            tokenizer, decodes = partial(byte_tokenizer, self.max_tokens), KINDS[self.kind].decodes
            model_input = TextInput(BYTE_TOKENIZER, self.max_tokens, tokenizer, decodes=decodes)
            counted = {"vocabulary": self.vocabulary, "positions": self._positions}
            rest = f"vocabulary={self.vocabulary}, tokens={self.max_tokens}"
        geometry, projections = self.geometry, self.geometry.projections
        if geometry.encoder is None and self.kind in _COUNTED:
            geometry = with_encoder(geometry, **counted, layer_scale=self.kind == "dinov2")
        elif geometry.encoder is None:
            from tensorbench.backbones.huggingface import parameters

            config, shape = self._config(), KINDS[self.kind].shape
            geometry = shape.geometry(config, parameters(config, model_input))
            projections = shape.projections(config)
        return BackboneInfo(
            name=self.name,
            kind=self.kind,
            geometry=geometry,
            projections=projections,
            input=model_input,
            weights_hash=f"random:{self.kind}:{self.geometry}, {rest}, seed={SEED}",
            description=f"random weights in the shape of a {self.kind} ({self.geometry}), no training",
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        """Makes the backbone (see `BackboneEntry`). Does not change the global random state."""
        info = self.describe(image_size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            if self.kind == TIMM:
                from tensorbench.backbones.timm_vit import plain_vit

                return plain_vit(info, self.image_size, self.patch)
            from tensorbench.backbones.huggingface import as_backbone

            return as_backbone(info, self._class()(self._config(), **KINDS[self.kind].arguments))

    def _class(self) -> Any:
        import transformers

        return getattr(transformers, KINDS[self.kind].model_class)

    def _config(self) -> Any:
        kind = KINDS[self.kind]
        shape = {**kind.shape.settings(self.geometry), **kind.usual}
        if self._reads_images:
            shape |= {"image_size": self.image_size, "patch_size": self.patch}
        else:
            shape |= {
                "vocab_size": self.vocabulary,
                "max_position_embeddings": self._positions,
                "pad_token_id": _SPECIALS.index("<pad>"),
            }
        return self._class().config_class(attn_implementation=kind.attention, **shape)

    @property
    def _reads_images(self) -> bool:
        return self.kind == TIMM or KINDS[self.kind].reads == "images"

    @property
    def _positions(self) -> int:
        return self.max_tokens + (2 if KINDS[self.kind].positions_after_padding else 0)
