"""The base classes of adapters, of the layers that they install, and of modules with frozen tensors."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.methods import adapter_file
from tensorbench.methods.backbone import Backbone, Site
from tensorbench.methods.errors import RoundedMerge, UserError, first_few
from tensorbench.methods.quantised import QuantisedLinear

#: The name of the submodule that holds trained parameters outside the backbone's layers.
REGISTERED = "adapter"
#: The attribute that marks a module with an adapter on it. Copies of the module have it, too.
MARK = "has_tensorbench_adapter"


def refuse_adapted(module: nn.Module) -> None:
    """Raises UserError if the module has an adapter on it."""
    if hasattr(module, MARK):
        raise UserError("the model already has an adapter: detach it first")


class Adapter(ABC):
    """The trainable module that a method puts on a backbone.

    Building an adapter freezes the whole backbone except its head. What was frozen in the head stays frozen,
    unless all of it was. Until the adapter is merged or detached, the parameters of the backbone's module
    include every trained parameter once. `detach` restores every module and every `requires_grad`. Raises
    UserError if the backbone has an adapter already, and if two sites share a layer or its weight.
    """

    #: The value of `Method.stored` for the adapter's method. Set by `Method.attach`.
    method_stored: dict[str, Any]

    def __init__(self, backbone: Backbone, sites: Iterable[Site]) -> None:
        refuse_adapted(backbone.module)
        if hasattr(backbone.module, REGISTERED):
            raise UserError(
                f"the model has a part '{REGISTERED}', the name of the part that adapters add: rename it"
            )
        if isinstance(backbone.module, nn.Sequential):
            raise UserError(
                "the model is an nn.Sequential, which would call the adapter as its last layer: put it into "
                "a module with a forward of its own"
            )
        self.backbone = backbone
        self.bases: dict[Site, nn.Linear] = {}
        weights: dict[int, Site] = {}
        for site in sites:
            base = backbone.module.get_submodule(backbone.path(site))
            if not isinstance(base, nn.Linear):
                raise UserError(f"site {site} is a {type(base).__name__}, already adapted or not linear")
            # Quantised weights are no parameters.
            weight = dict(base.named_parameters(recurse=False)).get("weight", base)
            if (first := weights.setdefault(id(weight), site)) != site:
                raise UserError(f"sites {first} and {site} share one weight, which has room for one update")
            self.bases[site] = base
        self._adapted: dict[Site, nn.Module] = {}
        self._registered: nn.Module | None = None
        self._unmerged: dict[Site, tuple[Tensor, nn.Parameter | None]] = {}
        self._guarded: list[nn.Module] = []
        self._detached = False
        self._required_grad = {p: p.requires_grad for p in backbone.module.parameters()}
        for parameter in self._required_grad:
            parameter.requires_grad_(False)
        self._train_head()

    def _train_head(self) -> None:
        """Lets the head train, except what was frozen before, unless that is all of it."""
        head = [*self.backbone.head.parameters()]
        for parameter in [p for p in head if self._required_grad[p]] or head:
            parameter.requires_grad_(True)

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trained parameters by name, head excluded.

        A parameter that several sites share appears once.
        """

    @abstractmethod
    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Returns the pair (down, up) of every site, shaped (r, in) and (out, r).

        The update is `up @ down`, scale included. Raises NotLowRank if the update has no such form.
        """

    def biases(self) -> dict[Site, Tensor]:
        """Returns the trained updates (out,) of the sites' biases, scale included. Empty for most methods."""
        return {}

    def frozen(self) -> dict[str, Tensor]:
        """Returns the adapter's frozen tensors by name, such as random cores. Empty for most methods."""
        return {}

    def kept(self) -> dict[str, Tensor]:
        """Returns the tensors that `state` holds in addition to the trained parameters.

        They are frozen tensors, or the seeds from which frozen tensors are recomputed.
        """
        return {}

    def remake(self) -> None:  # noqa: B027 - most have nothing to make
        """Recomputes the frozen tensors that a stored adapter does not hold, bit for bit.

        `load` calls this after it has restored the tensors in `kept`.
        """

    def delta(self, site: Site) -> Tensor:
        """Returns the update of the site's weight, shape (out, in), scale included."""
        down, up = self.factors()[site]
        return up @ down

    def deltas(self) -> Iterator[tuple[Site, Tensor]]:
        """Yields (site, delta) for every site.

        For low-rank updates, this is faster than `delta` for each site: the factors are computed only once.
        """
        for site, (down, up) in self.factors().items():
            yield site, up @ down

    def begin_training(self, steps: int) -> None:  # noqa: B027 - most plan nothing
        """Prepares for a training run of `steps` optimizer steps. Called once, before the first step.

        Raises UserError if the run is too short for the method.
        """

    def extra_loss(self) -> Tensor | None:
        """Returns the method's own term of the training loss. None for most methods.

        A training loop adds this term to its loss before the backward pass. Evaluations leave it out.
        """
        return None

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 - most do nothing
        """Called after every optimizer step, while the gradients still exist. `step` counts from 1.

        AdaLoRA prunes in this call.
        """

    @property
    def settled(self) -> bool:
        """Whether the adapter has its final size. Always true if training prunes no ranks.

        Training selects the best state only among states of the final size, because an earlier state may
        exceed the budget.
        """
        return True

    def final_ranks(self) -> dict[str, list[int]]:
        """Returns the present ranks by projection, one per layer. Empty if training prunes no ranks.

        `Method.count_left` counts the parameters for these ranks.
        """
        return {}

    @property
    def parameter_count(self) -> int:
        """The number of trained parameters, head excluded. Pruned parameters do not count."""
        return sum(parameter.numel() for parameter in self.named_parameters().values())

    def core(self) -> list[nn.Parameter]:
        """Returns the parameters that are cores of Tucker tensors.

        A recipe may give them their own learning rate. Empty for methods without such cores.
        """
        return []

    @property
    def frozen_count(self) -> int:
        """The number of entries in the adapter's own frozen tensors."""
        return sum(tensor.numel() for tensor in self.frozen().values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimizer's parameter groups, named `adapter` and `head`. Empty groups are left out."""
        groups: list[dict[str, Any]] = [
            {"name": "adapter", "params": list(self.named_parameters().values())},
            {"name": "head", "params": [p for p in self.backbone.head.parameters() if p.requires_grad]},
        ]
        return [group for group in groups if group["params"]]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Context for forwards without gradients, such as an evaluation.

        No parameter may change inside, because factors are contracted once for all forwards.
        """
        yield

    @contextmanager
    def part(self, start: int, stop: int, total: int) -> Iterator[None]:
        """Context for the forward of examples `start` to `stop` of a batch of `total` examples.

        A training loop uses it when one batch needs several forwards, which have to run in order. An adapter
        with its own dropout then drops the same entries as in one forward of the full batch.
        """
        yield

    @property
    def merged(self) -> bool:
        """Whether the update is in the backbone's weights now."""
        return bool(self._unmerged)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the update to the backbone's weights and takes the adapter's layers out of the forward.

        The original tensors are kept, so that `unmerge` restores them bit for bit. If weights have a lower
        precision than float32, the sum is rounded, and a `RoundedMerge` warning states the error. Autocast
        does not round it. Raises UserError for a detached adapter, and for quantised weights: rounding the
        sum would change outputs more than most updates do.
        """
        if self.merged:
            return
        if self._detached:
            raise UserError("a detached adapter cannot be merged: merge it before detach")
        forms = {base.quantisation for base in self.bases.values() if isinstance(base, QuantisedLinear)}
        if forms:
            raise UserError(
                f"an update cannot be merged into weights in {forms.pop()}, which are too coarse to hold "
                "it: keep the adapter beside them (export writes a checkpoint), or train on the backbone "
                "without `quantise`"
            )
        # Squared norms of the rounding errors and of the updates, over weights of low precision.
        error, update, rounded = 0.0, 0.0, torch.float32
        with _exact(self.bases.values()):
            biases = self.biases()
            for site, delta in self.deltas():
                base = self.bases[site]
                weight = base.weight.data
                self._unmerged[site] = (weight, base.bias)
                base.weight.data = merged = (weight + delta).to(weight.dtype)
                if torch.promote_types(weight.dtype, torch.float32) != weight.dtype:
                    rounded = weight.dtype
                    error += float((merged.float() - weight.float() - delta.float()).square().sum())
                    update += float(delta.float().square().sum())
                if site in biases:
                    moved = biases[site] if base.bias is None else base.bias + biases[site]
                    base.bias = nn.Parameter(moved.to(weight.dtype), False)
                self.backbone.module.set_submodule(self.backbone.path(site), base)
        self._unregister()
        if error:
            warnings.warn(
                f"merged into {rounded} weights, where rounding moves the update by "
                f"{100 * (error / update) ** 0.5:.3g}% of its norm; unmerged it is exact",
                RoundedMerge,
                stacklevel=3,
            )

    def unmerge(self) -> None:
        """Restores the weights from before `merge`, bit for bit. Does nothing if nothing is merged.

        If the model was moved or converted meanwhile, so are weights and adapter.
        """
        if not self.merged:
            return
        for site, (weight, bias) in self._unmerged.items():
            base, adapted = self.bases[site], self._adapted[site]
            now, base.weight.data = base.weight.data, weight
            base.register_parameter("bias", bias)
            # The module may have changed between train and eval while the adapted layer was not part of it.
            self.backbone.module.set_submodule(self.backbone.path(site), adapted.train(base.training))
            if (now.device, now.dtype) != (weight.device, weight.dtype):
                # Moving alone leaves an adapter in float32 on weights of lower precision.
                converted = [adapted] if self._registered is None else [adapted, self._registered]
                for module in converted:
                    module.to(now.device, now.dtype if now.dtype != weight.dtype else None)
        self._unmerged = {}
        if self._registered is not None:
            self.register(self._registered)

    def detach(self) -> None:
        """Removes the adapter: modules, weights and `requires_grad` are as they were before `attach`.

        Does nothing if the adapter is detached already.
        """
        if self._detached:
            return
        self.unmerge()
        for site in self._adapted:
            self.backbone.module.set_submodule(self.backbone.path(site), self.bases[site])
        self._adapted = {}
        self._unregister()
        self._registered = None
        for module in self._guarded:
            vars(module).pop("save_pretrained")
        self._guarded = []
        for parameter, required_grad in self._required_grad.items():
            parameter.requires_grad_(required_grad)
        self._detached = True
        vars(self.backbone.module).pop(MARK, None)

    def install(self, site: Site, module: nn.Module) -> None:
        """Puts `module` in place of the site's linear layer until `detach`."""
        self.backbone.module.set_submodule(self.backbone.path(site), module)
        self._adapted[site] = module

    def register(self, parameters: nn.Module) -> None:
        """Adds `parameters` to the backbone's module, as a submodule named `REGISTERED`.

        This is for trained parameters that the installed layers do not contain, such as factors that sites
        share. The backbone's `parameters()` and `state_dict()` then include them, and `to()` moves them.
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
        """Restores a state that `state` returned.

        Raises UserError, before any change, if names or shapes differ, or if integers and floating-point
        numbers are mixed up. Also raises UserError while the adapter is merged, since the backbone's weights
        would keep the old update.
        """
        if self.merged:
            raise UserError("a merged adapter cannot load a state: call unmerge first")
        own: dict[str, Tensor] = {**self.named_parameters(), **self.kept()}
        adapter_file.check_fit("adapter", state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.remake()

    def print_trainable_parameters(self) -> None:
        """Prints the number of trained parameters as peft does, then those of adapter and head separately."""
        head = sum(p.numel() for p in self.backbone.head.parameters() if p.requires_grad)
        trained = self.parameter_count + head
        seen = {id(p): p.numel() for p in self.backbone.module.parameters()}
        # A merged adapter is no part of the module, and packed weights are no parameters.
        seen |= {id(p): p.numel() for p in self.named_parameters().values()}
        packed = (m for m in self.backbone.module.modules() if isinstance(m, QuantisedLinear))
        every = sum(seen.values()) + sum(layer.in_features * layer.out_features for layer in packed)
        print(
            f"trainable params: {trained:,} || all params: {every:,} || "
            f"trainable%: {100 * trained / every:.4f} (adapter {self.parameter_count:,}, head {head:,})"
        )

    def save_adapter(self, folder: Path | str) -> None:
        """Saves adapter and head, without the backbone, to `adapter.safetensors` in a folder.

        The file also describes the backbone, and the method with its options and ranks. Raises UserError if
        the file cannot be written.
        """
        head = self.backbone.head.state_dict()
        tensors = {f"head.{name}": t.detach().to("cpu", copy=True).contiguous() for name, t in head.items()}
        tensors |= {f"adapter.{name}": tensor for name, tensor in self.state().items()}
        adapter_file.write(Path(folder), tensors, self._description())

    def load_adapter(self, folder: Path | str) -> None:
        """Loads adapter and head from a file that `save_adapter` wrote. Nothing is unpickled.

        The same method must be attached, with the same options and ranks. Raises UserError, before any
        change, for another method, backbone or head, for a file that is corrupt or not from `save_adapter`,
        and while the adapter is merged.
        """
        tensors = adapter_file.read(Path(folder), self._description())
        own = {name for name in tensors if name.startswith("adapter.")}
        head = {name.removeprefix("head."): tensors[name] for name in tensors.keys() - own}
        adapter_file.check_fit("head", head, self.backbone.head.state_dict())
        self.load({name.removeprefix("adapter."): tensors[name] for name in own})
        self.backbone.head.load_state_dict(head)

    def _description(self) -> dict[str, Any]:
        """Returns the properties in which a file and the adapter that loads it must agree."""
        # One layer's weights tell checkpoints apart. An adapter without layers takes the backbone's first.
        sites = self.bases or self.backbone.geometry.sites(self.backbone.projections)
        site, weights = next(iter(sites)), None
        base: Any = self.bases.get(site) or self.backbone.module.get_submodule(self.backbone.path(site))
        if not base.weight.requires_grad:
            weight, _ = self._unmerged.get(site, (base.weight, None))
            weights = adapter_file.fingerprint(weight)
        return {"backbone": str(self.backbone.geometry), "weights": weights, "method": self.method_stored}

    def guard(self, module: Any, why_not: str = "") -> None:
        """Makes `module.save_pretrained` write the merged model, until `detach`.

        Otherwise a saved model would have other names for the weights of adapted layers, and transformers
        would draw these weights at random on loading. `save_pretrained` raises UserError if the merged model
        would not compute the same as the adapted one, if `why_not` says why it cannot be saved, and if it is
        given a state that is not the model's present one.
        """
        module.save_pretrained = partial(self._save_pretrained, module, module.save_pretrained, why_not)
        self._guarded.append(module)

    def _save_pretrained(
        self, module: nn.Module, save: Callable[..., Any], why_not: str, *arguments: Any, **options: Any
    ) -> Any:
        if why_not:
            raise UserError(why_not)
        if self.merged:
            return save(*arguments, **options)
        # The state may be given by its position.
        named = inspect.signature(save).bind(*arguments, **options).arguments
        arguments, options = named.pop("args", ()), named.pop("kwargs", {}) | named
        seen = {p.data_ptr() for base in self.bases.values() for p in base.parameters()}
        own, given = module.state_dict(), options.get("state_dict") or {}
        if other := [name for name in own if name in given and not _same(own[name], given[name])]:
            raise UserError(
                f"save_pretrained writes the model's present weights, and the given state has others in "
                f"{first_few(other, 3)}: load it into the model first"
            )
        wrapped = {}
        for name, tensor in own.items():
            # Once each: safetensors refuses tensors that layers share.
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                wrapped[name] = tensor
        try:
            self.merge_exactly()
            if "state_dict" in options:
                # A checkpoint of transformers' Trainer, which resumes from the wrapped model's tensors under
                # the names that they have in memory. Other programs ignore them.
                options |= {"state_dict": wrapped | module.state_dict(), "save_original_format": False}
            return save(*arguments, **options)
        finally:
            self.unmerge()

    def merge_exactly(self) -> None:
        """Merges the update.

        Raises UserError if the merged model would not compute the same as the adapted model, for example
        because a weight of low precision is rounded. Call `unmerge` even then.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RoundedMerge)
                self.merge()
            if any(
                base is None and self.bases[s].bias is not None for s, (_, base) in self._unmerged.items()
            ):
                raise UserError("it trained biases of layers that have none")
        except (UserError, RoundedMerge) as error:
            raise UserError(
                "the wrapped model has no exact merged form, and would load with layers at random: "
                f"{error}. Call adapter.save_adapter(FOLDER), whose file load_adapter reads; transformers' "
                'Trainer then needs save_strategy="no"'
            ) from error


