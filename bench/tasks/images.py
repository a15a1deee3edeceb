"""Decodes images from untrusted bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tensorbench.methods.errors import UserError
from tensorbench.tasks.task import LazyImages

#: The accepted modes of PIL: up to 8 bits per channel, with a palette, grey, or with transparency. All are
#: converted to RGB.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

#: The accepted formats. PIL reads many more, but runs another program for some (EPS), and its code for most
#: others is hardly tested.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

_END_OF_JPEG = b"\xff\xd9"


class EncodedImages(LazyImages):
    """A sequence of encoded images, in files or in the cells of a table, each decoded when it is accessed.

    `content(item)` returns the encoded bytes of an item. `where(item)` returns its name for messages. Access
    raises UserError for an image that `decoded` refuses.
    """

    def __init__(
        self, items: Sequence[Any], content: Callable[[Any], bytes], where: Callable[[Any], str]
    ) -> None:
        super().__init__(items, lambda item: self._read(decoded, item))
        self._content, self._where = content, where

    def check(self) -> None:
        """Raises UserError for an image that cannot be read. Decodes pixels only if there is no other way."""
        for item in self.items:
            self._read(_check, item)

    def _read(self, read: Callable[[bytes], Any], item: Any) -> Any:
        try:
            return read(self._content(item))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._where(item)} cannot be read: {error}") from error


def decoded(content: bytes) -> NDArray[np.uint8]:
    """Decodes an image to RGB (height, width, 3), rotated by its EXIF data.

    Transparent parts take the colour that the file holds below them, often black.

    Raises ValueError for an unknown format, an incomplete file, more pixels than PIL accepts, more than 8
    bits per channel, and a file with several pictures, such as an animation. An MPO photograph is accepted,
    and its first picture is used.
    """
    with _explained():
        image = _opened(content)
        image.load()
        if image.getexif().get(Image.ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert("RGB"))


def _check(content: bytes) -> None:
    """Raises ValueError for an image that `decoded` refuses. Decodes pixels only if there is no other way.

    A JPEG with an end marker is not decoded, so damage to its pixels goes unnoticed.
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
    """A context that converts every error of PIL to ValueError, since a damaged file may raise anything."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"it is no image in a format that is read ({', '.join(FORMATS)})") from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
