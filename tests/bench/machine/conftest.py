from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..hub_stand_in import Hub, client, serve, write_glue, write_images
from .paper_hub import (
    DTD_PARTS,
    DTD_WHOLE,
    EUROSAT,
    GLUE,
    LAND,
    ROBERTA,
    SIZES,
    TEXTURES,
    VIT,
    save_roberta,
    save_vit,
)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Serves small copies of the paper's hub repositories. Tests that change a file must restore it."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as hub:
        hub.folders = {
            VIT: save_vit(folder / "vit"),
            ROBERTA: save_roberta(folder / "roberta"),
            GLUE: write_glue(write_glue(folder / "glue", "cola", SIZES), "mrpc", SIZES),
            EUROSAT: write_images(
                folder / "eurosat", {"train": 6, "validation": 2, "test": 2}, LAND, shards=2
            ),
            DTD_PARTS: folder / "dtd",
            DTD_WHOLE: write_images(folder / "dtd-merged", {"train": 10, "test": 2}, TEXTURES),
        }
        write_images(folder / "dtd" / "partition_1", {"train": 5, "validation": 5, "test": 2}, TEXTURES)
        for name in hub.folders:
            (hub.folders[name] / "README.md").write_text(f"# {name}\n")
            (hub.folders[name] / "modeling.py").write_text("raise SystemExit\n")
        yield hub


@pytest.fixture
def online(hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    """Gives the test an empty hub cache and the address of the served hub."""
    hub.served.clear()
    with client(tmp_path / "hub", hub.endpoint):
        yield hub
