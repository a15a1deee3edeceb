"""Tests that bad requests are refused at once, with the field, its value and the accepted values."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ..fixtures import Call
from ..messages import naming
from . import local_checkpoints
from .toy_suites import MOVIES, TEXT, VISION, write

#: The CPU seconds that a refusal may take. If a request is not refused, it takes hours.
SECONDS = 30.0
LINES = 20
CHARACTERS = 3000

#: A YAML text of 30 lists, in which each list contains the list before twice. That is a billion values.
BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))


@pytest.fixture(scope="module", autouse=True)
def imported(call: Call, tmp_path_factory: pytest.TempPathFactory) -> None:
    # The time of imports should not count in the first case.
    with suppress(ImportError):
        import ray  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer, BertModel, ViTModel  # noqa: F401

    folder = tmp_path_factory.mktemp("imported")
    assert call("plan", write(folder, methods=["lora", "lotr", {"method": "peft", "type": "VERA"}])).code == 0


def field(base: dict[str, Any] = VISION, **changes: Any) -> Callable[[Path], tuple[object, ...]]:
    """Makes a function that writes a suite with these fields to a folder.

    The function returns the command line arguments with which the program plans this suite.
    """
    return lambda folder: ("plan", write(folder, base, **changes))


def text(content: str) -> Callable[[Path], tuple[object, ...]]:
    """Makes a function like that of `field`, for a suite whose file has this text."""

    def made(folder: Path) -> tuple[object, ...]:
        (folder / "suite.yaml").write_text(content)
        return "plan", folder / "suite.yaml"

    return made


def run(*options: str, **changes: Any) -> Callable[[Path], tuple[object, ...]]:
    base = changes.pop("base", VISION)
    return lambda folder: ("run", write(folder, base, **changes), *options)


def checkpoint(kind: str, **config: Any) -> Callable[[Path], tuple[object, ...]]:
    """Makes a function like that of `field`, for a suite with a checkpoint.

    `config` replaces entries of the checkpoint's config.json.
    """

    def made(folder: Path) -> tuple[object, ...]:
        place = local_checkpoints.write(folder / "checkpoint", kind, local_checkpoints.encoder(kind))
        file = place / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return "plan", write(folder, TEXT if kind == "bert" else VISION, backbones=[{"local": str(place)}])

    return made


def broken(name: str, content: bytes) -> Callable[[Path], tuple[object, ...]]:
    """Makes a function like that of `field`, for a suite with a checkpoint whose file `name` is broken.

    The arguments that the function returns run the suite instead of planning it.
    """

    def made(folder: Path) -> tuple[object, ...]:
        place = local_checkpoints.write(folder / "checkpoint", "vit", local_checkpoints.encoder("vit"))
        (place / name).write_bytes(content)
        return "run", write(folder, backbones=[{"local": str(place)}])

    return made


def wide(folder: Path) -> tuple[object, ...]:
    """Writes a suite with a CSV file of 500,000 columns."""
    names = ",".join(f"c{number}" for number in range(500_000))
    (folder / "own.csv").write_text(f"{names}\n{',1' * 499_999}\n")
    own = {"name": "own", "csv": str(folder / "own.csv"), "text": "c1", "label": "c2"}
    return "plan", write(folder, TEXT, tasks=[own])


def many_tensors(folder: Path) -> tuple[object, ...]:
    """Writes a suite with a checkpoint of 200,000 empty tensors."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": empty for number in range(200_000)}).encode()
    return broken("model.safetensors", struct.pack("<Q", len(header)) + header)(folder)


LONG = "x" * 311_000

