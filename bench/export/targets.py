"""Which class of transformers an export is for, and where our head goes in it: a row for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bench.backbones import BackboneKind, LoadedBackbone, pooling
from bench.backbones.kinds import KINDS, Kind

#: All of a linear head is the classifier.
LINEAR: Mapping[str, str] = {"": "classifier"}


@dataclass(frozen=True)
class Classifier:
    """A class of transformers whose logits are those of our encoder, pooling and head."""

    class_name: str
    #: The paths of our head's parts in it, by their names in our head; the empty one is the whole head.
    head: Mapping[str, str] = field(default_factory=lambda: LINEAR)
    #: Whether it reads the mean of the patches beside the class token. Ours does not.
    doubled: bool = False


#: Kinds without a row have no such class: transformers pools otherwise there, or its head has other parts.
#: Of those the encoder is exported, with the head beside it.
CLASSIFIERS: dict[BackboneKind, Classifier] = {
    "roberta": Classifier("RobertaForSequenceClassification"),
    "xlm-roberta": Classifier("XLMRobertaForSequenceClassification"),
    "distilbert": Classifier(
        "DistilBertForSequenceClassification", {"dense": "pre_classifier", "out_proj": "classifier"}
    ),
    "electra": Classifier("ElectraForSequenceClassification"),
    "deberta-v2": Classifier(
        "DebertaV2ForSequenceClassification", {"dense": "pooler.dense", "out_proj": "classifier"}
    ),
    "vit": Classifier("ViTForImageClassification"),
    "deit": Classifier("DeiTForImageClassification"),
    "dinov2": Classifier("Dinov2ForImageClassification", doubled=True),
    "dinov2_with_registers": Classifier("Dinov2WithRegistersForImageClassification", doubled=True),
    "beit": Classifier("BeitForImageClassification"),
    # Where no patch is masked, a masked autoencoder's encoder is a ViT of the same weights.
    "vit_mae": Classifier("ViTForImageClassification"),
}

#: Why no class of transformers has our pooling and head, by pooling.
REASONS: dict[Callable[..., Tensor], str] = {
    pooling.mean_of_tokens: "The head reads the mean over the tokens, which no class of transformers does.",
    pooling.mean_of_windows: "The head reads the mean over the tokens; transformers' own classifier has a "
    "dense layer and a norm before the last.",
    pooling.last_token: "The head has a bias, which transformers' own classifier of last tokens has not.",
    pooling.class_token: "transformers has no classifier of these models.",
    pooling.normed_class_token: "The head reads the class token; transformers' own classifier reads the mean "
    "of the patches.",
    pooling.pooled_by_attention: "The head reads the model's own attention pooling; transformers' own "
    "classifier reads the mean of the patches.",
}


@dataclass(frozen=True)
class Target:
    """The class that an export is loaded with, and what peft calls its task."""

    class_name: str
    #: peft has no name for the classification of images.
    task: str | None
    #: As `Classifier` has it; empty: the head is beside the model, or there is none.
    head: Mapping[str, str]
    doubled: bool = False
    #: Whether the class has the encoder below its `base_model_prefix`.
    whole: bool = True
    #: What the class takes beside its configuration.
    arguments: Mapping[str, Any] = field(default_factory=dict)

    #: The class of peft that loads a checkpoint with its original.
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
    """The target of a backbone of a kind with a trained head."""
    row = KINDS[kind]
    if known := CLASSIFIERS.get(kind):
        task = "SEQ_CLS" if row.reads == "texts" else None
        return Target(known.class_name, task, known.head, known.doubled)
    task = "FEATURE_EXTRACTION" if row.reads == "texts" else None
    return Target(row.model_class, task, {}, whole=False, arguments=row.arguments)


def language_model(kind: BackboneKind) -> Target:
    """The target of a decoder that answers prompts: without a head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return Target(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], "CAUSAL_LM", {})


def target_of(backbone: LoadedBackbone) -> Target:
    kind = backbone.info.kind
    return classifier(kind) if backbone.module.answers is None else language_model(kind)


def head_class(backbone: LoadedBackbone) -> type[nn.Module]:
    """What the head of a backbone of its kind is."""
    kind: Kind = KINDS[backbone.info.kind]
    if backbone.module.answers is not None:
        return nn.Identity
    return nn.Linear if kind.make_head is pooling.linear_head else pooling.DenseHead
