"""The base class of methods that peft implements: their options, counts and fits to a budget."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from tensorbench.baselines.peft_adapter import PeftAdapter, inject
from tensorbench.methods.backbone import TARGETS, Backbone, Geometry, Site, Targets
from tensorbench.methods.errors import UnknownNameError, UserError, cut, shown, too_small
from tensorbench.methods.sizes import OneRank, nearest, nearest_rank
from tensorbench.methods.skeleton import Skeleton
from tensorbench.methods.torch_internals import DispatchMode

#: Limits for an adapter that is built to be counted: new tensors, bytes of memory, and CPU seconds.
MOST_TENSORS, MOST_BYTES, MOST_SECONDS = 100_000, 2 * 2**30, 60.0

#: The fields of peft's configurations that set an adapter's size. A type has at most one of these fields.
SIZE_FIELDS = ("r", "n_frequency")

#: The fields of peft's configurations that a suite may not set, and why, or what to use instead.
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
    "feedforward_modules": "use targets",
    "megatron_core": "it names a module to import",
    "peft_type": "use type",
}

#: The longest text and the largest number in a configuration. `LARGEST` has other limits, for fields whose
#: size costs memory or time, such as numbers of layers or iterations, and for random seeds.
LONGEST_TEXT, LARGEST_NUMBER = 100, 10**9
LARGEST = {
    "depth": 100,
    "num_B": 1_000,
    "num_subspaces": 100,
    "u": 100_000,
    "num_cayley_neumann_terms": 1_000,
    "psoft_svd_lowrank_niter": 1_000,
    **dict.fromkeys(("projection_prng_key", "proj_seed", "projection_seed", "generator_seed"), 2**63 - 1),
    **dict.fromkeys(("random_seed", "random_loc_seed"), 2**63 - 1),
}

#: Values of `init_lora_weights` that the training loop does not support, and why. Longer values that begin
#: with one of these are refused, too.
REFUSED_STARTS = {
    "corda": "it needs a pass over data first",
    "eva": "it needs a pass over data first",
    "lora_ga": "it needs a pass over data first",
    "loftq": "it quantises the backbone's own weights",
    "olora": "it changes the backbone's own weights, which stay frozen here",
    "pissa": "it changes the backbone's own weights, which stay frozen here",
}


#: An alias for use in classes where a field named `type` hides the builtin.
AdapterClass = type[PeftAdapter]


class PeftMethod(OneRank):
    """An adapter type of peft, with its configuration.

    Parameters are counted by building the adapter, if possible on the meta device. Subclasses may have a
    formula instead.
    """

    name: ClassVar[str] = "peft"
    titled: ClassVar[frozenset[str]] = frozenset({"type", "rank"})
    #: The class of the adapters that `attach` builds.
    adapter_class: ClassVar[AdapterClass] = PeftAdapter
    #: The fields of `config` that have to be integers, with the smallest value of each.
    whole_numbers: ClassVar[Mapping[str, int]] = {}

    type: str
    #: peft's `r`, or `n_frequency` of FourierFT. None: a budget sets it, or the type has no rank.
    rank: PositiveInt | None = None
    #: Values for fields of peft's configuration class.
    config: dict[str, Any] = Field(default_factory=dict)
    targets: Targets = "qkv"

    @model_validator(mode="after")
    def _config_fits(self) -> Self:
        fields = {field.name for field in dataclasses.fields(self._config_class)}
        for name, value in self.config.items():
            if name in RESERVED or name in (self.size_field, "r"):
                raise ValueError(f"config.{name} cannot be set: {RESERVED.get(name, 'use rank')}")
            if name not in fields:
                raise ValueError(str(UnknownNameError(f"field of peft's {self.type}", name, fields)))
            _check_value(name, value)
        for name, least in self.whole_numbers.items():
            value = self.config.get(name, least)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"config.{name}: should be an integer of at least {least} (got {value})")
        start = str(self.config.get("init_lora_weights", ""))
        for name, reason in REFUSED_STARTS.items():
            if start.lower().startswith(name):
                raise ValueError(f"config.init_lora_weights: '{start}' does not fit here: {reason}")
        if self.rank is not None and self.size_field is None:
            raise ValueError(f"rank: peft's {self.type} has no rank to set")
        return self

    @property
    def not_low_rank(self) -> str:  # type: ignore[override]
        return f"peft's {self.title} has no low-rank factors"

    @property
    def shifts_dropout(self) -> str:  # type: ignore[override]
        active = [name for name, value in self.config.items() if name.endswith("dropout") and value]
        return f"peft's {', '.join(active)} draws from the backbone's stream" if active else ""

    @property
    def projections(self) -> tuple[str, ...]:
        return TARGETS[self.targets]

    @property
    def size_field(self) -> str | None:
        """The field of peft's configuration that `rank` sets. None if the type has no rank."""
        fields = {field.name for field in dataclasses.fields(self._config_class)}
        return next((name for name in SIZE_FIELDS if name in fields), None)

    @property
    def sizeable(self) -> bool:  # type: ignore[override]
        return self.size_field is not None

    @property
    def size(self) -> tuple[int, ...] | None:
        return super().size if self.sizeable else ()

    def isorank(self, rank: int) -> Self:
        return super().isorank(rank) if self.sizeable else self

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        if not self.sizeable:
            return self
        try:
            first, second = (self.count_at(geometry, rank) for rank in (1, 2))
        except UserError as error:
            raise UserError(f"{error}; give its rank, not a budget") from error
        if second <= first:
            raise UserError(
                f"{self.label} has {first:,} parameters at rank 1 and {second:,} at rank 2; "
                "give its rank, not a budget"
            )
        # Counting by building is slow, and most counts are linear in the rank: try the linear guess first. On
        # a tie take the smaller rank.
        guess = 1 + math.ceil((budget - first) / (second - first) - 0.5)
        with suppress(UserError):
            if guess > 2 and self.count_at(geometry, guess) == first + (guess - 1) * (second - first):
                return self.isorank(guess)
        if first > budget:
            raise too_small(self.label, budget, first)
        count = partial(self.count_at, geometry)

        def count_or_more(rank: int) -> int:
            try:
                return count(rank)
            except UserError:
                # Farther from the budget than any rank below it.
                return 2 * budget + 1

        rank = nearest_rank(count_or_more, budget)
        if budget - count(rank) > count(rank) - count(max(1, rank - 1)):
            # The budget is above the counts of all ranks. This raises peft's error if it limits the rank.
            count(rank + 1)
        with suppress(UserError):
            if count(2 * rank) <= count(rank):
                # LoKr's count is constant from some rank on, and larger at the ranks just below.
                rank = nearest(range(1, 2 * rank + 1), count, budget)
        return self.isorank(rank)

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the number of entries of the largest weight. Empty if the type has no rank.

        This bounds the rank of every type, even of types whose rank is a number of trained entries.
        """
        shapes = [geometry.shape(name) for name in self.projections]
        return (max(map(math.prod, shapes)),) if self.sizeable else ()

    def count(self, geometry: Geometry) -> int:
        return super().count(geometry) if self.sizeable else self.count_at(geometry, 0)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts the parameters at this rank. Types without a rank ignore the argument.

        Builds adapters of models with one and with two layers. The difference of their counts is the number
        of parameters that each further layer adds. So parameters that layers share count once. Raises
        UserError if peft cannot build the adapter.
        """
        try:
            options = self.isorank(rank).model_dump_json()
        except ValueError as error:
            raise UserError(f"{self.title}: config should contain JSON values only: {error}") from error
        if self.sizeable and rank > (most := self.rank_limits(geometry)[0] or rank):
            raise UserError(f"{cut(self.label)}: rank is {rank:,}, accepted is at most {most:,}")
        shapes = (dataclasses.replace(geometry, layers=layers) for layers in (1, 2))
        single, double = (count_built(type(self), options, shape) for shape in shapes)
        return single + (geometry.layers - 1) * (double - single)

    def put(self, backbone: Backbone, generator: torch.Generator) -> PeftAdapter:
        return self.adapter_class(backbone, self.projections, self.peft_config, generator)

    def peft_config(self, targets: Mapping[str, Site]) -> Any:
        """Builds peft's configuration. `targets` are the adapted sites by dotted path.

        Raises UserError for bad values.
        """
        size = {} if self.size_field is None else {self.size_field: self.rank}
        options = {"target_modules": list(targets), **size, **self.type_options(targets)}
        try:
            return self._config_class(**options | self.config)
        except (TypeError, ValueError) as error:
            raise UserError(f"peft's {self.type} rejects its configuration: {error}") from error

    def type_options(self, targets: Mapping[str, Site]) -> dict[str, Any]:
        """Returns values for the fields of peft's configuration that this type needs besides its size."""
        return {}

    @property
    def peft_type(self) -> str:
        """peft's own name of the type. For example, `LORA` is the type of the shorthand `DORA`."""
        return self.type

    @property
    def _config_class(self) -> Any:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        return PEFT_TYPE_TO_CONFIG_MAPPING[self.peft_type]