CASES: dict[str, tuple[Callable[[Path], tuple[object, ...]], tuple[str, ...]]] = {
    # Too large to be intended.
    "alias bomb": (text(BOMB), ("suite.yaml", "aliases", "20,000")),
    "file size": (text("name: toy\n# " + "x" * 2**21), ("suite.yaml", "1,048,576 bytes")),
    "each": (
        field(
            methods=[
                {"method": "lora", "each": {"rank": list(range(1, 2001)), "scale": list(range(1, 2001))}}
            ]
        ),
        ("methods.0", "each", "4,000,000", "10,000"),
    ),
    "each of several rows": (
        field(
            methods=[{"method": "lora", "scale": n, "each": {"rank": list(range(1, 6001))}} for n in (1, 2)]
        ),
        ("methods", "12,000", "10,000"),
    ),
    "trials": (
        field(
            seeds=list(range(15_000)), budgets=[{"isorank": n} for n in range(1, 5)], methods=["lora", "lotr"]
        ),
        ("120,000", "100,000"),
    ),
    "layers": (
        checkpoint("vit", num_hidden_layers=10**7),
        ("num_hidden_layers", "10000000", "from 1 to 1,000"),
    ),
    "width": (checkpoint("bert", hidden_size=2 * 10**9), ("hidden_size", "2000000000", "65,536")),
    "long value": (field(evaluate=LONG), ("evaluate", "'test' or 'validation'", "xxx")),
    "long key": (field(**{LONG: 1}), ("unknown field", "xxx", "accepted are")),
    "long name": (field(methods=[LONG]), ("methods.0", "unknown method", "xxx", "lora")),
    "many wrong values": (field(seeds=["x"] * 5000), ("seeds.0", "integer", "more")),
    "max_tokens beyond": (
        field(TEXT, tasks=[{**MOVIES, "max_tokens": 4096}]),
        ("max_tokens", "4096", "128", "tiny-random-bert"),
    ),
    "no store": (run("--store", ""), ("--store", "''", "sqlite:///")),
    # Reported before anything is announced as running.
    "max_tokens": (
        run(base=TEXT, tasks=[{**MOVIES, "max_tokens": 1}]),
        ("max_tokens", "1", "special tokens"),
    ),
    "tokenizer": (checkpoint("bert"), ("has no tokenizer", "tokenizer.json")),
    "no cluster": (
        run("--executor", "ray", "--ray-address", "127.0.0.1:1"),
        ("--ray-address 127.0.0.1:1", "refused"),
    ),
    "no address": (
        run("--executor", "ray", "--ray-address", "nobody"),
        ("--ray-address nobody", "auto or HOST:PORT"),
    ),
    # Files with unexpected content.
    "empty config": (broken("config.json", b""), ("config.json", "checkpoint", "JSON")),
    "cut config": (broken("config.json", b'{"model_type": "vit", "hid'), ("config.json", "JSON")),
    "nested config": (broken("config.json", b"[" * 100_000), ("config.json", "JSON")),
    "absurd header": (
        broken("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        ("model.safetensors", "not a safetensors file"),
    ),
    "columns": (wide, ("own.csv", "500,000 columns", "10,000")),
    "entries of a config": (
        checkpoint("vit", **{f"field_{number}": number for number in range(200_000)}),
        ("config.json", "entries", "100,000"),
    ),
    "tensors": (many_tensors, ("model.safetensors", "200,000 tensors", "100,000")),
    "folder without results": (
        lambda folder: ("show", str(folder), "--cell", "1", "--store", f"sqlite:///{folder / 'none.db'}"),
        ("there is no store at", "is a folder without results of other programs"),
    ),
    "pack instead of a trial": (
        lambda folder: ("show", "a.tensorbench.zip"),
        ("is a pack", "tensorbench unpack", "--cell N"),
    ),
    "pack instead of a run": (
        lambda folder: ("export", "a.tensorbench.zip", "--out", folder / "out"),
        ("is a pack", "tensorbench unpack"),
    ),
    "driver": (
        lambda folder: ("run", write(folder), "--store", "mysql://u:p@127.0.0.1:1/x"),
        ("mysql", "is not supported", "postgresql"),
    ),
}


def test_an_unwritable_cache_is_refused_before_any_announcement(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder cannot be created, because a file has its name.
    (tmp_path / "cache").touch()
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path / "cache"))
    ended = call("run", write(tmp_path), "--store", new_store(tmp_path))
    assert ended.code == 2
    assert ended.out == ""
    assert f"{tmp_path / 'cache'}: " in ended.err
    assert "set TENSORBENCH_CACHE" in ended.err


def test_images_that_memory_cannot_hold_are_refused(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorbench.tasks.preparing.available_mib", lambda: 100.0)
    suite = write(tmp_path, backbones=[{"name": "tiny-random-vit", "image_size": 1024}])
    ended = call("run", suite, "--store", new_store(tmp_path))
    assert (ended.code, ended.out) == (2, "")
    assert re.search(naming("'digits'", "1,797", 1024), ended.err)
    assert re.search(naming(100, "MiB", "image_size"), ended.err)


@pytest.mark.parametrize("name", CASES)
def test_refused_at_once_and_in_a_few_words(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path, name: str
) -> None:
    made, message = CASES[name]
    arguments = made(tmp_path)
    if "--store" not in arguments:
        arguments += ("--store", new_store(tmp_path))
    if "--ray-address" in arguments:
        pytest.importorskip("ray")
    began = time.process_time()
    ended = call(*arguments)
    took = time.process_time() - began
    shown = ended.out + ended.err
    assert ended.code != 0
    assert "Traceback" not in shown
    assert ended.err.startswith("error: ")
    assert [part for part in message if part not in shown] == [], shown[:2000]
    assert "to run" not in shown
    assert len(shown.splitlines()) <= LINES
    assert len(shown) <= CHARACTERS
    assert took < SECONDS
