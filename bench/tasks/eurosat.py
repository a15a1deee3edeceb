"""EuroSAT (Helber et al., 2019), RGB: what covers a patch of 640 m, seen by Sentinel-2."""

from __future__ import annotations

from bench.tasks.hub import HubImages


class EuroSat(HubImages):
    """27,000 patches of 64×64 pixels. Nobody published a split with them: all of ours are dealt."""

    name = "eurosat"
    repository = "timm/eurosat-rgb"
    parts = {"train": None, "validation": None, "test": None}
    optional = frozenset({"validation", "test"})
    classes = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    )
    #: The usual 80 / 20, a tenth of the 80 for validation.
    fractions = (72, 8, 20)
    description = "satellite images of 640 m of land, by what covers it"
    license = "MIT, by its repository; Sentinel-2 data are free to use"


EUROSAT = EuroSat()
