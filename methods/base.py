"""The `Method` interface: a recipe with its hyper-parameters, before it meets a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, Self

import torch

from methods.adapter import Adapter
from methods.backbone import Backbone, Geometry
from methods.errors import UserError, shown
from methods.validation import Frozen, identity, validate


class Method(Frozen, ABC):
    """A PEFT method. Its fields are the hyper-parameters, and constructing one does no work.

    A method whose size is still free (with `ranks=None`, for instance) is a template, to which `isorank` and
    `fit` give a size.
    """

    #: The name under which the method is registered.
    name: ClassVar[str]
    #: Raised whenever the same options come to mean other numbers, so that no old trial matches a new one.
    version: ClassVar[int] = 1
    #: Whether a rank or a budget can set the size.
    sizeable: ClassVar[bool] = True
    #: The adapter's learning rate that its authors used, which equal tuning always tries. None: not known.
    published_lr: ClassVar[float | None] = None
    #: The head's beside it. None: the same.
    published_head_lr: ClassVar[float | None] = None
    #: The scale beside them. None: not known, or another for each data set.
    published_scale: ClassVar[float | None] = None
    #: Why the gradients are not those of the forward, where that is meant (DoRA takes a norm for a constant).
    approximates_gradient: ClassVar[str] = ""
    #: Why a training forward draws from torch's global stream, so that the backbone's dropout is another than
    #: under other methods of the seed.
    shifts_dropout: ClassVar[str] = ""
    #: Why a fresh adapter changes the backbone's outputs; empty where it changes none.
    nonzero_start: ClassVar[str] = ""
    #: Why every seed gives the same start, where that is not of constants.
    fixed_start: ClassVar[str] = ""
    #: Why `Adapter.factors` raises NotLowRank, and nothing is exported as LoRA.
    not_low_rank: ClassVar[str] = ""
    #: Why `Adapter.merge` refuses: the update is no change of a weight.
    not_mergeable: ClassVar[str] = ""
    #: Why an example's outputs depend on the other examples of its batch.
    depends_on_batch: ClassVar[str] = ""
    #: Why the parameters at the end are only about `count`, where training chooses what it cuts.
    varying_count: ClassVar[str] = ""
    #: Whether it trains the backbone's own weights, which then have to be in float32.
    trains_weights: ClassVar[bool] = False
    #: Whether a trial fits the head to the frozen features in one go, and takes no training step.
    fits_head: ClassVar[bool] = False
    #: Whether some of its parameters are a core, which a recipe may train at a rate of its own.
    has_core: ClassVar[bool] = False
    #: Relative to a budget, how far `fit` of a method with several ranks may stay from it.
    fit_tolerance: ClassVar[float] = 0.1
    #: Options that the conformance checks need not vary, since the presets show what there is to them.
    unvaried: ClassVar[frozenset[str]] = frozenset()
    #: Fields that `title` or `size` already show.
    titled: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> Method:
        """Builds the method, maybe of a subclass. Raises UserError, which begins with `where`."""
        return validate(cls, options, where)

    @classmethod
    def presets(cls) -> Sequence[Self]:
        """Templates that together show every construction of the method, for the conformance checks.

        The first is the one whose other options the checks vary. A method with an option that has no default
        overrides this, which raises UserError there.
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

        `gate` among them is adapted where a backbone has one.
        """

    @property
    @abstractmethod
    def size(self) -> tuple[int, ...] | None:
        """The ranks, one for each of `rank_names`; None while they are free, empty where there are none."""

    @property
    def rank_names(self) -> tuple[str, ...]:
        """What each rank of `size` belongs to. A method of several ranks overrides it."""
        return ("rank",) if self.sizeable else ()

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """For each of `rank_names`, the rank above which nothing is gained; None where that is not known."""
        return (None,) * len(self.rank_names)

    def with_size(self, ranks: Sequence[int]) -> Self:
        """The same method with these ranks, one for each of `rank_names`."""
        (rank,) = ranks
        return self.isorank(rank)

    @abstractmethod
    def count(self, geometry: Geometry) -> int:
        """Adapter parameters in closed form, head excluded, as they are at the end of a training.

        Raises UserError while the size is free.
        """

    def peak_count(self, geometry: Geometry) -> int:
        """Adapter parameters at the start, where training cuts some: `count` is what is left at the end."""
        return self.count(geometry)

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        """The parameters of an adapter of which training left these ranks, as `Adapter.final_ranks` has them.

        Raises UserError where they are no ranks of this method.
        """
        raise UserError(f"{self.label}: its training cuts no ranks (got {shown(dict(ranks))})")

    def check_steps(self, steps: int) -> None:
        """Raises UserError where so many optimizer steps are too few for what happens during them."""

    def frozen_count(self, geometry: Geometry) -> int:
        """Numbers of the adapter's own that are not trained, such as random cores: they are not in
        `count`.
        """
        return 0

    def kept_count(self, geometry: Geometry) -> int:
        """Of the frozen numbers those that a stored adapter has to hold. A seed brings back the others."""
        return 0

    @abstractmethod
    def isorank(self, rank: int) -> Self:
        """The same method with every rank equal to `rank`."""

    @abstractmethod
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """The same method with the ranks whose count is nearest to `budget`, the smaller count on a tie.

        `uneven` lets the ranks of two modes that otherwise share one differ by one. Raises UserError
        where even the smallest ranks exceed the budget.
        """

    @abstractmethod
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        """Builds the adapter and installs it. `attach` calls this and checks what comes of it."""

    @property
    def title(self) -> str:
        """What the field calls the method; it may show the fields in `titled`."""
        return self.name

    @property
    def label(self) -> str:
        """What tables call the method: its title, and every option that is not at its default."""
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
        """How often these options, and not all others, came to mean other numbers.

        An identity shows it added to `version`: old trials of the other options keep their ids.
        """
        return 0

    @property
    def idle(self) -> Set[str]:
        """The options that change nothing, given the others: where dropout sits, if there is none."""
        return frozenset()

    def identity(self) -> dict[str, Any]:
        """All that can change the result of a trial: name, version and the hyper-parameters.

        Idle options are shown at their default, so that one trial serves all their values.
        """
        defaults = {name: type(self).model_fields[name].default for name in self.idle}
        hyperparameters = identity(self.model_copy(update=defaults))
        return {"method": self.name, "version": self.version + self.revisions, **hyperparameters}

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        """Raises UserError where a backbone lacks what the method adapts, or the size is still free."""
        missing = [name for name in geometry.having(self.projections) if name not in projections]
        if missing:
            raise UserError(
                f"method '{self.name}' adapts {', '.join(missing)}, which the backbone lacks; "
                f"it has {', '.join(projections)}"
            )
        self.count(geometry)

    def attach(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        """Freezes the backbone (its head excepted) and puts a freshly started adapter on it.

        `generator` is a CPU generator: the start is the same on every device. Raises UserError as
        `check` does, and RuntimeError if the built adapter does not have `peak_count` parameters, or not
        `frozen_count` frozen numbers.
        """
        self.check(backbone.geometry, backbone.projections)
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
    """Freezes a backbone (its head excepted) and puts an adapter of the method on it, started from a seed.

    The same seed gives the same start on every device. A trial of a suite starts elsewhere: its seed also
    feeds other random streams, and each has a seed derived from it. Raises UserError as `Method.check` does,
    for instance while the ranks are free.
    """
    return method.attach(backbone, torch.Generator().manual_seed(seed))
