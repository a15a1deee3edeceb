"""The `Method` interface: a recipe for an adapter with its hyper-parameters, independent of any backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, Self

import torch

from tensorbench.methods.adapter import MARK, Adapter
from tensorbench.methods.backbone import Backbone, Geometry
from tensorbench.methods.errors import UserError, WrongCountError, shown
from tensorbench.methods.quantised import Quantisation, quantisation_of
from tensorbench.methods.validation import Frozen, identity, validate


class Method(Frozen, ABC):
    """A PEFT method. Its fields are its hyper-parameters.

    Creating a method builds no adapter; `attach` does. A method whose size is still free, such as one with
    `ranks=None`, is called a template. `isorank` and `fit` return the same method with a size.
    """

    #: The name under which the method is registered.
    name: ClassVar[str]
    #: Increased when the same options give other results, so that old trials are not taken for new ones.
    version: ClassVar[int] = 1
    #: Whether a suite can set the size by a rank or a budget.
    sizeable: ClassVar[bool] = True
    #: The authors' learning rate for the adapter, which plans show. None if unknown.
    published_lr: ClassVar[float | None] = None
    #: Why gradients intentionally differ from the exact ones. For example, DoRA treats a norm as a constant.
    #: Empty if gradients are exact.
    approximates_gradient: ClassVar[str] = ""
    #: Why a training forward draws from torch's global random stream, so that the backbone's dropout differs
    #: from that of other methods. Empty if it draws nothing from this stream.
    shifts_dropout: ClassVar[str] = ""
    #: Why a fresh adapter changes the backbone's outputs. Empty if it does not.
    nonzero_start: ClassVar[str] = ""
    #: Why every seed gives the same start. Empty if seeds give different starts, or if the start consists of
    #: constants, such as zeros.
    fixed_start: ClassVar[str] = ""
    #: Why `Adapter.factors` raises NotLowRank, so that the adapter cannot be exported as LoRA. Empty if
    #: updates are low-rank.
    not_low_rank: ClassVar[str] = ""
    #: Why the update cannot be merged: no change of a weight equals it. Empty if it can be merged.
    not_mergeable: ClassVar[str] = ""
    #: Why an example's outputs depend on the other examples of its batch. Empty if they do not.
    depends_on_batch: ClassVar[str] = ""
    #: Why `count` is approximate: training chooses which parameters it prunes. Empty if `count` is exact.
    varying_count: ClassVar[str] = ""
    #: Why the method cannot adapt quantised weights. Empty if it can.
    needs_dense: ClassVar[str] = ""
    #: Whether the method trains the backbone's own weights, which must then be in float32.
    trains_weights: ClassVar[bool] = False
    #: Whether a trial fits the head to frozen features directly, without training steps.
    fits_head: ClassVar[bool] = False
    #: Whether some parameters are the core of a Tucker tensor. A recipe may give them their own learning
    #: rate.
    has_core: ClassVar[bool] = False
    #: The largest relative distance between a budget and the count after `fit` that the conformance checks
    #: accept for methods with several ranks.
    fit_tolerance: ClassVar[float] = 0.1
    #: Options that the conformance checks do not vary.
    unvaried: ClassVar[frozenset[str]] = frozenset()
    #: Fields that `label` leaves out, because `title` or `size` already shows them.
    titled: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str) -> Method:
        """Builds the method from its options.

        A class may return a method of another class, as `peft` does for some types. Raises UserError, with a
        message that begins with `where`, for wrong options.
        """
        return validate(cls, options, where)

    @classmethod
    def presets(cls) -> Sequence[Self]:
        """Returns the methods that the conformance checks try.

        Together they cover every way of building an adapter. The checks also vary the options of the first
        preset. By default, the only preset has all options at their defaults. So a method with a required
        option has to override this. Raises UserError if it does not.
        """
        return (validate(cls, {}, f"the preset of method '{cls.name}' (see Method.presets)"),)

    @classmethod
    def listed(cls) -> Sequence[Self]:
        """Returns the methods that listings and timings show. By default, these are the presets."""
        return cls.presets()

    @property
    @abstractmethod
    def projections(self) -> tuple[str, ...]:
        """The projections that get an update. A method that stacks projections stacks them in this order.

        `gate` is skipped on backbones without a gated MLP.
        """

    @property
    @abstractmethod
    def size(self) -> tuple[int, ...] | None:
        """The ranks, one for each of `rank_names`. None while they are free, empty if there are no ranks."""

    @property
    def rank_names(self) -> tuple[str, ...]:
        """The name of each rank in `size`. A method with several ranks names their modes or bonds."""
        return ("rank",) if self.sizeable else ()

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        """Returns the largest useful value of each rank, in the order of `rank_names`. None: unknown."""
        return (None,) * len(self.rank_names)

    def with_size(self, ranks: Sequence[int]) -> Self:
        """Returns the same method with these ranks, one for each of `rank_names`.

        Raises UserError if a rank is below 1.
        """
        (rank,) = ranks
        return self.isorank(rank)

    @abstractmethod
    def count(self, geometry: Geometry) -> int:
        """Counts the adapter's parameters at the end of training, head excluded.

        The geometry is enough for this: no backbone is loaded. Raises UserError while the size is free.
        """

    def peak_count(self, geometry: Geometry) -> int:
        """Counts the adapter's parameters at the start of training, before training prunes any."""
        return self.count(geometry)

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        """Counts the adapter's parameters for the ranks that `Adapter.final_ranks` returned.

        Raises UserError if training prunes no ranks, or if these are not the method's ranks.
        """
        raise UserError(f"{self.label}: its training prunes no ranks (got {shown(dict(ranks))})")

    def check_steps(self, steps: int) -> None:
        """Raises UserError if a training run of `steps` optimizer steps is too short for the method."""

    def frozen_count(self, geometry: Geometry) -> int:
        """Counts the adapter's frozen numbers, such as random cores. `count` does not include them."""
        return 0

    def kept_count(self, geometry: Geometry) -> int:
        """Counts the frozen numbers that a stored adapter holds. All others are recomputed from a seed."""
        return 0

    @abstractmethod
    def isorank(self, rank: int) -> Self:
        """Returns the same method with every rank equal to `rank`. Raises UserError if it is below 1."""

    @abstractmethod
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        """Returns the same method with the ranks whose count is nearest to `budget`.

        On a tie, the smaller count wins. With `uneven`, ranks that are otherwise equal may differ by one.
        Raises UserError if even the smallest ranks exceed the budget.
        """

    @abstractmethod
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        """Builds the adapter and puts it on the backbone. Call `attach` instead, which checks the result."""

    @property
    def title(self) -> str:
        """The method's name in the literature. It may contain values of fields in `titled`."""
        return self.name

    @property
    def label(self) -> str:
        """The method's name in tables: its title and the options that differ from their defaults.

        Options without effect and fields in `titled` are left out.
        """
        identity = self.identity()
        options = [f"{name}={value}" for name, value in self if name in identity.keys() - self.titled]
        return f"{self.title} ({', '.join(options)})" if options else self.title

    @property
    def idle(self) -> Set[str]:
        """The options that have no effect because of the values of other options.

        For example, an option that chooses where to drop entries has no effect if the dropout is 0.
        """
        return frozenset()

    def stored(self) -> dict[str, Any]:
        """Returns the method's name, version and all options, as JSON.

        Options in `idle` have their defaults.
        """
        return {
            "method": self.name,
            "version": self.version,
            **self._plain_spelling().model_dump(mode="json"),
        }

    def identity(self) -> dict[str, Any]:
        """Returns the method's part of an id: name, version, and the options that differ from their defaults.

        Options in `idle` are left out (see also `tensorbench.methods.validation.identity`).
        """
        return {"method": self.name, "version": self.version, **identity(self._plain_spelling())}

    def _plain_spelling(self) -> Self:
        return self.model_copy(update={name: type(self).model_fields[name].default for name in self.idle})

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        """Raises UserError if the method cannot adapt a backbone with this geometry and these projections.

        For example, the backbone may lack a projection, or the method's size may still be free.
        """
        missing = [name for name in geometry.having(self.projections) if name not in projections]
        if missing:
            raise UserError(
                f"method '{self.name}' adapts {', '.join(missing)}, which the backbone lacks; "
                f"it has {', '.join(projections)}"
            )
        self.count(geometry)

    def check_quantisation(self, quantisation: Quantisation | None) -> None:
        """Raises UserError if the method cannot adapt weights in this quantisation.

        None stands for weights that are not quantised.
        """
        if quantisation and self.needs_dense:
            raise UserError(f"{self.label} takes no quantise: {quantisation}, since {self.needs_dense}")

    def attach(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        """Freezes the backbone except its head and puts a freshly initialised adapter on it.

        `generator` is a CPU generator, so that the initial values are the same on every device.

        Raises UserError as `check` and `check_quantisation` do, and if a trained parameter has a lower
        precision than float32. Raises WrongCountError if the adapter does not have exactly `peak_count`
        parameters and `frozen_count` frozen numbers.
        """
        self.check(backbone.geometry, backbone.projections)
        self.check_quantisation(quantisation_of(backbone))
        adapter = self.put(backbone, generator)
        # Only now, since an adapter that could not be built leaves nothing to detach.
        setattr(backbone.module, MARK, True)
        adapter.method_stored = self.stored()
        for name, parameter in adapter.named_parameters().items():
            if torch.promote_types(parameter.dtype, torch.float32) != parameter.dtype:
                adapter.detach()
                raise UserError(
                    f"{self.label} would train {name} in {parameter.dtype}, where small steps are lost: it "
                    "takes a backbone in float32"
                )
        for formula, built, numbers in (
            (self.peak_count(backbone.geometry), adapter.parameter_count, "parameters"),
            (self.frozen_count(backbone.geometry), adapter.frozen_count, "frozen numbers"),
        ):
            if built != formula:
                adapter.detach()
                raise WrongCountError(
                    f"{self.label}: the formula counts {formula:,} {numbers}, the built adapter has {built:,}"
                )
        return adapter


def attach(backbone: Backbone, method: Method, seed: int = 0) -> Adapter:
    """Freezes a backbone except its head and puts a method's adapter on it.

    The same seed gives the same initial values on every device. A suite's trial with this seed has other
    initial values, because a trial derives several random streams from its seed. Raises UserError as
    `Method.attach` does, for instance while the ranks are free.
    """
    return method.attach(backbone, torch.Generator().manual_seed(seed))
