"""Measures how much a trained adapter changes the backbone's outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tensorbench.methods import Backbone
from tensorbench.plan.recipe import Recipe
from tensorbench.training.loop import autocast


@torch.inference_mode()
def outputs(backbone: Backbone, batch: Mapping[str, Tensor], recipe: Recipe) -> Tensor:
    """Computes the outputs (N, outputs) of a batch in evaluation mode, on the CPU."""
    backbone.module.eval()
    with autocast(recipe, next(iter(batch.values())).device):
        return backbone.module(**batch).float().cpu()


def effect(adapted: Tensor, bare: Tensor) -> float | None:
    """Returns how much the adapter changes the outputs (N, outputs), relative to their spread over examples.

    The change is the RMS difference of `adapted` (with the adapter) and `bare` (without it). The spread is
    the RMS deviation of `adapted` from its mean over examples. 0 means that the adapter changes nothing.
    Returns None if `adapted` is equal for all examples.
    """
    spread = (adapted - adapted.mean(0)).square().mean().sqrt().item()
    return (adapted - bare).square().mean().sqrt().item() / spread if spread > 0 else None
