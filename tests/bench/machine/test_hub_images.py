"""Tests images in other people's parquet files. Only embedded bytes in a few formats are read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from tensorbench.methods import UserError
from tensorbench.tasks import DataSource, Examples

from ...messages import naming
from ..hub_stand_in import encoded
from .paper_hub import task_of

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)

GOOD = {"bytes": encoded(PIXELS), "path": None}


def of_rows(folder: Path, *rows: Any) -> Examples:
    """Returns the examples of a task with a valid train split and with these rows in the test split."""
    for part, images in (("train", [GOOD, GOOD]), ("test", list(rows))):
        table = pyarrow.table({"image": images, "label": [0] * len(images)})
        parquet.write_table(table, folder / f"{part}.parquet")
    return task_of("eurosat", DataSource(local=folder)).examples()


def saved(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["struct", "text"])
@pytest.mark.parametrize("where", ["a file", "a URL"])
def test_a_path_is_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(PIXELS))
    paths: list[str] = []
    opened = Image.open

    def recorded(file: Any, *args: Any, **options: Any) -> Any:
        paths.append(str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr(Image, "open", recorded)
    monkeypatch.setattr(
        "datasets.features.image.xopen", lambda path, *_, **__: paths.append(path) or secret.open("rb")
    )
    path = str(secret) if where == "a file" else "https://example.org/secret.png"
    rows = [GOOD, {"bytes": None, "path": path}]
    if kind == "text":
        rows = [path, path]
    with pytest.raises(UserError, match=r"test split.*embedded"):
        list(of_rows(tmp_path, *rows).inputs)
    assert not [path_read for path_read in paths if "secret" in path_read]


def test_a_program_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(0, "JPEG")):
        of_rows(tmp_path, {"bytes": saved("EPS"), "path": None}).inputs[2]


@pytest.mark.parametrize("side", [700, 1200], ids=["too large", "far too large"])
def test_an_image_that_would_fill_the_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 600)
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    with pytest.raises(UserError, match=naming("row 1", "test", "pixels")):
        of_rows(tmp_path, GOOD, {"bytes": bomb.getvalue(), "path": None}).inputs[3]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_images_are_decoded_as_datasets_does(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {} if form in ("BMP", "GIF") else {"exif": exif}
    row = {"bytes": saved(form, **turned), "path": "ignored.png"}
    image = of_rows(tmp_path, row).inputs[2]
    assert np.array_equal(image, np.asarray(datasets.Image(mode="RGB").decode_example(row)))
    assert image.shape == ((6, 8, 3) if turned else (8, 6, 3))


@pytest.mark.parametrize("content", [b"no image", encoded(PIXELS)[:60], b""], ids=["text", "cut", "empty"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    examples = of_rows(tmp_path, GOOD, {"bytes": content, "path": None})
    with pytest.raises(UserError, match=naming("'eurosat'", 1)):
        examples.inputs[3]


def test_plain_bytes_are_images_too(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [GOOD["bytes"]] * 2, "label": [0, 1]})
    parquet.write_table(table, tmp_path / "train.parquet")
    examples = task_of("eurosat", DataSource(local=tmp_path)).examples()
    assert np.array_equal(examples.inputs[1], PIXELS)
