"""The kinds of backbones: one for each supported model type of transformers, and `timm` for timm's models.

docs/guides/own-backbone.md describes how to add a kind. Paths of layers are the same in every version of
transformers that pyproject.toml admits, unless a kind says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.backbones import pooling
from tensorbench.backbones.fused import QKV
from tensorbench.backbones.shapes import DECODER, DinoShape, GPT2Shape, Shape, T5Shape
from tensorbench.backbones.untrusted import ATTENTION
from tensorbench.methods.backbone import GATED_PROJECTIONS, PROJECTIONS

#: Mean and standard deviation per channel of pixels.
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
CLIP: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

#: Weights that a checkpoint may lack, because only training on masked images uses them.
MAY_MISS = ("mask_token",)

#: Weights that a checkpoint may have besides the encoder's: heads and old buffers of transformers' task
#: models. Each name is one component of a dotted key.
MAY_EXCEED = (
    *("pooler", "classifier", "cls_classifier", "distillation_classifier", "pre_classifier", "cls"),
    *("lm_head", "qa_outputs", "decoder", "mask_token", "position_ids"),
)

#: The names that a language model's output layer may have in a checkpoint.
UNEMBEDDINGS = {"lm_head.weight", "embed_out.weight"}

#: The names that most configurations give to the fields of a geometry.
SHAPE = Shape()

#: The dotted path of each projection in an encoder, with `{layer}` for the layer's index.
Layout = Mapping[str, str]


def _layout(layer: str, *paths: str) -> Layout:
    """Maps projections to paths below `layer`.

    Six paths are in the order of PROJECTIONS, seven in the order of GATED_PROJECTIONS.
    """
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

_T5_BLOCK = "encoder.block"
_T5_ATTENTION = tuple(f"layer.0.SelfAttention.{name}" for name in "qkvo")
_OF_T5 = _layout(_T5_BLOCK, *_T5_ATTENTION, *(f"layer.1.DenseReluDense.{name}" for name in ("wi", "wo")))
_OF_GATED_T5 = _layout(
    _T5_BLOCK, *_T5_ATTENTION, *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo"))
)


#: A function of an encoder and an image side in pixels. It resizes the position embeddings in place.
Resize = Callable[[Any, int], None]


def resized_parameter(encoder: Any, size: int) -> None:
    """Resizes position embeddings that are a parameter, by the model's own interpolation."""
    embeddings = encoder.embeddings
    special = embeddings.position_embeddings.shape[1] - embeddings.patch_embeddings.num_patches
    resized = _interpolated(encoder, size, special)
    embeddings.position_embeddings = nn.Parameter(resized)
    embeddings.image_size = embeddings.patch_embeddings.image_size = (size, size)
    embeddings.patch_embeddings.num_patches = resized.shape[1] - special


def resized_table(encoder: Any, size: int) -> None:
    """Resizes position embeddings that are an `nn.Embedding`, by the model's own interpolation."""
    embeddings = encoder.embeddings
    special = embeddings.num_positions - embeddings.num_patches
    resized = _interpolated(encoder, size, special)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(resized)
    embeddings.position_ids = torch.arange(len(resized)).expand((1, -1))
    embeddings.num_positions, embeddings.num_patches = len(resized), len(resized) - special
    embeddings.image_size = size


