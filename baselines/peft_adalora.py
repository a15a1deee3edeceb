"""AdaLoRA (arXiv 2303.10512), as implemented by peft: training prunes the least important rank-one terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from tensorbench.baselines.peft_adapter import NAME, PeftAdapter
from tensorbench.baselines.peft_method import AdapterClass, PeftMethod
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.errors import UserError, not_begun, shown

#: The initial number of triplets, as a multiple of the final number (AdaLoRA, section 4.1).
PEAK = 1.5

#: Fields of peft's configuration that are counted in optimizer steps, with the smallest value of each.
STEP_FIELDS = {"tinit": 0, "tfinal": 0, "deltaT": 1}


class AdaLoRAAdapter(PeftAdapter):
    """The adapter ΔW = alpha / (init_r + 1e-5) · B·diag(E)·A for each site, with peft's schedule and masks.

    A triplet is a row of A, an entry of E and a column of B. peft prunes a triplet by setting its entry of E
    to zero, and keeps all of A, B and E in training. After the last pruning, `parameter_count` and `state`
    cover the remaining triplets only. In a fresh adapter that loads this state, the remaining triplets come
    first, and zeros follow.
    """

    #: The mask of remaining triplets of each site. None until pruning has ended or a pruned state is loaded.
    _kept: dict[Site, Tensor] | None = None
    #: The step of the last pruning, and whether it is past. None until training has begun.
    _last: int | None = None
    _past: bool = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for layer in self._adapted.values():
            # peft turns the divisor of the update into a trained parameter when casting it.
            layer.ranknum[NAME].requires_grad_(False)  # type: ignore[index]
        self._parameters = self._trained()

    def begin_training(self, steps: int) -> None:
        config = self._own_config
        check_schedule(vars(config), steps)
        config.total_step = steps
        self._last, self._past = steps - config.tfinal, False

    def extra_loss(self) -> Tensor:
        """Returns `orth_reg_weight` times the mean of ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ over all sites.

        This is eq. 4 as implemented by peft. peft adds this term only to losses that the model computes from
        labels. Here, the training loop computes the loss and adds the term.
        """
        squares = [
            gram
            for layer in self._adapted.values()
            for a, b in [(layer.lora_A[NAME], layer.lora_B[NAME])]  # type: ignore[index]
            for gram in (a @ a.T, b.T @ b)
        ]
        # Created on the device: the host would wait for a copy to the device twice per site in every step.
        identity = {len(gram): torch.eye(len(gram), device=gram.device, dtype=gram.dtype) for gram in squares}
        far = [torch.linalg.norm(gram - identity[len(gram)]) for gram in squares]
        weight: float = self._own_config.orth_reg_weight
        return weight * torch.stack(far).mean()

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Updates the importance of the triplets and prunes, as peft does. Optimizer states are unchanged.

        Raises UserError before `begin_training`, and if this was never called before the last pruning.
        """
        if self._last is None:
            raise not_begun()
        tuner: Any = self.tuner
        if self._past or step < self._last:
            tuner.update_and_allocate(step)
            return
        if not tuner.rankallocator.ipt:
            raise UserError(
                f"after_step: AdaLoRA prunes for the last time at step {self._last}, by importances of "
                f"earlier steps; call it after every step (the first call was for step {step})"
            )
        # peft prunes for the last time at this very step, for which a loop may not have made the call.
        tuner.update_and_allocate(self._last)
        self._past = True
        pattern = self._own_config.rank_pattern
        self._kept = {
            site: torch.tensor(pattern[f"{self.backbone.path(site)}.lora_E.{NAME}"]) for site in self.bases
        }

    @property
    def settled(self) -> bool:
        return self._kept is not None

    @property
    def parameter_count(self) -> int:
        if self._kept is None:
            return super().parameter_count
        sizes = {site: sum(base.weight.shape) + 1 for site, base in self.bases.items()}
        return sum(int(kept.sum()) * sizes[site] for site, kept in self._kept.items())

    def final_ranks(self) -> dict[str, list[int]]:
        """Returns the number of remaining triplets: for each projection, a list with one number per layer."""
        ranks: dict[str, list[int]] = {}
        for site in self.bases:
            left = self._own_config.init_r if self._kept is None else int(self._kept[site].sum())
            ranks.setdefault(site.projection, []).append(left)
        return ranks

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Returns the remaining triplets as pairs. A site without triplets has a zero pair of rank 1."""
        factors = {}
        for site in self.bases:
            layer: Any = self._adapted[site]
            a, e, b = (part[NAME] for part in (layer.lora_A, layer.lora_E, layer.lora_B))
            scale = layer.scaling[NAME] / (layer.ranknum[NAME] + 1e-5)
            kept = torch.ones(len(e), dtype=torch.bool) if self._kept is None else self._kept[site]
            rows = kept.nonzero().flatten() if kept.any() else torch.tensor([0])
            rows = rows.to(a.device)
            factors[site] = (e[rows] * a[rows], scale * b[:, rows])
        return factors

    def state(self) -> dict[str, Tensor]:
        state = super().state()
        if self._kept is not None:
            for name, (site, axis) in self._places().items():
                rows = self._kept[site].nonzero().flatten()
                state[name] = state[name].index_select(axis, rows).contiguous()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads a state with all triplets, or a state with only those that remain after pruning.

        Raises UserError as `Adapter.load` does, and if A, E and B of a site have different ranks.
        """
        full: int = self._own_config.init_r
        filled, ranks = dict(state), dict.fromkeys(self.bases, full)
        for name, (site, axis) in self._places().items():
            stored = state.get(name)
            if stored is not None and stored.dim() == 2 and stored.shape[axis] < full:
                ranks[site] = min(ranks[site], stored.shape[axis])
                missing = list(stored.shape)
                missing[axis] = full - stored.shape[axis]
                filled[name] = torch.cat([stored, stored.new_zeros(missing)], axis)
        for name, (site, axis) in self._places().items():
            if name in state and state[name].dim() == 2 and state[name].shape[axis] != ranks[site]:
                raise UserError(f"the stored adapter does not fit: A, E and B of {site} have several ranks")
        super().load(filled)
        pruned = any(rank < full for rank in ranks.values())
        first = torch.arange(full)
        self._kept = {site: first < rank for site, rank in ranks.items()} if pruned else None

    @property
    def _own_config(self) -> Any:
        tuner: Any = self.tuner
        return tuner.peft_config[NAME]

    def _places(self) -> dict[str, tuple[Site, int]]:
        """Maps each parameter's name to its site and to the index of the axis that counts triplets."""
        axes: dict[int, tuple[Site, int]] = {}
        for site in self.bases:
            layer: Any = self._adapted[site]
            for part, axis in ((layer.lora_A, 0), (layer.lora_E, 0), (layer.lora_B, 1)):
                axes[id(part[NAME])] = (site, axis)
        return {name: axes[id(parameter)] for name, parameter in self.named_parameters().items()}


