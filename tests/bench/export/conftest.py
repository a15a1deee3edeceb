"""Fixtures for tests of exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorbench.backbones import BACKBONES, BackboneSpec, load, registered_backbones

from ..local_checkpoints import KINDS, encoder, write
from .cases import (
    CLASSES,
    COMMIT,
    PLUGIN_TIMM,
    RANDOM_TIMM,
    WIDE,
    Case,
    generator,
    save_timm,
)


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(tmp_path_factory.mktemp("timm") / "weights.safetensors", "test_vit")


@pytest.fixture
def case(tmp_path: Path, timm_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    for name, entry in (("timm-random", RANDOM_TIMM), ("timm-plugin", PLUGIN_TIMM)):
        monkeypatch.setattr(registered_backbones, name, entry, raising=False)
        monkeypatch.setitem(BACKBONES._targets, name, f"{registered_backbones.__name__}:{name}")

    def make(source: str, image_size: int | None = None, **config: Any) -> Case:
        if source in KINDS:
            changes = WIDE.get(source, {"intermediate_size": 64}) | config
            folder = write(tmp_path / "model", source, encoder(source, **changes), version=4, prefix=True)
            spec = BackboneSpec(local=folder, image_size=image_size)
        elif source == "timm":
            spec = BackboneSpec(timm="test_vit", local=timm_file, image_size=image_size)
        else:
            spec = BackboneSpec(name=source, image_size=image_size)
        backbone = load(spec)
        backbone.reset(len(CLASSES), generator(0))
        return Case(spec, backbone, tmp_path / "export")

    return make


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the repository `me/tiny` in a hub cache that works without network. It has one commit."""
    from huggingface_hub import constants

    from tensorbench.machine.hub import snapshot

    repository = tmp_path / "hub" / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot.cache_clear()
    yield repository / "snapshots" / COMMIT
    snapshot.cache_clear()
