"""Redundancy analyses of trained adapters, stored beside the trials."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbench.machine.table import Table
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
    #: The part's share of the squared norm of the whole update.
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

    def tables(self) -> list[Table]:
        """Returns the effective rank of each mode, and the worth of each layer, projection and head."""
        modes = [
            {
                "mode": mode,
                "size": len(spectrum.singular_values),
                "effective rank": f"{spectrum.effective_rank:.2f}",
                "rank of 99%": spectrum.rank_99,
                "largest singular values": " ".join(f"{value:.3g}" for value in spectrum.singular_values[:6]),
            }
            for mode, spectrum in self.modes.items()
        ]
        parts = [
            {
                "kind": kinds[0] if kinds else "all",
                "part": str(getattr(part, kinds[0])) if kinds else "all",
                "share of ‖ΔW‖²": f"{part.share:.4f}",
                f"drop of validation {self.metric}": None if part.drop is None else f"{part.drop:+.4f}",
            }
            for part in self.components
            if len(kinds := part.singled) < 2
        ]
        ranks = ",".join(map(str, self.ranks))
        return [
            Table(f"{self.method} {ranks} · trial {self.trial_id}", modes, texts=("mode",)),
            Table(f"‖ΔW‖ = {self.norm:.3g}", parts, texts=("kind", "part"), by=("kind",)),
        ]
