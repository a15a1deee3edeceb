"""Exports adapters of tiny backbones, and loads the exports as their README.md says."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tensorbench.backbones import BackboneSpec, LoadedBackbone
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.baselines.full import FullFineTuning
from tensorbench.export import Exported, write_export
from tensorbench.methods import Adapter, Geometry, Method, Site, create
from tensorbench.methods.lowrank import Contracted, Parametrisation

from ..local_checkpoints import KINDS, batch

CLASSES = ("heron", "ibis", "stork")
#: The id of the only commit of the repository in `hub_folder`.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCES = [*KINDS, "timm", "timm-random"]

RANDOM_TIMM = RandomBackbone("timm-random", "timm", Geometry(32, 4, 2, 128), image_size=32, patch=8)
PLUGIN_TIMM = type("Plugin", (), {"describe": RANDOM_TIMM.describe, "load": RANDOM_TIMM.load})()
#: Makes the MLP four times as wide as the hidden size, for kinds without the field `intermediate_size`.
WIDE = {"dinov2": {"mlp_ratio": 4}}

METHODS = {
    "att": create("tenslora", variant="att", ranks=(3, 3, 2)),
    "qkv_depth": create("tenslora", variant="qkv_depth", ranks=(4, 3, 2, 2)),
    "att_qkv_depth": create("tenslora", variant="att_qkv_depth", ranks=(3, 3, 2, 2, 2)),
    "cp": create("tenslora", variant="qkv_depth", factorization="cp").isorank(3),
    "lora": create("lora", rank=3, scale=2.0),
    "lora on all": create("lora", rank=2, targets="qkvo+mlp"),
    "fact_tt": create("fact_tt", rank=3),
    "fact_tk": create("fact_tk", rank=3),
    "lotr": create("lotr", rank=2),
    "lorta": create("lorta", rank=3),
    "cara": create("cara", rank=3),
}
SAMPLE = ("qkv_depth", "lora", "cara")


@dataclass
class Case:
    """A backbone with a head, and the folder to export to."""

    spec: BackboneSpec
    backbone: LoadedBackbone
    folder: Path

    @property
    def kind(self) -> str:
        return self.backbone.info.kind

    def attach(self, method: Method | Callable[[LoadedBackbone], Adapter], size: float = 0.2) -> Adapter:
        """Attaches an adapter and adds noise of this size to its parameters and the head's."""
        make = method.put if isinstance(method, FullFineTuning) else getattr(method, "attach", None)
        adapter = make(self.backbone, generator(1)) if make else method(self.backbone)  # type: ignore[operator]
        draws = generator(2)
        with torch.no_grad():
            for parameter in (*adapter.named_parameters().values(), *self.backbone.head.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=size)
        return adapter

    def export(self, adapter: Adapter, **options: Any) -> Exported:
        return write_export(self.backbone, adapter, self.spec, self.folder, CLASSES, **options)

    def loaded(self) -> Any:
        return elsewhere(self.folder, self.spec.local)

    def inputs(self, seed: int = 5) -> dict[str, Tensor]:
        model_input = self.backbone.info.input
        return batch(self.kind, getattr(model_input, "size", 0), seed)

    def logits(self, seed: int = 5) -> Tensor:
        self.backbone.module.eval()
        with torch.no_grad():
            return self.backbone.module(**self.inputs(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def elsewhere(folder: Path, original: Path | None = None) -> Any:
    """Loads an export with the function `load` of its own `load_export.py`.

    `original` is the folder of the frozen model if that is neither in the export nor on the hub.
    """
    return runpy.run_path(str(folder / "load_export.py"))["load"](folder, original)


def close(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=1e-5 * scale, rtol=0)


def save_timm(file: Path, name: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, file)
    return file


class ByHand(Parametrisation):
    """A low-rank pair for each site of `ranks`, with trained biases on the projections in `biased`."""

    def __init__(self, geometry: Geometry, ranks: dict[Site, int], biased: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.biased = biased
        self.down_of = {site: index for index, site in enumerate(ranks)}
        shapes = {site: geometry.shape(site.projection) for site in ranks}
        self.downs = nn.ParameterList(torch.zeros(r, shapes[site][1]) for site, r in ranks.items())
        self.ups = nn.ParameterList(torch.zeros(shapes[site][0], r) for site, r in ranks.items())
        self.moved = nn.ParameterList(torch.zeros(shapes[site][0]) for site in ranks)

    def contract(self) -> Contracted:
        biases = {s: b for s, b in zip(self.down_of, self.moved, strict=True) if s.projection in self.biased}
        return Contracted(list(self.downs), dict(zip(self.down_of, self.ups, strict=True)), biases)
