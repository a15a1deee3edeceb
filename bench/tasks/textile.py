"""Simulated woven texture, sound or with a defect (Megahed et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.assets import ASSETS, fetch
from bench.tasks.base import Examples, Task


class ImageFiles(Sequence[NDArray[np.uint8]]):
    """Image files as RGB arrays (height, width, 3), each decoded when it is indexed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | ImageFiles:
        if isinstance(index, slice):
            return ImageFiles(self._paths[index])
        with Image.open(self._paths[index]) as image:
            return np.asarray(image.convert("RGB"))


class Textile(Task):
    """Three classes: 1,000 sound images, 500 with a small local defect, 500 whose whole weave is off.

    No two images are near-duplicates (docs/tasks.md says how that was looked for), so that the split
    needs no groups.
    """

    name = "textile"
    modality = "vision"
    classes = ("nominal", "local", "global")
    data_hash = ASSETS["textile"].sha256
    sizes = (1400, 300, 300)
    description = "simulated woven texture: sound, with a local defect, or off as a whole"
    license = ASSETS["textile"].license

    def examples(self) -> Examples:
        """One example an image of 250×250 pixels; its id is its place, classes in order, then file names."""
        folder = fetch("textile") / "conformal_clip_data" / "data" / "textile_images" / "simulated"
        paths = [
            (path, k) for k, name in enumerate(self.classes) for path in sorted((folder / name).iterdir())
        ]
        return Examples(
            ImageFiles([path for path, _ in paths]), [label for _, label in paths], range(len(paths))
        )


TEXTILE = Textile()
