"""Simulated woven texture, sound or with a defect (Megahed et al., 2025)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.machine.assets import ASSETS, fetch
from bench.tasks.task import Examples, LazyImages, Task


class Textile(Task):
    """Three classes: 1,000 sound images, 500 with a small local defect, 500 whose whole weave is off.

    No two images are near-duplicates (docs/reference/tasks.md says how that was checked), so the split needs
    no groups.
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
            LazyImages([path for path, _ in paths], _decode), [label for _, label in paths], range(len(paths))
        )


def _decode(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


TEXTILE = Textile()
