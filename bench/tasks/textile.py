"""A task of simulated woven textile, sound or with a defect (Megahed et al., 2025)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tensorbench.machine.assets import ASSETS, fetch
from tensorbench.tasks.task import Examples, LazyImages, Task


class Textile(Task):
    """Images of textile in three classes: 1,000 sound, 500 with a local defect, 500 with a faulty weave.

    No two images are near-duplicates, so the examples need no groups. docs/reference/tasks.md describes this
    check.
    """

    name = "textile"
    modality = "vision"
    classes = ("nominal", "local", "global")
    data_hash = ASSETS["textile"].sha256
    sizes = (1400, 300, 300)
    description = "simulated woven texture: sound, with a local defect, or off as a whole"
    license = ASSETS["textile"].license

    def examples(self) -> Examples:
        """Returns one example per image of 250×250 pixels.

        An example's id is the position of its image in an order by class, then by file name.
        """
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
