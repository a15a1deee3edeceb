"""Tests image files that a suite describes: which layouts are read, and what is refused."""

from __future__ import annotations

import inspect
import io
import os
import shutil
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tensorbench.methods.errors import UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.tasks import Task, prepare
from tensorbench.tasks.images import decoded

from ...messages import naming
from .toy_tasks import IMAGES, pictures, splits, task


def test_images_by_class_and_by_list(tmp_path: Path, own_cache: Path) -> None:
    pictures(tmp_path / "shapes", "round", "square")
    by_class = task(tmp_path, images="shapes")
    listed = "".join(f"{c}/{i}.png {n}\n" for n, c in enumerate(("round", "square")) for i in range(8))
    (tmp_path / "shapes" / "all.txt").write_text(listed)
    by_list = task(tmp_path, image_list="shapes/all.txt", classes={0: "round", 1: "square"})
    for images_task in (by_class, by_list):
        assert images_task.classes == ("round", "square")
        assert Counter(images_task.examples().labels) == {0: 8, 1: 8}
    pictures(tmp_path / "official", *(f"{s}/{c}" for s in ("train", "val", "test") for c in "ab"))
    official = task(tmp_path, images="official")
    assert official.sizes == (16, 16, 16)
    assert [len(split) for split in splits(prepare(official, IMAGES))] == [16, 16, 16]


def test_a_folder_beside_those_of_the_splits_is_no_class(tmp_path: Path) -> None:
    pictures(tmp_path / "x", *(f"{s}/{c}" for s in ("train", "test", "extra") for c in "ab"))
    with pytest.raises(UserError, match=naming("extra", "test, train")):
        task(tmp_path, images="x")
    own = task(tmp_path, images="x", splits={"train": "train", "test": "test"})
    assert (own.classes, Counter(own.examples().splits or ())) == (("a", "b"), {"train": 16, "test": 16})
    with pytest.raises(UserError, match=naming("fit", "dev")):
        task(tmp_path, images="x", splits={"fit": "train", "dev": "test"})


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "train", "bus", "plane/old")
    own = task(tmp_path, images="x")
    assert (own.classes, own.examples().splits) == (("bus", "plane", "train"), None)


def test_images_of_another_class_are_seen_in_one_process(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "a", "b")
    lines = [f"{c}/{i}.png {c}\n" for c in "ab" for i in range(8)]

    def listed() -> Task:
        return task(tmp_path, image_list="x/l.txt")

    (tmp_path / "x" / "l.txt").write_text("".join(lines))
    before = listed()
    lines[0], lines[8] = "a/0.png b\n", "b/0.png a\n"
    (tmp_path / "x" / "l.txt").write_text("".join(lines))
    assert listed().examples().labels[0] == 1
    assert before.identity_hash() != listed().identity_hash()
    by_class = task(tmp_path, images="x")
    (tmp_path / "x" / "b").rename(tmp_path / "x" / "c")
    assert (by_class.classes, task(tmp_path, images="x").classes) == (("a", "b"), ("a", "c"))


def test_images_in_hidden_folders_are_none(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "a", "b", "a/more", "a/.ipynb_checkpoints", "b/more/.thumbs")
    assert len(task(tmp_path, images="x").examples().labels) == 24


def test_images_lie_in_their_folder_and_are_images(tmp_path: Path, own_cache: Path) -> None:
    pictures(tmp_path / "x", "a", "b")
    secret = tmp_path / "secret.png"
    shutil.copy(tmp_path / "x" / "a" / "0.png", secret)
    (tmp_path / "x" / "link.png").symlink_to(secret)
    for name in ("../secret.png", str(secret), "link.png"):
        (tmp_path / "x" / "l.txt").write_text(f"a/0.png 0\n{name} 1\n")
        with pytest.raises(UserError, match=naming("l.txt", "line 2", "leads out")):
            task(tmp_path, image_list="x/l.txt")
    (tmp_path / "x" / "l.txt").write_text("a/0.png 0\n\na/missing.png 1\n")
    with pytest.raises(UserError, match=naming("l.txt", "line 3", "no image")):
        task(tmp_path, image_list="x/l.txt")
    (tmp_path / "x" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=naming("a/0.png", "no image")):
        prepare(task(tmp_path, images="x"), IMAGES)
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(tmp_path / "x" / "a" / "0.png")
    with pytest.raises(UserError, match=naming("a/0.png", "8 bits")):
        prepare(task(tmp_path, images="x"), IMAGES)


