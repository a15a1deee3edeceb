"""The preparation of images, as an export describes it to transformers, to timm and to readers."""

from __future__ import annotations

from typing import Any

from PIL import Image

from tensorbench.backbones.inputs import ImageInput


def processor(images: ImageInput) -> dict[str, Any]:
    """The content of `preprocessor_config.json`, which prepares images as they were prepared in training.

    It configures the `BitImageProcessor` of transformers. This processor resizes either the shortest edge or
    the whole image to a square, and then crops the centre.
    """
    squashed = images.resize is not None
    side = {"height": images.resize, "width": images.resize} if squashed else {"shortest_edge": images.size}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": int(Image.Resampling.BILINEAR if squashed else Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": images.size, "width": images.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }


def timm_settings(images: ImageInput) -> dict[str, Any]:
    """The `pretrained_cfg` in timm's `config.json`: how images are prepared."""
    squashed = images.resize is not None
    # timm resizes to ⌊size / crop_pct⌋: adding a half makes this exactly the intended integer.
    share = images.size / (images.resize + 0.5) if images.resize is not None else 1.0
    return {
        "input_size": [3, images.size, images.size],
        "interpolation": "bilinear" if squashed else "bicubic",
        "crop_mode": "squash" if squashed else "center",
        "crop_pct": share,
        "mean": list(images.mean),
        "std": list(images.std),
    }


def description(images: ImageInput) -> str:
    if images.resize is None:
        resized = f"the central square, resized to {images.size}×{images.size} pixels (bicubic)"
    else:
        resized = (
            f"squashed to {images.resize}×{images.resize} pixels (bilinear), of which the central "
            f"{images.size}×{images.size} are cut out"
        )
    return f"RGB, {resized}; pixels in [0, 1], mean {images.mean}, std {images.std}"


def differences(images: ImageInput, library: str) -> list[str]:
    """Returns notes on how the pixels that a library prepares differ from those in training."""
    notes = []
    if library == "transformers":
        notes.append(
            'Training resized images with PIL, as transformers does with `backend="pil"`. With its default, '
            "torchvision, a pixel is off by at most one of 255 levels."
        )
    if images.resize is None:
        notes.append(
            "Training cut the central square out of an image and then resized it; the preprocessor resizes "
            "first. Square images come out the same, others shifted by up to a pixel: where that matters, "
            "cut the square out yourself."
        )
    elif library == "timm" and (images.resize - images.size) % 4 == 3:
        notes.append("timm cuts the centre out one pixel lower and further right than training did.")
    return notes
