"""The method `peft`: any adapter type of the package peft that adapts linear layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import field_validator

from tensorbench.baselines.peft_adalora import AdaLoRA
from tensorbench.baselines.peft_lily import Lily
from tensorbench.baselines.peft_method import PeftMethod
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.base import Method
from tensorbench.methods.errors import UnknownNameError, UserError

#: The types with a class of their own, because they need more than peft's layers.
OWN_CLASSES: dict[str, type[PeftMethod]] = {"ADALORA": AdaLoRA, "LILY": Lily}

#: Types that are LoRA with one option of its configuration turned on.
SHORTHANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
}

#: The titles of types whose usual names are not all capitals.
TITLES = {"DORA": "DoRA", "LOHA": "LoHa", "LOKR": "LoKr", "VERA": "VeRA"}

#: The types whose updates are low-rank pairs, apart from those in `OWN_CLASSES`.
LOW_RANK = ("LORA", "RSLORA")

#: The types that are refused, and why: the training loop does not support them, or they do not adapt linear
#: layers.
REFUSED = {
    "ADAPTION_PROMPT": "it adds virtual tokens",
    "CARTRIDGE": "it adds virtual tokens",
    "CPT": "it adds virtual tokens",
    "LN_TUNING": "it trains layer norms",
    "MULTITASK_PROMPT_TUNING": "it adds virtual tokens",
    "OSF": "it trains the backbone's own weights in another basis",
    "POLY": "its forward needs task ids",
    "PREFIX_TUNING": "it adds virtual tokens",
    "PROMPT_TUNING": "it adds virtual tokens",
    "P_TUNING": "it adds virtual tokens",
    "SHADOW": "it adds a second model",
    "TRAINABLE_TOKENS": "it trains embeddings",
    "XLORA": "it mixes adapters that are trained already",
}

#: The types that draw random numbers in every training forward, even without dropout.
DRAWING = {
    "LOHA": "peft's LoHa draws a number at every layer, from the CPU's stream",
    "LOKR": "peft's LoKr draws a number at every layer, from the CPU's stream",
    "PVERA": "peft's PVERA draws its update anew at every layer",
}

#: The types whose update is not zero at the start.
NONZERO_STARTS = {
    "C3A": "peft's C3A draws its kernels at random",
    "FOURIERFT": "peft's FourierFT draws its spectrum at random",
    "UNILORA": "peft's UniLoRA draws all entries of A and B from one random vector",
    "VBLORA": "peft's VB-LoRA draws its vector bank and its logits at random",
}

#: The types in `NONZERO_STARTS` that start at zero if `config.init_weights` is true.
ZERO_ON_REQUEST = ("C3A", "FOURIERFT")


class Peft(PeftMethod):
    """An adapter type of peft, such as VERA, LOHA, LOKR or IA3. DORA and RSLORA are types, too.

    `config` has values for fields of peft's configuration. Types such as ADALORA have a class of their own.
    For these, `from_options` returns an instance of that class.
    """

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> Method:
        kind = OWN_CLASSES.get(str(options.get("type")).upper())
        if kind is None:
            return super().from_options(options, where)
        return kind.from_options({**options, "type": options["type"].upper()}, where)

    @field_validator("type")
    @classmethod
    def _type_fits(cls, value: str) -> str:
        value = value.upper()
        if value in REFUSED:
            raise ValueError(f"peft's {value} does not fit here: {REFUSED[value]}")
        if value in OWN_CLASSES:
            raise ValueError(f"peft's {value} is of the class {OWN_CLASSES[value].__name__}: use create")
        if value not in peft_types():
            accepted = [kind for kind in peft_types() if kind not in REFUSED]
            raise ValueError(str(UnknownNameError("peft type", value, accepted)))
        return value

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        return tuple(cls(type=kind) for kind in ("DORA", "VERA", "LOHA", "LOKR", "IA3"))

    @property
    def title(self) -> str:
        return TITLES.get(self.type, self.type)

    @property
    def approximates_gradient(self) -> str:  # type: ignore[override]
        return "DoRA takes the norm of the weight for a constant" if self.type == "DORA" else ""

    @property
    def needs_dense(self) -> str:  # type: ignore[override]
        return "peft puts it on layers of floating-point weights alone" if self.type == "GLORA" else ""

    @property
    def not_low_rank(self) -> str:  # type: ignore[override]
        return "" if self.type in LOW_RANK else super().not_low_rank

    @property
    def shifts_dropout(self) -> str:  # type: ignore[override]
        return DRAWING.get(self.type, super().shifts_dropout)

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        if self.type in ZERO_ON_REQUEST and self.config.get("init_weights") is True:
            return ""
        return NONZERO_STARTS.get(self.type, super().nonzero_start)

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        """Raises UserError as the base class does, and for GLoRA on a backbone with a gated MLP."""
        if self.type == "GLORA" and geometry.gated:
            # Most such backbones have no biases, and a geometry does not say where there are some.
            raise UserError("GLORA trains biases too: its size is unknown on backbones with a gated MLP")
        super().check(geometry, projections)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the smaller side of the largest weight for LoRA, DoRA and RSLORA.

        For other types, returns the number of entries of the largest weight. Empty if the type has no rank.
        """
        if self.peft_type != "LORA":
            return super().rank_limits(geometry)
        return (geometry.full_rank(self.projections),)

    def type_options(self, targets: Mapping[str, Site]) -> dict[str, Any]:
        if self.type == "IA3":
            # IA3 scales the input of fc2 and the output of everything else (arXiv 2205.05638, eq. 1).
            return {"feedforward_modules": [p for p, site in targets.items() if site.projection == "fc2"]}
        _, switches = SHORTHANDS.get(self.type, ("", {}))
        return switches

    @property
    def peft_type(self) -> str:
        kind, _ = SHORTHANDS.get(self.type, (self.type, {}))
        return kind


@cache
def peft_types() -> tuple[str, ...]:
    """Returns the names of peft's types that adapt modules, and the names in `SHORTHANDS`, sorted.

    Types without target modules are left out, such as prompts. Some of the returned types are in `REFUSED`.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    fields = {
        kind.value: {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
        for kind in PEFT_TYPE_TO_TUNER_MAPPING
    }
    return tuple(
        sorted({kind for kind, names in fields.items() if "target_modules" in names} | {*SHORTHANDS})
    )