def _check_value(name: str, value: Any) -> None:
    """Raises ValueError unless a configuration's value is a single number of a sensible size, or short text.

    Mappings and lists are refused: peft reads patterns, files and nested configurations from them.
    """
    largest = LARGEST.get(name, LARGEST_NUMBER)
    if isinstance(value, int | float) and not abs(value) <= largest:
        raise ValueError(f"config.{name}: accepted are finite numbers up to {largest:,} (got {shown(value)})")
    if not isinstance(value, int | float | str | None) or len(str(value)) > LONGEST_TEXT:
        raise ValueError(f"config.{name}: should be a number, a word, or true or false (got {shown(value)})")


class _BuildLimits(DispatchMode):
    """A context that raises UserError when building an adapter exceeds the limits for counting it."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors, self._bytes, self._until = 0, 0, time.process_time() + MOST_SECONDS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape, device = args[0] if args else (), (kwargs or {}).get("device")
        if isinstance(shape, list | tuple) and all(isinstance(length, int) for length in shape):
            self._tensors += 1
            self._bytes += 0 if torch.device(device or "cpu").type == "meta" else 4 * math.prod(shape)
        late = time.process_time() > self._until
        if late or self._tensors > MOST_TENSORS or self._bytes > MOST_BYTES:
            limits = f"{MOST_TENSORS:,} tensors, {MOST_BYTES / 2**30:g} GiB or {MOST_SECONDS:g} s"
            raise UserError(f"counting its parameters takes more than {limits}")
        return func(*args, **(kwargs or {}))


@cache
def count_built(kind: type[PeftMethod], options: str, geometry: Geometry) -> int:
    """Counts the trained parameters of an adapter by building the adapter on a model of this geometry.

    `options` has the method's fields as JSON. Raises UserError if peft cannot build the adapter.
    """
    method = kind.model_validate_json(options)
    config = method.peft_config({str(site): site for site in geometry.sites(method.projections)})
    try:
        # A count should not shift the draws of a training that follows.
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    tuner = _injected(geometry, config)
            except (NotImplementedError, RuntimeError):
                # A few types read values while they are built; the meta device has none.
                tuner = _injected(geometry, config)
    except Exception as error:  # Whatever peft raises, the user can only fix the configuration.
        raise UserError(
            f"peft cannot build {cut(method.label)} at {geometry}: {cut(str(error), 300)}"
        ) from error
    return sum(p.numel() for p in tuner.parameters() if p.requires_grad)


def _injected(geometry: Geometry, config: Any) -> nn.Module:
    skeleton = Skeleton(geometry)
    with _BuildLimits():
        return inject(skeleton, config)
