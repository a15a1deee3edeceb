"""Exports adapters of tiny backbones, and loads the exports by the code of their README.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tensorbench.backbones import BackboneSpec, LoadedBackbone, load
from tensorbench.backbones.answers import Writer, put_head
from tensorbench.backbones.kinds import KINDS
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.baselines.full import FullFineTuning
from tensorbench.methods import Adapter, Geometry, Method, Site, create
from tensorbench.methods.lowrank import Contracted, Parametrisation
from tensorbench.tools.export import Exported, write_export

from ..local_checkpoints import model_of

CLASSES = ("heron", "ibis", "stork")
#: The id of the only commit of the repository in `hub_folder`.
COMMIT = "0123456789abcdef0123456789abcdef01234567"

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
        """Exports the adapter, and checks that this leaves backbone and adapter as they were."""
        writes = isinstance(self.backbone.module.answers, Writer)
        before, fingerprint = None if writes else self.logits(), self.backbone.fingerprint()
        exported = write_export(self.backbone, adapter, self.spec, self.folder, CLASSES, **options)
        assert self.backbone.fingerprint() == fingerprint
        assert before is None or torch.equal(self.logits(), before)
        return exported

    def inputs(self, seed: int = 5) -> dict[str, Tensor]:
        """A batch of two examples. If they are texts, the second is padded on the right."""
        draws, model_input = generator(seed), self.backbone.info.input
        if size := getattr(model_input, "size", 0):
            return {"pixel_values": torch.randn(2, 3, size, size, generator=draws)}
        ids = torch.randint(3, self.backbone.module.encoder.config.vocab_size, (2, 7), generator=draws)
        mask = torch.ones_like(ids)
        ids[1, 4:], mask[1, 4:] = 1, 0
        return {"input_ids": ids, "attention_mask": mask}

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.backbone.module.eval()(**self.inputs())

    def config(self, name: str = "adapter_config.json") -> dict[str, Any]:
        return json.loads((self.folder / name).read_text())

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Puts a checkpoint of the user's own where the export says, and works in the export's folder."""
        place, before = self.folder / (self.spec.local or Path()).name, Path.cwd()
        links = self.spec.local is not None and not place.exists()
        if links:
            place.symlink_to(self.spec.local or "")
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)
            if links:
                place.unlink()

    def loaded(self, prompts: Sequence[str] = (), **batch: Tensor) -> dict[str, Any]:
        """Runs the code of the export's README.md as a reader does. Returns its names, such as `logits`."""
        (code,) = re.findall("```python\n(.*?)\n```", (self.folder / "README.md").read_text(), re.DOTALL)
        names: dict[str, Any] = {"batch": batch or self.inputs(), "prompts": prompts}
        with self.beside():
            exec(code, names)
        return names


def assert_same_logits(case: Case, **batch: Tensor) -> Any:
    """Checks that the code of an export's README.md gives the harness's logits. Returns the loaded model."""
    names = case.loaded(**batch)
    with torch.no_grad():
        close(names["logits"], case.backbone.module.eval()(**(batch or case.inputs())))
    return names["model"]


def saved(
    kind: str,
    folder: Path,
    quantise: str | None = None,
    changes: Mapping[str, Any] | None = None,
    **input_: Any,
) -> Case:
    """Saves a checkpoint of this kind and loads it as a backbone with a head of three classes.

    `changes` replace fields of the configuration. `input_` changes the backbone's input. With `prompt` or
    `writing`, a language model answers without a head.
    """
    model_of(kind, **(changes or {})).save_pretrained(folder / "model")
    if KINDS[kind].reads == "texts":
        byte_tokenizer(16).save_pretrained(folder / "model")
    return loaded(BackboneSpec(local=folder / "model", quantise=quantise), folder, **input_)


def loaded(spec: BackboneSpec, folder: Path, **input_: Any) -> Case:
    backbone = load(spec)
    put_head(backbone, replace(backbone.info.input, **input_), 3, generator(0))
    return Case(spec, backbone, folder / "export")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=1e-5 * scale, rtol=0)


def save_timm(file: Path, name: str = "test_vit") -> BackboneSpec:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, file)
    return BackboneSpec(timm=name, local=file)


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