def _exact(layers: Iterable[nn.Linear]) -> AbstractContextManager[Any]:
    """A context without the autocast that would round products on the device of these layers."""
    devices = {tensor.device.type for layer in layers for tensor in layer.parameters()} or {"cpu"}
    return torch.autocast(devices.pop(), enabled=False)


def _same(first: Tensor, second: Tensor) -> bool:
    # The state that a Trainer gives shares its memory with the model.
    shared = first.data_ptr() == second.data_ptr() and first.shape == second.shape
    return shared or torch.equal(first.nan_to_num(), second.to(first).nan_to_num())


class AdaptedLayer(nn.Module):
    """The base class of modules that replace a linear layer. They keep the replaced layer as `base`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.training = base, base.training

    @property
    def weight(self) -> Tensor:
        """The frozen weight. T5 reads its dtype, to which it converts the layer's input."""
        return self.base.weight


def _remake(module: Any, keys: Any) -> None:
    module.remake()


class PartlyFrozen(nn.Module):
    """A module with trained parameters, and with frozen tensors of the adapter as buffers.

    A further buffer may hold a seed. A stored adapter has only the persistent buffers. From these, `remake`
    recomputes all other buffers. Buffers of submodules do not count as frozen tensors. For example,
    tensorly-torch keeps the weights of a CP tensor, all of them one, in such a buffer.
    """

    def remake(self) -> None:
        """Recomputes the buffers that are not persistent, bit for bit."""

    def frozen(self) -> dict[str, Tensor]:
        """Returns the frozen tensors by name, without seeds."""
        own = self.named_buffers(recurse=False)
        return {name: tensor for name, tensor in own if tensor.is_floating_point()}

    def kept(self) -> dict[str, Tensor]:
        """Returns the persistent buffers by name."""
        persistent = self.state_dict().keys()
        return {name: tensor for name, tensor in self.named_buffers(recurse=False) if name in persistent}

    def draw_seed(self, generator: torch.Generator) -> None:
        """Draws a seed and registers it as a persistent buffer. `seeded` and `draw` use this seed."""
        self.register_buffer("seed", torch.randint(2**62, (), generator=generator))
        # A state with another seed has other frozen tensors.
        self.register_load_state_dict_post_hook(_remake)

    def seeded(self) -> torch.Generator:
        """Returns a new CPU generator started from the seed, whatever the device of the module."""
        return torch.Generator().manual_seed(int(self.get_buffer("seed")))

    @torch.no_grad()
    def draw(self, fill: Callable[..., Any]) -> None:
        """Fills all frozen tensors with random numbers from the seed.

        `fill(tensor, generator=…)` fills one tensor, as the functions of `torch.nn.init` do.
        """
        generator = self.seeded()
        for tensor in self.frozen().values():
            drawn = torch.empty(tensor.shape)
            fill(drawn, generator=generator)
            tensor.copy_(drawn)

    def begin_at(self, start: Iterable[Tensor], *, persistent: bool) -> nn.ParameterList:
        """Registers the tensors in `start` as frozen buffers, and returns a trained copy of each buffer.

        `remake` is called before the buffers are copied, so it may fill them. `persistent` is passed to
        `register_buffer`.
        """
        for index, tensor in enumerate(start):
            self.register_buffer(f"start{index}", tensor, persistent=persistent)
        self.remake()
        return nn.ParameterList(tensor.clone() for tensor in self.frozen().values())
