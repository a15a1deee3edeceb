"""A backbone as a suite names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from bench.backbones.base import BackboneInfo
from bench.inputs import MAX_PIXELS
from bench.sources.hub import Lockable
from methods.validation import Label, silent


class BackboneSpec(Lockable):
    """A backbone as a suite names it: one source, and for vision an image size.

    A plain string is a registered name. The sources are `name` (registered), `hub` (a transformers
    hub id), `local` (a folder written by `save_pretrained`) and `timm` (a timm model name, or
    `hf_hub:owner/model`), to which `local` adds a safetensors file with its weights. What comes from a
    hub repository may be asked for at a `revision`: branch, tag or commit. `image_size` is in pixels;
    without it the backbone's own size is used. `dtype` is what the encoder's weights are held in, whatever
    the checkpoint has: `bfloat16` takes half the memory, rounds weights that have more digits, and trains
    under bf16 autocast. What is trained stays in float32.
    """

    name: str | None = None
    hub: str | None = None
    revision: str | None = None
    local: Path | None = None
    timm: str | None = None
    image_size: int | None = Field(default=None, ge=1, le=MAX_PIXELS)
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: The name that tables, plots and reports have for it.
    label: Label | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = silent(write(self), "label")
        return {key: value for key, value in written.items() if (key, value) != ("dtype", "float32")}

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
        given = [field for field in ("name", "hub", "timm") if getattr(self, field) is not None]
        if self.local is not None and self.timm is None:
            given.append("local")
        if not given:
            raise ValueError("a backbone needs a source: one of name, hub, local or timm")
        if len(given) > 1:
            raise ValueError(f"a backbone has one source, but {' and '.join(given)} are given")
        if self.revision is not None and self.hub_name is None:
            raise ValueError(
                "revision goes with what comes from a hub repository: hub, or timm without local"
            )
        if self.revision is not None and "@" in (self.timm or ""):
            raise ValueError("revision: the timm name has one already, after its @")
        return self

    @property
    def hub_name(self) -> str | None:
        """How a suite names the hub repository that the backbone comes from; None if from no hub."""
        if self.local is not None or self.name is not None:
            return None
        return self.hub or f"timm:{self.timm}"

    def described(self, info: BackboneInfo) -> BackboneInfo:
        """The description of the backbone as it is asked for, from that of its source.

        Rounded weights are others than the source's, in tables and in a trial's id.
        """
        if self.dtype == "float32":
            return info
        return replace(
            info, name=f"{info.name} {self.dtype}", weights_hash=f"{self.dtype} of {info.weights_hash}"
        )

    def pinned(self, info: BackboneInfo) -> BackboneSpec:
        """The same backbone at the commit that `info` describes, wherever and whenever it is loaded."""
        return self if self.hub_name is None else self.at(info.weights_hash.rpartition("@")[2])

    def at(self, commit: str) -> BackboneSpec:
        """The same repository at a commit."""
        return self.model_copy(update={"revision": commit, "timm": self.timm and self.timm.partition("@")[0]})


def refuse_unknown_home(path: Path) -> None:
    """Raises ValueError for a path below the home of a user whom this machine does not know."""
    try:
        path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path.parts[0]} is no user's home folder here") from error