def check_schedule(config: Mapping[str, Any], steps: int) -> None:
    """Raises UserError if there are too few steps for warm-up, pruning and the final phase.

    `config` has fields of peft's configuration.
    """
    tinit, tfinal = config.get("tinit", 0), config.get("tfinal", 0)
    # The last pruning uses importances measured in earlier steps.
    least = tfinal + max(tinit + 1, 2)
    if steps < least:
        raise UserError(
            f"peft's ADALORA prunes between config.tinit ({tinit}) and config.tfinal ({tfinal}) steps before "
            f"the end, so that a training should have at least {least} optimizer steps (got {steps})"
        )


class AdaLoRA(PeftMethod):
    """AdaLoRA, which starts with `config.init_r` triplets per site and prunes to `rank` per site on average.

    A triplet is a row of A, a column of B and their weight. By default, `init_r` is 1.5 · rank, rounded up.
    """

    adapter_class: ClassVar[AdapterClass] = AdaLoRAAdapter
    whole_numbers: ClassVar[Mapping[str, int]] = {"init_r": 2, **STEP_FIELDS}
    size_field: ClassVar[str | None] = "target_r"
    title: ClassVar[str] = "AdaLoRA"
    not_low_rank: ClassVar[str] = ""
    varying_count: ClassVar[str] = (
        "AdaLoRA keeps as many triplets as it should, and they differ in size where weights do"
    )

    type: Literal["ADALORA"]

    @model_validator(mode="after")
    def _starts_above_its_end(self) -> Self:
        if self.rank is not None:
            try:
                self._check_start()
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def initial_rank(self) -> int:
        """The number of triplets of a site at the start."""
        return int(self.config.get("init_r", math.ceil(PEAK * self.resolved_rank)))

    def _check_start(self) -> None:
        """Raises UserError unless there are triplets to prune."""
        if self.initial_rank <= self.resolved_rank:
            raise UserError(
                f"peft's ADALORA ends with a rank of {self.resolved_rank} on average, which should be below "
                f"config.init_r, the rank with which it starts (got {self.initial_rank})"
            )

    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        return (geometry.full_rank(self.projections),)

    def count_at(self, geometry: Geometry, rank: int) -> int:
        """Counts rank · Σ (in + out + 1), with the sum over all sites: the number at the end of training."""
        return rank * sum(_triplet(geometry, site) for site in geometry.sites(self.projections))

    def peak_count(self, geometry: Geometry) -> int:
        """Counts the parameters of all initial triplets."""
        return self.count_at(geometry, self.initial_rank)

    def count_left(self, geometry: Geometry, ranks: Mapping[str, Sequence[int]]) -> int:
        """Counts the parameters for the ranks that `Adapter.final_ranks` returned.

        Raises UserError unless there is one rank for every site.
        """
        sites: dict[str, list[Site]] = {}
        for site in geometry.sites(self.projections):
            sites.setdefault(site.projection, []).append(site)
        if {name: len(left) for name, left in ranks.items()} != {n: len(own) for n, own in sites.items()}:
            expected = ", ".join(f"{len(own)} of {name}" for name, own in sites.items())
            raise UserError(
                f"peft's ADALORA has a final rank for every site: {expected} (got {shown(dict(ranks))})"
            )
        pairs = ((site, rank) for name in sites for site, rank in zip(sites[name], ranks[name], strict=True))
        return sum(rank * _triplet(geometry, site) for site, rank in pairs)

    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        super().check(geometry, projections)
        # A budget may have set the rank after validation.
        self._check_start()

    def check_steps(self, steps: int) -> None:
        check_schedule(self.config, steps)

    def type_options(self, targets: Mapping[str, Site]) -> dict[str, Any]:
        # Training sets the number of steps. Until then, use the shortest schedule that peft accepts.
        shortest = self.config.get("tinit", 0) + self.config.get("tfinal", 0) + 1
        return {"init_r": self.initial_rank, "total_step": shortest}


def _triplet(geometry: Geometry, site: Site) -> int:
    """Returns the number of parameters of a triplet: in + out + 1."""
    return sum(geometry.shape(site.projection)) + 1
