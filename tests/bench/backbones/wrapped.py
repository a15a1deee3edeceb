"""Models to wrap: small classifiers and language models of transformers, and a classifier of a user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tensorbench.checks.conformance.subject import tiny
from tensorbench.methods import Adapter, create

from ..local_checkpoints import KINDS, batch

CLASSIFIERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
}


TENSLORA = create("tenslora", variant="qkv_depth").isorank(3)


LORA = create("lora", rank=2)


DORA = create("peft", type="DORA", rank=2)


LABELS = torch.tensor([0, 2])


def classifier(kind: str) -> Any:
    _, config = KINDS[kind]
    model_class = getattr(transformers, CLASSIFIERS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model_class(model_class.config_class(**config, num_labels=3)).eval()


def logits(model: Any, kind: str) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch(kind)).logits


def by_adamw(model: Any, kind: str, parameters: Iterable[nn.Parameter] | None = None) -> None:
    optimizer = torch.optim.AdamW(model.parameters() if parameters is None else parameters, lr=1e-2)
    model.train()
    for _ in range(3):
        model(**batch(kind), labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def causal(dtype: torch.dtype = torch.float32) -> Any:
    return full_model("llama", "LlamaForCausalLM").to(dtype)


class Own(nn.Module):
    """A user's own classifier, with a head on an encoder for which transformers has no classifier."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"encoder": encoder, "neck": nn.Linear(24, 8)})
        self.last = nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.inner["encoder"](pixel_values).last_hidden_state[:, 0]
        return self.last(self.inner["neck"](states))


def full_model(kind: str, name: str) -> Any:
    """Makes a whole model around a tiny encoder of this kind.

    Its class is `Own` for an encoder of DINOv3, and otherwise transformers' class `name`.
    """
    config = tiny(kind)._config()
    if kind == "clip_vision_model":
        text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 2}
        config = transformers.CLIPConfig(text_config=text, vision_config=config.to_dict())
    if kind == "dinov3_vit":
        return Own(transformers.DINOv3ViTModel(config))
    return getattr(transformers, name)(config)


def filled(adapter: Adapter) -> Adapter:
    """Draws the adapter's parameters, so that its update is not zero."""
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    return adapter


def trained_beside(model: nn.Module, adapter: Adapter) -> set[str]:
    adapters = {id(parameter) for parameter in adapter.named_parameters().values()}
    return {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters}
