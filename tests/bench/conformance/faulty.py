"""The smallest plug-in, and copies of it that each break one thing that a conformance check is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from methods.adapter import Adapter
from methods.backbone import Backbone, Geometry, Site
from methods.errors import UserError, too_small
from methods.lowrank import Contracted, LowRankAdapter, LowRankMethod, Masks, Parametrisation
from methods.sizes import nearest_rank


class Pairs(LowRankMethod):
    """A pair for each query and value: as small as a plug-in can be."""

    name: ClassVar[str] = "pairs"
    projections: ClassVar[tuple[str, ...]] = ("query", "value")
    rank: PositiveInt | None = None
    adapter: ClassVar[type[LowRankAdapter]] = LowRankAdapter

    @property
    def size(self) -> tuple[int, ...] | None:
        return None if self.rank is None else (self.rank,)

    def count(self, geometry: Geometry) -> int:
        if self.rank is None:
            raise UserError("pairs: rank is free")
        return self.rank * geometry.layers * 4 * geometry.hidden

    def isorank(self, rank: int) -> Self:
        return self.model_copy(update={"rank": rank})

    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        smallest = self.isorank(1).count(geometry)
        if smallest > budget:
            raise too_small(self.label, budget, smallest)
        return self.isorank(nearest_rank(lambda rank: self.isorank(rank).count(geometry), budget))

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Pairs(self, geometry, generator)

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        return self.adapter(backbone, parametrisation, self.masks(generator), self.dropout_at)


class _Pairs(Parametrisation):
    def __init__(self, method: Pairs, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        assert method.rank is not None
        self.method = method
        sites = [Site(layer, name) for layer in range(geometry.layers) for name in method.projections]
        self.down_of = {site: index for index, site in enumerate(sites)}
        shape = (method.rank, geometry.hidden)
        self.downs = nn.ParameterList(torch.randn(shape, generator=generator) / 4 for _ in sites)
        self.ups = nn.ParameterList(torch.zeros(shape[::-1]) for _ in sites)

    def contract(self) -> Contracted:
        return Contracted(
            [down * self.method.scale for down in self.downs], dict(zip(self.down_of, self.ups, strict=True))
        )


class AcceptsAnyBackbone(Pairs):
    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        self.count(geometry)


class StartsOff(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        pairs = _Pairs(self, geometry, generator)
        with torch.no_grad():
            pairs.ups[-1].fill_(1e-2)
        return pairs


class TrainsABias(Pairs):
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter = super().put(backbone, generator)
        bias = adapter.bases[Site(0, "query")].bias
        assert bias is not None
        bias.requires_grad_(True)
        return adapter


class KeepsItsParameters(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def register(self, parameters: nn.Module) -> None:
            pass


class HasADeadParameter(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        pairs = _Pairs(self, geometry, generator)
        pairs.contract = (
            lambda: Contracted(  # type: ignore[method-assign]
                [pairs.downs[0].detach(), *pairs.downs[1:]], dict(zip(pairs.down_of, pairs.ups, strict=True))
            )
        )
        return pairs


class WrongDelta(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def delta(self, site: Site) -> Tensor:
            return super().delta(site) * 1.001


class RaisesAnotherError(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
            raise NotImplementedError

        def delta(self, site: Site) -> Tensor:
            contracted = self.contract()
            return contracted.ups[site] @ contracted.downs[self.parametrisation.down_of[site]]

        def deltas(self) -> Iterator[tuple[Site, Tensor]]:
            return ((site, self.delta(site)) for site in self.bases)


class MergesNearly(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def deltas(self) -> Iterator[tuple[Site, Tensor]]:
            return ((site, delta * 1.01) for site, delta in super().deltas())


class SubtractsToUnmerge(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def unmerge(self) -> None:
            merged = {site: self.bases[site].weight.data - self.delta(site) for site in self._unmerged}
            super().unmerge()
            for site, weight in merged.items():
                self.bases[site].weight.data = weight


class LeavesAHook(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def detach(self) -> None:
            self._hooks.pop()
            super().detach()


class LeavesItFrozen(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def detach(self) -> None:
            self._required_grad = {}
            super().detach()


class KeepsFactors(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def _drop(self) -> None:
            for shared in self._inputs:
                shared.forget()


class DropsOnSuccessOnly(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, backbone: Backbone, *arguments: Any) -> None:
            super().__init__(backbone, *arguments)
            self._hooks.pop().remove()
            self._hooks.append(backbone.module.register_forward_hook(lambda *_: self._drop()))


class HoldsForEver(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        @contextmanager
        def hold(self) -> Iterator[None]:
            with torch.no_grad():
                self._refresh()
            self._holding = True
            yield


class LoadsAnything(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        @torch.no_grad()
        def load(self, state: Any) -> None:
            for name, parameter in self.named_parameters().items():
                if name in state and state[name].shape == parameter.shape:
                    parameter.copy_(state[name])


class SavesNoCopy(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def state(self) -> dict[str, Tensor]:
            return {name: parameter.detach() for name, parameter in self.named_parameters().items()}


class SavesHalf(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def state(self) -> dict[str, Tensor]:
            return {name: tensor for name, tensor in super().state().items() if "ups" in name}


class DrawsGlobally(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Pairs(self, geometry, torch.Generator().manual_seed(int(torch.randint(99, ()))))


class IgnoresTheSeed(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Pairs(self, geometry, torch.Generator().manual_seed(0))


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 1.1


class HasWrongGradients(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        pairs = _Pairs(self, geometry, generator)
        pairs.contract = lambda: Contracted(  # type: ignore[method-assign]
            [_WrongGradient.apply(down) for down in pairs.downs],
            dict(zip(pairs.down_of, pairs.ups, strict=True)),
        )
        return pairs


class KeepsBfloat16(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, backbone: Backbone, *arguments: Any) -> None:
            super().__init__(backbone, *arguments)
            if next(backbone.module.parameters()).dtype == torch.float32:
                self.parametrisation.to(torch.bfloat16)


class AdaptsInFloat32Only(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def _distribute(self, contracted: Contracted) -> None:
            if torch.is_autocast_enabled("cpu"):
                contracted.ups = {site: up * 0 for site, up in contracted.ups.items()}
            super()._distribute(contracted)


class RecordsTheContractionAgain(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        pairs = _Pairs(self, geometry, generator)
        pairs.contract = lambda: Contracted(  # type: ignore[method-assign]
            [down.sin() for down in pairs.downs], dict(zip(pairs.down_of, pairs.ups, strict=True))
        )
        return pairs

    class adapter(LowRankAdapter):  # noqa: N801
        def recontract(self) -> None:
            self._distribute(self.contract())
            torch.autograd.Variable._execution_engine.queue_callback(self._drop)


class NeverDrops(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, backbone: Backbone, parametrisation: Parametrisation, *_: Any) -> None:
            super().__init__(backbone, parametrisation)


class AlwaysDrops(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for linear in self._linears.values():
                linear.forward = self._always(linear.forward)  # type: ignore[method-assign]

        def _always(self, forward: Any) -> Any:
            return lambda x: self.masks.drop(forward(x), 0) if self.masks else forward(x)


class _RunningOn(Masks):
    def drop(self, x: Tensor, place: int) -> Tensor:
        mask = torch.empty_like(x).bernoulli_(1 - self.probability, generator=self._seeds)
        return x * mask / (1 - self.probability)


class DropsAnewWhenRecomputed(Pairs):
    def masks(self, generator: torch.Generator) -> Masks | None:
        return _RunningOn(self.dropout, 0) if self.dropout else None


class _Global(Masks):
    def drop(self, x: Tensor, place: int) -> Tensor:
        return nn.functional.dropout(x, self.probability)


class DropsFromTheBackbonesStream(Pairs):
    def masks(self, generator: torch.Generator) -> Masks | None:
        return _Global(self.dropout, 0) if self.dropout else None


class ShiftsNothingAsItSays(Pairs):
    shifts_dropout: ClassVar[str] = "it draws noise"


class IgnoresTheScale(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Pairs(self.model_copy(update={"scale": 1.0}), geometry, generator)


class ForgetsTheScaleInItsFactors(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
            scale = self.parametrisation.method.scale
            return {site: (down / scale, up) for site, (down, up) in super().factors().items()}

        def delta(self, site: Site) -> Tensor:
            return dict(self.deltas())[site]

        def deltas(self) -> Iterator[tuple[Site, Tensor]]:
            return ((site, up @ down) for site, (down, up) in super().factors().items())


class DiffersWhenCompiled(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        pairs = _Pairs(self, geometry, generator)
        pairs.contract = lambda: Contracted(  # type: ignore[method-assign]
            [down * (1.5 if torch.compiler.is_compiling() else 1.0) for down in pairs.downs],
            dict(zip(pairs.down_of, pairs.ups, strict=True)),
        )
        return pairs


FAULTS = {
    AcceptsAnyBackbone: ("sites", "accepts a backbone without value"),
    StartsOff: ("start", "outputs at the start: differs"),
    TrainsABias: ("training", r"trains beside the adapter: .*query.*bias"),
    KeepsItsParameters: ("training", r"not among the module's own parameters: \['downs.0'"),
    HasADeadParameter: ("training", r"no gradient in the second step: \['downs.0'\]"),
    WrongDelta: ("factors", "deltas.. of 0.query: differs"),
    RaisesAnotherError: ("factors", "NotImplementedError"),
    MergesNearly: ("merge", "merged outputs in torch.float32: differs"),
    SubtractsToUnmerge: ("merge", "unmerged in torch.float32: .* differs"),
    LeavesAHook: ("detach", "fingerprint differs after detach"),
    LeavesItFrozen: ("detach", "requires_grad differs after detach"),
    KeepsFactors: ("transients", "tensors kept after a forward"),
    DropsOnSuccessOnly: ("interruption", "tensors kept after a forward that raised"),
    HoldsForEver: ("hold", "tensors kept after hold"),
    LoadsAnything: ("state", "a state with another name is not refused"),
    SavesNoCopy: ("state", "a state after its parameters have changed: .* differs"),
    SavesHalf: ("state", "does not hold each parameter once"),
    DrawsGlobally: ("seeds", "moves the global random state of torch"),
    IgnoresTheSeed: ("seeds", "another seed gives the same start"),
    HasWrongGradients: ("gradcheck", "gradients are wrong"),
    KeepsBfloat16: ("bfloat16", "would train .* in torch.bfloat16"),
    AdaptsInFloat32Only: ("bfloat16", "outputs under bf16 autocast are off by"),
    RecordsTheContractionAgain: ("checkpointing", "CheckpointError"),
    NeverDrops: ("dropout", "dropout does nothing in training mode"),
    AlwaysDrops: ("dropout", "changes the outputs in eval mode"),
    DropsAnewWhenRecomputed: ("checkpointing", "checkpointed: gradient of .*: differs"),
    DropsFromTheBackbonesStream: ("streams", "draws from torch's global stream"),
    ShiftsNothingAsItSays: ("streams", "draws nothing, though shifts_dropout says: it draws noise"),
    IgnoresTheScale: ("scale", "delta of .* at twice the scale: differs"),
    ForgetsTheScaleInItsFactors: ("scale", "factors.. of .* at twice the scale: differs"),
    DiffersWhenCompiled: ("compiled", "compiled outputs, step 0: differs"),
}
