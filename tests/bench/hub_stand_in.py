"""A local server in place of the Hugging Face hub, with repositories of small files."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image


@dataclass
class Hub:
    """The repositories that a local server offers."""

    #: The address of the server.
    endpoint: str
    #: Maps "models/owner/name" or "datasets/owner/name" to the folder of the repository's main branch.
    folders: dict[str, Path] = field(default_factory=dict)
    #: The paths of the files that were downloaded.
    served: list[str] = field(default_factory=list)

    def commit(self, name: str) -> str:
        """The commit id of a repository. It changes if a file changes."""
        folder, digest = self.folders[name], hashlib.sha1()
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            digest.update(
                f"{file.relative_to(folder)} {hashlib.sha1(file.read_bytes()).hexdigest()}".encode()
            )
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/").replace("%2F", "/")
        if path.startswith("api/"):
            name = next((n for n in self.hub.folders if path.startswith(f"api/{n}/")), None)
            if name is None:
                self._send(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
                return
            kind, _, revision = path.removeprefix(f"api/{name}/").partition("/")
            if revision not in ("main", commit := self.hub.commit(name)):
                self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            elif kind == "revision":
                shown = name.partition("/")[2]
                self._json({"id": shown, "sha": commit, "siblings": [], "tags": []})
            else:
                self._json([self._entry(name, file) for file in self._files(name)])
            return
        full_path = path if path.startswith("datasets/") else f"models/{path}"
        name, _, rest = full_path.partition("/resolve/")
        _, _, file = rest.partition("/")
        target = self.hub.folders[name] / file
        if not target.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        content = target.read_bytes()
        headers = {
            "X-Repo-Commit": self.hub.commit(name),
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Content-Type": "application/octet-stream",
        }
        if body:
            self.hub.served.append(f"{name}/{file}")
        self._send(200, headers, content, body=body)

    def _files(self, name: str) -> list[Path]:
        folder = self.hub.folders[name]
        return sorted(file for file in folder.rglob("*") if file.is_file())

    def _entry(self, name: str, file: Path) -> dict[str, Any]:
        content = file.read_bytes()
        path = file.relative_to(self.hub.folders[name]).as_posix()
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}

    def _json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serve() -> Iterator[Hub]:
    """Context in which a local hub is served. At first it has no repositories."""
    # Each server needs its own class so that several can run at once.
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub = handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def client(cache: Path, endpoint: str, *, offline: bool = False) -> Iterator[None]:
    """Context in which this process uses the hub at `endpoint`, with its downloads in the folder `cache`.

    The environment variables HF_ENDPOINT and HF_HOME have this effect on a new process.
    """
    from huggingface_hub import constants

    from tensorbench.machine import hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        hub.snapshot.cache_clear()
        yield
    hub.snapshot.cache_clear()


def write_glue(folder: Path, config: str, sizes: dict[str, int]) -> Path:
    """Writes a made-up data set as parquet files like those of GLUE on the hub.

    `config` is the name of the GLUE task. `sizes` maps each split to its number of rows.
    """
    names = {"cola": ("sentence",), "mrpc": ("sentence1", "sentence2")}[config]
    classes = {"cola": ["unacceptable", "acceptable"], "mrpc": ["not_equivalent", "equivalent"]}[config]
    features = datasets.Features(
        {name: datasets.Value("string") for name in names}
        | {"label": datasets.ClassLabel(names=classes), "idx": datasets.Value("int32")}
    )
    for split, size in sizes.items():
        draws = np.random.default_rng(len(split))
        rows = {name: [f"{split} {name} {i} {draws.integers(9**9)}" for i in range(size)] for name in names}
        # The hub's files hide the labels of the test split.
        labels = [-1 if split == "test" else i % 2 for i in range(size)]
        _write(
            folder / config / f"{split}-00000-of-00001.parquet",
            {**rows, "label": labels, "idx": range(size)},
            features,
        )
    return folder


def write_images(folder: Path, parts: dict[str, int], classes: tuple[str, ...], *, shards: int = 1) -> Path:
    """Writes images of noise as parquet files like those of an image data set on the hub.

    `parts` maps each split to its number of images per class.
    """
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    )
    for split, each in parts.items():
        draws = np.random.default_rng(len(split))
        labels = [label for _ in range(each) for label in range(len(classes))]
        pixels = [draws.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in labels]
        stored = [{"bytes": encoded(each), "path": f"{i}.png"} for i, each in enumerate(pixels)]
        for shard in range(shards):
            rows = {"image": stored[shard::shards], "label": labels[shard::shards]}
            _write(folder / f"{split}-{shard:05}-of-{shards:05}.parquet", rows, features)
    return folder


def encoded(pixels: np.ndarray) -> bytes:
    # PNG is lossless.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(file: Path, rows: dict[str, Any], features: datasets.Features) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({k: list(v) for k, v in rows.items()}, features=features).to_parquet(file)
