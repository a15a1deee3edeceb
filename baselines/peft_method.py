"""Any method of the `peft` package, by its configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, PositiveInt, field_validator, model_validator

from baselines import peft_adalora
from baselines.peft_adalora import AdaLoRAAdapter
from baselines.peft_adapter import PeftAdapter, inject
from baselines.peft_lily import BY_BATCH, SHARED_FIELDS, LilyAdapter, lily_count
from methods.backbone import TARGETS, Backbone, Geometry, Site, Targets
from methods.errors import UnknownNameError, UserError, cut
from methods.ranks import nearest
from methods.sizes import OneRank
from methods.skeleton import Skeleton

#: Names that the field uses for a LoRA with one of its switches on.
SHORTHANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
}

#: What the field calls types that it does not write in capitals.
TITLES = {
    "ADALORA": "AdaLoRA",
    "DORA": "DoRA",
    "LILY": "Lily",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
}

#: Types of which every update is a low-rank pair.
LOW_RANK = ("ADALORA", "LORA", "RSLORA")

#: What peft calls the size of an adapter: the first of these that a configuration has.
SIZE_FIELDS = ("r", "n_frequency")

#: Types that the shared loop would train wrongly, or that are no adapters of linear layers.
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

#: Types that need more of a training loop or of a backbone than peft's layers.
ADAPTERS: dict[str, type[PeftAdapter]] = {"ADALORA": AdaLoRAAdapter, "LILY": LilyAdapter}

#: Fields of peft's configuration that are whole numbers here, by type, and the smallest that each may be.
WHOLE = {
    "ADALORA": {"init_r": 2, **peft_adalora.STEP_FIELDS},
    "LILY": {name: least for name, (_, least) in SHARED_FIELDS.items()},
}

#: Types that draw in every training forward, whatever their configuration says of dropout.
DRAWING = {
    "LOHA": "peft's LoHa draws a number at every layer, from the CPU's stream",
    "LOKR": "peft's LoKr draws a number at every layer, from the CPU's stream",
    "PVERA": "peft's PVERA draws its update anew at every layer",
}

#: Fields that are ours to set, or would make a comparison of adapters on the same sites unfair.
RESERVED = {
    "target_modules": "use targets",
    "modules_to_save": "the head is trained beside every adapter",
    "bias": "biases of the backbone stay frozen",
    "layers_to_transform": "all layers are adapted",
    "layers_pattern": "all layers are adapted",
    "rank_pattern": "a rank is one number for all sites",
    "total_step": "the recipe says how many steps there are",
    "use_dora": "use type DORA",
    "exclude_modules": "use targets",
    "target_parameters": "use targets",
    "layer_replication": "the backbone keeps its layers",
    "trainable_token_indices": "embeddings stay frozen",
    "inference_mode": "it would train nothing",
    "kasa_config": "it has a loss term of its own, which is not added here",
    "monteclora_config": "it has a loss term of its own, which is not added here",
    "use_asa": "it wants a call after every step, which is not made here",
}

#: Starts of LoRA (the first letters of `init_lora_weights`) that the shared loop cannot give it.
REFUSED_STARTS = {
    "corda": "it needs a pass over data first",
    "eva": "it needs a pass over data first",
    "lora_ga": "it needs a pass over data first",
    "loftq": "it quantises the backbone's own weights",
    "olora": "it changes the backbone's own weights, which stay frozen here",
    "pissa": "it changes the backbone's own weights, which stay frozen here",
}


class Peft(OneRank):
    """`type` is a type of peft (VERA, LOHA, LOKR, IA3, …) or DORA or RSLORA; `config` holds its fields.

    Parameters are counted by building the adapter on the meta device, since peft gives no formula.
    """

    name: ClassVar[str] = "peft"
    titled: ClassVar[frozenset[str]] = frozenset({"type", "rank"})

    type: str
    #: peft's `r`, or FourierFT's `n_frequency`. None: a budget sets it, or the type has no rank.
    rank: PositiveInt | None = None
    #: Fields of peft's configuration class.
    config: dict[str, Any] = Field(default_factory=dict)
    targets: Targets = "qkv"

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        value = value.upper()
        if value in REFUSED:
            raise ValueError(f"peft's {value} does not fit here: {REFUSED[value]}")
        if value not in _types():
            known = [kind for kind in _types() if kind not in REFUSED]
            raise ValueError(str(UnknownNameError("peft type", value, known)))
        return value

    @model_validator(mode="after")
    def _config_fits(self) -> Self:
        fields = {field.name for field in dataclasses.fields(self._config_class)}
        for name in self.config:
            if name in RESERVED or name in (self._size_field, "r"):
                raise ValueError(f"config.{name} cannot be set: {RESERVED.get(name, 'use rank')}")
            if name not in fields:
                raise ValueError(str(UnknownNameError(f"field of peft's {self.type}", name, fields)))
        for name, least in WHOLE.get(self.type, {}).items():
            value = self.config.get(name, least)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"config.{name}: should be a whole number of at least {least} (got {value})")
        if self.type == "ADALORA" and self.rank is not None:
            try:
                peft_adalora.check_ranks(self.config, self.rank)
            except UserError as error:
                raise ValueError(str(error)) from None
        start = str(self.config.get("init_lora_weights", ""))
        for name, reason in REFUSED_STARTS.items():
            if start.lower().startswith(name):
                raise ValueError(f"config.init_lora_weights: '{start}' does not fit here: {reason}")
        if self.rank is not None and self._size_field is None:
            raise ValueError(f"rank: peft's {self.type} has no rank to set")
        return self

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
    def not_low_rank(self) -> str:  # type: ignore[override]
        return "" if self.type in LOW_RANK else f"peft's {self.title} has no low-rank factors"

    @property
    def not_mergeable(self) -> str:  # type: ignore[override]
        return self.depends_on_batch

    @property
    def depends_on_batch(self) -> str:  # type: ignore[override]
        return BY_BATCH if self.type == "LILY" else ""

    @property
    def varying_count(self) -> str:  # type: ignore[override]
        told = "AdaLoRA keeps as many triplets as it should, and they differ in size where weights do"
        return told if self.type == "ADALORA" else ""

    @property
    def shifts_dropout(self) -> str:  # type: ignore[override]
        dropped = [name for name, value in self.config.items() if name.endswith("dropout") and value]
        named = f"peft's {', '.join(dropped)} draws from the backbone's stream" if dropped else ""
        return DRAWING.get(self.type, named)

    @property
    def projections(self) -> tuple[str, ...]:
        return TARGETS[self.targets]

    @property
    def sizeable(self) -> bool:  # type: ignore[override]
        return self._size_field is not None

    @property
    def size(self) -> tuple[int, ...] | None:
        if self._size_field is None:
            return ()
        return None if self.rank is None else (self.rank,)

    def isorank(self, rank: int) -> Self:
        return super().isorank(rank) if self.sizeable else self

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        if not self.sizeable:
            return self
        try:
            one, two = (self.count_at(geometry, rank) for rank in (1, 2))
        except UserError as error:
            raise UserError(f"{error}; give its rank, not a budget") from error
        if two <= one:
            raise UserError(
                f"{self.label} has {one:,} parameters at rank 1 and {two:,} at rank 2; "
                "give its rank, not a budget"
            )
        # Most types grow by the same number with every rank, and counting by building takes its time: look
        # first whether that holds at the rank to which it leads, the nearest one, or the smaller on a tie.
        guess = 1 + math.ceil((budget - one) / (two - one) - 0.5)
        with suppress(UserError):
            if guess > 2 and self.count_at(geometry, guess) == one + (guess - 1) * (two - one):
                return self.isorank(guess)
        counted = partial(self.count_at, geometry)
        rank = super().fit(geometry, budget, uneven=uneven).resolved_rank
        with suppress(UserError):
            if counted(2 * rank) <= counted(rank):
                # LoKr's count stands still from some rank on, and is higher at the ranks just below.
                rank = nearest(range(1, 2 * rank + 1), counted, budget)
        return self.isorank(rank)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Of LoRA the smaller side of the largest weight. Of other types, which may share what they multiply
        or count single entries, the entries of that weight.
        """
        if not self.sizeable:
            return ()
        shapes = [geometry.shape(name) for name in self.projections]
        of_lora = self.type in (*LOW_RANK, *SHORTHANDS)
        return (max(map(min if of_lora else math.prod, shapes)),)

    def count(self, geometry: Geometry) -> int:
        return super().count(geometry) if self.sizeable else self.count_at(geometry, 0)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """By building one layer, and two: what layers share is counted once, and the rest for each of them.
        AdaLoRA, of which this is the end, and Lily have a closed form.

        A type that has no rank takes no notice of `rank`.
        """
        if self.type == "ADALORA":
            return peft_adalora.triplets(geometry, self.projections, rank)
        if self.type == "LILY":
            return lily_count(geometry, self.projections, rank, self.config)
        try:
            method = self.isorank(rank).model_dump_json()
        except ValueError as error:
            raise UserError(f"{self.title}: config should hold what JSON can hold: {error}") from error
        one, two = (_count(method, dataclasses.replace(geometry, layers=layers)) for layers in (1, 2))
        return one + (geometry.layers - 1) * (two - one)

    def peak_count(self, geometry: Geometry) -> int:
        """Of AdaLoRA with all of its `init_r` triplets, before training prunes any."""
        if self.type != "ADALORA":
            return self.count(geometry)
        start = peft_adalora.initial_rank(self.config, self.resolved_rank)
        return self.count_at(geometry, start)

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        if self.type != "ADALORA":
            return super().count_left(geometry, ranks)
        return peft_adalora.triplets_left(geometry, self.projections, ranks)

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        if self.type == "ADALORA":
            # A budget sets a rank that the fields have not seen.
            peft_adalora.check_ranks(self.config, self.resolved_rank)

    def check_steps(self, steps: int) -> None:
        if self.type == "ADALORA":
            peft_adalora.check_schedule(self.config, steps)

    def put(self, backbone: Backbone, generator: torch.Generator) -> PeftAdapter:
        kind = ADAPTERS.get(self.type, PeftAdapter)
        return kind(backbone, self.projections, self.peft_config, generator)

    def peft_config(self, targets: Mapping[str, Site]) -> Any:
        """peft's configuration for these sites, by their dotted paths. Raises UserError for bad values."""
        size = {} if self._size_field is None else {self._size_field: self.rank}
        _, switches = SHORTHANDS.get(self.type, ("", {}))
        options = {"target_modules": list(targets), **switches, **size}
        if self.type == "ADALORA":
            # A training says how many steps it has; until then the schedule is the shortest that peft takes.
            shortest = self.config.get("tinit", 0) + self.config.get("tfinal", 0) + 1
            options |= {
                "init_r": peft_adalora.initial_rank(self.config, self.resolved_rank),
                "total_step": shortest,
            }
        if self.type == "IA3":
            # IA3 scales the input of fc2 and the output of everything else (arXiv 2205.05638, eq. 1).
            options["feedforward_modules"] = [
                path for path, site in targets.items() if site.projection == "fc2"
            ]
        try:
            return self._config_class(**options | self.config)
        except (TypeError, ValueError) as error:
            raise UserError(f"peft's {self.type} refuses its configuration: {error}") from error

    @property
    def _config_class(self) -> Any:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind, _ = SHORTHANDS.get(self.type, (self.type, {}))
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind]

    @property
    def _size_field(self) -> str | None:
        if self.type == "ADALORA":
            return "target_r"
        fields = {field.name for field in dataclasses.fields(self._config_class)}
        return next((name for name in SIZE_FIELDS if name in fields), None)


@cache
def _types() -> tuple[str, ...]:
    """The types that put layers on linear layers: no prompts, no prefixes."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    fields = {
        kind.value: {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
        for kind in PEFT_TYPE_TO_TUNER_MAPPING
    }
    return tuple(
        sorted({kind for kind, names in fields.items() if "target_modules" in names} | {*SHORTHANDS})
    )


@cache
def _count(method_json: str, geometry: Geometry) -> int:
    method = Peft.model_validate_json(method_json)
    config = method.peft_config({str(site): site for site in geometry.sites(method.projections)})
    try:
        try:
            with torch.device("meta"):
                tuner = inject(Skeleton(geometry), config)
        except (NotImplementedError, RuntimeError):
            # A few types look at values while they build; those need memory to look at.
            tuner = inject(Skeleton(geometry), config)
    except Exception as error:  # whatever peft raises, the configuration is what the user can mend
        raise UserError(
            f"peft cannot build {cut(method.label)} at {geometry}: {cut(str(error), 300)}"
        ) from error
    return sum(p.numel() for p in tuner.parameters() if p.requires_grad)