def test_folders_and_files_that_take_no_end_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "a", "b")
    odd = tmp_path / "x" / "a" / os.fsdecode(b"\xff.png")
    odd.write_bytes(b"")
    with pytest.raises(UserError, match=naming("mine", "x", "surrogates")):
        task(tmp_path, images="x")
    odd.unlink()
    with (tmp_path / "x" / "a" / "huge.png").open("wb") as file:
        file.truncate(20 * 2**30)
    with pytest.raises(UserError, match=naming("huge.png", "21,474,836,480 bytes")):
        task(tmp_path, images="x")


def test_folders_too_deep_to_read_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "a", "b", "a/" + "d/" * 300)
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack()) + 200)
        with pytest.raises(UserError, match=naming("mine", "x/a", "too deep")):
            task(tmp_path, images="x")
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_plan_finds_images_that_cannot_be_read(tmp_path: Path, own_cache: Path, form: str) -> None:
    pictures(tmp_path / "x", "a", "b")
    file = tmp_path / "x" / "a" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, form)
    row: dict[str, Any] = {"name": "mine", "images": str(tmp_path / "x")}
    suite = {"name": "s", "backbones": ["tiny-random-vit"], "methods": ["lora"], "seeds": [0]}
    suite |= {"budgets": [{"isorank": 2}]}

    def plan(**more: Any) -> None:
        make_plan(Suite.model_validate({**suite, "training": {"batch_size": 2}, "tasks": [row | more]}))

    plan()
    with pytest.raises(UserError, match=naming("max_tokens", "images")):
        plan(max_tokens=32)
    image = file.read_bytes()
    for content in (image[: len(image) // 2], b"<html>no image</html>", b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match=naming("a/0.png")):
            plan()


def test_a_table_never_names_an_image_elsewhere(tmp_path: Path) -> None:
    images = [
        {"image": {"bytes": None if i else b"x", "path": "/etc/hostname"}, "label": i % 2} for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(images), tmp_path / "i.parquet")
    with pytest.raises(UserError, match=naming("i.parquet", "row 1", "paths")):
        task(tmp_path, parquet="i.parquet", image="image", label="label")


def png_of_16_bits() -> bytes:
    """Encodes a 16-bit RGB PNG, which PIL cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colours_of_16_bits_are_refused_by_their_file(tmp_path: Path, own_cache: Path) -> None:
    pictures(tmp_path / "x", "a", "b")
    (tmp_path / "x" / "b" / "1.png").write_bytes(png_of_16_bits())
    with pytest.raises(UserError, match=naming("b/1.png", "16 bits")):
        prepare(task(tmp_path, images="x"), IMAGES)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_pictures_in_a_file_are_refused(tmp_path: Path, own_cache: Path, form: str) -> None:
    pictures(tmp_path / "x", "a", "b")
    first, second = (Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (20, 200))
    first.save(tmp_path / "x" / "b" / "1.png", form, save_all=True, append_images=[second])
    with pytest.raises(UserError, match=naming("b/1.png", "pictures")):
        prepare(task(tmp_path, images="x"), IMAGES)


def test_a_photograph_with_a_preview_is_one_picture() -> None:
    first, second = (Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (20, 200))
    content = io.BytesIO()
    first.save(content, "MPO", save_all=True, append_images=[second])
    assert decoded(content.getvalue()).mean() == pytest.approx(20, abs=1)
