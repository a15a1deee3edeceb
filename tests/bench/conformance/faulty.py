"""A small correct method, and faulty variants. Each variant has one fault that a conformance check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone, Geometry, Site
from tensorbench.methods.lowrank import Contracted, LowRankAdapter, LowRankMethod, Masks, Parametrisation
from tensorbench.methods.sizes import OneRank


class _Pairs(Parametrisation):
    def __init__(self, method: Pairs, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__()
        self.method = method
        sites = [Site(layer, name) for layer in range(geometry.layers) for name in method.projections]
        self.down_of = {site: index for index, site in enumerate(sites)}
        shape = (method.resolved_rank, geometry.hidden)
        self.downs = nn.ParameterList(torch.randn(shape, generator=generator) / 4 for _ in sites)
        self.ups = nn.ParameterList(torch.zeros(shape[::-1]) for _ in sites)

    def contract(self) -> Contracted:
        return Contracted(
            [self.change(down * self.method.scale) for down in self.downs],
            dict(zip(self.down_of, self.ups, strict=True)),
        )

    def change(self, down: Tensor) -> Tensor:
        return down


class Pairs(OneRank, LowRankMethod):
    """A small correct method: a low-rank pair for each query and each value projection."""

    name: ClassVar[str] = "pairs"
    projections: ClassVar[tuple[str, ...]] = ("query", "value")
    adapter: ClassVar[type[LowRankAdapter]] = LowRankAdapter
    parameters: ClassVar[type[_Pairs]] = _Pairs

    def count_at(self, geometry: Geometry, rank: int) -> int:
        return rank * geometry.layers * 4 * geometry.hidden

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return self.parameters(self, geometry, generator)

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        parametrisation = self.parametrise(backbone.geometry, generator)
        return self.adapter(backbone, parametrisation, self.masks(generator), self.dropout_at)


#: Maps each faulty method to the check that finds the fault, and to a pattern of the check's message.
FAULTS: dict[type[Pairs], tuple[str, str]] = {}


def fault(check: str, message: str) -> Callable[[type[Pairs]], type[Pairs]]:
    def registered(method: type[Pairs]) -> type[Pairs]:
        FAULTS[method] = (check, message)
        return method

    return registered


@fault("sites", "accepts a backbone without value")
class AcceptsAnyBackbone(Pairs):
    def check(self, geometry: Geometry, projections: tuple[str, ...]) -> None:
        self.count(geometry)


@fault("count", "refuses the tiny backbone of every kind: .*adapts keys")
class AdaptsNothing(Pairs):
    projections: ClassVar[tuple[str, ...]] = ("query", "keys")


@fault("alone", "outputs of an example alone .see Method.depends_on_batch.: differs")
class ComparesTheBatch(Pairs):
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter = super().put(backbone, generator)
        layer = backbone.module.get_submodule(backbone.path(Site(0, "query")))
        layer.register_forward_hook(lambda _, inputs, output: output - output.mean(0) / 9)
        return adapter


@fault("alone", "outputs of an example alone in training")
class NormsTheBatch(Pairs):
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter = super().put(backbone, generator)
        layer = backbone.module.get_submodule(backbone.path(Site(0, "query")))
        layer.register_forward_hook(lambda own, _, output: output - own.training * output.mean(0) / 9)
        return adapter


@fault("start", "outputs at the start: differs.*nonzero_start")
class StartsOff(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        pairs = _Pairs(self, geometry, generator)
        with torch.no_grad():
            pairs.ups[-1].fill_(1e-2)
        return pairs


@fault("start", "in training mode on a backbone in eval mode: .*query")
class AttachesInTrainingMode(Pairs):
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter = super().put(backbone, generator)
        backbone.module.get_submodule(backbone.path(Site(0, "query"))).train()
        return adapter


@fault("training", r"trains beside the adapter: .*query.*bias")
class TrainsABias(Pairs):
    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter = super().put(backbone, generator)
        bias = adapter.bases[Site(0, "query")].bias
        assert bias is not None
        bias.requires_grad_(True)
        return adapter


@fault("training", r"not among the module's own parameters: \['downs.0'")
class KeepsItsParameters(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def register(self, parameters: nn.Module) -> None:
            pass


@fault("training", r"no gradient in the second step: \['downs.0'\]")
class HasADeadParameter(Pairs):
    class parameters(_Pairs):  # noqa: N801
        def contract(self) -> Contracted:
            contracted = super().contract()
            contracted.downs[0] = contracted.downs[0].detach()
            return contracted


@fault("factors", "deltas.. of 0.query: differs")
class WrongDelta(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def delta(self, site: Site) -> Tensor:
            return super().delta(site) * 1.001


@fault("factors", "NotImplementedError")
class RaisesAnotherError(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
            raise NotImplementedError

        def delta(self, site: Site) -> Tensor:
            contracted = self.contract()
            return contracted.ups[site] @ contracted.downs[self.parametrisation.down_of[site]]

        def deltas(self) -> Iterator[tuple[Site, Tensor]]:
            return ((site, self.delta(site)) for site in self.bases)


@fault("merge", "merged outputs in torch.float32: differs")
class MergesNearly(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def deltas(self) -> Iterator[tuple[Site, Tensor]]:
            return ((site, delta * 1.01) for site, delta in super().deltas())


@fault("merge", "unmerged in torch.float32: .* differs")
class SubtractsToUnmerge(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def unmerge(self) -> None:
            merged = {site: self.bases[site].weight.data - self.delta(site) for site in self._unmerged}
            super().unmerge()
            for site, weight in merged.items():
                self.bases[site].weight.data = weight


@fault("detach", "fingerprint differs after detach")
class LeavesAHook(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def detach(self) -> None:
            self._hooks.pop()
            super().detach()


@fault("detach", "requires_grad differs after detach")
class LeavesItFrozen(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def detach(self) -> None:
            self._required_grad = {}
            super().detach()


@fault("transients", "tensors kept after a forward")
class KeepsFactors(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def _drop(self) -> None:
            for shared in self._inputs:
                shared.forget()


@fault("interruption", "tensors kept after a forward that raised")
class DropsOnSuccessOnly(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, backbone: Backbone, *arguments: Any) -> None:
            super().__init__(backbone, *arguments)
            self._hooks.pop().remove()
            self._hooks.append(backbone.module.register_forward_hook(lambda *_: self._drop()))


@fault("hold", "tensors kept after hold")
class HoldsForEver(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        @contextmanager
        def hold(self) -> Iterator[None]:
            with torch.no_grad():
                self._refresh()
            self._holding = True
            yield


@fault("state", "a state with another name is not refused")
class LoadsAnything(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        @torch.no_grad()
        def load(self, state: Any) -> None:
            for name, parameter in self.named_parameters().items():
                if name in state and state[name].shape == parameter.shape:
                    parameter.copy_(state[name])


@fault("state", "a state after its parameters have changed: .* differs")
class SavesNoCopy(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def state(self) -> dict[str, Tensor]:
            return {name: parameter.detach() for name, parameter in self.named_parameters().items()}


@fault("state", "does not hold each parameter once")
class SavesHalf(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def state(self) -> dict[str, Tensor]:
            return {name: tensor for name, tensor in super().state().items() if "ups" in name}


@fault("seeds", "moves the global random state of torch")
class DrawsGlobally(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Pairs(self, geometry, torch.Generator().manual_seed(int(torch.randint(99, ()))))


@fault("seeds", "another seed gives the same start")
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


@fault("gradcheck", "gradients are wrong")
class HasWrongGradients(Pairs):
    class parameters(_Pairs):  # noqa: N801
        def change(self, down: Tensor) -> Tensor:
            return _WrongGradient.apply(down)


@fault("bfloat16", "would train .* in torch.bfloat16")
class KeepsBfloat16(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, backbone: Backbone, *arguments: Any) -> None:
            super().__init__(backbone, *arguments)
            if next(backbone.module.parameters()).dtype == torch.float32:
                self.parametrisation.to(torch.bfloat16)


@fault("bfloat16", "outputs under bf16 autocast are off by")
class AdaptsInFloat32Only(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def _distribute(self, contracted: Contracted) -> None:
            if torch.is_autocast_enabled("cpu"):
                contracted.ups = {site: up * 0 for site, up in contracted.ups.items()}
            super()._distribute(contracted)


@fault("checkpointing", "CheckpointError")
class RecordsTheContractionAgain(Pairs):
    class parameters(_Pairs):  # noqa: N801
        def change(self, down: Tensor) -> Tensor:
            return down.sin()

    class adapter(LowRankAdapter):  # noqa: N801
        def recontract(self) -> None:
            self._distribute(self.contract())
            torch.autograd.Variable._execution_engine.queue_callback(self._drop)


@fault("dropout", "dropout does nothing in training mode")
class NeverDrops(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, backbone: Backbone, parametrisation: Parametrisation, *_: Any) -> None:
            super().__init__(backbone, parametrisation)


@fault("dropout", "changes the outputs in eval mode")
class AlwaysDrops(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for linear in self._linears.values():
                linear.forward = self._always(linear.forward)  # type: ignore[method-assign]

        def _always(self, forward: Any) -> Any:
            dropout = self._inputs[0].dropout
            return lambda x: dropout.drop(forward(x)) if dropout else forward(x)


class _RunningOn(Masks):
    def drop(self, x: Tensor, place: Any) -> Tensor:
        mask = torch.empty_like(x).bernoulli_(1 - self.probability, generator=self._seeds)
        return x * mask / (1 - self.probability)


@fault("checkpointing", "checkpointed: gradient of .*: differs")
class DropsAnewWhenRecomputed(Pairs):
    def masks(self, generator: torch.Generator) -> Masks | None:
        return _RunningOn(self.dropout, 0) if self.dropout else None


class _Global(Masks):
    def drop(self, x: Tensor, place: Any) -> Tensor:
        return nn.functional.dropout(x, self.probability)


@fault("streams", "draws from torch's global stream")
class DropsFromTheBackbonesStream(Pairs):
    def masks(self, generator: torch.Generator) -> Masks | None:
        return _Global(self.dropout, 0) if self.dropout else None


@fault("streams", "draws nothing, though shifts_dropout says: it draws noise")
class ShiftsNothingAsItSays(Pairs):
    shifts_dropout: ClassVar[str] = "it draws noise"


@fault("scale", "delta of .* at twice the scale: differs")
class IgnoresTheScale(Pairs):
    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _Pairs(self.model_copy(update={"scale": 1.0}), geometry, generator)


@fault("scale", "factors.. of .* at twice the scale: differs")
class ForgetsTheScaleInItsFactors(Pairs):
    class adapter(LowRankAdapter):  # noqa: N801
        def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
            scale = self.parametrisation.method.scale
            return {site: (down / scale, up) for site, (down, up) in super().factors().items()}

        def delta(self, site: Site) -> Tensor:
            return dict(self.deltas())[site]

        def deltas(self) -> Iterator[tuple[Site, Tensor]]:
            return ((site, up @ down) for site, (down, up) in super().factors().items())


@fault("compiled", "compiled outputs, step 0: differs")
class DiffersWhenCompiled(Pairs):
    class parameters(_Pairs):  # noqa: N801
        def change(self, down: Tensor) -> Tensor:
            return down * (1.5 if torch.compiler.is_compiling() else 1.0)


@fault("identity", "identity names 'another'")
class ForgetsItsRank(Pairs):
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "method": "another"}


@fault("count", "the formula counts")
class CountsTooFew(Pairs):
    def count(self, geometry: Geometry) -> int:
        return super().count(geometry) - 1


@fault("isorank", r"isorank\(3\) has ranks \(2,\)")
class IgnoresTheRank(Pairs):
    def isorank(self, rank: int) -> Self:
        return super().isorank(min(rank, 2))


@fault("isorank", "isorank of a method with scale=0.5 gives one with scale=1.0")
class ForgetsItsOptions(Pairs):
    def isorank(self, rank: int) -> Self:
        return type(self)(rank=rank)


@fault("fit", "fit of a method with scale=0.5 gives one with scale=1.0")
class ForgetsThemInAFit(Pairs):
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return type(self)(rank=super().fit(geometry, budget).rank, dropout=self.dropout)


@fault("isorank", r"with_size\(\(2,\)\) has ranks \(3,\)")
class HasAnotherSize(Pairs):
    def with_size(self, ranks: Sequence[int]) -> Self:
        return self.isorank(ranks[0] + 1)


@fault("isorank", "rank_names has 2 entries for 1 ranks")
class NamesTwoRanks(Pairs):
    rank_names: ClassVar[tuple[str, ...]] = ("down", "up")  # type: ignore[assignment]


@fault("isorank", "rank_limits has 0 entries for 1 ranks")
class HasNoLimits(Pairs):
    def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
        return ()


@fault("identity", "idle names scale, yet scale=0.5 changes the outputs")
class ScalesWhatItCallsIdle(Pairs):
    idle: ClassVar[frozenset[str]] = frozenset({"scale"})  # type: ignore[assignment]


@fault("fit", "unexpected keyword argument 'uneven'")
class TakesNoUneven(Pairs):
    def fit(self, geometry: Geometry, budget: int) -> Self:  # type: ignore[override]
        return super().fit(geometry, budget)


@fault("fit", "but rank")
class StaysBelow(Pairs):
    def fit(self, geometry: Geometry, budget: int, *, uneven: bool = False) -> Self:
        return self.isorank(max(budget // self.isorank(1).count(geometry), 1))
