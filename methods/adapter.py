"""The base class of adapters, with merging, detaching and saving, and modules with frozen parts."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from methods.backbone import Backbone, Site
from methods.errors import RoundedMerge, UserError
from methods.quantised import QuantisedLinear

#: The name of the submodule that holds trained parameters outside the backbone's layers.
REGISTERED = "adapter"


class Adapter(ABC):
    """The trainable part that a method put on a backbone.

    Building an adapter freezes the whole backbone except its head. While the adapter is on and not merged,
    the backbone's module lists every trained parameter once among its own parameters. `detach` puts every
    module and every `requires_grad` back as it was. Raises UserError for a backbone that already has an
    adapter.
    """

    def __init__(self, backbone: Backbone, sites: Iterable[Site]) -> None:
        if hasattr(backbone.module, REGISTERED):
            raise UserError(f"the model already has a part '{REGISTERED}': detach the adapter on it first")
        self.backbone = backbone
        self.bases: dict[Site, nn.Linear] = {}
        for site in sites:
            base = backbone.module.get_submodule(backbone.path(site))
            if not isinstance(base, nn.Linear):
                raise UserError(f"site {site} is a {type(base).__name__}, already adapted or not linear")
            self.bases[site] = base
        self._adapted: dict[Site, nn.Module] = {}
        self._registered: nn.Module | None = None
        self._unmerged: dict[Site, tuple[Tensor, nn.Parameter | None]] = {}
        self._required_grad = {p: p.requires_grad for p in backbone.module.parameters()}
        for parameter in self._required_grad:
            parameter.requires_grad_(False)
        for parameter in backbone.head.parameters():
            parameter.requires_grad_(True)

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, head excluded. A parameter shared by several sites appears once."""

    @abstractmethod
    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """(down, up) for every site, shaped (r, in) and (out, r), scale included.

        Raises NotLowRank where the update has no such form.
        """

    def biases(self) -> dict[Site, Tensor]:
        """Trained updates of biases, shape (out,), scale included; empty for most methods."""
        return {}

    def frozen(self) -> dict[str, Tensor]:
        """The adapter's untrained tensors, such as random cores. Empty for most methods."""
        return {}

    def kept(self) -> dict[str, Tensor]:
        """The tensors that `state` holds besides the parameters: frozen tensors, or their seeds."""
        return {}

    def remake(self) -> None:  # noqa: B027 - most have nothing to make
        """Recomputes from `kept`, bit for bit, the frozen tensors that `kept` lacks."""

    def delta(self, site: Site) -> Tensor:
        """Returns the update of the site's weight, shape (out, in), scale included."""
        down, up = self.factors()[site]
        return up @ down

    def deltas(self) -> Iterator[tuple[Site, Tensor]]:
        """Yields (site, delta) for every site, contracting the factors only once if possible."""
        for site, (down, up) in self.factors().items():
            yield site, up @ down

    def begin_training(self, steps: int) -> None:  # noqa: B027 - most plan nothing
        """Prepares for a training run of `steps` optimizer steps. Called once before the first step.

        Raises UserError if the method needs more steps.
        """

    def extra_loss(self) -> Tensor | None:
        """Returns the method's own term of the training loss. None for most methods.

        A training loop adds this term to its loss before the backward pass. Evaluations leave it out.
        """
        return None

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 - most do nothing
        """Acts after an optimizer step, counted from 1. Called while the gradients still exist.

        A method that changes the shape of a parameter assigns the parameter's `data`, keeps the parameter
        object, drops its gradient, and documents what happens to the parameter's optimizer state.
        """

    @property
    def settled(self) -> bool:
        """Whether the adapter has its final size.

        Only a state of the final size may be selected, since an earlier state could exceed the budget.
        """
        return True

    def final_ranks(self) -> dict[str, list[int]]:
        """The ranks left after training cut ranks. Empty if training cuts none.

        Modes and bonds map to [rank]; projections map to one rank per layer. `Method.count_left` counts the
        parameters of these ranks.
        """
        return {}

    @property
    def parameter_count(self) -> int:
        """The number of trained parameters, head excluded, without those that training has cut."""
        return sum(parameter.numel() for parameter in self.named_parameters().values())

    def core(self) -> list[nn.Parameter]:
        """The parameters that are cores of tensors (see `Method.has_core`)."""
        return []

    @property
    def frozen_count(self) -> int:
        """The number of entries in the adapter's own frozen tensors."""
        return sum(tensor.numel() for tensor in self.frozen().values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups named `adapter` and `head`, without empty ones."""
        groups: list[dict[str, Any]] = [
            {"name": "adapter", "params": list(self.named_parameters().values())},
            {"name": "head", "params": list(self.backbone.head.parameters())},
        ]
        return [group for group in groups if group["params"]]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Context in which no parameter may change. Factors are contracted once for all forwards inside."""
        yield

    @contextmanager
    def part(self, start: int, stop: int, total: int) -> Iterator[None]:
        """Context for one part of a batch: examples `start` to `stop` of `total`, with parts run in order.

        An adapter with its own dropout then drops the same entries as in a forward of the full batch.
        """
        yield

    @property
    def merged(self) -> bool:
        """Whether the update is in the backbone's weights now."""
        return bool(self._unmerged)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the update to the backbone's weights and takes the adapter's layers out of the forward.

        The original tensors are kept, so that `unmerge` restores them bit for bit. In weights below float32
        the sum is rounded once, and a `RoundedMerge` warning states the error. Raises UserError for quantised
        weights: rounding the sum would change outputs by more than most updates do.
        """
        if self.merged:
            return
        forms = {base.quantisation for base in self.bases.values() if isinstance(base, QuantisedLinear)}
        if forms:
            raise UserError(
                f"an update cannot be merged into weights in {forms.pop()}, which are too coarse to hold "
                "it: keep the adapter beside them (export writes a checkpoint), or train on the backbone "
                "without `quantise`"
            )
        biases = self.biases()
        rounding = _Rounding()
        for site, delta in self.deltas():
            base = self.bases[site]
            self._unmerged[site] = (base.weight.data, base.bias)
            base.weight.data = (base.weight.data + delta).to(base.weight.dtype)
            rounding.add(self._unmerged[site][0], delta, base.weight.data)
            if site in biases:
                moved = biases[site] if base.bias is None else base.bias + biases[site]
                base.bias = nn.Parameter(moved.to(base.weight.dtype), False)
            self.backbone.module.set_submodule(self.backbone.path(site), base)
        self._unregister()
        rounding.tell()

    def unmerge(self) -> None:
        """Restores the weights from before `merge`, bit for bit. Does nothing if no update is merged."""
        if not self.merged:
            return
        for site, (weight, bias) in self._unmerged.items():
            base = self.bases[site]
            base.weight.data = weight
            base.register_parameter("bias", bias)
            # The module may have changed between train and eval while the adapted layer was not part of it.
            adapted = self._adapted[site].train(base.training)
            self.backbone.module.set_submodule(self.backbone.path(site), adapted)
        self._unmerged = {}
        if self._registered is not None:
            self.register(self._registered)

    def detach(self) -> None:
        """Removes the adapter: modules, weights and `requires_grad` are as they were before `attach`."""
        self.unmerge()
        for site in self._adapted:
            self.backbone.module.set_submodule(self.backbone.path(site), self.bases[site])
        self._adapted = {}
        self._unregister()
        self._registered = None
        for parameter, required_grad in self._required_grad.items():
            parameter.requires_grad_(required_grad)

    def install(self, site: Site, module: nn.Module) -> None:
        """Puts `module` in place of the site's linear layer until `detach`."""
        self.backbone.module.set_submodule(self.backbone.path(site), module)
        self._adapted[site] = module

    def register(self, parameters: nn.Module) -> None:
        """Adds trained parameters outside the installed layers to the backbone's module.

        Then `module.parameters()` and `state_dict` include them, and `to` moves them.
        """
        module = self.backbone.module
        module.add_module(REGISTERED, parameters.train(module.training))
        self._registered = parameters

    def _unregister(self) -> None:
        if self._registered is not None:
            delattr(self.backbone.module, REGISTERED)

    def state(self) -> dict[str, Tensor]:
        """Returns CPU copies of the trained parameters and of `kept`, contiguous as safetensors requires."""
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in {**self.named_parameters(), **self.kept()}.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores a `state()`. Raises UserError if names or shapes differ, before any change."""
        own: dict[str, Tensor] = {**self.named_parameters(), **self.kept()}
        wrong = sorted(set(own) ^ set(state)) or [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if own[name].shape != state[name].shape
        ]
        if wrong:
            raise UserError(f"the stored adapter does not fit: {', '.join(wrong[:5])}")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.remake()


class _Rounding:
    """The rounding error of updates merged into weights below float32."""

    def __init__(self) -> None:
        self._lost = self._update = 0.0
        self._dtype: torch.dtype | None = None

    def add(self, weight: Tensor, delta: Tensor, merged: Tensor) -> None:
        """Adds the rounding error of one site."""
        if torch.promote_types(merged.dtype, torch.float32) == merged.dtype:
            return
        self._dtype = merged.dtype
        self._lost += float((merged.float() - weight.float() - delta.float()).square().sum())
        self._update += float(delta.float().square().sum())

    def tell(self) -> None:
        if not self._lost:
            return
        warnings.warn(
            f"merged into {self._dtype} weights, where rounding moves the update by "
            f"{100 * (self._lost / self._update) ** 0.5:.3g}% of its norm; unmerged it is exact",
            RoundedMerge,
            stacklevel=4,
        )


class PartlyFrozen(nn.Module):
    """A module with trained parameters, and with frozen tensors as its own buffers.

    A stored adapter holds the persistent buffers; `remake` recomputes the other buffers from them. Buffers of
    submodules do not count, because tensorly-torch keeps CP weights, all one, in a buffer.
    """

    def remake(self) -> None:
        """Recomputes the buffers that are not persistent, bit for bit."""

    def frozen(self) -> dict[str, Tensor]:
        """The frozen tensors by name, without seeds."""
        return {name: tensor for name, tensor in self._own() if tensor.is_floating_point()}

    def kept(self) -> dict[str, Tensor]:
        """The persistent buffers by name."""
        persistent = self.state_dict().keys()
        return {name: tensor for name, tensor in self._own() if name in persistent}

    def draw_seed(self, generator: torch.Generator) -> None:
        """Draws and registers the seed from which `seeded` and `draw` make frozen tensors."""
        self.register_buffer("seed", torch.randint(2**62, (), generator=generator))

    def seeded(self) -> torch.Generator:
        """Returns a CPU generator at the beginning of the seed's stream, the same on every device."""
        return torch.Generator().manual_seed(int(self.get_buffer("seed")))

    @torch.no_grad()
    def draw(self, fill: Callable[..., Any]) -> None:
        """Fills the frozen tensors one after another from the seed.

        `fill(tensor, generator=…)` is called like the functions of `torch.nn.init`.
        """
        generator = self.seeded()
        for tensor in self.frozen().values():
            drawn = torch.empty(tensor.shape)
            fill(drawn, generator=generator)
            tensor.copy_(drawn)

    def begin_at(self, start: Iterable[Tensor], *, persistent: bool) -> nn.ParameterList:
        """Registers the tensors in `start` as frozen buffers. Returns parameters that are copies of them.

        `persistent` is that of `register_buffer`. `remake`, called before the copy, may fill the buffers.
        """
        for index, tensor in enumerate(start):
            self.register_buffer(f"start{index}", tensor, persistent=persistent)
        self.remake()
        return nn.ParameterList(tensor.clone() for tensor in self.frozen().values())

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        return self.named_buffers(recurse=False)
