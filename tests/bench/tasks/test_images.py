"""Tests images in files and in tables of others: which layouts and formats are read, and what is refused."""

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

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tensorbench.methods.errors import UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.tasks import TASKS, DataSource, Examples, Task, check_use, prepare
from tensorbench.tasks.images import decoded

from ...messages import naming
from ..hub_stand_in import encoded
from .toy_tasks import IMAGES, pictures, splits, task

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)

GOOD = {"bytes": encoded(PIXELS), "path": None}


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


def test_a_plan_refuses_fractions_of_official_splits(tmp_path: Path, own_cache: Path) -> None:
    pictures(tmp_path / "x", *(f"{s}/{c}" for s in ("train", "test") for c in "ab"))
    check_use(task(tmp_path, images="x", fractions=[80, 20, 0]), (None, None, None), (None,))
    with pytest.raises(UserError, match=naming("fractions", "official", "test split has 0", "80, 10, 10")):
        check_use(task(tmp_path, images="x", fractions=[80, 10, 10]), (None, None, None), (None,))


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


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_paths_in_a_list_may_have_spaces_and_commas(tmp_path: Path, separator: str) -> None:
    pictures(tmp_path / "x", "a", "b")
    names = ["my photo.png", "a,b.png", "c. d.png", "e.png"]
    for number, name in enumerate(names):
        (tmp_path / "x" / "a" / f"{number}.png").rename(tmp_path / "x" / name)
    (tmp_path / "x" / "l.txt").write_text("".join(f"{n}{separator}{n in names[:2]}\n" for n in names))
    own = task(tmp_path, image_list="x/l.txt")
    assert (own.classes, list(own.examples().labels)) == (("False", "True"), [1, 1, 0, 0])


def test_images_in_hidden_folders_are_none(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "a", "b", "a/more", "a/.ipynb_checkpoints", "b/more/.thumbs")
    assert len(task(tmp_path, images="x").examples().labels) == 24


#: Paths in a list of images, and what the message names beside the list and its line.
NO_PATHS: dict[str, str] = {
    "../secret.png": "leads out",
    "{secret}": "absolute path",
    "{inside}": "absolute path",
    "link.png": "leads out",
    "a/missing.png": "no image",
    "a": "no image",
    "a/\0.png": "no path",
}


@pytest.mark.parametrize("name", NO_PATHS)
@pytest.mark.parametrize("kind", ["image_list", "csv"])
def test_paths_that_name_no_image_below_their_folder_are_refused(
    tmp_path: Path, kind: str, name: str
) -> None:
    pictures(tmp_path / "x", "a", "b")
    secret = tmp_path / "secret.png"
    shutil.copy(tmp_path / "x" / "a" / "0.png", secret)
    (tmp_path / "x" / "link.png").symlink_to(secret)
    row = name.format(secret=secret, inside=tmp_path / "x" / "a" / "0.png")
    columns = {} if kind == "image_list" else {"image": "f", "label": "k"}
    lines = f"a/0.png 0\n\n{row} 1\n" if kind == "image_list" else f"f,k\na/0.png,0\n{row},1\n"
    (tmp_path / "x" / "l.txt").write_text(lines)
    with pytest.raises(UserError, match=naming("l.txt", "line 3", NO_PATHS[name])):
        task(tmp_path, **{kind: "x/l.txt"}, **columns)


@pytest.mark.parametrize(
    ("link", "to", "message"),
    [
        ("x/a/more", "x/b", "is a link to a folder"),
        ("x/a/gone.png", "x/none.png", "none.png"),
        ("x/a/deep/gone.png", "x/none.png", "none.png"),
        ("x/c", "x/none", "none"),
    ],
)
def test_links_to_folders_and_to_nothing_are_refused(
    tmp_path: Path, link: str, to: str, message: str
) -> None:
    pictures(tmp_path / "x", "a", "b", "a/deep")
    (tmp_path / link).symlink_to(tmp_path / to)
    with pytest.raises(UserError, match=naming("mine", link, message)):
        task(tmp_path, images="x")


@pytest.mark.parametrize("home", ["x", "official/train"])
def test_an_image_beside_the_folders_of_classes_is_refused(tmp_path: Path, home: str) -> None:
    pictures(tmp_path / home, "a", "b")
    (tmp_path / home / "notes.txt").touch()
    images = home.split("/")[0]
    assert len(task(tmp_path, images=images).examples().labels) == 16
    (tmp_path / home / "a" / "0.png").rename(tmp_path / home / "loose.PNG")
    with pytest.raises(UserError, match=naming(home, "no class", "loose.PNG")):
        task(tmp_path, images=images)


def test_a_split_without_folders_of_classes_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "x", "train/a", "train/b", "val/a", "val/b", "test")
    with pytest.raises(UserError, match=naming("x", "test beside train, val", "no folder of images")):
        task(tmp_path, images="x")
    assert task(tmp_path, images="x", splits={"train": "train", "val": "validation"}).classes == ("a", "b")


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


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from Python 3.12 on, os.walk reads any depth")
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