def _interpolated(encoder: Any, size: int, special: int) -> torch.Tensor:
    """Returns position embeddings (1, positions, hidden), interpolated to images with sides of `size` pixels.

    `special` is the number of positions that are not patches.
    """
    patches = (size // encoder.config.patch_size) ** 2
    tokens = torch.empty(1, patches + special, encoder.config.hidden_size)
    with torch.no_grad():
        resized: torch.Tensor = encoder.embeddings.interpolate_pos_encoding(tokens, size, size)
    return resized.clone()


def _first_line(documented: Any) -> str:
    return (getdoc(documented) or "").partition("\n")[0]


@dataclass(frozen=True)
class TransformersClassifier:
    """A classifier of transformers that computes the same logits as the kind's encoder, pooling and head."""

    class_name: str
    #: Maps each module of the kind's head to its path in the classifier. The key "" is the whole head.
    head: Mapping[str, str] = field(default_factory=lambda: {"": "classifier"})
    #: Whether the classifier's last layer also reads the mean of the patches, unlike the kind's head.
    reads_patches: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of backbone: a model type of transformers, with its layout, its pooling and its head."""

    #: The class of the bare encoder in transformers.
    model_class: str
    #: Candidate paths of the projections. The first one that fits is used.
    layouts: tuple[Layout, ...]
    pool: Callable[..., Tensor]
    make_head: Callable[[Any], pooling.MakeHead] = pooling.linear_head
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: The normalisation of pixels for checkpoints that state no normalisation. None if the kind reads texts.
    normalisation: Normalisation | None = None
    #: The names of the configuration's fields for the sizes of the model.
    shape: Shape = SHAPE
    #: The path of each fused layer, with the names of the layers into which it is split.
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Whether a fused layer's outputs are ordered by head: query, key and value of each head in turn.
    fused_by_head: bool = False
    #: Paths of layers with weight (in, out), which are converted to Linear.
    transposed: tuple[str, ...] = ()
    #: The function that resizes position embeddings. None: the forward pass accepts any image size.
    resize: Resize | None = None
    #: Composite model types that contain an encoder of this kind, such as `clip`. Each is mapped to the field
    #: of its configuration that holds the encoder's configuration.
    within: Mapping[str, str] = field(default_factory=dict)
    #: Weights outside the encoder that a checkpoint may have, beyond `MAY_EXCEED`.
    may_exceed: tuple[str, ...] = ()
    attention: str = ATTENTION
    #: The number of tokens of the longest pretraining texts. None if the configuration gives a limit.
    trained_tokens: int | None = None
    #: Whether positions are numbered from the padding token's id + 1.
    positions_after_padding: bool = False
    #: The values that fields of the configuration must have, because pooling relies on them.
    needs: Mapping[str, Any] = field(default_factory=dict)
    #: Fields of the loaded encoder's configuration that are overwritten, with their new values.
    sets: Mapping[str, Any] = field(default_factory=dict)
    #: Values for the configuration of a backbone with random weights, where transformers' defaults do not
    #: suit. Most are those of published checkpoints.
    usual: Mapping[str, Any] = field(default_factory=dict)
    #: The transformers class to which an encoder is exported together with its head. None if transformers has
    #: no class with this pooling and head: the encoder is then exported alone, with the head in a file beside
    #: it.
    classifier: TransformersClassifier | None = None
    #: A remark for the table of kinds.
    remark: str = ""

    @property
    def reads(self) -> str:
        return "texts" if self.normalisation is None else "images"

    @property
    def decodes(self) -> bool:
        """Whether the kind is a decoder, a language model that reads texts from left to right."""
        return self.pool is pooling.last_token

    @property
    def pools(self) -> str:
        """The features that the head reads, in words."""
        return _first_line(self.pool)

    @property
    def head(self) -> str:
        """The layers of the head, in words."""
        return _first_line(self.make_head)


def _decoder(
    model_class: str, layout: Layout = _OF_DECODER, usual: Mapping[str, Any] | None = None, **more: Any
) -> Kind:
    return Kind(
        model_class,
        (layout,),
        pooling.last_token,
        shape=DECODER,
        may_exceed=("score",),
        usual={"tie_word_embeddings": True, **(usual or {})},
        **more,
    )


def _t5(model_class: str, trained_tokens: int, remark: str) -> Kind:
    return Kind(
        model_class,
        (_OF_GATED_T5, _OF_T5),
        pooling.of_one_segment(pooling.mean_of_tokens),
        shape=T5Shape(),
        trained_tokens=trained_tokens,
        remark=remark,
    )


KINDS: dict[str, Kind] = {
    "bert": Kind("BertModel", (_OF_BERT,), pooling.mean_of_tokens, arguments={"add_pooling_layer": False}),
    "roberta": Kind(
        "RobertaModel",
        (_OF_BERT,),
        pooling.first_token,
        pooling.roberta_head,
        arguments={"add_pooling_layer": False},
        positions_after_padding=True,
        classifier=TransformersClassifier("RobertaForSequenceClassification"),
    ),
    "xlm-roberta": Kind(
        "XLMRobertaModel",
        (_OF_BERT,),
        pooling.first_token,
        pooling.roberta_head,
        arguments={"add_pooling_layer": False},
        positions_after_padding=True,
        classifier=TransformersClassifier("XLMRobertaForSequenceClassification"),
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
        pooling.of_one_segment(pooling.first_token),
        pooling.distilbert_head,
        shape=Shape(hidden="dim", heads="n_heads", layers="n_layers", mlp="hidden_dim"),
        may_exceed=("vocab_projector", "vocab_transform", "vocab_layer_norm"),
        classifier=TransformersClassifier(
            "DistilBertForSequenceClassification", {"dense": "pre_classifier", "out_proj": "classifier"}
        ),
    ),
    "electra": Kind(
        "ElectraModel",
        (_OF_BERT,),
        pooling.first_token,
        pooling.electra_head,
        may_exceed=("discriminator_predictions", "generator_predictions", "generator_lm_head"),
        classifier=TransformersClassifier("ElectraForSequenceClassification"),
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
        shape=Shape(gated=True),
        fused={"layers.{layer}.attn.Wqkv": QKV, "layers.{layer}.mlp.Wi": ("gate", "fc1")},
        # The default special tokens lie beyond a small vocabulary.
        usual={"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2},
        may_exceed=("head",),
        remark="`Wi` is the gate, whose activation is taken, and fc1; its own head has a learned norm, fresh "
        "heads have none; rotary positions are in float32, so float64 gradients are no more exact",
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
        remark="v2 and v3; with `share_att_key` an update of query and key also moves the relative "
        "positions; no fused attention in transformers",
        classifier=TransformersClassifier(
            "DebertaV2ForSequenceClassification", {"dense": "pooler.dense", "out_proj": "classifier"}
        ),
    ),
    "t5": _t5(
        "T5EncoderModel",
        512,
        "the encoder, alone or out of a whole T5, T5 1.1, FLAN-T5 or ByT5: its decoder is left out; the gate "
        "is `wi_0`, where there is one; positions are relative, and texts have at most the 512 tokens of "
        "its training; as in `llama`, the norms compute in float32",
    ),
    "mt5": _t5("MT5EncoderModel", 1024, "as `t5`, with at most 1,024 tokens"),
    "llama": _decoder(
        "LlamaModel",
        remark="SmolLM and TinyLlama too; as in the kinds down to `gemma3_text`, norms are in float32, so "
        "float64 gradients are no more exact",
    ),
    "mistral": _decoder("MistralModel"),
    "qwen2": _decoder("Qwen2Model", remark="Qwen2.5 too"),
    "qwen3": _decoder("Qwen3Model"),
    "gemma": _decoder("GemmaModel"),
    "gemma2": _decoder(
        "Gemma2Model",
        attention="eager",
        remark="attention scores are capped: no fused attention in transformers",
    ),
    "gemma3_text": _decoder("Gemma3TextModel", remark="text-only models"),
    "phi3": _decoder(
        "Phi3Model",
        _layout(
            "layers",
            *(f"self_attn.qkv_proj.{name}" for name in QKV),
            *("self_attn.o_proj", "mlp.gate_up_proj.gate", "mlp.gate_up_proj.fc1", "mlp.down_proj"),
        ),
        fused={"layers.{layer}.self_attn.qkv_proj": QKV, "layers.{layer}.mlp.gate_up_proj": ("gate", "fc1")},
        usual={"bos_token_id": 0, "eos_token_id": 2},
        remark="Phi-3.5 and Phi-4 too",
    ),
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
        # The value for masked positions, which transformers stored up to version 4.24.
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
        (_OF_VIT,),
        pooling.class_token,
        arguments={"add_pooling_layer": False},
        normalisation=(HALF, HALF),
        resize=resized_parameter,
        classifier=TransformersClassifier("ViTForImageClassification"),
    ),
    "deit": Kind(
        "DeiTModel",
        (_OF_VIT,),
        pooling.class_token,
        arguments={"add_pooling_layer": False},
        normalisation=IMAGENET,
        resize=resized_parameter,
        remark="the distillation token is not read; a DeiT trained without one is a `vit`",
        classifier=TransformersClassifier("DeiTForImageClassification"),
    ),
    "dinov2": Kind(
        "Dinov2Model",
        (_OF_DINO,),
        pooling.class_token,
        normalisation=IMAGENET,
        shape=DinoShape(),
        resize=resized_parameter,
        usual={"use_mask_token": False},
        remark="where the MLP is gated (giant), adapters see the attention only",
        classifier=TransformersClassifier("Dinov2ForImageClassification", reads_patches=True),
    ),
    "dinov2_with_registers": Kind(
        "Dinov2WithRegistersModel",
        (_OF_DINO,),
        pooling.class_token,
        normalisation=IMAGENET,
        shape=DinoShape(),
        resize=resized_parameter,
        remark="where the MLP is gated (giant), adapters see the attention only",
        classifier=TransformersClassifier("Dinov2WithRegistersForImageClassification", reads_patches=True),
    ),
    "dinov3_vit": Kind(
        "DINOv3ViTModel",
        (_layout("model.layer", *_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),),
        pooling.class_token,
        normalisation=IMAGENET,
        shape=Shape(gated="use_gated_mlp"),
        usual={"num_register_tokens": 4},
        remark="rotary positions, rescaled at random in training, and a gated MLP (huge, 7B), where the "
        "configuration says so",
    ),
    "beit": Kind(
        "BeitModel",
        (_OF_VIT,),
        pooling.mean_of_patches,
        normalisation=(HALF, HALF),
        needs={"use_mean_pooling": True},
        usual={"use_relative_position_bias": True},
        may_exceed=("relative_position_index",),
        remark="layers are scaled, at the start by 0.1, so a small update moves outputs by less than bf16 "
        "rounds: the check of bf16 says little",
        classifier=TransformersClassifier("BeitForImageClassification"),
    ),
    "vit_mae": Kind(
        "ViTMAEModel",
        (_OF_VIT,),
        pooling.class_token_unmasked,
        normalisation=IMAGENET,
        resize=resized_parameter,
        sets={"mask_ratio": 0.0},
        remark="an encoder of whole images, without the decoder",
        # Without masked patches, the encoder is a ViT with the same weights.
        classifier=TransformersClassifier("ViTForImageClassification"),
    ),
    "clip_vision_model": Kind(
        "CLIPVisionModel",
        (_OF_TOWER,),
        pooling.normed_class_token,
        normalisation=CLIP,
        resize=resized_table,
        within={"clip": "vision_config"},
        may_exceed=("text_model", "text_projection", "visual_projection", "logit_scale"),
        remark="the vision tower, alone or out of a whole CLIP",
    ),
    "siglip_vision_model": Kind(
        "SiglipVisionModel",
        (_OF_TOWER,),
        pooling.pooled_by_attention,
        normalisation=(HALF, HALF),
        resize=resized_table,
        needs={"vision_use_head": True},
        within={"siglip": "vision_config"},
        may_exceed=("text_model", "logit_scale", "logit_bias"),
        remark="the vision tower, alone or out of a whole SigLIP; SigLIP 2 too where image sizes are fixed",
    ),
}

#: Model types that cannot be backbones, each with the reason.
NO_KINDS = {
    "swin": "its width changes between layers, and methods here need layers of one width",
    "convnext": "it has convolutions and no attention, and methods here adapt attention and MLP",
    "albert": "its layers share one set of weights, so that an adapter of one layer would act in all of "
    "them, and methods here adapt each layer by itself",
    "resnet": "it has convolutions and no attention, and methods here adapt attention and MLP",
}

#: Vision transformers of timm, in `tensorbench.backbones.timm_vit`.
TIMM = "timm"

#: All names of kinds.
NAMES = (*KINDS, TIMM)

#: The accepted model types of configurations, each with the kind of its encoder.
MODEL_TYPES = {name: name for name in KINDS} | {
    container: name for name, kind in KINDS.items() for container in kind.within
}
