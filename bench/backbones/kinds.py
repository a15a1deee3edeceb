"""The kinds of backbones: a row for each model type of transformers, and timm's vision transformers.

docs/guides/own-backbone.md says how to add one. Paths are the same in every version of transformers that
pyproject.toml admits, unless a row says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any

from torch import Tensor

from bench.backbones import pooling, resizing
from bench.backbones.fused import QKV
from bench.backbones.resizing import Resize
from bench.backbones.shapes import AlwaysGated, DecoderShape, DinoShape, GPT2Shape, Shape
from bench.backbones.untrusted import ATTENTION
from methods.backbone import GATED_PROJECTIONS, PROJECTIONS

#: What pixels are normalised by: mean and standard deviation of each channel.
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
CLIP: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

#: A weight that is learned for masked images only, and that no forward of ours reads.
MAY_MISS = ("mask_token",)

#: What checkpoints of transformers' task models hold beside the encoder: their heads and old buffers.
MAY_EXCEED = (
    *("pooler", "classifier", "cls_classifier", "distillation_classifier", "pre_classifier", "cls"),
    *("lm_head", "qa_outputs", "decoder", "mask_token", "position_ids"),
)

#: What checkpoints call the layer that turns a language model's states to logits of tokens.
UNEMBEDDINGS = {"lm_head.weight", "embed_out.weight"}

#: Where most configurations say the sizes.
SHAPE = Shape()

#: Paths of the projections, with `{layer}` in them.
Layout = Mapping[str, str]


def _layout(layer: str, *paths: str) -> Layout:
    """The paths below a layer, in the order of PROJECTIONS, or of GATED_PROJECTIONS where there are seven."""
    names = GATED_PROJECTIONS if len(paths) == len(GATED_PROJECTIONS) else PROJECTIONS
    return {projection: f"{layer}.{{layer}}.{path}" for projection, path in zip(names, paths, strict=True)}


_ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
_OF_VIT = _layout("layers", *_ATTENTION, "mlp.fc1", "mlp.fc2")
_OF_DINO = _layout("encoder.layer", *_ATTENTION, "mlp.fc1", "mlp.fc2")
_OF_TOWER = _layout(
    "encoder.layers",
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("mlp.fc1", "mlp.fc2"),
)
_OF_BERT = _layout(
    "encoder.layer",
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)

_OF_DECODER = _layout(
    "layers",
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)

#: The layouts in which transformers 4 builds ViT and DINOv2, for who wraps a model of theirs.
_OLD = (
    *("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attention.output.dense",
)


def _first_line(documented: Any) -> str:
    return (getdoc(documented) or "").partition("\n")[0]


@dataclass(frozen=True)
class Kind:
    """How transformers lays out one model type, and what is made of it here."""

    #: transformers' class of the bare encoder, and what it takes beside a configuration.
    model_class: str
    #: Paths of the projections. The first one that fits is taken.
    layouts: tuple[Layout, ...]
    pool: Callable[..., Tensor]
    make_head: Callable[[Any], pooling.MakeHead] = pooling.linear_head
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: What pixels are normalised by where the checkpoint does not say; None: the kind reads texts.
    normalisation: Normalisation | None = None
    #: Where its configuration says the sizes.
    shape: Shape = SHAPE
    #: Paths of layers that compute several projections in one, and the names of their parts below that path.
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Whether the channels of such a layer are query, key and value of one head after the other.
    fused_by_head: bool = False
    #: Paths, with `{layer}` in them, of layers whose weight is (in, out). They become Linear.
    transposed: tuple[str, ...] = ()
    #: How position embeddings come to another image size; None: the forward itself takes any.
    resize: Resize | None = None
    #: The model types that hold this one beside others, and the field of their configuration with its own.
    within: Mapping[str, str] = field(default_factory=dict)
    #: What a checkpoint may hold beside the encoder, more than `MAY_EXCEED`.
    may_exceed: tuple[str, ...] = ()
    attention: str = ATTENTION
    #: Whether positions are numbered from the padding token's id + 1.
    positions_after_padding: bool = False
    #: Fields of the configuration that have to have this value, else features are not what `pool` says.
    needs: Mapping[str, Any] = field(default_factory=dict)
    #: Fields of the configuration that are set after loading.
    sets: Mapping[str, Any] = field(default_factory=dict)
    #: What published checkpoints set otherwise than transformers does by itself: for random ones.
    usual: Mapping[str, Any] = field(default_factory=dict)
    #: What a user has to know.
    remark: str = ""

    @property
    def reads(self) -> str:
        return "texts" if self.normalisation is None else "images"

    @property
    def decodes(self) -> bool:
        """Whether it is a language model that reads texts from left to right."""
        return self.pool is pooling.last_token

    @property
    def pools(self) -> str:
        """In words, what the head reads."""
        return _first_line(self.pool)

    @property
    def head(self) -> str:
        """In words, the layers of the head."""
        return _first_line(self.make_head)


def _decoder(model_class: str, **more: Any) -> Kind:
    """A decoder laid out as Llama is."""
    return Kind(
        model_class,
        (_OF_DECODER,),
        pooling.last_token,
        shape=DecoderShape(),
        may_exceed=("score",),
        usual={"tie_word_embeddings": True},
        **more,
    )


KINDS: dict[str, Kind] = {
    "bert": Kind(
        "BertModel",
        (_OF_BERT,),
        pooling.mean_of_tokens,
        arguments={"add_pooling_layer": False},
    ),
    "roberta": Kind(
        "RobertaModel",
        (_OF_BERT,),
        pooling.first_token,
        pooling.roberta_head,
        arguments={"add_pooling_layer": False},
        positions_after_padding=True,
    ),
    "xlm-roberta": Kind(
        "XLMRobertaModel",
        (_OF_BERT,),
        pooling.first_token,
        pooling.roberta_head,
        arguments={"add_pooling_layer": False},
        positions_after_padding=True,
    ),
    "distilbert": Kind(
        "DistilBertModel",
        (
            _layout(
                "transformer.layer",
                *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
                *("ffn.lin1", "ffn.lin2"),
            ),
        ),
        pooling.first_token_of_one_segment,
        pooling.distilbert_head,
        shape=Shape(hidden="dim", heads="n_heads", layers="n_layers", mlp="hidden_dim"),
        may_exceed=("vocab_projector", "vocab_transform", "vocab_layer_norm"),
    ),
    "electra": Kind(
        "ElectraModel",
        (_OF_BERT,),
        pooling.first_token,
        pooling.electra_head,
        may_exceed=("discriminator_predictions", "generator_predictions", "generator_lm_head"),
    ),
    "modernbert": Kind(
        "ModernBertModel",
        (
            _layout(
                "layers",
                *("attn.Wqkv.query", "attn.Wqkv.key", "attn.Wqkv.value", "attn.Wo"),
                *("mlp.Wi.gate", "mlp.Wi.fc1", "mlp.Wo"),
            ),
        ),
        pooling.mean_of_windows,
        shape=AlwaysGated(),
        fused={"layers.{layer}.attn.Wqkv": QKV, "layers.{layer}.mlp.Wi": ("gate", "fc1")},
        # Its own special tokens lie beyond a small vocabulary.
        usual={"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2},
        may_exceed=("head",),
        remark="`Wi` is the gate, whose activation is taken, and fc1; its own head has a learned norm, which "
        "fresh heads have not; transformers turns query and key by their positions in float32, so that "
        "gradients in float64 agree with finite differences no better than in float32",
    ),
    "deberta-v2": Kind(
        "DebertaV2Model",
        (
            _layout(
                "encoder.layer",
                *(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
                *("attention.output.dense", "intermediate.dense", "output.dense"),
            ),
        ),
        pooling.first_token_as_masked,
        pooling.deberta_head,
        may_exceed=("lm_predictions", "mask_predictions"),
        attention="eager",
        usual={
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        remark="v2 and v3; where `share_att_key` is set, query and key project the relative positions too, "
        "so that an update of them moves both; transformers has no fused attention for it",
    ),
    "llama": _decoder(
        "LlamaModel",
        remark="SmolLM and TinyLlama too; as in the kinds down to `gemma3_text`, the norms compute in "
        "float32, so that gradients in float64 agree with finite differences no better than in float32",
    ),
    "mistral": _decoder("MistralModel"),
    "qwen2": _decoder("Qwen2Model", remark="Qwen2.5 too"),
    "qwen3": _decoder("Qwen3Model"),
    "gemma2": _decoder(
        "Gemma2Model",
        attention="eager",
        remark="attention scores are capped, for which transformers has no fused attention",
    ),
    "gemma3_text": _decoder("Gemma3TextModel", remark="the models of texts alone"),
    "gpt2": Kind(
        "GPT2Model",
        (
            _layout(
                "h",
                *("attn.c_attn.query", "attn.c_attn.key", "attn.c_attn.value", "attn.c_proj"),
                *("mlp.c_fc", "mlp.c_proj"),
            ),
        ),
        pooling.last_token,
        shape=GPT2Shape(),
        fused={"h.{layer}.attn.c_attn": QKV},
        transposed=tuple(
            f"h.{{layer}}.{path}" for path in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
        usual={"bos_token_id": 0, "eos_token_id": 2},
        # The number that was put where attention is masked, which transformers stored up to its version 4.24.
        may_exceed=("score", "masked_bias"),
    ),
    "gpt_neox": Kind(
        "GPTNeoXModel",
        (
            _layout(
                "layers",
                *(f"attention.query_key_value.{name}" for name in ("query", "key", "value")),
                *("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            ),
        ),
        pooling.last_token,
        fused={"layers.{layer}.attention.query_key_value": QKV},
        fused_by_head=True,
        usual={"tie_word_embeddings": True},
        may_exceed=("embed_out", "score"),
        remark="Pythia",
    ),
    "vit": Kind(
        "ViTModel",
        (_OF_VIT, _layout("encoder.layer", *_OLD, "intermediate.dense", "output.dense")),
        pooling.class_token,
        arguments={"add_pooling_layer": False},
        normalisation=(HALF, HALF),
        resize=resizing.parameters,
    ),
    "deit": Kind(
        "DeiTModel",
        (_OF_VIT,),
        pooling.class_token,
        arguments={"add_pooling_layer": False},
        normalisation=IMAGENET,
        resize=resizing.parameters,
        remark="the distillation token takes part and is not read; a DeiT trained without one is a `vit`",
    ),
    "dinov2": Kind(
        "Dinov2Model",
        (_OF_DINO, _layout("encoder.layer", *_OLD, "mlp.fc1", "mlp.fc2")),
        pooling.class_token,
        normalisation=IMAGENET,
        shape=DinoShape(),
        resize=resizing.parameters,
        usual={"use_mask_token": False},
        remark="where the MLP is gated (giant), adapters see the attention only",
    ),
    "dinov2_with_registers": Kind(
        "Dinov2WithRegistersModel",
        (_OF_DINO,),
        pooling.class_token,
        normalisation=IMAGENET,
        shape=DinoShape(),
        resize=resizing.parameters,
        remark="where the MLP is gated (giant), adapters see the attention only",
    ),
    "dinov3_vit": Kind(
        "DINOv3ViTModel",
        (_layout("model.layer", *_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),),
        pooling.class_token,
        normalisation=IMAGENET,
        shape=Shape(gated="use_gated_mlp"),
        usual={"num_register_tokens": 4},
        remark="rotary positions, rescaled at random in training where its configuration says so; the MLP is "
        "gated where its configuration says so (huge, 7B)",
    ),
    "beit": Kind(
        "BeitModel",
        (_OF_VIT,),
        pooling.mean_of_patches,
        normalisation=(HALF, HALF),
        needs={"use_mean_pooling": True},
        usual={"use_relative_position_bias": True},
        may_exceed=("relative_position_index",),
        remark="each layer's contribution is scaled, at the start by 0.1, so that a small update moves the "
        "outputs by less than bf16 rounds those of the bare model: its check of bf16 says little here",
    ),
    "vit_mae": Kind(
        "ViTMAEModel",
        (_OF_VIT,),
        pooling.class_token_unmasked,
        normalisation=IMAGENET,
        resize=resizing.parameters,
        sets={"mask_ratio": 0.0},
        remark="as an encoder of whole images: its decoder is left out",
    ),
    "clip_vision_model": Kind(
        "CLIPVisionModel",
        (_OF_TOWER,),
        pooling.normed_class_token,
        normalisation=CLIP,
        resize=resizing.table,
        within={"clip": "vision_config"},
        may_exceed=("text_model", "text_projection", "visual_projection", "logit_scale"),
        remark="the vision tower, alone or out of a whole CLIP",
    ),
    "siglip_vision_model": Kind(
        "SiglipVisionModel",
        (_OF_TOWER,),
        pooling.pooled_by_attention,
        normalisation=(HALF, HALF),
        resize=resizing.table,
        needs={"vision_use_head": True},
        within={"siglip": "vision_config"},
        may_exceed=("text_model", "logit_scale", "logit_bias"),
        remark="the vision tower, alone or out of a whole SigLIP; SigLIP 2 too where image sizes are fixed",
    ),
}

#: Vision transformers by timm, which `bench.backbones.timm_vit` takes as timm builds them.
TIMM = "timm"

#: Every name that a description may give as its kind.
NAMES = (*KINDS, TIMM)

#: The model types of configurations that are taken, to the kind that is taken out of each.
MODEL_TYPES = {name: name for name in KINDS} | {
    whole: name for name, kind in KINDS.items() for whole in kind.within
}