@pytest.mark.parametrize(
    ("folders", "row", "message"),
    [
        ({"a": 8, "b": 8, "c": 2}, {}, ("split has no example of c", "2 in all")),
        ({"a": 8, "b": 8, "c": 2}, {"every_class": False}, ()),
        ({"train/a": 8, "train/b": 8, "test/a": 8}, {}, ("test split has no example of b",)),
        ({"train/a": 8, "train/b": 8, "val/a": 8, "val/b": 8, "test/a": 8, "test/c": 8}, {}, ("train", "c")),
        (
            {"train/a": 8, "train/b": 8, "val/a": 8, "val/b": 8, "test/a": 8},
            {"every_class": False, "metric": "auroc"},
            ("'auroc'", "a, b", "test split"),
        ),
        ({"a": 3, "b": 4}, {"batch_size": 8, "every_class": False}, ("batch_size", 8, "at most", 7)),
        ({"train/a": 4, "train/b": 4, "test/a": 4, "test/b": 4}, {"batch_size": 9}, ("batch_size", 9, 8)),
        ({"train/a": 4, "train/b": 4, "test/a": 4, "test/b": 4}, {"batch_size": 8}, ()),
    ],
)
def test_a_plan_finds_without_sizes_what_labels_tell(
    tmp_path: Path, own_cache: Path, folders: dict[str, int], row: dict[str, Any], message: tuple[object, ...]
) -> None:
    for folder, count in folders.items():
        pictures(tmp_path / "x", folder, count=count)
    training = {"batch_size": row.pop("batch_size", 2)}
    suite = {"name": "s", "backbones": ["tiny-random-vit"], "methods": ["lora"], "seeds": [0]}
    suite |= {"tasks": [{"name": "mine", "images": str(tmp_path / "x"), **row}], "training": training}
    valid = Suite.model_validate({**suite, "budgets": [{"isorank": 2}]})
    if not message:
        assert make_plan(valid).trials
        return
    with pytest.raises(UserError, match=naming("'mine'", *message)):
        make_plan(valid)


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


def saved(form: str, *images: np.ndarray, **options: Any) -> bytes:
    buffer, (first, *others) = io.BytesIO(), [Image.fromarray(pixels) for pixels in images or (PIXELS,)]
    options |= {"save_all": True, "append_images": others} if others else {}
    first.save(buffer, form, **options)
    return buffer.getvalue()


TWO = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (20, 200)]

#: Contents of files that are no image, and what the message names.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "text": (b"no image", "JPEG"),
    "cut": (encoded(PIXELS)[:60], ""),
    "empty": (b"", "JPEG"),
    "a program": (saved("EPS"), "JPEG"),
    "a bomb": (saved("PNG", np.zeros((700, 700), dtype=bool)), "pixels"),
    "a larger bomb": (saved("PNG", np.zeros((1200, 1200), dtype=bool)), "pixels"),
    "16 bits of grey": (saved("PNG", np.full((8, 8), 4000, dtype=np.uint16)), "8 bits"),
    "16 bits of colours": (png_of_16_bits(), "16 bits"),
    **{f"two pictures in {form}": (saved(form, *TWO), "pictures") for form in ("GIF", "PNG", "WEBP", "TIFF")},
}


def of_rows(folder: Path, *rows: Any) -> Examples:
    """Returns the examples of a task with a valid train split and with these rows in the test split."""
    for part, images in (("train", [GOOD, GOOD]), ("test", list(rows))):
        table = pa.table({"image": images, "label": [0] * len(images)})
        pq.write_table(table, folder / f"{part}.parquet")
    return TASKS.get("eurosat").at(DataSource(local=folder)).examples()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_are_refused_by_their_place(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 600)
    content, message = HOSTILE[case]
    pictures(tmp_path / "x", "a", "b")
    (tmp_path / "x" / "b" / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=naming("b/1.png", message)):
        prepare(task(tmp_path, images="x"), IMAGES)
    examples = of_rows(tmp_path, GOOD, {"bytes": content, "path": None})
    with pytest.raises(UserError, match=naming("'eurosat'", "test split", "row 1", message)):
        examples.inputs[3]


def test_a_photograph_with_a_preview_is_one_picture() -> None:
    assert decoded(saved("MPO", *TWO)).mean() == pytest.approx(20, abs=1)


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


def test_an_image_without_bytes_is_refused_by_its_row(tmp_path: Path) -> None:
    rows = [GOOD, {"bytes": None, "path": "/etc/hostname"}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "i.parquet")
    with pytest.raises(UserError, match=naming("i.parquet", "row 1", "paths")):
        task(tmp_path, parquet="i.parquet", image="image", label="label")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_images_are_decoded_as_datasets_does(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {} if form in ("BMP", "GIF") else {"exif": exif}
    row = {"bytes": saved(form, **turned), "path": "ignored.png"}
    image = of_rows(tmp_path, row).inputs[2]
    assert np.array_equal(image, np.asarray(datasets.Image(mode="RGB").decode_example(row)))
    assert image.shape == ((6, 8, 3) if turned else (8, 6, 3))


def test_plain_bytes_are_images_too_and_grey_becomes_rgb(tmp_path: Path) -> None:
    images = [GOOD["bytes"], encoded(PIXELS[..., 0])]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "train.parquet")
    examples = TASKS.get("eurosat").at(DataSource(local=tmp_path)).examples()
    assert np.array_equal(examples.inputs[0], PIXELS)
    assert np.array_equal(examples.inputs[1], np.repeat(PIXELS[..., :1], 3, axis=2))
