"""Writes tiny random checkpoints with the names of weights that transformers 4 and 5 give them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tensorbench.backbones import BackboneSpec, LoadedBackbone, describe, load
from tensorbench.backbones.inputs import TextInput
from tensorbench.backbones.kinds import KINDS as ROWS
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.checks.conformance.subject import tiny

TEXT = {"vocab_size": 50, "max_position_embeddings": 34, "pad_token_id": 1}
SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
MLP = {"intermediate_size": 24}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", {**SHAPE, **MLP, "image_size": 32, "patch_size": 8, "hidden_dropout_prob": 0.1}),
    "dinov2": ("Dinov2Model", {**SHAPE, "mlp_ratio": 2, "image_size": 32, "patch_size": 8}),
    "bert": ("BertModel", {**SHAPE, **MLP, **TEXT}),
    "roberta": ("RobertaModel", {**SHAPE, **MLP, **TEXT, "classifier_dropout": 0.25}),
}

#: For each kind, pairs of a pattern and its replacement. Applied in order, they turn the names that
#: transformers 5 gives to weights into those of transformers 4.
OLD_NAMES = {
    "vit": (
        (r"^layers\.", "encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ),
    "dinov2": (
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.gate_proj", "mlp.weights_in"),
    ),
    "bert": (),
    "roberta": (),
}


def encoder(kind: str, seed: int = 1, **changes: Any) -> Any:
    """A small model of transformers with random parameters. `changes` replace fields of its configuration."""
    name, config = KINDS[kind]
    model_class = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pooler = {} if kind == "dinov2" else {"add_pooling_layer": False}
        model = model_class(model_class.config_class(**{**config, **changes}), **pooler)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def model_of(kind: str, **changes: Any) -> Any:
    """The model of transformers for a tiny backbone of this kind, with random parameters."""
    row = ROWS[kind]
    model_class = getattr(transformers, row.model_class)
    config = tiny(kind)._config()
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config, **row.arguments).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def saved(model: Any, folder: Path, **spec: Any) -> LoadedBackbone:
    """Saves a model of transformers, and loads it as a backbone. `spec` are further fields of its spec."""
    model.save_pretrained(folder)
    return load(BackboneSpec(local=folder, **spec))


def language_model(kind: str, folder: Path, tokens: int = 16, **changes: Any) -> Any:
    """A tiny language model with random parameters, saved in a folder with a tokenizer of bytes.

    `tokens` is the largest number of tokens that it reads. `changes` replace fields of its configuration.
    """
    config = tiny(kind)._config()
    config.update({"max_position_embeddings": tokens, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    byte_tokenizer(tokens).save_pretrained(folder)
    return model


def text_input_of(folder: Path) -> TextInput:
    """The input of a backbone in a folder, which reads texts."""
    text_input = describe(BackboneSpec(local=folder)).input
    assert isinstance(text_input, TextInput)
    return text_input


def whole_model_of(name: str, tower: str) -> Any:
    """A model with a text tower and a vision tower, such as CLIP.

    `name` is the beginning of the names of its classes, such as "CLIP". `tower` is the kind of the vision
    tower.
    """
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = getattr(transformers, f"{name}Config")(
        text_config=text | {"vocab_size": 50}, vision_config=tiny(tower)._config().to_dict()
    )
    return getattr(transformers, f"{name}Model")(config).eval()


def write(folder: Path, kind: str, model: Any, *, version: int = 5, prefix: bool = False) -> Path:
    """Writes a model to a folder as a checkpoint of transformers 4 or 5.

    With `prefix` the checkpoint is that of a classifier: the names of the encoder's weights begin with the
    kind, and there are a head and a pooler beside the encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if version == 4:
            for pattern, replacement in OLD_NAMES[kind]:
                name = re.sub(pattern, replacement, name)
        state[f"{kind}.{name}" if prefix else name] = tensor.clone()
    if prefix:
        state["classifier.weight"] = torch.randn(3, 16)
        state[f"{kind}.pooler.dense.weight"] = torch.randn(16, 16)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return folder


def edit(folder: Path, *, drop: str = "", add: dict[str, Tensor] | None = None) -> None:
    """Removes the weights whose names contain `drop` from a checkpoint, and adds the weights `add`."""
    file = folder / "model.safetensors"
    state = {key: tensor for key, tensor in load_file(file).items() if not drop or drop not in key}
    save_file({**state, **(add or {})}, file, metadata={"format": "pt"})


def batch(kind: str, size: int = 32, seed: int = 0) -> dict[str, Tensor]:
    """A batch of two examples. If they are texts, the second is padded."""
    generator = torch.Generator().manual_seed(seed)
    if kind in ("vit", "dinov2", "timm"):
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}
    ids = torch.randint(3, 50, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def features(backbone: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The features that a backbone passes to its head."""
    with torch.no_grad():
        return backbone.module.pool(backbone.module.encoder, **inputs)
