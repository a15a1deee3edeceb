"""Refuses checkpoints whose configuration chooses code to run, or weights other than the hashed ones."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from tensorbench.methods.errors import UserError, did_you_mean

#: torch's own implementation of attention, which most kinds use. Other kinds set `Kind.attention`.
ATTENTION = "sdpa"

#: The attention implementations that a config may name. For any other name, transformers would download a
#: kernel and run it.
_KNOWN_ATTENTION = (ATTENTION, "eager", "flex_attention", "flash_attention_2", "flash_attention_3")

_ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")

#: Fields of a config.json that make transformers run or load something else, each with its effect.
_CHOICES = {
    "experts_implementation": "kernels of its own",
    "_experts_implementation": "kernels of its own",
    "configuration_files": "another file in the place of this one",
    "quantization_config": "quantized weights, which are not supported",
    "fusion_config": "layers in the place of the model's own",
    "transformers_weights": "weights in another file than model.safetensors",
}

#: Arguments of timm's models that do not affect their architecture.
_NO_MODEL_ARGUMENTS = {"self", "device", "dtype"}

#: The kinds of parameters that can be passed by name.
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def refuse_choices(file: Path, settings: dict[str, Any]) -> None:
    """Raises UserError for a config.json that chooses code or other weights, and for an adapter beside it.

    A config may name code in its repository (`auto_map`), but that code is never run: transformers' own
    classes are used.
    """
    for field in _ATTENTION_FIELDS:
        if (value := settings.get(field)) is not None and value not in _KNOWN_ATTENTION:
            raise UserError(
                f"{file}: {field} may be one of {', '.join(_KNOWN_ATTENTION)}, all without effect; "
                f"got {value!r:.60}"
            )
    for field, meaning in _CHOICES.items():
        if (value := settings.get(field)) is not None:
            raise UserError(f"{file}: {field} asks for {meaning}; take it out, got {value!r:.60}")
    if (adapter := file.with_name("adapter_config.json")).exists():
        raise UserError(
            f"{adapter}: the folder holds an adapter beside the model, which transformers would put on it; "
            "merge it into the weights, or take its files out"
        )


def refuse_timm_choices(file: Path, architecture: Any, arguments: Any) -> None:
    """Raises UserError for a timm config with an unknown model, or with arguments that its class lacks.

    So arguments of `timm.create_model` itself, which could load weights or code, are refused.
    """
    import timm
    import torch

    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{file}: architecture should be a model of timm, got {architecture!r:.60}")
    if not isinstance(arguments, dict):
        raise UserError(f"{file}: model_args should be an object, got {arguments!r:.60}")
    if not arguments:
        return
    with torch.device("meta"):
        built = type(timm.create_model(architecture, pretrained=False))
    accepted = []
    for each in built.__mro__:
        if "__init__" not in vars(each):
            continue
        parameters = inspect.signature(vars(each)["__init__"]).parameters.values()
        accepted += [parameter.name for parameter in parameters if parameter.kind in _NAMED]
        # Without **kwargs, a class passes no arguments to its bases.
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    accepted = [name for name in dict.fromkeys(accepted) if name not in _NO_MODEL_ARGUMENTS]
    for name in arguments:
        if name not in accepted:
            near = did_you_mean(name, accepted)
            raise UserError(
                f"{file}: model_args may only hold arguments of timm's {architecture}, got {name!r:.60}"
                f"{'; ' + near if near else ''}"
            )
