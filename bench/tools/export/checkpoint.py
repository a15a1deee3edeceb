"""Writes checkpoints for peft: LoRA for low-rank updates, otherwise peft's own form of the adapter."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tensorbench.backbones import load
from tensorbench.baselines.peft_adapter import NAME, PeftAdapter
from tensorbench.methods import Adapter, NotLowRank, UserError
from tensorbench.tools.export.original import ORIGINAL, Original, TimmOriginal, Update, copies


@torch.no_grad()
def write_checkpoint(original: Original, adapter: Adapter, folder: Path) -> tuple[list[str], str]:
    """Writes a PEFT checkpoint, and the original model too if it can be had nowhere else.

    Returns notes for README.md, and the size of an adapter that became factors of LoRA, empty for others.
    Raises UserError for a timm model, for a trial without adapter, and for an adapter of peft's own that does
    not fit the layers of the original model. Raises NotLowRank if peft cannot represent the update.
    """
    if isinstance(original, TimmOriginal):
        raise UserError("peft's checkpoints belong to models of transformers: a timm model takes --merged")
    if not adapter.bases:
        raise UserError("the trial trained a head only: there is no adapter; --merged writes the whole model")
    size = ""
    try:
        notes, size = _write_lora(original, adapter, folder)
    except NotLowRank as error:
        if not isinstance(adapter, PeftAdapter):
            raise NotLowRank(
                f"{error}, so peft has no form for it; --merged writes a plain model, for every linear update"
            ) from error
        notes = _write_own(original, adapter, folder)
    original.save_head(folder)
    if original.reference is None:
        original.save(folder / ORIGINAL, _pristine(original, adapter))
    return notes, size


def _write_lora(original: Original, adapter: Adapter, folder: Path) -> tuple[list[str], str]:
    """Returns notes, and the size of the factors."""
    from peft import LoraConfig

    factors, biases = adapter.factors(), adapter.biases()
    layers = original.layers({site: Update(*pair, biases.get(site)) for site, pair in factors.items()})
    ranks = {layer: update.down.shape[0] for layer, update in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # peft reads keys as regular expressions for the end of a layer's path.
    unusual = {re.escape(layer): rank for layer, rank in ranks.items() if rank != usual}
    heads = original.heads()
    numbers = sum(update.down.numel() + update.up.numel() for update in layers.values())
    numbers += sum(update.bias.numel() for update in layers.values() if update.bias is not None)
    at = ", ".join(map(str, sorted(set(ranks.values()))))
    grown = f"{adapter.parameter_count:,} parameters become {numbers:,} numbers ({4 * numbers / 1e6:.1f} MB)"
    size = f"{grown} at r {at}"
    config = LoraConfig(
        r=usual,
        # The factors include the scale, so alpha / rank is 1 everywhere.
        lora_alpha=usual,
        rank_pattern=unusual,
        alpha_pattern=dict(unusual),
        target_modules=list(layers),
        fan_in_fan_out=bool(original.kind.transposed),
        lora_bias=bool(biases),
    )
    tensors = {}
    for layer, update in layers.items():
        tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"] = update.down, update.up
        if biases:
            none = update.up.new_zeros(update.up.shape[0])
            tensors[f"{layer}.lora_B.bias"] = none if update.bias is None else update.bias
    for path, head in heads.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in head.items()}
    _save(original, folder, config, {f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
    notes = ["`model.merge_and_unload()` adds the update to the backbone's weights."]
    if biases and not all(base.bias is not None for base in adapter.bases.values()):
        notes = [
            "Some adapted layers have no bias of their own. peft then applies the trained biases, but "
            "`merge_and_unload` refuses: export with `--merged` instead."
        ]
    return notes, size


def _write_own(original: Original, adapter: PeftAdapter, folder: Path) -> list[str]:
    """Converts peft's adapter on the backbone to an adapter of the original model, and writes it."""
    from peft import get_peft_model, get_peft_model_state_dict

    if original.fused:
        *parts, last = next(iter(original.kind.fused.values()))
        raise UserError(
            f"{original.backbone.info.kind} holds {', '.join(parts)} and {last} in one layer, on which peft "
            "would put another adapter; --merged writes a plain model"
        )
    model = original.bare()
    config = adapter.config({original.path(site): site for site in adapter.bases})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = get_peft_model(model, config, NAME)
    # The backbone has the same layers under other names.
    inside, outside = "model.encoder.", f"model.{original.prefix}"
    there = {
        outside + name.removeprefix(inside) if name.startswith(inside) else name: tensor
        for name, tensor in adapter.tuner.state_dict().items()
        if not name.startswith("model.head.")
    }
    missing = set(wrapped.base_model.load_state_dict(there, strict=False).missing_keys)
    if original.spec.quantise:
        # A quantised layer holds its weight under other names.
        sites = original.backbone.geometry.sites(original.backbone.projections)
        missing -= {
            f"model.{original.path(site)}.{end}" for site in sites for end in ("weight", "base_layer.weight")
        }
    # Heads and output layers are outside the encoder and have no adapter.
    if wrong := [name for name in missing if name.startswith(outside)]:
        raise UserError(f"peft has other parts on the original model: {', '.join(sorted(wrong)[:4])}")
    tensors = get_peft_model_state_dict(wrapped, adapter_name=NAME, save_embedding_layers=False)
    for path, head in original.heads().items():
        tensors |= {f"base_model.model.{path}.{name}": tensor for name, tensor in head.items()}
    _save(original, folder, config, tensors)
    return ["`model.merge_and_unload()` adds the update to the backbone's weights, if peft merges this type."]


def _save(original: Original, folder: Path, config: Any, tensors: dict[str, Tensor]) -> None:
    fields: dict[str, Any] = {
        "modules_to_save": list(original.heads()) or None,
        "inference_mode": True,
        "base_model_name_or_path": original.place,
        "revision": original.revision,
        "task_type": original.target.task,
    }
    if original.target.task is None:
        mapping = {"base_model_class": original.target.class_name, "parent_library": "transformers"}
        fields["auto_mapping"] = mapping
    for field, value in fields.items():
        setattr(config, field, value)
    config.save_pretrained(folder)
    save_file(copies(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _pristine(original: Original, adapter: Adapter) -> dict[str, Tensor]:
    """The frozen encoder's state, not quantised and without the attached adapter."""
    if original.spec.quantise:
        return copies(load(original.spec.model_copy(update={"quantise": None})).module.encoder.state_dict())
    backbone = original.backbone
    layers = {backbone.path(site).removeprefix("encoder."): base for site, base in adapter.bases.items()}
    inside = tuple(f"{path}." for path in layers)
    state = {
        name: tensor for name, tensor in original.encoder.state_dict().items() if not name.startswith(inside)
    }
    for path, base in layers.items():
        state |= {f"{path}.{name}": tensor for name, tensor in base.state_dict().items()}
    return copies(state)
