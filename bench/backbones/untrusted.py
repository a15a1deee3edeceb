"""What somebody's checkpoint may not choose: code that runs, and weights beside those that it is known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from methods.errors import UserError

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

#: What timm takes beside a model's own arguments: weights to load and where they lie.
_NO_MODEL_ARGUMENTS = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


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
    """Raises UserError for a timm config whose model is none of timm's, or whose arguments load weights."""
    import timm

    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{file}: architecture should be a model of timm, got {architecture!r:.60}")
    if not isinstance(arguments, dict):
        raise UserError(f"{file}: model_args should be an object, got {arguments!r:.60}")
    if refused := sorted(_NO_MODEL_ARGUMENTS & arguments.keys()):
        raise UserError(f"{file}: model_args may not hold {', '.join(refused)}")
