"""The `Method` interface: a recipe with its hyper-parameters, before it meets a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, Self

import torch

from methods.adapter import Adapter
from methods.backbone import Backbone, Geometry
from methods.errors import UserError, shown
from methods.quantised import Quantisation, quantisation_of
from methods.validation import Frozen, identity, validate


class Method(Frozen, ABC):
    """A PEFT method. Its fields are the hyper-parameters, and building a method does no work.

    A method whose size is still free, such as one with `ranks=None`, is a template. `isorank` and `fit`
    return the same method with a size.
    """

    #: The name under which the method is registered.
    name: ClassVar[str]
    #: Increased when the same options give different results, so that old trials do not match new ones.
    version: ClassVar[int] = 1
    #: Whether a suite can set the size by a rank or a budget.
    sizeable: ClassVar[bool] = True
    #: The authors' learning rate for the adapter, which equal tuning always tries. None if unknown.
    published_lr: ClassVar[float | None] = None
    #: The authors' learning rate for the head. None if it equals the adapter's.
    published_head_lr: ClassVar[float | None] = None
    #: The authors' scale. None if unknown, or if they tuned it per data set.
    published_scale: ClassVar[float | None] = None
    #: Why gradients intentionally differ from the forward's (DoRA treats a norm as a constant). Empty if they
    #: do not.
    approximates_gradient: ClassVar[str] = ""
    #: Why a training forward draws from torch's global stream, which changes the backbone's dropout. Empty if
    #: it does not.
    shifts_dropout: ClassVar[str] = ""
    #: Why a fresh adapter changes the backbone's outputs. Empty if it does not.
    nonzero_start: ClassVar[str] = ""
    #: Why every seed gives the same start. Empty if seeds differ, or if each tensor starts at one value.
    fixed_start: ClassVar[str] = ""
    #: Why `Adapter.factors` raises NotLowRank, and nothing is exported as LoRA. Empty for low-rank updates.
    not_low_rank: ClassVar[str] = ""
    #: Why `Adapter.merge` refuses: no change of a weight equals the update. Empty if updates can be merged.
    not_mergeable: ClassVar[str] = ""
    #: Why an example's outputs depend on the other examples of its batch. Empty if they do not.
    depends_on_batch: ClassVar[str] = ""
    #: Why `count` is approximate: training chooses which parameters it cuts. Empty if `count` is exact.
    varying_count: ClassVar[str] = ""
    #: The reason why the method cannot adapt quantised weights. Empty if it can.
    needs_dense: ClassVar[str] = ""
    #: Whether the method trains the backbone's own weights, which must then be in float32.
    trains_weights: ClassVar[bool] = False
    #: Whether a trial fits the head to frozen features directly, without training steps.
    fits_head: ClassVar[bool] = False
    #: Whether some parameters are a core, which a recipe may train at its own rate.
    has_core: ClassVar[bool] = False
    #: Largest relative distance from the budget that `fit` may leave, for a method with several ranks.
    fit_tolerance: ClassVar[float] = 0.1
    #: Options that the conformance checks do not vary.
    unvaried: ClassVar[frozenset[str]] = frozenset()
    #: Fields that `title` or `size` already show.
    titled: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> Method:
        """Builds the method, or a subclass, from options. Raises UserError that begins with `where`."""
        return validate(cls, options, where)

    @classmethod
    def presets(cls) -> Sequence[Self]:
        """Templates that together show every construction of the method, for the conformance checks.

        The checks vary the remaining options of the first template. A method with a required option overrides
        this function; without that, raises UserError.
        """
        return (validate(cls, {}, f"the preset of method '{cls.name}' (see Method.presets)"),)

    @classmethod
    def listed(cls) -> Sequence[Self]:
        """The templates that listings and timings show."""
        return cls.presets()

    @property
    @abstractmethod
    def projections(self) -> tuple[str, ...]:
        """The projections that get an update, in the order of the tensor's slices.

        `gate` may be among them; backbones without a gated MLP skip it.
        """

    @property
    @abstractmethod
    def size(self) -> tuple[int, ...] | None:
        """The ranks, one for each of `rank_names`. None while they are free, empty without ranks."""

    @property
    def rank_names(self) -> tuple[str, ...]:
        """The mode or bond of each rank in `size`. A method with several ranks overrides it."""
        return ("rank",) if self.sizeable else ()

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """The largest useful rank for each of `rank_names`. None if unknown."""
        return (None,) * len(self.rank_names)

    def with_size(self, ranks: Sequence[int]) -> Self:
        """The same method with these ranks, one for each of `rank_names`."""
        (rank,) = ranks
        return self.isorank(rank)

    @abstractmethod
    def count(self, geometry: Geometry) -> int:
        """Counts adapter parameters at the end of training in closed form, head excluded.

        Raises UserError while the size is free.
        """

    def peak_count(self, geometry: Geometry) -> int:
        """Counts adapter parameters at the start of training, before any are cut."""
        return self.count(geometry)

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        """Counts the parameters for the ranks that `Adapter.final_ranks` reports.

        Raises UserError if the method has no such ranks.
        """
        raise UserError(f"{self.label}: its training cuts no ranks (got {shown(dict(ranks))})")

    def check_steps(self, steps: int) -> None:
        """Raises UserError if a training run of `steps` optimizer steps is too short for the method."""

    def frozen_count(self, geometry: Geometry) -> int:
        """Counts the adapter's untrained numbers, such as random cores. `count` does not include them."""
        return 0

    def kept_count(self, geometry: Geometry) -> int:
        """Counts the frozen numbers that a stored adapter holds. The others are recomputed from a seed."""
        return 0

    @abstractmethod
    def isorank(self, rank: int) -> Self:
        """The same method with every rank equal to `rank`."""

    @abstractmethod
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """The same method with the ranks whose count is nearest to `budget`; the smaller count on a tie.

        `uneven` allows ranks that are equal by default to differ by one. Raises UserError if even the
        smallest ranks exceed the budget.
        """

    @abstractmethod
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        """Builds and installs the adapter. `attach` calls this and checks the result."""

    @property
    def title(self) -> str:
        """The method's name in the literature. It may show the fields in `titled`."""
        return self.name

    @property
    def label(self) -> str:
        """The method's name in tables: its title and every option with a value other than its default."""
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
        }
        identity = self.identity()
        options = [
            f"{name}={value}"
            for name, value in self
            if name not in self.titled and identity.get(name, defaults[name]) != defaults[name]
        ]
        return f"{self.title} ({', '.join(options)})" if options else self.title

    @property
    def revisions(self) -> int:
        """The number of times that results changed for these options only.

        The number is added to `version` in an identity, so that trials with other options keep their ids.
        """
        return 0

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect given the others, such as the place of dropout without dropout."""
        return frozenset()

    def identity(self) -> dict[str, Any]:
        """Everything that can change a trial's result: name, version and hyper-parameters.

        Options without effect are set to their defaults, so that one trial serves all their values.
        """
        defaults = {name: type(self).model_fields[name].default for name in self.idle}
        hyperparameters = identity(self.model_copy(update=defaults))
        return {"method": self.name, "version": self.version + self.revisions, **hyperparameters}

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        """Raises UserError if a backbone lacks a projection, or while the size is free."""
        missing = [name for name in geometry.having(self.projections) if name not in projections]
        if missing:
            raise UserError(
                f"method '{self.name}' adapts {', '.join(missing)}, which the backbone lacks; "
                f"it has {', '.join(projections)}"
            )
        self.count(geometry)

    def check_quantisation(self, quantisation: Quantisation | None) -> None:
        """Raises UserError if the method cannot adapt weights of this quantisation (None: not quantised)."""
        if quantisation and self.needs_dense:
            raise UserError(f"{self.label} takes no quantise: {quantisation}, since {self.needs_dense}")

    def attach(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        """Freezes the backbone except its head and puts a freshly initialised adapter on it.

        `generator` is a CPU generator: the start is the same on every device. Raises UserError as `check` and
        `check_quantisation` do, and for trained parameters below float32. Raises RuntimeError unless the
        built adapter has `peak_count` parameters and `frozen_count` frozen numbers.
        """
        self.check(backbone.geometry, backbone.projections)
        self.check_quantisation(quantisation_of(backbone))
        adapter = self.put(backbone, generator)
        for name, parameter in adapter.named_parameters().items():
            if torch.promote_types(parameter.dtype, torch.float32) != parameter.dtype:
                adapter.detach()
                raise UserError(
                    f"{self.label} would train {name} in {parameter.dtype}, where small steps are lost: it "
                    "takes a backbone in float32"
                )
        if adapter.parameter_count != (peak := self.peak_count(backbone.geometry)):
            adapter.detach()
            raise RuntimeError(
                f"{self.label}: the formula counts {peak:,} parameters, "
                f"the built adapter has {adapter.parameter_count:,}"
            )
        frozen, formula = adapter.frozen_count, self.frozen_count(backbone.geometry)
        if frozen != formula:
            adapter.detach()
            raise RuntimeError(
                f"{self.label}: the formula counts {formula:,} frozen numbers, "
                f"the built adapter has {frozen:,}"
            )
        return adapter


def attach(backbone: Backbone, method: Method, seed: int = 0) -> Adapter:
    """Freezes a backbone except its head and puts an adapter on it, started from a seed.

    The same seed gives the same start on every device. It does not reproduce a trial of a suite, which
    derives several named streams from its seed. Raises UserError as `Method.attach` does, for instance while
    the ranks are free.
    """
    return method.attach(backbone, torch.Generator().manual_seed(seed))
