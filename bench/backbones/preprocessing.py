"""What a checkpoint's folder says of how its pixels are prepared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bench.backbones.base import channels, read_object
from bench.backbones.kinds import Normalisation
from methods.errors import UserError, shown


def normalisation(folder: Path, usual: Normalisation) -> Normalisation:
    """What a folder says that pixels are normalised by; what is usual where it does not say."""
    # Where a tokenizer belongs to the model too (CLIP), transformers 5 writes one file for both.
    file = folder / "processor_config.json"
    settings = read_object(file).get("image_processor") if file.is_file() else None
    if not isinstance(settings, dict):
        file = folder / "preprocessor_config.json"
        if not file.is_file():
            return usual
        settings = read_object(file)
    if settings.get("do_rescale") is False:
        raise UserError(
            f"{file}: do_rescale is false, which is for pixels from 0 to 255; here they are from 0 to 1"
        )
    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise UserError(
            f"{file}: rescale_factor should be 1/255, so that pixels are from 0 to 1 (got {shown(factor)})"
        )
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (
        _channels(file, field, settings.get(field, values))
        for field, values in zip(("image_mean", "image_std"), usual, strict=True)
    )
    return mean, std


def _channels(file: Path, field: str, values: Any) -> tuple[float, float, float]:
    try:
        return channels(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file}: {field} should be three numbers, for red, green and blue (got {shown(values)})"
        ) from error
