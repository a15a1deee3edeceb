"""Reads encoded images from untrusted bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bench.tasks.task import LazyImages
from methods.errors import UserError

#: The modes that are converted to RGB: up to 8 bits per channel, palette, grey, or with transparency.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

#: The accepted formats. PIL knows many more, but runs programs for some (EPS), and its readers for most of
#: them are hardly tested.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

_END_OF_JPEG = b"\xff\xd9"


class EncodedImages(LazyImages):
    """Images as bytes in files or table cells, decoded on access.

    `content` reads the bytes of an item, and `where` is its name in messages. Access raises UserError for an
    image that `decoded` refuses.
    """

    def __init__(
        self, items: Sequence[Any], content: Callable[[Any], bytes], where: Callable[[Any], str]
    ) -> None:
        super().__init__(items, lambda item: self._read(decoded, item))
        self._content, self._where = content, where

    def check(self) -> None:
        """Raises UserError for an image that cannot be read. Decodes as little as possible."""
        for item in self.items:
            self._read(_check, item)

    def _read(self, read: Callable[[bytes], Any], item: Any) -> Any:
        try:
            return read(self._content(item))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._where(item)} cannot be read: {error}") from error


def decoded(content: bytes) -> NDArray[np.uint8]:
    """The image in RGB (height, width, 3), rotated by its EXIF data, without transparency.

    Raises ValueError for an unknown format, an incomplete file, more pixels than PIL accepts, more than 8
    bits per channel, and several pictures, as in an animation.
    """
    with _explained():
        image = _opened(content)
        image.load()
        if image.getexif().get(Image.ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert("RGB"))


def _check(content: bytes) -> None:
    """Raises ValueError for an image that `decoded` refuses, without decoding its pixels where possible.

    If a JPEG has its end marker, only `decoded` notices damaged pixels.
    """
    with _explained():
        image = _opened(content)
        if image.format == "PNG":
            image.verify()  # compares checksums
        elif image.format not in ("JPEG", "MPO") or _END_OF_JPEG not in content[-64:]:
            image.load()


def _opened(content: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    # The second picture of an MPO photograph is a preview, or the view of the other eye.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ValueError("it holds several pictures, as an animation does; save the one that is meant")
    # PIL keeps only the upper 8 bits of colours. Only `tile` shows their original depth.
    layouts = [str(tile[3]) for tile in getattr(image, "tile", ())]
    if image.format in ("PNG", "TIFF") and any(";16" in layout for layout in layouts):
        raise ValueError("it has 16 bits a channel; save it with 8 bits a channel")
    if image.mode not in MODES:
        raise ValueError(f"its mode is {image.mode}; save it with 8 bits a channel")
    return image


@contextmanager
def _explained() -> Iterator[None]:
    """Converts every error of PIL to ValueError, since a damaged file may raise anything."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"it is no image in a format that is read ({', '.join(FORMATS)})") from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
