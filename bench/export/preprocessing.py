"""How images were prepared, in the words of the libraries that will prepare them."""

from __future__ import annotations

from typing import Any, Literal

from PIL import Image

from bench.inputs import ImageInput

#: What AutoImageProcessor and pipelines read.
PROCESSOR_FILE = "preprocessor_config.json"


def processor(wanted: ImageInput) -> dict[str, Any]:
    """What transformers reads from `preprocessor_config.json`.

    BiT's processor, because it is the one that can resize by the shortest edge or to a square and cut the
    centre out of either.
    """
    squashed = wanted.resize is not None
    side = {"height": wanted.resize, "width": wanted.resize} if squashed else {"shortest_edge": wanted.size}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": int(Image.Resampling.BILINEAR if squashed else Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": wanted.size, "width": wanted.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(wanted.mean),
        "image_std": list(wanted.std),
    }


def timm_settings(wanted: ImageInput) -> dict[str, Any]:
    """What timm reads from `pretrained_cfg` in `config.json`."""
    squashed = wanted.resize is not None
    # timm resizes to ⌊size / crop_pct⌋: the half keeps that whole number what it is.
    share = wanted.size / (wanted.resize + 0.5) if wanted.resize is not None else 1.0
    return {
        "input_size": [3, wanted.size, wanted.size],
        "interpolation": "bilinear" if squashed else "bicubic",
        "crop_mode": "squash" if squashed else "center",
        "crop_pct": share,
        "mean": list(wanted.mean),
        "std": list(wanted.std),
    }


def in_words(wanted: ImageInput) -> str:
    if wanted.resize is None:
        resized = f"the central square, resized to {wanted.size}×{wanted.size} pixels (bicubic)"
    else:
        resized = (
            f"squashed to {wanted.resize}×{wanted.resize} pixels (bilinear), of which the central "
            f"{wanted.size}×{wanted.size} are cut out"
        )
    return f"RGB, {resized}; pixels in [0, 1], mean {wanted.mean}, std {wanted.std}"


def differences(wanted: ImageInput, library: Literal["timm", "transformers"]) -> list[str]:
    """Where a library's preparation gives other pixels than training saw."""
    told = []
    if library == "transformers":
        told.append(
            'Training resized images with PIL, as transformers does with `backend="pil"`. With its default, '
            "torchvision, a pixel is off by at most one of 255 levels."
        )
    if wanted.resize is None:
        told.append(
            "Training cut the central square out of an image and then resized it; the preprocessor resizes "
            "first. Square images come out the same, others shifted by up to a pixel: where that matters, "
            "cut the square out yourself."
        )
    elif library == "timm" and (wanted.resize - wanted.size) % 4 == 3:
        told.append("timm cuts the centre out one pixel lower and further right than training did.")
    return told
