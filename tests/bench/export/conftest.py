"""Fixtures for tests of exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorbench.backbones import BackboneSpec
from tensorbench.backbones.kinds import KINDS

from ..hub_stand_in import client
from .cases import COMMIT, Case, loaded, save_timm, saved


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Case]:
    """Makes a case of a kind of backbone, of the smallest timm model, or of a backbone by its name."""

    def make(source: str, image_size: int | None = None, **input_: Any) -> Case:
        if source in KINDS and image_size is None:
            return saved(source, tmp_path, **input_)
        spec = BackboneSpec(name=source)
        if source in KINDS:
            spec = saved(source, tmp_path).spec
        elif source == "timm":
            spec = save_timm(tmp_path / "weights.safetensors")
        return loaded(spec.model_copy(update={"image_size": image_size}), tmp_path, **input_)

    return make


@pytest.fixture
def hub_folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of the repository `me/tiny` in a hub cache that works without network. It has one commit."""
    repository = tmp_path / "hub" / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    with client(tmp_path / "hub", "http://127.0.0.1:9", offline=True):
        yield repository / "snapshots" / COMMIT
