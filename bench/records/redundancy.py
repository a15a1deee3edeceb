"""Redundancy analyses of trained adapters, stored beside the trials."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbench.records import Wired


class Spectrum(Wired):
    """A mode's singular values in descending order."""

    singular_values: tuple[float, ...]
    effective_rank: float
    #: The number of singular values that make up 99% of the squared norm.
    rank_99: int


class ComponentWorth(Wired):
    """The size of a part of an update, and how much the trained model needs it.

    The part is given by layer, projection and head, where None means all of them.
    """

    layer: int | None
    projection: str | None
    head: int | None
    #: The part's share of the squared norm.
    share: float
    #: The drop of the validation metric if the part is set to zero. None if not measured.
    drop: float | None

    @property
    def singled(self) -> tuple[str, ...]:
        """The names of the fields that are not None, out of layer, projection and head."""
        return tuple(kind for kind in ("layer", "projection", "head") if getattr(self, kind) is not None)


class Redundancy(Wired):
    """The content of `redundancy.json`: an analysis of how much of a trained adapter could be left out."""

    trial_id: str
    run_id: str
    method: str
    ranks: tuple[int, ...]
    metric: str
    #: The norm of the whole update, at all adapted sites of attention and MLP.
    norm: float
    modes: Mapping[str, Spectrum]
    components: tuple[ComponentWorth, ...]
