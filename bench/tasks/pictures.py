"""Images that somebody else encoded, read from their bytes alone."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

#: The modes that become RGB: of up to 8 bits a channel, with colours from a palette, grey, or transparent.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

#: What is read. PIL knows many more formats: of some it runs programs (EPS), of most nobody tests the reader.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def decoded(content: bytes) -> NDArray[np.uint8]:
    """The image in RGB (height, width, 3), turned as its EXIF data say; transparency is left out.

    Raises ValueError for what is in none of the formats, is not whole, has more pixels than PIL takes for an
    image, more than 8 bits a channel, which RGB would cut off, or several pictures, as an animation has.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
            # A photograph's second picture (MPO) is a preview, or for the other eye.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise ValueError(
                    "it holds several pictures, as an animation does; save the one that is meant"
                )
            # Of colours PIL keeps the upper 8 bits and says so nowhere else.
            layouts = [str(tile[3]) for tile in getattr(image, "tile", ())]
            if image.format in ("PNG", "TIFF") and any(";16" in layout for layout in layouts):
                raise ValueError("it has 16 bits a channel; save it with 8 bits a channel")
            image.load()
            if image.mode not in MODES:
                raise ValueError(f"its mode is {image.mode}; save it with 8 bits a channel")
        if image.getexif().get(Image.ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"it is no image in a format that is read ({', '.join(FORMATS)})") from error
    except Exception as error:
        # PIL's readers trust what they read, so that a damaged image may raise anything.
        raise ValueError(f"{type(error).__name__}: {error}") from error
