"""What somebody's checkpoint may not choose: code that runs, and weights beside those that it is known by."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from methods.errors import UserError, did_you_mean

#: The attention that runs, whatever a checkpoint was trained with: torch's own.
ATTENTION = "sdpa"

#: What a config may name nevertheless. transformers takes any other name for a kernel to download and run.
_KNOWN_ATTENTION = (ATTENTION, "eager", "flex_attention", "flash_attention_2", "flash_attention_3")

_ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")

#: Fields of a config.json by which transformers would run or load something else, and what that is.
_CHOICES = {
    "experts_implementation": "kernels of its own",
    "_experts_implementation": "kernels of its own",
    "quantization_config": "quantized weights, which are not supported",
    "fusion_config": "layers in the place of the model's own",
    "transformers_weights": "weights in another file than model.safetensors",
}

#: What timm's models are built with beside what shapes them: where and in which precision is said here.
_NO_MODEL_ARGUMENTS = {"self", "device", "dtype"}

#: The kinds of parameters that have a name of their own.
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def refuse_choices(file: Path, settings: dict[str, Any]) -> None:
    """Raises UserError, with the field named, for a config.json that chooses code or other weights.

    Code that it brings (`auto_map`) is no reason: transformers' own classes are used, and a checkpoint that
    needs others does not fit them.
    """
    for field in _ATTENTION_FIELDS:
        if (value := settings.get(field)) is not None and value not in _KNOWN_ATTENTION:
            raise UserError(
                f"{file}: {field} may be one of {', '.join(_KNOWN_ATTENTION)}, and what runs is {ATTENTION} "
                f"in any case, got {value!r:.60}"
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
    """Raises UserError for a timm config whose model is none of timm's, or whose arguments are not a model's.

    What timm takes beside them loads weights, or other code.
    """
    import timm

    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{file}: architecture should be a model of timm, got {architecture!r:.60}")
    if not isinstance(arguments, dict):
        raise UserError(f"{file}: model_args should be an object, got {arguments!r:.60}")
    if not arguments:
        return
    accepted = _arguments_of_timm(architecture)
    for name in arguments:
        if name not in accepted:
            near = did_you_mean(name, accepted)
            raise UserError(
                f"{file}: model_args may only hold arguments of timm's {architecture}, got {name!r:.60}"
                f"{'; ' + near if near else ''}"
            )


def _arguments_of_timm(architecture: str) -> list[str]:
    """The names of the arguments by which the class of a model of timm is built."""
    import timm
    import torch

    with torch.device("meta"):
        built = type(timm.create_model(architecture, pretrained=False))
    names = []
    for each in built.__mro__:
        if "__init__" not in vars(each):
            continue
        parameters = inspect.signature(vars(each)["__init__"]).parameters.values()
        names += [one.name for one in parameters if one.kind in _NAMED]
        # Only what it passes on is an argument of its bases.
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return [name for name in dict.fromkeys(names) if name not in _NO_MODEL_ARGUMENTS]
