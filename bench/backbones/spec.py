"""The description of a backbone in a suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tensorbench.backbones.backbone import BackboneInfo
from tensorbench.backbones.inputs import MAX_PIXELS
from tensorbench.machine.files import expanded
from tensorbench.methods.errors import UserError
from tensorbench.methods.quantised import Quantisation
from tensorbench.methods.validation import Frozen, Label


class BackboneSpec(Frozen):
    """A backbone in a suite. It has exactly one source: `name`, `hub`, `local` or `timm`.

    `name` is a registered name. In a suite, a plain string is short for a backbone with this `name`. `hub` is
    a repository of the Hugging Face hub for transformers, `local` a folder written by `save_pretrained`, and
    `timm` a timm model, such as `vit_small_patch16_224` or `hf_hub:owner/model`. With `timm`, `local` may
    give a safetensors file with the model's weights. `revision` is a branch, tag or commit of a hub
    repository.

    `image_size` is in pixels, by default the backbone's own. `dtype` is the dtype of the encoder's weights,
    whatever the checkpoint's: `bfloat16` takes half the memory and trains under bf16 autocast. `quantise` is
    the quantisation of all projections. Trained parameters stay in float32.
    """

    name: str | None = None
    hub: str | None = None
    revision: str | None = None
    local: Path | None = None
    timm: str | None = None
    image_size: int | None = Field(default=None, ge=1, le=MAX_PIXELS)
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantise: Quantisation | None = None
    #: The name in tables, plots and reports.
    label: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("local")
    @classmethod
    def _home(cls, local: Path | None) -> Path | None:
        if local is not None:
            refuse_unknown_home(local)
        return local

    @model_validator(mode="after")
    def _one_source(self) -> BackboneSpec:
        sources = [field for field in ("name", "hub", "timm") if getattr(self, field) is not None]
        if self.local is not None and self.timm is None:
            sources.append("local")
        if not sources:
            raise ValueError("a backbone needs a source: one of name, hub, local or timm")
        if len(sources) > 1:
            raise ValueError(f"a backbone has one source, but {' and '.join(sources)} are given")
        if self.revision is not None and self.hub_name is None:
            raise ValueError(
                "revision goes with what comes from a hub repository: hub, or timm without local"
            )
        if self.revision is not None and "@" in (self.timm or ""):
            raise ValueError("revision: the timm name has one already, after its @")
        return self

    @property
    def hub_name(self) -> str | None:
        """The hub repository, or `timm:` followed by the timm model, as the suite gives it.

        None if the backbone does not come from a hub.
        """
        if self.local is not None or self.name is not None:
            return None
        return self.hub or f"timm:{self.timm}"

    def described(self, info: BackboneInfo) -> BackboneInfo:
        """Returns the description with the name and hash of weights in this dtype and quantisation.

        So rounded weights count as different from the source's, both in tables and in a trial's id.
        """
        for rounding in (self.dtype, self.quantise):
            if rounding not in ("float32", None):
                name, weights_hash = f"{info.name} {rounding}", f"{rounding} of {info.weights_hash}"
                info = replace(info, name=name, weights_hash=weights_hash)
        return info

    def pinned(self, info: BackboneInfo) -> BackboneSpec:
        """Returns the backbone fixed to the commit in `info`. Unchanged if it does not come from a hub."""
        return self if self.hub_name is None else self.at(info.weights_hash.rpartition("@")[2])

    def at(self, commit: str) -> BackboneSpec:
        """Returns the same backbone at a commit of its hub repository."""
        return self.model_copy(update={"revision": commit, "timm": self.timm and self.timm.partition("@")[0]})


def refuse_unknown_home(path: Path) -> None:
    """Raises ValueError for a path below the home of an unknown user."""
    try:
        expanded(path)
    except UserError as error:
        raise ValueError(str(error)) from error
